"""Scores the alphas of an edit by fidelity and similarity, and selects the best one."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from raygen.core.face_labels import ATTRIBUTES
from raygen.core.types import Float64Array, UInt8Array
from raygen.extractors.base import Classifier, Parser, load_classifier, load_parser
from raygen.extractors.lpips import load_lpips
from raygen.metrics.pair_similarity import Similarity
from raygen.sampling.config import EditJudgeConfig

__all__ = ["EditJudge", "best_alpha"]


#: Fidelity below this is measured on a picture that has not changed.
LEAST: Final = 0.05


class EditJudge:
    """Measures the similarity of edited pictures to their input, and their fidelity to the target."""

    def __init__(self, config: EditJudgeConfig, device: torch.device) -> None:
        self.parser: Parser | None = None if config.parser is None else load_parser(config.parser, device)
        self.classifier: Classifier | None = (
            None if config.classifier is None else load_classifier(config.classifier, device)
        )
        self.ssim_or_lpips = Similarity(load_lpips(config.lpips) if config.lpips else None, device)

    @property
    def name(self) -> str:
        """Of the similarity."""
        return self.ssim_or_lpips.name

    def similarity(self, images: UInt8Array, source: UInt8Array) -> Float64Array:
        """uint8 [n, H, W, 3] and [H, W, 3] -> SSIM to the input [n], or 1 - LPIPS; 1 is the input itself."""
        return self.ssim_or_lpips(images, np.repeat(source[None], len(images), axis=0))

    def fidelity(
        self,
        images: UInt8Array,
        source: UInt8Array,
        *,
        mask: UInt8Array | None,
        own_mask: UInt8Array | None,
        attributes: Sequence[int] | None,
        own_attributes: Sequence[int] | None = None,
    ) -> Float64Array | None:
        """The part of the requested change that was made, [n] in 0..1; None where no network can measure it.

        Masks: of the pixels to change (where the target differs from the input's mask, or from the parser's labels of
        the input) the share that the parser gives the target's class. Attributes (those of the target that differ from
        the input's own): the mean probability of the target value. Both: their mean.
        """
        parts = []
        if self.parser is not None and mask is not None:
            before = own_mask
            if before is None:
                before = self.parser.parse(torch.from_numpy(source[None].copy())).numpy()[0]
            changed = before != mask
            if changed.any():
                labels = self.parser.parse(torch.from_numpy(images)).numpy()
                parts.append(np.asarray((labels == mask)[:, changed].mean(axis=1), dtype=np.float64))
        target = np.zeros(len(ATTRIBUTES)) if attributes is None else np.asarray(attributes)
        if own_attributes is not None:
            target = np.where(target == np.asarray(own_attributes), 0, target)
        if self.classifier is not None and target.any():
            yes = self.classifier.probabilities(torch.from_numpy(images)).numpy().astype(np.float64)
            parts.append(np.asarray(np.where(target > 0, yes, 1 - yes)[:, target != 0].mean(axis=1)))
        return np.mean(parts, axis=0) if parts else None


def best_alpha(fidelity: Float64Array | None, similarity: Float64Array, alphas: Sequence[float]) -> int:
    """The index of the alpha with the highest harmonic mean of fidelity and similarity; of equal ones the smallest.

    With a harmonic mean neither makes up for the other: an unchanged copy scores 0, and so does an unrelated picture. A
    fidelity below `LEAST` is taken as 0, so the smallest alpha is selected where none changed anything. Without a
    fidelity it is the alpha nearest to 1, the target itself.
    """
    if fidelity is None:
        return int(np.argmin(np.abs(np.asarray(alphas) - 1)))
    f, s = np.where(fidelity < LEAST, 0.0, fidelity.clip(0, 1)), similarity.clip(0, 1)
    mean = 2 * f * s / np.maximum(f + s, 1e-12)
    return min(range(len(alphas)), key=lambda i: (-round(float(mean[i]), 9), alphas[i]))
