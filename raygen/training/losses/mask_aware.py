"""The mask-aware loss: at low timesteps the decoded one-step estimate is compared with the picture, weighted by class.

    t >= T    L = L_diffusion
    t <  T    L = (1 - l1 - l2 - l3 - l4) L_diffusion + l1 L_perceptual + l2 L_face + l3 L_keypoints + l4 L_latent

A term is zero for a row without its input (no mask, no face, no keypoints); the other weights stay the same.

Source: "Improving Latent Diffusion with Perceptual Mask-Aware Loss". There all rows of a batch share one timestep; here
each has its own, and only the rows below T are decoded. The perceptual term compares pictures that are equal outside
of the weighted classes, so nothing outside has a gradient; in the released code features reach across the border.
"""

from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from raygen.core.face_labels import CLASSES
from raygen.core.pixels import to_pixels
from raygen.extractors.perceptual import DeepFeatures
from raygen.models.base import Model
from raygen.models.conditions import drop
from raygen.models.config.conditions import ConditionDropout
from raygen.training.config.losses import AttentionLoss, MaskAwareConfig, MinSNRLoss, P2Loss, SimpleLoss
from raygen.training.losses.base import Batch, Losses
from raygen.training.losses.diffusion import DiffusionObjective

__all__ = ["MaskAwareObjective", "class_weights", "crops", "masked_distance"]


#: Classes whose bounding box is the face, where there are no boxes: skin, nose, glasses, eyes, brows, ears, mouth,
#: lips.
FACE: Final = range(1, 13)


def class_weights(config: MaskAwareConfig) -> Tensor:
    """float32 [19]."""
    weights: dict[str, float] = {**dict.fromkeys(CLASSES, 1.0), "background": 0.0}
    weights.update({str(name): weight for name, weight in config.classes.items()})
    return torch.tensor([weights[name] for name in CLASSES])


class MaskAwareObjective(DiffusionObjective):
    """The diffusion loss, and below T the terms on the decoded estimate. Only the model trains."""

    by_class: Tensor

    def __init__(
        self,
        model: Model,
        loss: SimpleLoss | P2Loss | MinSNRLoss,
        dropout: ConditionDropout | None = None,
        attention: AttentionLoss | None = None,
        *,
        config: MaskAwareConfig,
        perceptual: DeepFeatures | None = None,
        embedder: DeepFeatures | None = None,
    ) -> None:
        """`perceptual` and `embedder`: the networks of the terms whose weights are above 0."""
        super().__init__(model, loss, dropout, attention)
        if (config.perceptual and perceptual is None) or (config.face and embedder is None):
            raise ValueError("a term has a weight and no network")
        self.config = config
        self.perceptual, self.embedder = perceptual, embedder
        self.register_buffer("by_class", class_weights(config), persistent=False)

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.forward`; the terms are logged as means over all rows, of which those without count as 0:
        compare them within a training alone.
        """
        t = batch["t"]
        low = (t < self.config.below).nonzero()[:, 0]
        if not len(low) or (not self.config.decodes and not self.config.latent):
            zero = torch.zeros((), device=t.device)
            return {**super().forward(batch, phase), **dict.fromkeys(self._names, zero)}
        z, eps = self._latents(batch), batch["noise"]
        conditions = drop(self.conditions(batch, len(z)), self.dropout, batch["dropout"])
        record: dict[str, Tensor] | None = None if self.attention is None else {}
        zt = self.model.schedule.add_noise(z, eps, t)
        output = self.model.predict(zt, t, self.model.prepare(self.model.embed(conditions)), record)
        squared = (output - self.model.schedule.target(z, eps, t)).square()  # [B, C, h, w]
        error = squared.flatten(1).mean(dim=1)
        own = self.weights[t] * error
        terms = self._terms(batch, low, squared, self.model.schedule.x0_from(output[low], zt[low], t[low]))
        left = 1.0 - sum(getattr(self.config, name) for name in terms)
        mixed = left * own[low] + torch.stack([getattr(self.config, n) * v for n, (v, _) in terms.items()]).sum(dim=0)
        total = own.index_copy(0, low, mixed)
        losses = {"loss": total.mean(), "mse": error.detach().mean()}
        for name, (value, present) in terms.items():
            losses[name] = (value.detach() * present).sum() / len(t)
        return self._with_attention(batch, losses, record, conditions)

    @property
    def _names(self) -> list[str]:
        """The terms that `_terms` gives, in its order."""
        return [name for name in ("latent", "perceptual", "face", "keypoints") if getattr(self.config, name)]

    def _terms(self, batch: Batch, low: Tensor, squared: Tensor, z0: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Each term of the rows below T [b], and whether they have it [b]."""
        labels, present = batch["mask"][low].long(), batch["present_mask"][low]
        weights = self.by_class[labels] * present.view(-1, 1, 1)  # [b, S, S]
        terms: dict[str, tuple[Tensor, Tensor]] = {}
        if self.config.latent:
            small = F.interpolate(weights.unsqueeze(1), size=squared.shape[-2:], mode="area")
            terms["latent"] = _weighted(squared[low].mean(dim=1, keepdim=True), small)
        if not self.config.decodes:
            return terms
        decode = self.model.first_stage.decode  # gradients reach the latents and no network
        decoded: Tensor = checkpoint(decode, z0, use_reentrant=False) if self.config.checkpoint_decoder else decode(z0)
        real, estimate = to_pixels(batch["images"][low]), decoded.clamp(-1, 1)
        if self.perceptual is not None and self.config.perceptual:
            terms["perceptual"] = masked_distance(
                self.perceptual, estimate, real, weights.unsqueeze(1), self.config.reading
            )
        if self.embedder is not None and self.config.face:
            boxes = batch["boxes"][low] if "boxes" in batch else None
            terms["face"] = self._faces(self.embedder, estimate, real, _boxes(boxes, labels, present))
        if self.config.keypoints:
            points = batch["keypoints"][low] if "keypoints" in batch else real.new_zeros(len(low), 0, 3)
            terms["keypoints"] = _weighted(
                (estimate - real).abs().mean(dim=1, keepdim=True), _bumps(points, real.shape[-1])
            )
        return terms

    def _faces(self, embedder: DeepFeatures, estimate: Tensor, real: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """L1 between the features of each face of both pictures, mean over the faces of a row."""
        cut, row = crops(torch.cat([estimate, real]), torch.cat([boxes, boxes]), self.config.crop)
        n = len(cut) // 2
        total = estimate.new_zeros(n)
        if n:
            with torch.no_grad():
                targets = embedder.maps(cut[n:])
            for weight, features, target in zip(embedder.weights, embedder.maps(cut[:n]), targets, strict=True):
                total = total + weight * (features - target).abs().flatten(1).mean(dim=1)
        count = estimate.new_zeros(len(estimate)).index_add(0, row[:n], estimate.new_ones(n))
        summed = estimate.new_zeros(len(estimate)).index_add(0, row[:n], total)
        return summed / count.clamp(min=1), count > 0


def masked_distance(
    network: DeepFeatures, estimate: Tensor, real: Tensor, weights: Tensor, reading: Literal["map", "features"]
) -> tuple[Tensor, Tensor]:
    """Pixels [B, 3, S, S] twice and weights [B, 1, S, S] -> distance [B], 0 where nothing has a weight; and where.

    `map`: differences of features, brought to the picture's size, weighted. `features`: features brought to that size,
    masked, then compared; channels are as long as they are, so that the mask can silence them.
    """
    masked = torch.where(weights > 0, estimate, real)
    with torch.no_grad():
        targets = network.maps(real)
    size, total = real.shape[-2:], torch.zeros_like(weights)
    for layer, (features, target) in enumerate(zip(network.maps(masked), targets, strict=True)):
        if reading == "map":
            total = total + F.interpolate(network.difference(features, target, layer), size, mode="bilinear")
        else:
            seen = (weights > 0).to(features.dtype)
            large = [F.interpolate(x, size, mode="bilinear") * seen for x in (features, target)]
            total = total + network.difference(large[0], large[1], layer)
    return _weighted(total, weights)


def crops(pixels: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Pixels [B, 3, S, S] and boxes [B, K, 4] (left, top, right, bottom in parts of the side; an empty box is none)
    -> faces [n, 3, side, side] in order of rows, and the row of each [n].
    """
    from torchvision.ops import roi_align

    valid = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    row, place = valid.nonzero(as_tuple=True)
    regions = torch.cat([row.unsqueeze(1).to(pixels.dtype), boxes[row, place] * pixels.shape[-1]], dim=1)
    cut: Tensor = roi_align(pixels, regions, output_size=side, sampling_ratio=2, aligned=True)
    return cut, row


def _boxes(boxes: Tensor | None, labels: Tensor, present: Tensor) -> Tensor:
    """Boxes [b, K, 4] of each row: `boxes`, or where a row has none that of the face in its mask [b, S, S]."""
    face = torch.isin(labels, torch.tensor(list(FACE), device=labels.device)) & present.view(-1, 1, 1)
    side = labels.shape[-1]
    own = []
    for axis in (1, 2):  # 1: which columns, 2: which rows
        line = face.any(dim=axis)
        first = line.to(torch.uint8).argmax(dim=1)
        last = side - line.flip(1).to(torch.uint8).argmax(dim=1)
        own += [first, last]
    box = torch.stack([own[0], own[2], own[1], own[3]], dim=1).to(torch.float32) / side  # left, top, right, bottom
    box = (box * face.any(dim=(1, 2)).view(-1, 1)).unsqueeze(1)  # [b, 1, 4]
    if boxes is None:
        return box
    empty = ~((boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])).any(dim=1)
    return torch.cat([boxes, box * empty.view(-1, 1, 1)], dim=1)


def _bumps(points: Tensor, side: int) -> Tensor:
    """Keypoints [b, K, 3] (x, y in parts of the side, and how much each counts) -> weights [b, 1, S, S], Gaussian."""
    grid = (torch.arange(side, device=points.device, dtype=points.dtype) + 0.5) / side
    x, y, counts = points.unbind(dim=2)
    near = [(-0.5 * ((grid - p.unsqueeze(-1)) * 32) ** 2).exp() for p in (x, y)]  # a deviation of a 32nd of the side
    return torch.einsum("bkx,bky,bk->byx", near[0], near[1], counts).unsqueeze(1)


def _weighted(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of values [b, 1, h, w] under weights, 0 where none is above 0; and where any is [b]."""
    total = weights.flatten(1).sum(dim=1)
    present = total > 0
    summed = (values * weights).flatten(1).sum(dim=1)
    return torch.where(present, summed / total.clamp(min=1e-12), torch.zeros_like(summed)), present
