"""What is known of a kind of denoiser from its config alone, without torch, and where its networks are.

A module of `raygen.models.config` exports one `FAMILY`; `checkpoint_folder.FAMILIES` looks it up by the `kind` of a
config. The other half, `raygen.models.networks.Networks`, builds, saves and loads; it is imported when it is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raygen.core.config import Config, parse
from raygen.models.checkpoint_documents import OpenedCheckpoint
from raygen.models.config.mixing import Mixing
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.text import TextConfig

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """One kind of denoiser. The first four fields are required; the others have the usual answer as their default.

    `config` has a field `kind` with the value of `kind` here; a model of the family keeps its config as `model.config`.
    """

    kind: str
    config: type[Config]
    #: Name of the module with the `NETWORKS` of the family, such as `raygen.models.ldm`. It is imported when a model is
    #: built or loaded: a job is read and checked without torch.
    networks: str
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
    #: (config, mixing) -> None; `ConfigError` where the mixing does not fit. None: a single denoiser, nothing to mix.
    check_mixing: Callable[[Any, Mixing], None] | None = None

    def parse(self, opened: OpenedCheckpoint) -> Any:
        """The config in a folder's document; `ConfigError` where it is none of this family."""
        return parse(self.config, opened.document["model"], opened.source)
