"""The networks that are trained, and the objective with new weights that a `TrainRecipe` describes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from raygen.core.errors import ConfigError
from raygen.core.hashing import canonical, digest
from raygen.extractors.bundled import BundledClassifier, BundledEmbedder, BundledParser, save_bundled
from raygen.extractors.config import LPIPSConfig
from raygen.extractors.lpips import load_lpips
from raygen.extractors.perceptual import DeepFeatures, load_embedder, load_perceptual
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.autoencoder import FirstStage, same_stage
from raygen.models.base import Model
from raygen.models.text import Tokenizer
from raygen.training.config.recipe import TrainableConfig, TrainRecipe, folders_of, is_denoiser
from raygen.training.data import TrainingData
from raygen.training.losses import (
    AutoencoderObjective,
    ClassifierObjective,
    DiffusionObjective,
    EmbedderObjective,
    MaskAwareObjective,
    Objective,
    ParserObjective,
)
from raygen.training.reconstruction import finish_autoencoder

__all__ = ["NETWORKS", "TrainableNetwork", "build_objective", "count_parameters", "frozen_digests"]


# --- what can be trained ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainableNetwork:
    """How a kind of `PICTURE_NETWORKS` is built, trained and saved; denoisers have `raygen.models.networks`."""

    #: config -> the network with random weights.
    build: Callable[[Any], nn.Module]
    #: (network, recipe) -> what is minimised.
    objective: Callable[[Any, TrainRecipe], Objective]
    #: (network, folder, weights=…, extra=…) -> the digest of the written checkpoint.
    save: Callable[..., str]
    #: (objective, recipe, training data, device) -> entries of result.json, after the last step and before saving.
    finish: Callable[[Any, TrainRecipe, TrainingData, torch.device], dict[str, Any]] = lambda *_: {}


def _autoencoder(stage: FirstStage, recipe: TrainRecipe) -> AutoencoderObjective:
    lpips = recipe.reconstruction.perceptual
    perceptual = load_lpips(lpips) if isinstance(lpips, LPIPSConfig) else None
    return AutoencoderObjective(stage, recipe.reconstruction, perceptual)


def _embedder(network: BundledEmbedder, recipe: TrainRecipe) -> EmbedderObjective:
    assert recipe.identity is not None
    return EmbedderObjective(network, recipe.identity)


def _finish_autoencoder(
    objective: AutoencoderObjective, recipe: TrainRecipe, data: TrainingData, device: torch.device
) -> dict[str, Any]:
    return finish_autoencoder(
        objective, data, device, recipe.faces, split=recipe.validation_split, pictures=recipe.validation_pictures
    )


NETWORKS: Final[Mapping[str, TrainableNetwork]] = {
    "autoencoder": TrainableNetwork(FirstStage, _autoencoder, checkpoint.save, finish=_finish_autoencoder),
    "parser": TrainableNetwork(BundledParser, lambda net, recipe: ParserObjective(net), save_bundled),
    "classifier": TrainableNetwork(BundledClassifier, lambda net, recipe: ClassifierObjective(net), save_bundled),
    "embedder": TrainableNetwork(BundledEmbedder, _embedder, save_bundled),
}


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
