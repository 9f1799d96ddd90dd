"""Settings of the losses of a training."""

from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field, model_validator

from raygen.core.config import Config
from raygen.core.face_labels import ClassName
from raygen.core.types import Float32Array
from raygen.extractors.config import BundledNetworkConfig, EmbedderConfig, LPIPSConfig
from raygen.models.config.noise import NoiseSchedule

__all__ = [
    "AttentionLoss",
    "AutoencoderObjectiveConfig",
    "DiffusionLoss",
    "DiscriminatorConfig",
    "IdentityLoss",
    "MaskAwareConfig",
    "MinSNRLoss",
    "P2Loss",
    "SimpleLoss",
]


class SimpleLoss(Config):
    """Every timestep has weight 1: L_simple of Ho et al. 2020, equation 14."""

    kind: Literal["simple"] = "simple"

    def weights(self, schedule: NoiseSchedule) -> Float32Array:
        """float32 [T]."""
        return np.ones(schedule.timesteps, np.float32)


class P2Loss(Config):
    """Choi et al. 2022: 1 / (k + SNR)^gamma on the error; steps of little noise weigh less. Not normalised.

    The paper predicts eps. With v the factor applies to the v error, so that gamma 0 is the simple loss there too.
    """

    kind: Literal["p2"] = "p2"
    k: float = Field(1.0, gt=0, description="constant k of the weight 1 / (k + SNR)^gamma")
    gamma: float = Field(
        0.5, ge=0, le=4, description="exponent of the weight 1 / (k + SNR)^gamma; 0 is the simple loss"
    )

    def weights(self, schedule: NoiseSchedule) -> Float32Array:
        """float32 [T], at most k ** -gamma; exactly 1 for gamma 0."""
        return np.asarray((self.k + schedule.snr()) ** -self.gamma, np.float32)


class MinSNRLoss(Config):
    """Hang et al. 2023: the error in z has weight min(SNR, gamma); written as a weight on the eps or v error."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0, description="largest signal-to-noise ratio that a timestep is weighted with")

    def weights(self, schedule: NoiseSchedule) -> Float32Array:
        """float32 [T]: min(SNR, gamma) / SNR for eps, / (SNR + 1) for v."""
        snr = schedule.snr()
        per_error = snr if schedule.prediction_type == "epsilon" else snr + 1
        return np.asarray(np.minimum(snr, self.gamma) / per_error, np.float32)


DiffusionLoss = Annotated[SimpleLoss | P2Loss | MinSNRLoss, Field(discriminator="kind")]


class AttentionLoss(Config):
    """SCA-DM's optional term: a pixel's attention scores, before gates and softmax, should name its class.

    The head-averaged scores of every cross-attention layer are logits of the one-hot mask (`bce`), or are brought near
    it (`mse`). Hard gates alone leave queries and keys without a gradient.
    """

    weight: float = Field(0.01, gt=0, description="weight of the term; default: that of the released configuration")
    kind: Literal["bce", "mse"] = "bce"


class DiscriminatorConfig(Config):
    """A PatchGAN discriminator (Isola et al. 2017) that enters at `start`.

    `batch` normalisation is the published form. Its statistics are those of all ranks, and of one part of the batch
    where `gradient_accumulation_steps` cuts it; with `group` the parts change nothing either.
    """

    start: int = Field(50_001, ge=0, description="first training step with the adversarial term")
    weight: float = Field(0.5, gt=0, description="weight of the adversarial term, multiplied by the adaptive weight")
    adaptive: bool = Field(
        True, description="scale the term's gradient to that of the reconstruction at the last layer"
    )
    channels: int = Field(64, ge=8, le=512, description="channels of the first layer")
    layers: int = Field(3, ge=1, le=6, description="number of strided convolutions; 3 see patches of 70 pixels")
    norm: Literal["group", "batch"] = Field("group", description="normalisation layers")


class AutoencoderObjectiveConfig(Config):
    """Weights of the first stage's loss terms.

    Everything is a mean over the values of a picture. The published KL first stages add sums instead: the same
    loss times the number of values, which Adam does not notice. So `kl` counts the divergence of a picture
    (summed over its latent) against its mean pixel error times its number of values, as latent diffusion does.
    `edges` is an L1 on finite differences: cheap sharpness where no perceptual network is at hand.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    l1: float = Field(1.0, ge=0, description="weight of the L1 error of the pixels")
    edges: float = Field(0.5, ge=0, description="weight of the L1 error of the image gradients")
    perceptual: Literal["none"] | LPIPSConfig = Field(
        "none", description="perceptual term: `none`, or LPIPS with its weights"
    )
    kl: float = Field(1e-6, ge=0, description="weight of the KL divergence of the latents")
    codebook: float = Field(1.0, ge=0, description="vq only: weight of the codebook loss")
    codebook_form: Literal["fixed", "released"] = Field(
        "fixed", description="vq only: beta 0.25 on the commitment, or on the codebook as in the released weights"
    )
    discriminator: DiscriminatorConfig | None = Field(None, description="adversarial term; default none")


#: Side of a face crop in the paper.
CROP: Final = 254


class MaskAwareConfig(Config):
    """What counts besides the diffusion loss, and for which steps. The defaults are the paper's best run."""

    below: int = Field(100, ge=0, description="timestep T below which the terms are computed")
    perceptual: float = Field(0.2, ge=0, le=1, description="weight l1 of the masked perceptual term")
    face: float = Field(0.5, ge=0, le=1, description="weight l2 of the face-feature term")
    keypoints: float = Field(
        0.0, ge=0, le=1, description="weight l3 of the error of the picture around given keypoints"
    )
    latent: float = Field(
        0.0, ge=0, le=1, description="weight l4 of the error of the latents, weighted by class; needs no decoder"
    )
    reading: Literal["map", "features"] = Field(
        "map", description="apply the mask to the map of differences (as released) or to the features (as in the paper)"
    )
    network: BundledNetworkConfig | LPIPSConfig = Field(
        default_factory=LPIPSConfig,
        description="network of the perceptual term: LPIPS, or `kind: small`, the attribute classifier",
    )
    embedder: EmbedderConfig | None = Field(
        None, description="network of the face-feature term; required where `face` is above 0"
    )
    classes: dict[ClassName, float] = Field(
        default_factory=dict, description="weights of classes in the masked terms; others have 1, the background 0"
    )
    crop: int = Field(CROP, ge=16, le=1024, description="side of the face crop in pixels")
    checkpoint_decoder: bool = Field(
        False, description="recompute the activations of the decoder in the backward pass, to save memory"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MaskAwareConfig":
        if (total := self.perceptual + self.face + self.keypoints + self.latent) > 1:
            raise ValueError(f"perceptual, face, keypoints and latent add up to {total:g}, more than 1")
        if self.face and self.embedder is None:
            raise ValueError("face is above 0: name an `embedder` (kind: small, vggface2 or torchscript)")
        if bad := {name: w for name, w in self.classes.items() if w < 0}:
            raise ValueError(f"weights of classes are at least 0, not {bad}")
        return self

    @property
    def places(self) -> list[str]:
        """Columns of FACES, besides picture and mask, that the terms read."""
        return ["boxes"] * (self.face > 0) + ["keypoints"] * (self.keypoints > 0)

    @property
    def decodes(self) -> bool:
        """Whether any term looks at pixels."""
        return bool(self.perceptual or self.face or self.keypoints)


class IdentityLoss(Config):
    """Softmax over cosines to people, with a margin for the right one (CosFace: Wang et al. 2018, equation 4)."""

    identities: int = Field(
        ..., ge=2, description="largest number of identities in the training data; each has a learned centre"
    )
    scale: float = Field(24.0, gt=0, description="factor s of the cosines")
    margin: float = Field(
        0.2, ge=0, lt=1, description="margin m by which the cosine with the right centre has to be larger"
    )
