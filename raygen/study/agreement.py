"""Agreement of raters on nominal choices, from counts: how often each item got each category."""

from raygen.core.types import Float64Array

__all__ = ["fleiss_kappa", "krippendorff_alpha"]


def fleiss_kappa(counts: Float64Array) -> float | None:
    """Fleiss' kappa of counts [items, categories]; 1 is full agreement, 0 that of chance.

    None where items have different numbers of ratings or fewer than two, or all ratings are equal. Source: Fleiss 1971.
    """
    ratings = counts.sum(axis=1)
    if not len(counts) or ratings[0] < 2 or (ratings != ratings[0]).any():
        return None
    n = ratings[0]
    observed = float((((counts**2).sum(axis=1) - n) / (n * (n - 1))).mean())
    expected = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(counts: Float64Array) -> float | None:
    """Krippendorff's alpha for nominal data from counts [items, categories]; items with one rating are left out.

    None where no item has two ratings, or all ratings are equal. Source: Krippendorff 2011, section C.
    """
    pairable = counts[counts.sum(axis=1) >= 2]
    if not len(pairable):
        return None
    ratings = pairable.sum(axis=1, keepdims=True)
    n = float(ratings.sum())
    disagreement = float(((pairable * (ratings - pairable)).sum(axis=1) / (ratings[:, 0] - 1)).sum()) / n
    values = pairable.sum(axis=0)
    expected = float((values * (n - values)).sum()) / (n * (n - 1))
    return None if expected == 0 else 1 - disagreement / expected
