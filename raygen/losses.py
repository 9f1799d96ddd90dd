"""Objectives: modules that hold what they train and turn a batch of tensors into losses.

Knows the diffusion losses (simple, p2, min_snr), the first stage's and the parser's. Draws no random number:
noise, timesteps and dropout come in the batch, so a batch gives one value. Knows no optimiser, no data and no
ranks.

A batch is a mapping of tensors with the picture first:
    images         uint8 [B, H, W, 3]     pixels, for first stages and where latents are not cached
    moments        float [B, C or 2C, ..] cached first-stage moments instead of images
    posterior      float [B, C, h, w]     noise that samples the first stage's posterior
    noise          float [B, C, h, w]     eps
    t              int64 [B]              timestep
    dropout        float [B]              in [0, 1), for condition dropout
    mask, attributes, present_mask, present_attributes   conditions and whether they are there
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raygen.extractors.small import SmallParser, augment
from raygen.models.autoencoder import LOGVAR_RANGE, FirstStage, to_pixels
from raygen.models.base import Model
from raygen.models.conditions import ConditionDropout, Conditions, drop
from raygen.models.schedule import NoiseSchedule
from raygen.spec import Spec

__all__ = [
    "P2",
    "AutoencoderObjective",
    "AutoencoderObjectiveSpec",
    "DiffusionLoss",
    "DiffusionObjective",
    "MinSNR",
    "Objective",
    "ParserObjective",
    "Simple",
    "edges",
]

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]
#: (reconstruction, pixels) -> a distance a picture [B]; LPIPS is one.
Perceptual = Callable[[Tensor, Tensor], Tensor]


class Simple(Spec):
    """Every timestep counts the same: L_simple of Ho et al. 2020, equation 14."""

    kind: Literal["simple"] = "simple"

    def weights(self, schedule: NoiseSchedule) -> Tensor:
        """float32 [T]."""
        return torch.ones(schedule.timesteps)


class P2(Spec):
    """Choi et al. 2022: 1 / (k + SNR)^gamma on the eps error; steps that only clean up count less. Not normalised."""

    kind: Literal["p2"] = "p2"
    k: float = Field(1.0, gt=0)
    gamma: float = Field(0.5, ge=0, le=4)

    def weights(self, schedule: NoiseSchedule) -> Tensor:
        """float32 [T], at most k ** -gamma; exactly 1 for gamma 0."""
        return torch.tensor((self.k + schedule.snr()) ** -self.gamma, dtype=torch.float32)


class MinSNR(Spec):
    """Hang et al. 2023: the error in z counts min(SNR, gamma); written as a weight on the eps or v error."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0)

    def weights(self, schedule: NoiseSchedule) -> Tensor:
        """float32 [T]: min(SNR, gamma) / SNR for eps, / (SNR + 1) for v."""
        snr = torch.tensor(schedule.snr())
        per_error = snr if schedule.prediction_type == "epsilon" else snr + 1
        return (snr.clamp(max=self.gamma) / per_error).float()


DiffusionLoss = Annotated[Simple | P2 | MinSNR, Field(discriminator="kind")]


class Objective(nn.Module):
    """What the training loop wraps: DDP synchronises only what runs inside one `forward`.

    `phases` lists the parameters of each optimiser; the loop calls `forward` once a phase and step, which is
    where an adversarial objective takes its turns. `module` is what is saved and averaged.
    """

    module: nn.Module
    #: Shape of the `noise` and `posterior` a batch needs, a picture.
    latent_shape: tuple[int, int, int]
    #: `t` is drawn below this; 0 where there is no schedule.
    timesteps: int = 0

    def phases(self) -> Sequence[Sequence[nn.Parameter]]:
        """Parameters by phase; one phase unless an objective says otherwise."""
        return [[p for p in self.module.parameters() if p.requires_grad]]

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """The mean `loss` to minimise, and any other values worth logging, as scalars."""
        raise NotImplementedError


class DiffusionObjective(Objective):
    """Weighted mean square error of what the model predicts, with condition dropout."""

    weights: Tensor

    def __init__(self, model: Model, loss: Simple | P2 | MinSNR, dropout: ConditionDropout | None = None) -> None:
        super().__init__()
        self.module = self.model = model
        self.latent_shape, self.timesteps = model.latent_shape, model.schedule.timesteps
        self.dropout = dropout or ConditionDropout()
        self.register_buffer("weights", loss.weights(model.schedule), persistent=False)

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.forward`; `mse` is the unweighted error."""
        z, eps, t = self._latents(batch), batch["noise"], batch["t"]
        conditions = drop(self._conditions(batch, len(z)), self.dropout, batch["dropout"])
        ctx = self.model.prepare(self.model.embed(conditions))
        output = self.model.predict(self.model.schedule.add_noise(z, eps, t), t, ctx)
        error = (output - self.model.schedule.target(z, eps, t)).square().flatten(1).mean(dim=1)  # [B]
        return {"loss": (self.weights[t] * error).mean(), "mse": error.detach().mean()}

    @torch.no_grad()
    def _latents(self, batch: Batch) -> Tensor:
        stage = self.model.first_stage
        moments = batch["moments"].float() if "moments" in batch else stage.encode(to_pixels(batch["images"]))
        return stage.sample(moments, batch["posterior"])

    def _conditions(self, batch: Batch, n: int) -> Conditions:
        names = sorted(self.model.modalities)
        return Conditions(
            n=n,
            mask=batch["mask"] if "mask" in names else None,
            attributes=batch["attributes"].float() if "attributes" in names else None,
            present={name: batch[f"present_{name}"] for name in names},
        )


class AutoencoderObjectiveSpec(Spec):
    """Weights of the first stage's loss terms.

    `kl` counts the divergence of a picture (summed over its latent) against its mean pixel error times its
    number of values, as latent diffusion does. `edges` is an L1 on finite differences: cheap sharpness where no
    perceptual network is at hand.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    l1: float = Field(1.0, ge=0)
    edges: float = Field(0.5, ge=0)
    perceptual: float = Field(0.0, ge=0, description="needs a perceptual distance")
    kl: float = Field(1e-6, ge=0)
    codebook: float = Field(1.0, ge=0, description="vq only")


class AutoencoderObjective(Objective):
    """Reconstruction of a first stage: L1, edges, perceptual, and its regulariser."""

    def __init__(self, stage: FirstStage, spec: AutoencoderObjectiveSpec, perceptual: Perceptual | None = None) -> None:
        super().__init__()
        if spec.perceptual and perceptual is None:
            raise ValueError("a perceptual weight needs a perceptual distance")
        self.module = self.stage = stage
        self.latent_shape = stage.latent_shape
        self.spec = spec
        self.perceptual = perceptual

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.forward`; the terms are logged without their weights."""
        pixels = to_pixels(batch["images"])  # [B, 3, H, W]
        moments = self.stage.encode(pixels)
        z = self.stage.sample(moments, batch["posterior"])
        reconstruction = self.stage.decode(z)
        terms = self._terms(pixels, reconstruction, moments)
        weights = self.spec.model_dump(exclude={"kind"})
        loss = torch.stack([weights[name] * value for name, value in terms.items() if weights[name]]).sum()
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}}

    def _terms(self, pixels: Tensor, reconstruction: Tensor, moments: Tensor) -> Losses:
        terms: Losses = {
            "l1": (reconstruction - pixels).abs().mean(),
            "edges": (edges(reconstruction) - edges(pixels)).abs().mean(),
        }
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstruction, pixels).mean()
        if self.stage.spec.stage == "kl":
            mean, logvar = moments.chunk(2, dim=1)
            logvar = logvar.clamp(*LOGVAR_RANGE)
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)  # [B] nats
            terms["kl"] = divergence.mean() / pixels[0].numel()
        if self.stage.spec.stage == "vq":
            terms["codebook"] = self.stage.net.quantize(moments)[1]
        return terms


class ParserObjective(Objective):
    """Cross-entropy with rare classes counted more, and soft Dice over the classes a batch has.

    Pictures are augmented from the batch's `noise`, so a step's loss depends on the batch alone.
    """

    latent_shape = (8, 1, 1)

    def __init__(self, parser: SmallParser) -> None:
        super().__init__()
        self.module = self.parser = parser

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.forward`; `accuracy` is that of pixels."""
        target = batch["mask"].long()  # [B, H, W]
        uniform = 0.5 * (1 + torch.erf(batch["noise"].flatten(1) / 2**0.5))
        logits = self.parser(augment(to_pixels(batch["images"]), uniform))  # [B, 19, H, W]
        count = torch.bincount(target.flatten(), minlength=logits.shape[1]).float()
        weight = ((count + 1) / count.sum()).rsqrt() * (count > 0)
        cross = torch.nn.functional.cross_entropy(logits, target, weight=weight)
        chance = logits.softmax(dim=1)
        wanted = torch.nn.functional.one_hot(target, logits.shape[1]).movedim(-1, 1).float()
        overlap = (chance * wanted).sum(dim=(0, 2, 3))
        dice = 1 - 2 * overlap / ((chance + wanted).sum(dim=(0, 2, 3)) + 1e-6)
        there = (count > 0).float()
        dice_loss = (dice * there).sum() / there.sum()
        accuracy = (logits.argmax(dim=1) == target).float().mean()
        return {"loss": cross + dice_loss, "dice": dice_loss.detach(), "accuracy": accuracy}


def edges(pixels: Tensor) -> Tensor:
    """Differences of neighbours, right then below, zero at the border: [B, 3, H, W] -> [B, 6, H, W]."""
    right = torch.nn.functional.pad(pixels[..., :, 1:] - pixels[..., :, :-1], (0, 1, 0, 0))
    below = torch.nn.functional.pad(pixels[..., 1:, :] - pixels[..., :-1, :], (0, 0, 0, 1))
    return torch.cat([right, below], dim=1)
