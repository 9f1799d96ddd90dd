"""SCORES of one set -> the vectors of each measurement, in the order of their ids."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygen.core.errors import InputError
from raygen.core.types import Float32Array
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.store.vector_file import IN_MEMORY, VectorFile

__all__ = ["EDIT", "FACE", "FEATURES", "gather_scores"]


#: Prefix of the names of features.
FEATURES: Final = "features:"
#: Suffix of the names of features of the face alone.
FACE: Final = "@face"
#: Measurements that metrics read in blocks of rows.
IN_BLOCKS: Final = (FEATURES, "logits:")
#: The measurement that may hold NaN: an edit has no fidelity where its judge cannot tell.
EDIT: Final = "edit"


def gather_scores(tables: Iterable[pa.Table]) -> dict[str, ScoreMatrix]:
    """SCORES of one set -> vectors by measurement.

    `InputError` where a row occurs twice (`duplicate`), widths differ (`width`), or a value is not finite
    (`nonfinite`).
    """
    gathered: dict[str, _Gathered] = {}
    for table in tables:
        for name in table["metric"].unique().to_pylist():
            rows = table.filter(pc.equal(table["metric"], name)).combine_chunks()
            vectors = rows["vector"].combine_chunks()
            values = vectors.flatten().to_numpy().reshape(rows.num_rows, -1)
            gathered.setdefault(name, _Gathered(name, values.shape[1])).add(rows["sample_id"].to_pylist(), values)
    return {name: gathered.pop(name).by_id() for name in list(gathered)}


class _Gathered:
    """The vectors of one measurement in the order of arrival; features beyond `IN_MEMORY` bytes are in a file."""

    def __init__(self, name: str, width: int) -> None:
        self.name, self.width = name, width
        self.ids: list[str] = []
        self.bad: list[str] = []
        self.parts: list[Float32Array] = []
        self.file: VectorFile | None = None

    def add(self, ids: Sequence[str], values: Float32Array) -> None:
        if values.shape[1] != self.width:
            text = f"{self.name}: vectors of {values.shape[1]} and of {self.width} values"
            raise InputError(text, reason="width")
        self.bad += [ids[i] for i in np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()]
        self.ids += ids
        self.parts.append(values)
        if self.name.startswith(IN_BLOCKS) and (self.file or sum(part.nbytes for part in self.parts) > IN_MEMORY):
            self.file = self.file or VectorFile(self.width)
            while self.parts:
                self.file.append(self.parts.pop(0))

    def by_id(self) -> ScoreMatrix:
        """The vectors by sorted id. Empties `parts`, so that the vectors are in memory once."""
        order = sorted(range(len(self.ids)), key=self.ids.__getitem__)
        ids = tuple(self.ids[i] for i in order)
        if any(one == other for one, other in pairwise(ids)):
            raise InputError(f"{self.name}: a row is scored twice", reason="duplicate")
        if self.bad and self.name.partition(":")[0] != EDIT:
            first = min(self.bad)
            raise InputError(f"{self.name}: not finite for {len(self.bad)} rows, first {first}", reason="nonfinite")
        if self.file is not None:
            return ScoreMatrix(ids, self.file.select(np.array(order)))
        vectors = np.empty((len(ids), self.width), np.float32)
        place, start = np.empty(len(order), np.int64), 0
        place[order] = np.arange(len(order))
        while self.parts:
            values = self.parts.pop(0)
            vectors[place[start : start + len(values)]] = values
            start += len(values)
        return ScoreMatrix(ids, vectors)
