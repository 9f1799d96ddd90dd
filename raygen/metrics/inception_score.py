"""Inception score: confidence of an ImageNet classifier in each picture, and variety of its classes.

For completeness only. It means little for faces: no class is a face, and one face for each class of background would
score best.

Source: Salimans et al. 2016, section 4; splits and shuffling as in torch-fidelity 0.4.
"""

from itertools import pairwise
from typing import Final

import numpy as np
from scipy.special import log_softmax

from raygen.core.types import AnyArray
from raygen.metrics.neighbors import checked

__all__ = ["SEED", "inception_score"]


#: Seed of the shuffle in torch-fidelity.
SEED: Final = 2020


def inception_score(logits: AnyArray, *, splits: int = 10, seed: int | None = SEED) -> tuple[float, float]:
    """Logits [n, classes] -> mean and standard deviation (divisor `splits`) of the score over `splits` parts.

    A score lies in 1 .. classes; higher is better. The published network gives 1,008 logits, taken without its bias.
    `seed` shuffles the rows first; None keeps their order. `ValueError` for fewer rows than parts.
    """
    x = checked(logits, "logits").astype(np.float64)
    n = len(x)
    if not 1 <= splits <= n:
        raise ValueError(f"{splits} parts of {n} rows")
    if seed is not None:
        x = x[np.random.RandomState(seed).permutation(n)]  # torch-fidelity uses this generator
    log_p = log_softmax(x, axis=1)
    bounds = [i * n // splits for i in range(splits + 1)]
    scores = []
    for start, end in pairwise(bounds):
        log_part = log_p[start:end]
        p = np.exp(log_part)
        mean = p.mean(axis=0)
        # A class without pictures adds nothing, and its logarithm would be minus infinity.
        log_mean = np.log(mean, out=np.zeros_like(mean), where=mean > 0)
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (log_part - log_mean), 0.0)
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
