"""SCORES rows of measurements: vectors, the names of their values, and each row as one number where it is one."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final

import numpy as np
import pyarrow as pa

from raygen.core.face_labels import ATTRIBUTES, CLASSES
from raygen.metrics.attributes import RIGHT, UNKNOWN
from raygen.metrics.segmentation import Counts, per_picture_miou
from raygen.store.schemas import SCORES

__all__ = ["score_table", "value_names"]


#: Names of the values of measurements of which each has its own; by the kind of the measurement.
NAMES: Final = {
    "attributes": ATTRIBUTES,
    "edit": ("alpha", "fidelity", "similarity", "chosen"),
    "change": ("sum inside", "values inside", "sum outside", "values outside"),
    "diversity": ("sum of distances", "pairs"),
}
#: Kinds whose vectors are counts of pixels by class.
COUNTED: Final = ("segmentation", "condition")
#: Kinds whose vectors of several values are also one number.
VALUED: Final = (*COUNTED, "attributes", "diversity", "influence")


def score_table(scores: Iterable[tuple[str, str, Sequence[float]]], run_id: str, attempt: int = 0) -> pa.Table:
    """SCORES of (id, measurement, vector), such as `("a", "segmentation:raygen-parser", [57 counts])`."""
    rows = list(scores)
    places: dict[str, list[int]] = {}
    for place, (_, metric, _) in enumerate(rows):
        places.setdefault(metric, []).append(place)
    values: list[float | None] = [None] * len(rows)
    for metric, own in places.items():
        for place, value in zip(own, _values(metric, [rows[place][2] for place in own]), strict=True):
            values[place] = value
    columns = {
        "sample_id": [row_id for row_id, _, _ in rows],
        "attempt": [attempt] * len(rows),
        "metric": [metric for _, metric, _ in rows],
        "run_id": [run_id] * len(rows),
        "value": values,
        "names": [value_names(metric, len(vector)) for _, metric, vector in rows],
        "vector": [vector for _, _, vector in rows],
    }
    return pa.table({f.name: pa.array(columns[f.name], f.type) for f in SCORES}, schema=SCORES)


@cache
def value_names(metric: str, width: int) -> tuple[str, ...] | None:
    """Names of the values of a vector of `width` values; None for one value, features, logits and seconds.

    Counts of pixels are `skin/both`, `skin/wanted`, `skin/predicted`: in both label maps, in the mask, in the parser's.
    Influence of an expert is `mean/step 1`, `spread/step 1`.
    """
    kind = metric.partition(":")[0]
    if kind in COUNTED:
        return tuple(f"{name}/{part}" for part in ("both", "wanted", "predicted") for name in CLASSES)
    if kind == "influence":
        return tuple(f"{part}/step {i + 1}" for part in ("mean", "spread") for i in range(width // 2))
    return NAMES.get(kind)


def _values(metric: str, vectors: Sequence[Sequence[float]]) -> list[float | None]:
    """Each vector of a measurement as one number.

    `segmentation`: mIoU of the picture. `condition`: share of correct pixels. `attributes`: share of those asked for
    that are right. `diversity`: mean distance. `influence`: mean over steps. Vectors of one value: that value. None
    for others, and where nothing was asked for.
    """
    kind = metric.partition(":")[0]
    if kind not in VALUED and len(vectors[0]) != 1:
        return [None] * len(vectors)
    table = np.asarray(vectors, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        match kind:
            case "segmentation":
                values = per_picture_miou(Counts.from_vectors(table))
            case "condition":
                counts = Counts.from_vectors(table)
                values = counts.both.sum(axis=1) / counts.wanted.sum(axis=1)
            case "attributes":
                values = np.isin(table, RIGHT).sum(axis=1) / (table != UNKNOWN).sum(axis=1)
            case "diversity":
                values = table[:, 0] / table[:, 1]
            case "influence":
                values = table[:, : table.shape[1] // 2].mean(axis=1)
            case _:
                values = table[:, 0]
    return [float(value) if np.isfinite(value) else None for value in values]
