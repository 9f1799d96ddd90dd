"""Precision, recall, density and coverage: the overlap of two feature sets, by balls around their rows.

The radius of a row's ball is the distance to its k-th nearest neighbour in its own set. Precision: share of generated
rows in a real ball; recall: share of real rows in a generated ball; density: number of real balls around a generated
row over k (may exceed 1); coverage: share of real balls that contain a generated row. All four depend on k, on the
numbers of rows and on the features, so numbers at other settings are not comparable.

Sources: Kynkäänniemi et al. 2019, equation 1 (k = 3, <=); Naeem et al. 2020, equations 5 and 6, and its package prdc
(k = 5 in its examples, <). In both a row is not its own neighbour, but a copy of it is.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raygen.core.types import AnyArray, Float64Array
from raygen.metrics.neighbors import BLOCK, blocks, nearest

__all__ = ["PRDC", "Degenerate", "prdc", "precision_recall"]


class Degenerate(ValueError):
    """All balls of a set have radius 0, for example because all features are equal."""


@dataclass(frozen=True)
class PRDC:
    """The four numbers with their settings: k, `strict` (< instead of <=), and the rows of both sets."""

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    strict: bool
    n_real: int
    n_generated: int


def prdc(
    real: AnyArray,
    generated: AnyArray,
    *,
    k: int = 5,
    strict: bool = True,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PRDC:
    """All four numbers of features [n, D] and [m, D], with the defaults of prdc; `dtype` is that of the products.

    Exact: pairs that rounding could decide are computed again in float64. `ValueError` where a set has k rows or
    fewer; `Degenerate` where all balls of a set have radius 0.
    """
    how: dict[str, Any] = {"block": block, "device": device, "dtype": dtype}
    radius_real, radius_generated = _radii(real, "real", k, how), _radii(generated, "generated", k, how)
    covered = 0
    around = np.zeros(len(generated), np.int64)
    recalled = 0
    for part in blocks(real, generated, **how):
        inside = part.within(radius_real[part.rows, None], strict=strict)
        covered += int(inside.any(dim=1).sum())
        around += inside.sum(dim=0).cpu().numpy()
        recalled += int(part.within(radius_generated[None], strict=strict).any(dim=1).sum())
        del part, inside
    n, m = len(real), len(generated)
    return PRDC(float((around > 0).mean()), recalled / n, float(around.sum() / (k * m)), covered / n, k, strict, n, m)


def precision_recall(
    real: AnyArray,
    generated: AnyArray,
    *,
    k: int = 3,
    strict: bool = False,
    block: int = BLOCK,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[float, float]:
    """Improved precision and recall with the defaults of Kynkäänniemi et al.; otherwise as `prdc`."""
    result = prdc(real, generated, k=k, strict=strict, block=block, device=device, dtype=dtype)
    return result.precision, result.recall


def _radii(x: AnyArray, name: str, k: int, how: dict[str, Any]) -> Float64Array:
    if k < 1 or len(x) <= k:
        raise ValueError(f"{k} neighbours in the {name} set of {len(x)} rows")
    radius = nearest(x, x, k, exclude_self=True, **how)[0][:, -1]
    if not radius.any():
        raise Degenerate(f"every row of the {name} set has {k} copies: its balls are points")
    return radius
