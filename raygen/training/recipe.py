"""The settings of a training (model, data, loss, schedule), and the objective with new weights that they describe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from raygen.core.config import Config
from raygen.core.errors import ConfigError
from raygen.core.hashing import canonical, digest
from raygen.core.location import Location
from raygen.core.no_effect import without_effect
from raygen.extractors.bundled import BundledClassifier, BundledEmbedder, BundledParser, save_bundled
from raygen.extractors.config import BundledClassifierConfig, BundledEmbedderConfig, BundledParserConfig, LPIPSConfig
from raygen.extractors.lpips import load_lpips
from raygen.extractors.perceptual import DeepFeatures, load_embedder, load_perceptual
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.autoencoder import FirstStage, same_stage
from raygen.models.base import Model
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.conditions import ConditionDropout
from raygen.models.config.text import TextConfig
from raygen.models.text import Tokenizer
from raygen.training.data import TrainingData
from raygen.training.losses import (
    AttentionLoss,
    AutoencoderObjective,
    AutoencoderObjectiveConfig,
    ClassifierObjective,
    DiffusionLoss,
    DiffusionObjective,
    EmbedderObjective,
    IdentityLoss,
    MaskAwareConfig,
    MaskAwareObjective,
    MinSNRLoss,
    Objective,
    ParserObjective,
)
from raygen.training.no_effect import TRAINING
from raygen.training.reconstruction import finish_autoencoder
from raygen.training.trainer import TrainConfig

__all__ = [
    "NETWORKS",
    "TrainRecipe",
    "TrainableConfig",
    "TrainableNetwork",
    "build_objective",
    "count_parameters",
    "folders_of",
    "frozen_digests",
    "is_denoiser",
    "required_fields",
    "text_config_of",
]


# --- what can be trained ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainableNetwork:
    """A kind of network that is trained on pictures; denoisers are in `checkpoint_folder.FAMILIES`."""

    #: Has the fields `kind` and `image_size`.
    config: type[Config]
    #: config -> the network with random weights.
    build: Callable[[Any], nn.Module]
    #: (network, recipe) -> what is minimised.
    objective: Callable[[Any, "TrainRecipe"], Objective]
    #: (network, folder, weights=…, extra=…) -> the digest of the written checkpoint.
    save: Callable[..., str]
    #: Columns of FACES that training reads beside the picture.
    conditions: tuple[str, ...] = ()
    #: Whether faces are told apart by person, with `TrainRecipe.identity`.
    needs_identity: bool = False
    #: (objective, recipe, training data, device) -> entries of result.json, after the last step and before saving.
    finish: Callable[[Any, "TrainRecipe", TrainingData, torch.device], dict[str, Any]] = lambda *_: {}


def _autoencoder(stage: FirstStage, recipe: "TrainRecipe") -> AutoencoderObjective:
    lpips = recipe.reconstruction.perceptual
    perceptual = load_lpips(lpips) if isinstance(lpips, LPIPSConfig) else None
    return AutoencoderObjective(stage, recipe.reconstruction, perceptual)


def _embedder(network: BundledEmbedder, recipe: "TrainRecipe") -> EmbedderObjective:
    assert recipe.identity is not None
    return EmbedderObjective(network, recipe.identity)


def _finish_autoencoder(
    objective: AutoencoderObjective, recipe: "TrainRecipe", data: TrainingData, device: torch.device
) -> dict[str, Any]:
    return finish_autoencoder(
        objective, data, device, recipe.faces, split=recipe.validation_split, pictures=recipe.validation_pictures
    )


NETWORKS: Final[Mapping[str, TrainableNetwork]] = {
    "autoencoder": TrainableNetwork(
        AutoencoderConfig, FirstStage, _autoencoder, checkpoint.save, finish=_finish_autoencoder
    ),
    "parser": TrainableNetwork(
        BundledParserConfig, BundledParser, lambda net, recipe: ParserObjective(net), save_bundled, ("mask",)
    ),
    "classifier": TrainableNetwork(
        BundledClassifierConfig,
        BundledClassifier,
        lambda net, recipe: ClassifierObjective(net),
        save_bundled,
        ("attributes",),
    ),
    "embedder": TrainableNetwork(BundledEmbedderConfig, BundledEmbedder, _embedder, save_bundled, needs_identity=True),
}

if TYPE_CHECKING:

    class TrainableConfig(Config):
        """The config of a family or of a network; the latter has a size of pictures."""

        kind: str
        image_size: int

else:
    _CONFIGS = dict.fromkeys(entry.config for entry in (*NETWORKS.values(), *checkpoint_folder.FAMILIES.values()))
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
        return model.image_size, NETWORKS[model.kind].conditions
    assert first_stage is not None
    size = checkpoint_folder.first_stage_config(first_stage).image_size
    return size, tuple(sorted(checkpoint_folder.modalities_of(model)))


def count_parameters(model: TrainableConfig, first_stage: str | None) -> dict[str, int]:
    """Parameters to train, by part, counted without making the model.

    `ConfigError` where a denoiser's first stage is not there and its config does not say what latents to expect.
    """
    if not is_denoiser(model):
        with torch.device("meta"):
            return {model.kind: sum(p.numel() for p in NETWORKS[model.kind].build(model).parameters())}
    if folders_of(model):
        return checkpoint.count(model)
    assert first_stage is not None
    try:
        stage = checkpoint_folder.first_stage_config(first_stage)
    except ConfigError:
        if (latent_shape := getattr(model, "latent", None)) is None:
            raise
        return checkpoint.count(model, latent_shape)
    return checkpoint.count(model, stage.latent_shape, stage.factor)


# --- recipe -------------------------------------------------------------------------------------------------


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
        elif self.mask_aware is not None or self.init is not None:
            raise ValueError("mask_aware and init are for a denoiser")
        if self.model.kind == "autoencoder" and getattr(self.model, "stage", None) == "pixel":
            raise ValueError("model.stage=pixel has nothing to train; a denoiser names it as first_stage=pixels-64")
        network = NETWORKS.get(self.model.kind)
        if (network is not None and network.needs_identity) != (self.identity is not None):
            raise ValueError("an embedder needs `identity`, and nothing else takes it")
        if self.attention_loss is not None:
            if not (is_denoiser(self.model) and checkpoint_folder.family_of(self.model).records_attention(self.model)):
                raise ValueError("attention_loss is for a scadm with styles")
            if self.training.gradient_checkpointing:
                raise ValueError(
                    "attention_loss needs activations as they are: set training.gradient_checkpointing=false"
                )
        if problem := without_effect(self, TRAINING):
            raise ValueError(problem)
        return self


def frozen_digests(recipe: TrainRecipe) -> dict[str, str]:
    """The digest of every checkpoint that training stands beside or begins with, by name; empty for most."""
    folders = {**folders_of(recipe.model), **({} if recipe.init is None else {"init": recipe.init})}
    return {name: checkpoint_folder.digest(folder) for name, folder in folders.items()}


# --- objective ----------------------------------------------------------------------------------------------


def build_objective(recipe: TrainRecipe, tokenizer: Tokenizer | None = None) -> Objective:
    """A new objective of a recipe, its weights drawn from the training seed."""
    if is_denoiser(recipe.model):
        return _denoising_objective(recipe, tokenizer)
    network = NETWORKS[recipe.model.kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return network.objective(network.build(recipe.model), recipe)


def _denoising_objective(recipe: TrainRecipe, tokenizer: Tokenizer | None) -> DiffusionObjective:
    assert recipe.first_stage is not None
    stage = checkpoint.load_first_stage(recipe.first_stage)
    model = checkpoint.build(recipe.model, stage, seed=recipe.training.seed, tokenizer=tokenizer)
    if recipe.dropout.null or recipe.dropout.only:
        model.must_do_without("dropout.null and dropout.only hide conditions (set them to 0)")
    if recipe.init is not None:
        _start_from(model, recipe.init)
    terms = recipe.mask_aware
    if terms is None:
        objective = DiffusionObjective(model, recipe.loss, recipe.dropout, recipe.attention_loss)
    else:
        objective = MaskAwareObjective(
            model,
            recipe.loss,
            recipe.dropout,
            recipe.attention_loss,
            config=terms,
            perceptual=load_perceptual(terms.network) if terms.perceptual else None,
            embedder=load_embedder(terms.embedder) if terms.face and terms.embedder is not None else None,
        )
    # All that changes a step names the state: one of other terms or networks does not continue this training.
    networks = [m.sha256 for m in objective.modules() if isinstance(m, DeepFeatures)]
    settings = [] if terms is None else [digest(canonical(terms))]
    objective.frozen = "".join((*frozen_digests(recipe).values(), *networks, *settings))
    return objective


def _start_from(model: Model, folder: str) -> None:
    """Replace the drawn weights by those of a checkpoint with the same first stage and the same frozen networks."""
    other = checkpoint.load(folder)
    if type(other) is not type(model) or not same_stage(other.first_stage, model.first_stage):
        raise ConfigError(f"init {folder}: another kind of model, or another first stage than this training's")
    own, loaded = model.state_dict(), other.state_dict()

    def equal(name: str) -> bool:
        """As float16 may have stored them."""
        tensor = loaded.get(name)
        return tensor is not None and tensor.shape == own[name].shape and torch.equal(tensor.half(), own[name].half())

    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    if unlike := [name for name in frozen if not equal(name)]:
        raise ConfigError(f"init {folder}: stands beside other frozen networks than this training, first {min(unlike)}")
    try:
        model.load_state_dict(loaded)
    except RuntimeError as error:
        raise ConfigError(f"init {folder}: {str(error).splitlines()[-1].strip()}") from error
