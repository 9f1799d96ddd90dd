"""How the models of a family are built, counted, trained, saved and loaded: the half of a family that needs torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from torch import nn

from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.checkpoint_documents import OpenedCheckpoint
from raygen.models.checkpoint_files import Writing, read_first_stage
from raygen.models.family import Family
from raygen.models.text import Tokenizer

__all__ = ["BuildInputs", "CountInputs", "Networks", "networks_of"]


@dataclass(frozen=True)
class BuildInputs:
    """What a model with new weights is built on."""

    first_stage: FirstStage
    tokenizer: Tokenizer | None = None
    #: The trained models that `Family.folders` names, and what their folders say of them.
    parts: Mapping[str, Any] = field(default_factory=dict)
    opened: Mapping[str, OpenedCheckpoint] = field(default_factory=dict)


@dataclass(frozen=True)
class CountInputs:
    """What parameters are counted for: the shape of latents, pixels along a latent position, configs of the parts."""

    latent_shape: tuple[int, int, int]
    factor: int
    parts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Networks:
    """The models of a family. The first four fields are required.

    A module names it `NETWORKS`; `Family.networks` is the name of that module.
    """

    #: (config, inputs) -> a model with random weights, drawn from torch's default generator. `ConfigError` where the
    #: config does not fit the inputs.
    build: Callable[[Any, BuildInputs], Model]
    #: (model, folder, how weights are written, entries of model_index.json) -> what raygen.json stores of the model;
    #: `model` is its config. The first stage and the scheduler are written by the caller.
    save: Callable[[Any, Path, Writing, dict[str, Any]], dict[str, Any]]
    #: (folder and its document, config, first stage, parts of `Family.inside`) -> the model with its weights.
    #: `InputError` (`checkpoint`) where a file is missing or damaged.
    load: Callable[[OpenedCheckpoint, Any, FirstStage, Mapping[str, Any]], Model]
    #: (config, inputs) -> the networks that train, by name. Called on torch's `meta` device, to count parameters.
    count: Callable[[Any, CountInputs], Mapping[str, nn.Module]]

    #: model -> whether diffusers' `LDMPipeline` samples it as it is.
    is_plain: Callable[[Any], bool] = lambda model: False
    #: A saved folder -> its first stage, and its tokenizer where the model reads texts.
    load_first_stage: Callable[[OpenedCheckpoint], FirstStage] = read_first_stage
    load_tokenizer: Callable[[OpenedCheckpoint], Tokenizer] = lambda opened: Tokenizer.load(opened.root / "tokenizer")


def networks_of(family: Family) -> Networks:
    """The networks of a family; imports their module."""
    return cast(Networks, import_module(family.networks).NETWORKS)
