"""The loss of a first stage: L1, edges, LPIPS, its regulariser, and a discriminator that starts late."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from raygen.core.pixels import to_pixels
from raygen.models.autoencoder import LOGVAR_RANGE, FirstStage
from raygen.training.config.losses import AutoencoderObjectiveConfig
from raygen.training.losses.base import Batch, Losses, Objective
from raygen.training.losses.discriminator import LARGEST, PatchDiscriminator, adaptive_weight, hinge

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

    def forward(self, batch: Batch, phase: int = 0) -> Losses:
        """See `Objective.forward`; the terms are logged without their weights."""
        pixels = to_pixels(batch["images"])  # [B, 3, H, W]
        if phase == 1:
            return self._discriminator_loss(pixels, batch["posterior"])
        moments = self.stage.encode(pixels)
        vq_terms: Losses = {}
        if self.stage.config.stage == "vq":
            z, vq_terms["codebook"], codes = self.stage.quantise(moments)
            used = torch.zeros(self.stage.config.codes, device=z.device).index_fill_(0, codes.flatten(), 1.0)
            vq_terms["codes_used"] = used.sum()
            reconstruction = self.stage.decode(z, quantised=True)
        else:
            reconstruction = self.stage.decode(self.stage.sample(moments, batch["posterior"]))
        terms = self._terms(pixels, reconstruction, moments) | vq_terms
        config = self.config
        weights = {
            "l1": config.l1,
            "edges": config.edges,
            "perceptual": 0.0 if config.perceptual == "none" else config.perceptual.weight,
            "kl": config.kl,
            "codebook": config.codebook,
        }
        loss = torch.stack([weights[name] * value for name, value in terms.items() if weights.get(name)]).sum()
        if self._adversarial_started:
            parts = [weights[n] * v for n, v in terms.items() if n in ("l1", "edges", "perceptual")]
            loss = loss + self._adversarial(torch.stack(parts).sum(), reconstruction, terms)
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}}

    def _terms(self, pixels: Tensor, reconstruction: Tensor, moments: Tensor) -> Losses:
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
        return terms

    def _adversarial(self, reconstruction_loss: Tensor, reconstruction: Tensor, terms: Losses) -> Tensor:
        """The adversarial term with its weights; it and the adaptive weight are added to `terms`."""
        assert self.discriminator is not None
        assert self.config.discriminator is not None
        terms["adversarial"] = -self.discriminator(reconstruction).mean()
        weight = torch.ones((), device=reconstruction.device)
        if self.config.discriminator.adaptive:
            # The published bound is on sums over the values of a picture for kl, on means for vq.
            values = 1 if self.stage.config.stage == "vq" else reconstruction[0].numel()
            layer = self.stage.last_layer
            weight = adaptive_weight(reconstruction_loss, terms["adversarial"], layer, LARGEST / values)
        terms["adaptive_weight"] = weight
        return self.config.discriminator.weight * weight * terms["adversarial"]

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
