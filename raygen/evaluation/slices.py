"""Slices of a scored set by attribute, by class in the mask and by identity, and the metrics of each slice."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from raygen.core.face_labels import ATTRIBUTES, CLASSES
from raygen.evaluation.config import IDENTITY
from raygen.evaluation.feature_metrics import Grouping
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.metrics.attributes import UNWANTED, WANTED
from raygen.metrics.segmentation import Counts
from raygen.store.run_store import RunStore
from raygen.store.vector_file import select_rows

__all__ = ["by_slices", "column", "grouping_of", "select_ids", "slice_rows"]


def slice_rows(
    names: Sequence[str], scores: Mapping[str, ScoreMatrix], identities: Mapping[str, str]
) -> Iterator[tuple[str, frozenset[str]]]:
    """Name of each slice and the ids of its rows: `Male: yes`, `Male: no`, `hat: there`, `identity: p0003`.

    Slices depend on the conditions alone: attributes are those that were asked for, classes those of the wanted mask.
    Rows without that information are in no slice; empty slices are left out.
    """
    for name in names:
        slices: dict[str, list[str]] = {}
        if name == IDENTITY:
            for identity in sorted(set(identities.values())):
                slices[identity] = [row_id for row_id, owner in identities.items() if owner == identity]
        elif name in CLASSES:
            if (counts := _first(scores, "segmentation:")) is not None:
                present = Counts.from_vectors(counts.vectors).wanted[:, CLASSES.index(name)] > 0
                slices = {"there": _ids_where(counts, present), "not there": _ids_where(counts, ~present)}
        elif (attributes := _first(scores, "attributes:")) is not None:
            codes = attributes.vectors[:, ATTRIBUTES.index(name)]
            slices = {
                "yes": _ids_where(attributes, np.isin(codes, WANTED)),
                "no": _ids_where(attributes, np.isin(codes, UNWANTED)),
            }
        yield from ((f"{name}: {label}", frozenset(ids)) for label, ids in slices.items() if ids)


def _first(scores: Mapping[str, ScoreMatrix], prefix: str) -> ScoreMatrix | None:
    return next((matrix for name, matrix in scores.items() if name.startswith(prefix)), None)


def _ids_where(matrix: ScoreMatrix, condition: Iterable[bool]) -> list[str]:
    return [row_id for row_id, chosen in zip(matrix.ids, condition, strict=True) if chosen]


def select_ids(scores: Mapping[str, ScoreMatrix], ids: frozenset[str]) -> dict[str, ScoreMatrix]:
    """The rows with `ids` of each measurement; measurements without such rows are left out."""
    result = {}
    for name, matrix in scores.items():
        keep = [i for i, row_id in enumerate(matrix.ids) if row_id in ids]
        if keep:
            result[name] = ScoreMatrix(tuple(matrix.ids[i] for i in keep), select_rows(matrix.vectors, np.array(keep)))
    return result


def by_slices(
    names: Sequence[str],
    sets: Mapping[str, Mapping[str, ScoreMatrix]],
    identities: Mapping[str, str],
    finish: Callable[[Mapping[str, Mapping[str, ScoreMatrix]]], pa.Table],
) -> Iterator[pa.Table]:
    """METRICS of each slice of the samples, compared with the same slice of the reference where there is one."""
    real, made = sets.get("reference", {}), sets.get("all", {})
    reference_slices = dict(slice_rows(names, real, {}))
    for label, ids in slice_rows(names, made, identities):
        parts = {label: select_ids(made, ids)}
        if label in reference_slices:
            parts["reference"] = select_ids(real, reference_slices[label])
        table = finish(parts)
        yield table.filter(pa.array([name.partition("/")[0] == label for name in table["slice"].to_pylist()]))


def column(store: RunStore, table: str, key: str, name: str) -> dict[str, str]:
    """The values of a column of a table of a run, by its key; rows without a value are left out."""
    values: dict[str, str] = {}
    for part in store.tables(table, [key, name]):
        rows = zip(part[key].to_pylist(), part[name].to_pylist(), strict=True)
        values |= {row_id: value for row_id, value in rows if value is not None}
    return values


def grouping_of(samples: RunStore) -> Grouping:
    """The groups and identities of the rows of a generate run."""
    return Grouping(*(column(samples, "samples", "sample_id", name) for name in ("group_id", "identity_id")))
