"""What a training is made of: model, data, loss and schedule; and the objective that follows from it.

Knows which settings go together and how a recipe becomes an objective with fresh weights. Knows neither where data
comes from as arrays nor who runs the loop.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from raygen.core.config import Config
from raygen.core.errors import ConfigError
from raygen.core.hashing import canonical, digest
from raygen.extractors.bundled import (
    BundledClassifier,
    BundledClassifierConfig,
    BundledEmbedder,
    BundledEmbedderConfig,
    BundledNetwork,
    BundledParser,
    BundledParserConfig,
)
from raygen.extractors.lpips import LPIPSConfig, load_lpips
from raygen.extractors.perceptual import DeepFeatures, load_embedder, load_perceptual
from raygen.models import checkpoint
from raygen.models.autoencoder import AutoencoderConfig, FirstStage
from raygen.models.base import Model
from raygen.models.collaborative import Collaborative, CollaborativeConfig, same_stage
from raygen.models.conditions import ConditionDropout
from raygen.models.controlnet import ControlNetConfig, control_modalities
from raygen.models.ldm import LDMConfig
from raygen.models.scadm import SCADMConfig
from raygen.models.text import Tokenizer
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
from raygen.training.trainer import TrainConfig

__all__ = [
    "DENOISERS",
    "TrainRecipe",
    "TrainableConfig",
    "build_objective",
    "bundled_network",
    "count_parameters",
    "folders_of",
    "frozen_digests",
    "required_fields",
]


#: Everything that `raygen train` trains.
TrainableConfig = Annotated[
    AutoencoderConfig
    | LDMConfig
    | ControlNetConfig
    | CollaborativeConfig
    | SCADMConfig
    | BundledParserConfig
    | BundledClassifierConfig
    | BundledEmbedderConfig,
    Field(discriminator="kind"),
]
#: Those that denoise latents of a first stage.
DENOISERS: Final = (LDMConfig, ControlNetConfig, CollaborativeConfig, SCADMConfig)


def folders_of(model: TrainableConfig) -> Mapping[str, str]:
    """The checkpoints that a model is put together from, by name."""
    if isinstance(model, ControlNetConfig):
        return {"base": model.base}
    return model.experts if isinstance(model, CollaborativeConfig) else {}


def required_fields(model: TrainableConfig, first_stage: str | None) -> tuple[int, tuple[str, ...]]:
    """Side of the pictures in pixels, and the conditions that training reads.

    `first_stage`: folder of the one a denoiser works on. Errors as for `checkpoint.load`.
    """
    if isinstance(model, AutoencoderConfig):
        return model.image_size, ()
    if isinstance(model, BundledParserConfig | BundledClassifierConfig | BundledEmbedderConfig):
        return model.image_size, {"parser": ("mask",), "classifier": ("attributes",)}.get(model.kind, ())
    assert first_stage is not None
    size = checkpoint.first_stage_config(first_stage).image_size
    if isinstance(model, ControlNetConfig):
        return size, tuple(sorted(control_modalities(model, checkpoint.modalities(model.base))))
    if not isinstance(model, CollaborativeConfig):
        return size, model.modalities
    read = frozenset[str]().union(*(checkpoint.modalities(folder) for folder in model.experts.values()))
    return size, tuple(sorted(read))


def bundled_network(config: BundledParserConfig | BundledClassifierConfig | BundledEmbedderConfig) -> BundledNetwork:
    """A network that looks at pictures, with fresh weights."""
    if isinstance(config, BundledEmbedderConfig):
        return BundledEmbedder(config)
    return BundledParser(config) if isinstance(config, BundledParserConfig) else BundledClassifier(config)


def count_parameters(model: TrainableConfig, first_stage: str | None) -> dict[str, int]:
    """Parameters to train, by part, counted without making the model.

    `ConfigError` where a denoiser's first stage is not there and its config does not say what latents to expect.
    """
    if isinstance(model, CollaborativeConfig):
        return checkpoint.count_diffusers(model)
    if isinstance(model, ControlNetConfig):
        return checkpoint.count_branch(model)
    if isinstance(model, LDMConfig | SCADMConfig):
        assert first_stage is not None
        try:
            stage = checkpoint.first_stage_config(first_stage)
        except ConfigError:
            if model.latent is None:
                raise
            return checkpoint.count(model, model.latent)
        return checkpoint.count(model, stage.latent_shape, stage.factor)
    with torch.device("meta"):
        made = FirstStage(model).net if isinstance(model, AutoencoderConfig) else bundled_network(model)
    return {model.kind: sum(p.numel() for p in made.parameters())}


class TrainRecipe(Config):
    """What to train, on what, for how long."""

    model: TrainableConfig
    faces: str = Field(..., description="folder of an ingest run")
    split: str | None = Field(None, description="only faces of this split")
    first_stage: str | None = Field(None, description="denoiser: folder of a trained first stage, or pixels-64")
    latents: str | None = Field(None, description="denoiser: folder of an encode run; none encodes at each step")
    init: str | None = Field(None, description="denoiser: checkpoint of the same shape to begin with")
    caption: str = Field("overall", description="denoiser with text: which of a face's texts")
    loss: DiffusionLoss = Field(default_factory=MinSNRLoss, description="denoiser")
    dropout: ConditionDropout = Field(default_factory=ConditionDropout, description="denoiser")
    attention_loss: AttentionLoss | None = Field(None, description="scadm: attention scores should name the class")
    mask_aware: MaskAwareConfig | None = Field(
        None, description="denoiser: what the estimate looks like counts as well"
    )
    reconstruction: AutoencoderObjectiveConfig = Field(
        default_factory=AutoencoderObjectiveConfig, description="autoencoder"
    )
    identity: IdentityLoss | None = Field(None, description="embedder: how people are told apart")
    validation_split: str | None = Field(None, description="autoencoder: scored at the end; none scores training faces")
    validation_pictures: int = Field(512, ge=1, description="autoencoder: how many, at most")
    training: TrainConfig
    save_dtype: Literal["float32", "float16"] = Field("float32", description="of the checkpoint's files")

    @model_validator(mode="after")
    def _complete(self) -> "TrainRecipe":
        if isinstance(self.model, DENOISERS) and self.first_stage is None:
            raise ValueError("a denoiser needs `first_stage`, the folder of a trained autoencoder")
        if not isinstance(self.model, DENOISERS) and (self.mask_aware is not None or self.init is not None):
            raise ValueError("mask_aware and init are for a denoiser")
        if isinstance(self.model, BundledEmbedderConfig) != (self.identity is not None):
            raise ValueError("an embedder needs `identity`, and nothing else takes it")
        if self.attention_loss is not None:
            if not isinstance(self.model, SCADMConfig) or self.model.style is None:
                raise ValueError("attention_loss is for a scadm with styles")
            if self.training.gradient_checkpointing:
                raise ValueError(
                    "attention_loss needs activations as they are: set training.gradient_checkpointing=false"
                )
        return self


def frozen_digests(recipe: TrainRecipe) -> dict[str, str]:
    """The digest of every checkpoint that training stands beside or begins with, by name; empty for most."""
    folders = {**folders_of(recipe.model), **({} if recipe.init is None else {"init": recipe.init})}
    return {name: checkpoint.digest(folder) for name, folder in folders.items()}


def build_objective(recipe: TrainRecipe, tokenizer: Tokenizer | None = None) -> Objective:
    """A fresh objective of a recipe, its weights drawn from the training seed."""
    seed = recipe.training.seed
    if isinstance(recipe.model, DENOISERS):
        assert recipe.first_stage is not None
        stage = checkpoint.load_first_stage(recipe.first_stage)
        model = checkpoint.build(recipe.model, stage, seed=seed, tokenizer=tokenizer)
        if isinstance(model, Collaborative) and (recipe.dropout.null or recipe.dropout.only):
            model.must_do_without("dropout.null and dropout.only hide conditions (set them to 0)")
        if recipe.init is not None:
            _begin_with(model, recipe.init)
        objective = _denoising(recipe, model)
        judges = [m.sha256 for m in objective.modules() if isinstance(m, DeepFeatures)]
        # What changes a step is part of it: a state of other terms or judges is no state of this training.
        terms = [] if recipe.mask_aware is None else [digest(canonical(recipe.mask_aware))]
        objective.frozen = "".join((*frozen_digests(recipe).values(), *judges, *terms))
        return objective
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(recipe.model, AutoencoderConfig):
            wanted = recipe.reconstruction.perceptual
            perceptual = load_lpips(wanted) if isinstance(wanted, LPIPSConfig) else None
            return AutoencoderObjective(FirstStage(recipe.model), recipe.reconstruction, perceptual)
        network = bundled_network(recipe.model)
        if isinstance(network, BundledEmbedder):
            assert recipe.identity is not None
            return EmbedderObjective(network, recipe.identity)
        return ClassifierObjective(network) if isinstance(network, BundledClassifier) else _parsing(network)


def _parsing(network: BundledNetwork) -> ParserObjective:
    assert isinstance(network, BundledParser)
    return ParserObjective(network)


def _begin_with(model: Model, folder: str) -> None:
    """The weights of a checkpoint in the place of the drawn ones; its first stage must be the same one."""
    other = checkpoint.load(folder)
    if type(other) is not type(model) or not same_stage(other.first_stage, model.first_stage):
        raise ConfigError(f"init {folder}: another kind of model, or another first stage than this training's")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    mine, theirs = model.state_dict(), other.state_dict()
    unlike = [n for n in frozen if n not in theirs or theirs[n].shape != mine[n].shape or not _same(mine[n], theirs[n])]
    if unlike:
        raise ConfigError(f"init {folder}: stands beside other frozen networks than this training, first {min(unlike)}")
    try:
        model.load_state_dict(theirs)
    except RuntimeError as error:
        raise ConfigError(f"init {folder}: {str(error).splitlines()[-1].strip()}") from error


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal, as float16 may have stored them."""
    return torch.equal(one.half(), other.half())


def _denoising(recipe: TrainRecipe, model: Model) -> DiffusionObjective:
    aware = recipe.mask_aware
    if aware is None:
        return DiffusionObjective(model, recipe.loss, recipe.dropout, recipe.attention_loss)
    return MaskAwareObjective(
        model,
        recipe.loss,
        recipe.dropout,
        recipe.attention_loss,
        config=aware,
        perceptual=load_perceptual(aware.network) if aware.perceptual else None,
        embedder=load_embedder(aware.embedder) if aware.face and aware.embedder is not None else None,
    )
