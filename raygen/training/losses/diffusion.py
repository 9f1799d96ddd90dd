"""Losses of a denoiser: simple, p2, min-SNR, and the objective that weights its error by timestep."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.core.face_labels import CLASSES
from raygen.core.pixels import to_pixels
from raygen.models.base import Model
from raygen.models.conditions import Conditions, drop
from raygen.models.config.conditions import ConditionDropout
from raygen.models.spade import one_hot
from raygen.training.config.losses import AttentionLoss, MinSNRLoss, P2Loss, SimpleLoss
from raygen.training.losses.base import Batch, Losses, Objective
from raygen.training.losses.variance import HYBRID, variational_bound

__all__ = ["DiffusionObjective", "attention_loss"]


def attention_loss(
    config: AttentionLoss, scores: Tensor, mask: Tensor, present: Tensor, count: Tensor | None = None
) -> Tensor:
    """The mean term, unweighted: scores [B, N, 19] of a square of N pixels, mask uint8 [B, S, S], present bool [B].

    `count`: what the sum over rows with a mask is divided by; default: their number.
    """
    side = int(scores.shape[1] ** 0.5)
    target = one_hot(mask, present, side, len(CLASSES), scores.dtype).flatten(2).transpose(1, 2)  # [B, N, 19]
    each = (
        F.binary_cross_entropy_with_logits(scores, target, reduction="none")
        if config.kind == "bce"
        else (scores - target).square()
    )
    weight = present.to(scores.dtype)
    count = weight.sum() if count is None else count
    return (each.mean(dim=(1, 2)) * weight).sum() / torch.where(count > 0, count, 1)


class DiffusionObjective(Objective):
    """Weighted mean square error of what the model predicts, with condition dropout."""

    weights: Tensor

    def __init__(
        self,
        model: Model,
        loss: SimpleLoss | P2Loss | MinSNRLoss,
        dropout: ConditionDropout | None = None,
        attention: AttentionLoss | None = None,
    ) -> None:
        """`attention`: for models that record attention scores."""
        super().__init__()
        self.attention = attention
        self.module = self.model = model
        self.latent_shape, self.timesteps = model.latent_shape, model.schedule.timesteps
        self.dropout = dropout or ConditionDropout()
        self.register_buffer("weights", torch.from_numpy(loss.weights(model.schedule)), persistent=False)

    def networks(self) -> Sequence[nn.Module]:
        """The denoiser."""
        return self.model.networks

    def totals(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.totals`: the rows whose mask the attention term looks at."""
        if self.attention is None:
            return {}
        rows = drop(self.conditions(batch, len(batch["t"])), self.dropout, batch["dropout"])
        return {"present": rows.present["mask"].float().sum()}

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.forward`; `mse` is the unweighted error, `bound` the term of a learned variance, in bits."""
        z, eps, t = self._latents(batch), batch["noise"], batch["t"]
        conditions = drop(self.conditions(batch, len(z)), self.dropout, batch["dropout"])
        ctx = self.model.prepare(self.model.embed(conditions))
        record: dict[str, Tensor] | None = None if self.attention is None else {}
        zt = self.model.schedule.add_noise(z, eps, t)
        output = self.model.outputs(zt, t, ctx, record)
        output, variance = output.chunk(2, dim=1) if self.model.learns_variance else (output, None)
        error = (output - self.model.schedule.target(z, eps, t)).square().flatten(1).mean(dim=1)  # [B]
        losses = {"loss": (self.weights[t] * error).mean(), "mse": error.detach().mean()}
        if variance is not None:
            bound = variational_bound(self.model.schedule, z, zt, t, output, variance).mean()
            losses["loss"] = losses["loss"] + HYBRID * self.timesteps * bound
            losses["bound"] = bound.detach()
        return self._with_attention(batch, losses, record, conditions)

    def _with_attention(
        self, batch: Batch, losses: Losses, record: dict[str, Tensor] | None, conditions: Conditions
    ) -> Losses:
        """The losses, with the attention term where the objective has one."""
        if self.attention is None or record is None:
            return losses
        assert conditions.mask is not None
        present = conditions.present["mask"]
        count = self.whole(batch, "present", present.float().sum()) / self.cuts
        parts = [attention_loss(self.attention, score, conditions.mask, present, count) for score in record.values()]
        term = torch.stack(parts).mean()
        return {**losses, "loss": losses["loss"] + self.attention.weight * term, "attention": term.detach()}

    @torch.no_grad()
    def _latents(self, batch: Batch) -> Tensor:
        stage = self.model.first_stage
        moments = batch["moments"].float() if "moments" in batch else stage.encode(to_pixels(batch["images"]))
        return stage.sample(moments, batch["posterior"])

    def conditions(self, batch: Batch, n: int) -> Conditions:
        """The conditions of a batch that the model takes."""
        names = sorted(self.model.modalities)
        present = {name: batch[f"present_{name}"] for name in names if name != "style"}
        style = weights = None
        if "style" in names:
            style, weights = own_style(batch["images"], batch["mask"])
            present["style"] = present["mask"]
        return Conditions(
            n=n,
            mask=batch["mask"] if "mask" in names else None,
            attributes=batch["attributes"].float() if "attributes" in names else None,
            text=batch["text"].long() if "text" in names else None,
            hint=batch["hint"] if "hint" in names else None,
            style=style,
            style_weights=weights,
            present=present,
        )


def own_style(images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each picture as its own reference, for `Conditions`: images uint8 [B, S, S, 3] and their masks [B, S, S]."""
    own = torch.cat([images.movedim(-1, 1), mask.unsqueeze(1)], dim=1)  # [B, 4, S, S]
    weights = torch.zeros(len(mask), len(CLASSES), device=mask.device).scatter_(1, mask.flatten(1).long(), 1.0)
    references = torch.stack([own, torch.zeros_like(own)], dim=1)  # [B, 2, 4, S, S]
    return references, torch.stack([weights, torch.zeros_like(weights)], dim=1)
