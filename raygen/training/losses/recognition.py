"""Losses of the bundled networks: the face parser, the attribute classifier and the face embedder."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.core.pixels import to_pixels
from raygen.extractors.bundled import BundledClassifier, BundledEmbedder, BundledParser, augment
from raygen.training.config.losses import IdentityLoss
from raygen.training.losses.base import Batch, Losses, Objective

__all__ = ["ClassifierObjective", "EmbedderObjective", "ParserObjective"]


class ParserObjective(Objective):
    """Cross-entropy in which rare classes weigh more, and soft Dice over the classes of a batch.

    Pictures are augmented from the batch's `noise`, so a step's loss depends on the batch alone. Where it is cut, the
    sums of Dice take a second forward pass.
    """

    latent_shape = (8, 1, 1)

    def __init__(self, parser: BundledParser) -> None:
        super().__init__()
        self.module = self.parser = parser

    @torch.no_grad()
    def totals(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.totals`: pixels, overlap and area by class."""
        return self._sums(self._logits(batch), batch["mask"].long())

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.forward`; `accuracy` is that of pixels."""
        target = batch["mask"].long()  # [B, H, W]
        logits = self._logits(batch)
        count, overlap, area = (self.whole(batch, n, v) for n, v in self._sums(logits, target).items())
        weight = ((count + 1) / count.sum()).rsqrt() * (count > 0)
        summed = F.cross_entropy(logits, target, weight=weight, reduction="sum")
        cross = self.cuts * summed / (weight * count).sum()
        dice = 1 - 2 * overlap / (area + 1e-6)
        present = (count > 0).float()
        dice_loss = (dice * present).sum() / present.sum()
        accuracy = (logits.argmax(dim=1) == target).float().mean()
        return {"loss": cross + dice_loss, "dice": dice_loss.detach(), "accuracy": accuracy}

    def _logits(self, batch: Batch) -> Tensor:
        uniform = 0.5 * (1 + torch.erf(batch["noise"].flatten(1) / 2**0.5))
        logits: Tensor = self.parser(augment(to_pixels(batch["images"]), uniform))  # [B, 19, H, W]
        return logits

    @staticmethod
    def _sums(logits: Tensor, target: Tensor) -> Losses:
        """Each float32 [19]."""
        probability = logits.softmax(dim=1)
        expected = F.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
        return {
            "count": torch.bincount(target.flatten(), minlength=logits.shape[1]).float(),
            "overlap": (probability * expected).sum(dim=(0, 2, 3)),
            "area": (probability + expected).sum(dim=(0, 2, 3)),
        }


class ClassifierObjective(Objective):
    """Binary cross-entropy over the attributes that are known, on augmented pictures."""

    latent_shape = (8, 1, 1)

    def __init__(self, classifier: BundledClassifier) -> None:
        super().__init__()
        self.module = self.classifier = classifier

    def totals(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.totals`: the attributes that are known."""
        return {"known": ((batch["attributes"] != 0) & batch["present_attributes"][:, None]).float().sum()}

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.forward`; `accuracy` is that of known attributes."""
        target = batch["attributes"].float()  # [B, 40] of -1, 0, 1
        known = (target != 0) & batch["present_attributes"][:, None]
        uniform = 0.5 * (1 + torch.erf(batch["noise"].flatten(1) / 2**0.5))
        logits = self.classifier(augment(to_pixels(batch["images"]), uniform))  # [B, 40]
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, (target > 0).float(), reduction="none")
        count = self.whole(batch, "known", known.float().sum()).clamp(min=1) / self.cuts
        accuracy = (((logits > 0) == (target > 0)) & known).sum() / count
        return {"loss": (each * known).sum() / count, "accuracy": accuracy}


class EmbedderObjective(Objective):
    """Pictures of a person near that person's centre, on augmented pictures. Centres are trained and not kept."""

    latent_shape = (8, 1, 1)

    def __init__(self, embedder: BundledEmbedder, config: IdentityLoss) -> None:
        super().__init__()
        self.module = self.embedder = embedder
        self.config = config
        self.centres = nn.Parameter(torch.randn(config.identities, embedder.head.out_features) * 0.1)

    def phases(self) -> Sequence[Sequence[nn.Parameter]]:
        """The embedder and the centres together."""
        return [[*self.embedder.parameters(), self.centres]]

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.forward`; `accuracy`: nearest centre is the right one, without margin."""
        identity = batch["identity"]  # int64 [B]
        uniform = 0.5 * (1 + torch.erf(batch["noise"].flatten(1) / 2**0.5))
        vectors = self.embedder(augment(to_pixels(batch["images"]), uniform))  # [B, D]
        cosines = vectors @ F.normalize(self.centres, dim=1).T  # [B, identities]
        right = F.one_hot(identity, self.config.identities)
        loss = F.cross_entropy(self.config.scale * (cosines - self.config.margin * right), identity)
        return {"loss": loss, "accuracy": (cosines.argmax(dim=1) == identity).float().mean()}
