"""The family `control`: base and hint, and what follows from them."""

from typing import Final, Literal

from pydantic import Field, PositiveInt

from raygen.core.config import Config
from raygen.core.location import Location
from raygen.models.checkpoint_documents import OpenedCheckpoint
from raygen.models.family import Family

__all__ = ["FAMILY", "ControlNetConfig", "control_modalities"]


class ControlNetConfig(Config):
    """The base of a branch, and the hint that the branch reads."""

    kind: Literal["control"] = "control"
    base: Location = Field(..., description="checkpoint folder of a trained ldm that reads tokens; it stays frozen")
    hint: Literal["none", "mask", "picture"] = Field(
        "none",
        description="what the branch reads in addition to the base: the mask, or the picture in the "
        "column `hint`, such as a pose",
    )
    hint_channels: tuple[PositiveInt, ...] | None = Field(
        None, description="channels of each level of the hint's encoder; default: the published ones that fit"
    )


def control_modalities(config: ControlNetConfig, base: frozenset[str]) -> frozenset[str]:
    """The conditions that base and branch take together."""
    return base | {"none": set(), "mask": {"mask"}, "picture": {"hint"}}[config.hint]


def _inside(opened: OpenedCheckpoint) -> dict[str, OpenedCheckpoint]:
    return {"base": OpenedCheckpoint(opened.root, {"model": opened.document["base"]})}


FAMILY: Final = Family(
    kind="control",
    config=ControlNetConfig,
    networks="raygen.models.controlnet",
    needs=lambda config, parts: control_modalities(config, parts["base"]),
    folders=lambda config: {"base": config.base},
    inside=_inside,
)
