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
#: Rows that are turned to float64 at a time.
ROWS: Final = 4096


def inception_score(logits: AnyArray, *, splits: int = 10, seed: int | None = SEED) -> tuple[float, float]:
    """Logits [n, classes] -> mean and standard deviation (divisor `splits`) of the score over `splits` parts.

    A score lies in 1 .. classes; higher is better. The published network gives 1,008 logits, taken without its bias.
    `seed` shuffles the rows first; None keeps their order. `ValueError` for fewer rows than parts.
    """
    x = checked(logits, "logits")
    n = len(x)
    if not 1 <= splits <= n:
        raise ValueError(f"{splits} parts of {n} rows")
    # torch-fidelity shuffles with this generator.
    order = np.arange(n) if seed is None else np.random.RandomState(seed).permutation(n)
    bounds = [i * n // splits for i in range(splits + 1)]
    scores = []
    for start, end in pairwise(bounds):
        total, negative_entropy = np.zeros(x.shape[1]), 0.0
        for first in range(start, end, ROWS):
            log_p = log_softmax(x[order[first : min(first + ROWS, end)]].astype(np.float64), axis=1)
            p = np.exp(log_p)
            total += p.sum(axis=0)
            # A class of which a row is certain that it is not adds nothing, and its logarithm may be minus infinity.
            negative_entropy += float(np.multiply(p, log_p, out=np.zeros_like(p), where=p > 0).sum())
        mean = total / (end - start)
        log_mean = np.log(mean, out=np.zeros_like(mean), where=mean > 0)
        scores.append(np.exp((negative_entropy - float(total @ log_mean)) / (end - start)))
    return float(np.mean(scores)), float(np.std(scores))
