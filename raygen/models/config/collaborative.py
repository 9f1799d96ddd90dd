"""The family `collaborative`: experts and the shape of their dynamic diffusers."""

from typing import Final, Literal

from pydantic import Field, PositiveInt, field_validator

from raygen.core.config import Config
from raygen.core.errors import ConfigError
from raygen.core.location import Location
from raygen.models.checkpoint_documents import OpenedCheckpoint, read_json
from raygen.models.config.ldm import LDMConfig
from raygen.models.family import Family

__all__ = ["FAMILY", "CollaborativeConfig", "diffuser_config"]


class CollaborativeConfig(Config):
    """The experts, and the shape of their dynamic diffusers.

    A diffuser has the form of its expert's UNet, with other channels and one output. The published ones have 32, 64,
    96 and 160 channels; time is added in them, although the paper's equation 2 (supplement) has AdaLN.
    """

    kind: Literal["collaborative"] = "collaborative"
    experts: dict[str, Location] = Field(
        ..., min_length=1, description="checkpoint folders of the trained ldm experts, by name"
    )
    channels: tuple[PositiveInt, ...] = Field(
        (32, 64, 96, 160), min_length=1, description="channels of each level of a dynamic diffuser"
    )
    head_dim: int | None = Field(
        None, ge=1, description="channels per attention head of a dynamic diffuser; default: those of its expert"
    )
    time: Literal["additive", "scale_shift"] = Field("additive", description="scale_shift is AdaLN")
    nulls: tuple[str, ...] | None = Field(
        None,
        description="experts trained with condition dropout, which can do without their condition; "
        "default: read from their recipes",
    )

    @field_validator("experts")
    @classmethod
    def _names(cls, experts: dict[str, str]) -> dict[str, str]:
        if bad := [name for name in experts if not name.isidentifier()]:
            raise ValueError(f"{bad}: an expert's name has letters, digits and _ only")
        return dict(sorted(experts.items()))  # so that sums are rounded in the same order for every file


def diffuser_config(config: CollaborativeConfig, expert: LDMConfig) -> LDMConfig:
    """The shape of the dynamic diffuser of an expert; `ConfigError` where channels and levels do not fit."""
    heads = {"head_dim": config.head_dim, "heads": None} if config.head_dim is not None else {}
    try:
        changed = {"channels": config.channels, "time": config.time, "latent": None, **heads}
        return LDMConfig.model_validate({**expert.model_dump(), **changed})
    except ValueError as error:
        levels = f"{len(config.channels)} levels for an expert of {len(expert.channels)}"
        reason = str(error).splitlines()[-2].strip() if "\n" in str(error) else str(error)
        raise ConfigError(f"dynamic diffusers of channels {list(config.channels)} ({levels}): {reason}") from error


def _inside(opened: OpenedCheckpoint) -> dict[str, OpenedCheckpoint]:
    folders = {name: opened.root / "experts" / name for name in opened.document["model"]["experts"]}
    return {name: OpenedCheckpoint(folder, read_json(folder / "raygen.json")) for name, folder in folders.items()}


FAMILY: Final = Family(
    kind="collaborative",
    config=CollaborativeConfig,
    networks="raygen.models.collaborative",
    needs=lambda config, parts: frozenset().union(*parts.values()),
    folders=lambda config: config.experts,
    inside=_inside,
    check_mixing=lambda config, mixing: mixing.check(config.experts, config.nulls or ()),
)
