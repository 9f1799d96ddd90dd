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


def score_table(scores: Iterable[tuple[str, str, Sequence[float]]], run_id: str, attempt: int = 0) -> pa.Table:
    """SCORES of (id, measurement, vector), such as `("a", "segmentation:raygen-parser", [57 counts])`."""
    rows = [
        {
            "sample_id": row_id,
            "attempt": attempt,
            "metric": metric,
            "run_id": run_id,
            "value": _value(metric.partition(":")[0], vector),
            "names": value_names(metric, len(vector)),
            "vector": vector,
        }
        for row_id, metric, vector in scores
    ]
    return pa.Table.from_pylist(rows, SCORES)


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


def _value(kind: str, vector: Sequence[float]) -> float | None:
    """A vector as one number.

    `segmentation`: mIoU of the picture. `condition`: share of correct pixels. `attributes`: share of those asked for
    that are right. `diversity`: mean distance. `influence`: mean over steps. A vector of one value: that value. None
    for others, and where nothing was asked for.
    """
    values = np.asarray(vector, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        match kind:
            case "segmentation":
                value = per_picture_miou(Counts.from_vectors(values[None]))[0]
            case "condition":
                counts = Counts.from_vectors(values[None]).total()
                value = counts.both.sum() / counts.wanted.sum()
            case "attributes":
                value = np.isin(values, RIGHT).sum() / (values != UNKNOWN).sum()
            case "diversity":
                value = values[0] / values[1]
            case "influence":
                value = values[: len(values) // 2].mean()
            case _:
                value = values[0] if len(values) == 1 else np.nan
    return float(value) if np.isfinite(value) else None
