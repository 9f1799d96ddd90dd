"""Scores the alphas of an edit by fidelity and similarity, and selects the best one."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from raygen.core.config import Config
from raygen.core.face_labels import ATTRIBUTES
from raygen.extractors.base import (
    BundledNetworkConfig,
    Classifier,
    Parser,
    ParserConfig,
    load_classifier,
    load_parser,
    network_digest,
)
from raygen.extractors.lpips import LPIPSConfig, load_lpips
from raygen.metrics.image_similarity import Similarity
from raygen.store.images import decode_mask

__all__ = ["EditJudge", "EditJudgeConfig", "best_alpha"]


UInt8Array = npt.NDArray[np.uint8]
#: Fidelity below this is what judges see in a picture that has not changed.
LEAST: Final = 0.05
Array = npt.NDArray[np.float64]


class EditJudgeConfig(Config):
    """What says how far an edit has come, and how much of the input is left."""

    parser: ParserConfig | None = Field(default_factory=BundledNetworkConfig, description="of target masks")
    classifier: BundledNetworkConfig | None = Field(
        default_factory=BundledNetworkConfig, description="of target attributes"
    )
    lpips: LPIPSConfig | None = Field(None, description="similarity is 1 - LPIPS instead of SSIM")


# --- judging ------------------------------------------------------------------------------------------------


class EditJudge:
    """How far pictures are from their input and from what was wanted."""

    def __init__(self, config: EditJudgeConfig, device: torch.device) -> None:
        self.parser: Parser | None = None if config.parser is None else load_parser(config.parser, device)
        self.classifier: Classifier | None = (
            None if config.classifier is None else load_classifier(config.classifier, device)
        )
        self.likeness = Similarity(load_lpips(config.lpips) if config.lpips else None, device)

    @property
    def name(self) -> str:
        """Of the measure of similarity."""
        return self.likeness.name

    @staticmethod
    def digests(config: EditJudgeConfig) -> dict[str, str]:
        """Who judges: the sha256 of every network of a config, by what it is for."""
        parts = {"parser": config.parser, "classifier": config.classifier, "lpips": config.lpips}
        return {name: network_digest(part, name) for name, part in parts.items() if part is not None}

    def similarity(self, images: UInt8Array, source: UInt8Array) -> Array:
        """uint8 [n, H, W, 3] and [H, W, 3] -> SSIM to the input [n], or 1 - LPIPS; 1 is the input itself."""
        return self.likeness(images, np.repeat(source[None], len(images), axis=0))

    def fidelity(
        self,
        images: UInt8Array,
        source: UInt8Array,
        *,
        mask: UInt8Array | None,
        own_mask: UInt8Array | None,
        attributes: Sequence[int] | None,
        own_attributes: Sequence[int] | None = None,
    ) -> Array | None:
        """How much of what was to change has changed, [n] in 0..1; None where nobody can say.

        Masks: the share of the pixels to change (where the target differs from the input's mask, or from what the
        parser sees in it) that the parser gives the target's class. Attributes (those that are asked for and not the
        input's own): the mean probability of the value that was asked for. Both: their mean.
        """
        found = [
            part
            for part in (
                self._of_mask(images, source, mask, own_mask),
                self._of_attributes(images, attributes, own_attributes),
            )
            if part is not None
        ]
        return np.mean(found, axis=0) if found else None

    def _of_mask(
        self, images: UInt8Array, source: UInt8Array, mask: UInt8Array | None, own: UInt8Array | None
    ) -> Array | None:
        if self.parser is None or mask is None:
            return None
        before = self.parser.parse(torch.from_numpy(source[None].copy())).numpy()[0] if own is None else own
        changed = before != mask
        if not changed.any():
            return None
        labels = self.parser.parse(torch.from_numpy(images)).numpy()
        return np.asarray((labels == mask)[:, changed].mean(axis=1), dtype=np.float64)

    def _of_attributes(
        self, images: UInt8Array, attributes: Sequence[int] | None, own: Sequence[int] | None
    ) -> Array | None:
        wanted = np.zeros(len(ATTRIBUTES)) if attributes is None else np.asarray(attributes)
        wanted = wanted if own is None else np.where(wanted == np.asarray(own), 0, wanted)
        if self.classifier is None or not wanted.any():
            return None
        yes = self.classifier.probabilities(torch.from_numpy(images)).numpy().astype(np.float64)
        return np.asarray(np.where(wanted > 0, yes, 1 - yes)[:, wanted != 0].mean(axis=1))


def best_alpha(fidelity: Array | None, similarity: Array, alphas: Sequence[float]) -> int:
    """The place of the alpha to take: the harmonic mean of fidelity and similarity is highest; then the smallest.

    Neither can make up for the other: a perfect copy that changed nothing scores 0, and so does another picture. Less
    than `LEAST` of the change counts as none, so where no alpha reached anything the smallest is taken. Without anybody
    who can judge the change it is the alpha nearest to 1, the target itself.
    """
    if fidelity is None:
        return int(np.argmin(np.abs(np.asarray(alphas) - 1)))
    f, s = np.where(fidelity < LEAST, 0.0, fidelity.clip(0, 1)), similarity.clip(0, 1)
    mean = 2 * f * s / np.maximum(f + s, 1e-12)
    return min(range(len(alphas)), key=lambda i: (-round(float(mean[i]), 9), alphas[i]))


def _mask(value: Mapping[str, Any] | None, size: int) -> UInt8Array | None:
    """A stored mask at the size of the pictures, nearest neighbour."""
    if value is None or value.get("bytes") is None:
        return None
    mask = decode_mask(value["bytes"])
    y, x = (((np.arange(size) + 0.5) * side / size).astype(int) for side in mask.shape)
    fitted: UInt8Array = mask[np.ix_(y, x)]
    return fitted
