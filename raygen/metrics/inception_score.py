"""Inception score: how sure a classifier of ImageNet is of each picture, and how different its answers are.

For completeness only. It means little for faces: none of the classes is a face, and a set of one face a class of
background would score best. Knows logits. Knows no network and no reference pictures.

Source: Salimans et al. 2016, section 4; splits and shuffling as in torch-fidelity 0.4.
"""

from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from raygen.metrics.neighbors import checked

__all__ = ["SEED", "inception_score"]


#: The shuffle that published scores of torch-fidelity have.
SEED: Final = 2020


def inception_score(logits: npt.NDArray[Any], *, splits: int = 10, seed: int | None = SEED) -> tuple[float, float]:
    """Logits [n, classes] -> mean and standard deviation (divisor `splits`) of the score over `splits` parts.

    A score is 1 .. classes, higher is called better. The published network gives 1,008 logits, taken without its
    bias. `seed` shuffles the rows first; None leaves them in their order. `ValueError` for fewer rows than parts.
    """
    x = checked(logits, "logits").astype(np.float64)
    n = len(x)
    if not 1 <= splits <= n:
        raise ValueError(f"{splits} parts of {n} rows")
    if seed is not None:
        x = x[np.random.RandomState(seed).permutation(n)]  # the old generator: torch-fidelity has it
    log_p = log_softmax(x, axis=1)
    bounds = [i * n // splits for i in range(splits + 1)]
    scores = np.array([_score(log_p[a:b]) for a, b in pairwise(bounds)])
    return float(scores.mean()), float(scores.std())


def _score(log_p: npt.NDArray[np.float64]) -> float:
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    # A class that no picture has adds nothing, and its logarithm would be minus infinity.
    log_mean = np.log(mean, out=np.zeros_like(mean), where=mean > 0)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_mean), 0.0)
    return float(np.exp(terms.sum(axis=1).mean()))
