"""Confidence interval of a share."""

import math

__all__ = ["wilson"]


#: Quantile of the normal distribution for 95 %.
Z95 = 1.959963984540054


def wilson(hits: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Interval of the share `hits` / `n`, by default of 95 %; 0 to 1 where `n` is 0.

    Source: Wilson 1927, the score interval without continuity correction.
    """
    if n <= 0:
        return 0.0, 1.0
    share, scale = hits / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
