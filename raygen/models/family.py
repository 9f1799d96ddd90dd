"""What a kind of denoiser provides, so that it can be configured, built, counted, trained, saved and loaded.

A model module exports one `FAMILY`; `raygen.models.checkpoint.FAMILIES` looks it up by the `kind` of a config.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from raygen.core.config import Config, parse
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.checkpoint_files import OpenedCheckpoint, Writing, read_first_stage
from raygen.models.expert_mixing import Mixing
from raygen.models.schedulers import NoiseSchedule
from raygen.models.text import TextConfig, Tokenizer

__all__ = ["BuildInputs", "CountInputs", "Family"]


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
class Family:
    """One kind of denoiser. The first seven fields are required; the others have the usual answer as their default.

    `config` has a field `kind` with the value of `kind` here; a model of the family keeps its config as `model.config`.
    """

    kind: str
    config: type[Config]
    #: (config, inputs) -> a model with random weights, drawn from torch's default generator. `ConfigError` where the
    #: config does not fit the inputs.
    build: Callable[[Any, BuildInputs], Model]
    #: (model, folder, how weights are written, entries of model_index.json) -> what raygen.json stores of the model;
    #: `model` is its config. The first stage and the scheduler are written by the caller.
    save: Callable[[Any, Path, Writing, dict[str, Any]], dict[str, Any]]
    #: (folder and its document, config, first stage, parts of `inside`) -> the model with its weights.
    #: `InputError` (`checkpoint`) where a file is missing or damaged.
    load: Callable[[OpenedCheckpoint, Any, FirstStage, Mapping[str, Any]], Model]
    #: (config, inputs) -> the networks that train, by name. Called on torch's `meta` device, to count parameters.
    count: Callable[[Any, CountInputs], Mapping[str, nn.Module]]
    #: (config, modalities of its parts by name) -> the conditions that the model takes.
    needs: Callable[[Any, Mapping[str, frozenset[str]]], frozenset[str]]

    #: config -> checkpoint folders of the trained models that it is put together from, by name.
    folders: Callable[[Any], Mapping[str, str]] = lambda config: {}
    #: A saved folder -> the models inside it, by the same names.
    inside: Callable[[OpenedCheckpoint], Mapping[str, OpenedCheckpoint]] = lambda opened: {}
    #: config -> the text encoder whose vocabulary a new training has to open or learn; None where there is none.
    text: Callable[[Any], TextConfig | None] = lambda config: None
    #: (config, schedules of its parts by name) -> the noise schedule of the model. Parts have the same schedule.
    schedule: Callable[[Any, Mapping[str, NoiseSchedule]], NoiseSchedule] = lambda config, parts: (
        next(iter(parts.values())) if parts else config.noise
    )
    #: config -> whether `predict` records attention scores, which `AttentionLoss` trains.
    records_attention: Callable[[Any], bool] = lambda config: False
    #: model -> whether diffusers' `LDMPipeline` samples it as it is.
    is_plain: Callable[[Any], bool] = lambda model: False
    #: (config, mixing) -> None; `ConfigError` where the mixing does not fit. None: a single denoiser, nothing to mix.
    check_mixing: Callable[[Any, Mixing], None] | None = None
    #: A saved folder -> its first stage, and its tokenizer where the model reads texts.
    load_first_stage: Callable[[OpenedCheckpoint], FirstStage] = read_first_stage
    load_tokenizer: Callable[[OpenedCheckpoint], Tokenizer] = lambda opened: Tokenizer.load(opened.root / "tokenizer")

    def parse(self, opened: OpenedCheckpoint) -> Any:
        """The config in a folder's document; `ConfigError` where it is none of this family."""
        return parse(self.config, opened.document["model"], opened.source)
