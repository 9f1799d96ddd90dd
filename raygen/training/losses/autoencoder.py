"""The loss of a first stage: L1, edges, LPIPS, its regulariser, and a discriminator that starts late."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raygen.core.pixels import to_pixels
from raygen.models.autoencoder import LOGVAR_RANGE, FirstStage
from raygen.training.config.losses import AutoencoderObjectiveConfig
from raygen.training.losses.base import TOTAL, Batch, Losses, Objective
from raygen.training.losses.discriminator import (
    LARGEST,
    PatchDiscriminator,
    adaptive_weight,
    hinge,
    loss_gradients,
    rank_mean,
)

__all__ = ["AutoencoderObjective", "edges"]


#: (reconstruction, pixels) -> a distance a picture [B]; LPIPS is one.
Perceptual = Callable[[Tensor, Tensor], Tensor]


class AutoencoderObjective(Objective):
    """Reconstruction of a first stage, phase 0; its discriminator, if there is one, phase 1.

    `perceptual` is the distance that `config.perceptual` names; it is not trained and not saved.
    """

    def __init__(
        self, stage: FirstStage, config: AutoencoderObjectiveConfig, perceptual: Perceptual | None = None
    ) -> None:
        super().__init__()
        if (config.perceptual == "none") != (perceptual is None):
            raise ValueError("the perceptual distance has to be the one that the config names")
        self.module = self.stage = stage
        self.latent_shape = stage.latent_shape
        self.config = config
        self.perceptual = perceptual
        self.discriminator = None if config.discriminator is None else PatchDiscriminator(config.discriminator)
        if stage.config.stage == "vq":
            stage.net.quantize.legacy = config.codebook_form == "released"

    def phases(self) -> Sequence[Sequence[nn.Parameter]]:
        """The first stage, then the discriminator."""
        own = [p for p in self.stage.parameters() if p.requires_grad]
        return [own] if self.discriminator is None else [own, list(self.discriminator.parameters())]

    def networks(self) -> Sequence[nn.Module]:
        """Encoder and decoder."""
        return [self.stage.net.encoder, self.stage.net.decoder]

    def active(self, phase: int) -> bool:
        """The discriminator is updated from its `start` on."""
        return phase == 0 or self._adversarial_started

    @property
    def _adversarial_started(self) -> bool:
        return self.config.discriminator is not None and self.step >= self.config.discriminator.start

    def totals(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.totals`: the gradients whose ratio is the adaptive weight, from a second forward pass.

        Ranks that have their share in one part average theirs in `forward`, without that pass.
        """
        if phase or not (self._adversarial_started and self._adaptive) or self.cuts == self.ranks:
            return {}
        terms, reconstruction = self._terms(batch)
        return {"gradients": self._gradients(terms, self._adversarial(reconstruction))}

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.forward`; the terms are logged without their weights."""
        if phase == 1:
            return self._discriminator_loss(to_pixels(batch["images"]), batch["posterior"])
        terms, reconstruction = self._terms(batch)
        weights = self._weights
        loss = torch.stack([weights[name] * value for name, value in terms.items() if weights.get(name)]).sum()
        if self._adversarial_started:
            assert self.config.discriminator is not None
            adversarial = self._adversarial(reconstruction)
            weight = torch.ones((), device=reconstruction.device)
            if self._adaptive:
                weight = self._adaptive_weight(batch, terms, reconstruction, adversarial)
            loss = loss + self.config.discriminator.weight * weight * adversarial
            terms |= {"adversarial": adversarial, "adaptive_weight": weight}
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}}

    @property
    def _adaptive(self) -> bool:
        return self.config.discriminator is not None and self.config.discriminator.adaptive

    @property
    def _weights(self) -> dict[str, float]:
        config = self.config
        return {
            "l1": config.l1,
            "edges": config.edges,
            "perceptual": 0.0 if config.perceptual == "none" else config.perceptual.weight,
            "kl": config.kl,
            "codebook": config.codebook,
        }

    def _terms(self, batch: Batch) -> tuple[Losses, Tensor]:
        """The terms without their weights, and the reconstruction [B, 3, H, W]."""
        pixels = to_pixels(batch["images"])  # [B, 3, H, W]
        moments = self.stage.encode(pixels)
        vq_terms: Losses = {}
        if self.stage.config.stage == "vq":
            z, vq_terms["codebook"], codes = self.stage.quantise(moments)
            used = torch.zeros(self.stage.config.codes, device=z.device).index_fill_(0, codes.flatten(), 1.0)
            vq_terms["codes_used"] = used
            reconstruction = self.stage.decode(z, quantised=True)
        else:
            reconstruction = self.stage.decode(self.stage.sample(moments, batch["posterior"]))
        terms: Losses = {
            "l1": (reconstruction - pixels).abs().mean(),
            "edges": (edges(reconstruction) - edges(pixels)).abs().mean(),
        }
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(reconstruction, pixels).mean()
        if self.stage.config.stage == "kl":
            mean, logvar = moments.chunk(2, dim=1)
            logvar = logvar.clamp(*LOGVAR_RANGE)
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)  # [B] nats
            terms["kl"] = divergence.mean() / pixels[0].numel()
        return terms | vq_terms, reconstruction

    def _adversarial(self, reconstruction: Tensor) -> Tensor:
        assert self.discriminator is not None
        logits: Tensor = self.discriminator(reconstruction)
        return -logits.mean()

    def _gradients(self, terms: Losses, adversarial: Tensor) -> Tensor:
        parts = [self._weights[n] * v for n, v in terms.items() if n in ("l1", "edges", "perceptual")]
        return loss_gradients(torch.stack(parts).sum(), adversarial, self.stage.last_layer)

    def _adaptive_weight(self, batch: Batch, terms: Losses, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """The weight of the whole batch, from the gradients of all of it."""
        gradients = batch.get(f"{TOTAL}gradients")
        if gradients is not None:
            gradients = gradients / self.cuts
        else:
            gradients = self._gradients(terms, adversarial)
            gradients = rank_mean(gradients) if self.ranks > 1 else gradients
        # The published bound is on sums over the values of a picture for kl, on means for vq.
        values = 1 if self.stage.config.stage == "vq" else reconstruction[0].numel()
        return adaptive_weight(gradients, LARGEST / values)

    def _discriminator_loss(self, pixels: Tensor, noise: Tensor) -> Losses:
        assert self.discriminator is not None
        with torch.no_grad():
            reconstruction = self.stage.decode(self.stage.sample(self.stage.encode(pixels), noise))
        real, fake = self.discriminator(pixels), self.discriminator(reconstruction)
        loss = hinge(real, fake)
        facts = {"discriminator": loss, "logits_real": real.mean(), "logits_made": fake.mean()}
        return {"loss": loss, **{name: value.detach() for name, value in facts.items()}}


def edges(pixels: Tensor) -> Tensor:
    """Differences of neighbours, right then below, zero at the border: [B, 3, H, W] -> [B, 6, H, W]."""
    right = torch.nn.functional.pad(pixels[..., :, 1:] - pixels[..., :, :-1], (0, 1, 0, 0))
    below = torch.nn.functional.pad(pixels[..., 1:, :] - pixels[..., :-1, :], (0, 0, 0, 1))
    return torch.cat([right, below], dim=1)
