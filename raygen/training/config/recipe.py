"""The settings of a training: model, data, loss, schedule."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, model_validator

from raygen.core.config import Config
from raygen.core.location import Location
from raygen.core.no_effect import without_effect
from raygen.extractors.config import BundledClassifierConfig, BundledEmbedderConfig, BundledParserConfig
from raygen.models import checkpoint_folder
from raygen.models.config.autoencoder import AutoencoderConfig, pixel_stage
from raygen.models.config.conditions import ConditionDropout
from raygen.models.config.text import TextConfig
from raygen.training.config.loop import TrainConfig
from raygen.training.config.losses import (
    AttentionLoss,
    AutoencoderObjectiveConfig,
    DiffusionLoss,
    IdentityLoss,
    MaskAwareConfig,
    MinSNRLoss,
)
from raygen.training.no_effect import TRAINING

__all__ = [
    "PICTURE_NETWORKS",
    "PictureNetwork",
    "TrainRecipe",
    "TrainableConfig",
    "folders_of",
    "is_denoiser",
    "required_fields",
    "text_config_of",
]


@dataclass(frozen=True)
class PictureNetwork:
    """A kind of network that is trained on pictures; denoisers are in `checkpoint_folder.FAMILIES`.

    `raygen.training.networks.NETWORKS` builds, trains and saves it.
    """

    #: Has the fields `kind` and `image_size`.
    config: type[Config]
    #: Columns of FACES that training reads beside the picture.
    conditions: tuple[str, ...] = ()
    #: Whether faces are told apart by person, with `TrainRecipe.identity`.
    needs_identity: bool = False


PICTURE_NETWORKS: Final[Mapping[str, PictureNetwork]] = {
    "autoencoder": PictureNetwork(AutoencoderConfig),
    "parser": PictureNetwork(BundledParserConfig, ("mask",)),
    "classifier": PictureNetwork(BundledClassifierConfig, ("attributes",)),
    "embedder": PictureNetwork(BundledEmbedderConfig, needs_identity=True),
}

if TYPE_CHECKING:

    class TrainableConfig(Config):
        """The config of a family or of a network; the latter has a size of pictures."""

        kind: str
        image_size: int

else:
    _CONFIGS = dict.fromkeys(
        entry.config for entry in (*PICTURE_NETWORKS.values(), *checkpoint_folder.FAMILIES.values())
    )
    #: Everything that `raygen train` trains: the union of all configs, told apart by `kind`.
    TrainableConfig = Annotated[reduce(or_, _CONFIGS), Field(discriminator="kind")]


def is_denoiser(model: TrainableConfig) -> bool:
    """Whether it denoises latents of a first stage."""
    return model.kind in checkpoint_folder.FAMILIES


def folders_of(model: TrainableConfig) -> Mapping[str, str]:
    """The checkpoints of trained models that a model contains, by name."""
    return checkpoint_folder.family_of(model).folders(model) if is_denoiser(model) else {}


def text_config_of(model: TrainableConfig) -> TextConfig | None:
    """The text encoder of a model that reads texts and whose vocabulary no checkpoint has; None for other models."""
    return checkpoint_folder.family_of(model).text(model) if is_denoiser(model) else None


def required_fields(model: TrainableConfig, first_stage: str | None) -> tuple[int, tuple[str, ...]]:
    """Side of the pictures in pixels, and the conditions that training reads.

    `first_stage`: folder of the one a denoiser works on. Errors as for `checkpoint.load`.
    """
    if not is_denoiser(model):
        return model.image_size, PICTURE_NETWORKS[model.kind].conditions
    assert first_stage is not None
    size = checkpoint_folder.first_stage_config(first_stage).image_size
    return size, tuple(sorted(checkpoint_folder.modalities_of(model)))


class TrainRecipe(Config):
    """What to train, on what, for how long."""

    model: TrainableConfig = Field(description="network to train, chosen by its `kind`")
    faces: Location = Field(..., description="folder of the ingest run with the training faces")
    split: str | None = Field(None, description="train only on faces of this split, such as train; default: all faces")
    first_stage: Location | None = Field(
        None, description="diffusion models only: folder of a trained first stage, `bundled`, or pixels-64 for none"
    )
    latents: Location | None = Field(
        None, description="diffusion models only: folder of an encode run; default: pictures are encoded at each step"
    )
    init: Location | None = Field(
        None,
        description="diffusion models only: checkpoint with the same architecture to start from; default: "
        "random weights",
    )
    caption: str = Field(
        "overall", description="models with texts only: name of the text in `texts` that is the caption"
    )
    loss: DiffusionLoss = Field(
        default_factory=MinSNRLoss,
        description="diffusion models only: weighting of the loss over timesteps, chosen by its `kind`",
    )
    dropout: ConditionDropout = Field(
        default_factory=ConditionDropout,
        description="diffusion models only: how often conditions are dropped, which guidance needs",
    )
    attention_loss: AttentionLoss | None = Field(
        None, description="scadm only: extra loss by which attention scores predict the class; default none"
    )
    mask_aware: MaskAwareConfig | None = Field(
        None, description="diffusion models only: extra loss on the decoded estimate of the picture; default none"
    )
    reconstruction: AutoencoderObjectiveConfig = Field(
        default_factory=AutoencoderObjectiveConfig, description="autoencoder only: weights of the terms of its loss"
    )
    identity: IdentityLoss | None = Field(None, description="embedder only: loss that separates identities")
    validation_split: str | None = Field(
        None,
        description="autoencoder only: split whose reconstruction is scored at the end; default: the training faces",
    )
    validation_pictures: int = Field(
        512, ge=1, description="autoencoder only: largest number of pictures that are scored at the end"
    )
    training: TrainConfig = Field(description="optimiser, batch, length and records of the training")
    save_dtype: Literal["float32", "float16"] = Field("float32", description="precision of the stored weights")

    @model_validator(mode="after")
    def _complete(self) -> "TrainRecipe":
        if is_denoiser(self.model):
            if self.first_stage is None:
                raise ValueError("a denoiser needs `first_stage`, the folder of a trained autoencoder")
            pixel_stage(self.first_stage)
        elif self.mask_aware is not None or self.init is not None:
            raise ValueError("mask_aware and init are for a denoiser")
        if self.model.kind == "autoencoder" and getattr(self.model, "stage", None) == "pixel":
            raise ValueError("model.stage=pixel has nothing to train; a denoiser names it as first_stage=pixels-64")
        network = PICTURE_NETWORKS.get(self.model.kind)
        if (network is not None and network.needs_identity) != (self.identity is not None):
            raise ValueError("an embedder needs `identity`, and nothing else takes it")
        if self.attention_loss is not None:
            if not (is_denoiser(self.model) and checkpoint_folder.family_of(self.model).records_attention(self.model)):
                raise ValueError("attention_loss is for a scadm with styles")
            if self.training.gradient_checkpointing:
                raise ValueError(
                    "attention_loss needs activations as they are: set training.gradient_checkpointing=false"
                )
        if self.mask_aware is not None and getattr(self.model, "learn_sigma", False):
            raise ValueError("mask_aware does not train the variance: set model.learn_sigma=false")
        if problem := without_effect(self, TRAINING):
            raise ValueError(problem)
        return self
