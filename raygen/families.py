"""What can be trained, and what each family needs for it: picture size, conditions, frozen experts, parameters.

Knows the families by their specs and checkpoints by their folders. Makes no model and reads no data.
"""

from collections.abc import Mapping
from typing import Annotated, Final

import torch
from pydantic import Field

from raygen.extractors.small import (
    SmallClassifier,
    SmallClassifierSpec,
    SmallEmbedder,
    SmallEmbedderSpec,
    SmallNetwork,
    SmallParser,
    SmallParserSpec,
)
from raygen.models import checkpoint
from raygen.models.autoencoder import AutoencoderSpec, FirstStage
from raygen.models.collaborative import CollaborativeSpec
from raygen.models.control import ControlSpec, control_modalities
from raygen.models.ldm import LDMSpec
from raygen.models.scadm import SCADMSpec
from raygen.spec import ConfigError

__all__ = ["DENOISERS", "TrainableSpec", "count", "folders_of", "needs", "small_network"]

#: Everything that `raygen train` trains.
TrainableSpec = Annotated[
    AutoencoderSpec
    | LDMSpec
    | ControlSpec
    | CollaborativeSpec
    | SCADMSpec
    | SmallParserSpec
    | SmallClassifierSpec
    | SmallEmbedderSpec,
    Field(discriminator="kind"),
]
#: Those that denoise latents of a first stage.
DENOISERS: Final = (LDMSpec, ControlSpec, CollaborativeSpec, SCADMSpec)


def folders_of(model: TrainableSpec) -> Mapping[str, str]:
    """The checkpoints that a model is put together from, by name."""
    if isinstance(model, ControlSpec):
        return {"base": model.base}
    return model.experts if isinstance(model, CollaborativeSpec) else {}


def needs(model: TrainableSpec, first_stage: str | None) -> tuple[int, tuple[str, ...]]:
    """Side of the pictures in pixels, and the conditions that training reads.

    `first_stage`: folder of the one a denoiser works on. Errors as for `checkpoint.load`.
    """
    if isinstance(model, AutoencoderSpec):
        return model.image_size, ()
    if isinstance(model, SmallParserSpec | SmallClassifierSpec | SmallEmbedderSpec):
        return model.image_size, {"parser": ("mask",), "classifier": ("attributes",)}.get(model.kind, ())
    assert first_stage is not None
    size = checkpoint.first_stage_spec(first_stage).image_size
    if isinstance(model, ControlSpec):
        return size, tuple(sorted(control_modalities(model, checkpoint.modalities(model.base))))
    if not isinstance(model, CollaborativeSpec):
        return size, model.modalities
    read = frozenset[str]().union(*(checkpoint.modalities(folder) for folder in model.experts.values()))
    return size, tuple(sorted(read))


def small_network(spec: SmallParserSpec | SmallClassifierSpec | SmallEmbedderSpec) -> SmallNetwork:
    """A network that looks at pictures, with fresh weights."""
    if isinstance(spec, SmallEmbedderSpec):
        return SmallEmbedder(spec)
    return SmallParser(spec) if isinstance(spec, SmallParserSpec) else SmallClassifier(spec)


def count(model: TrainableSpec, first_stage: str | None) -> dict[str, int]:
    """Parameters to train, by part, counted without making the model.

    `ConfigError` where a denoiser's first stage is not there and its spec does not say what latents to expect.
    """
    if isinstance(model, CollaborativeSpec):
        return checkpoint.count_diffusers(model)
    if isinstance(model, ControlSpec):
        return checkpoint.count_branch(model)
    if isinstance(model, LDMSpec | SCADMSpec):
        assert first_stage is not None
        try:
            stage = checkpoint.first_stage_spec(first_stage)
        except ConfigError:
            if model.latent is None:
                raise
            return checkpoint.count(model, model.latent)
        return checkpoint.count(model, stage.latent_shape, stage.factor)
    with torch.device("meta"):
        made = FirstStage(model).net if isinstance(model, AutoencoderSpec) else small_network(model)
    return {model.kind: sum(p.numel() for p in made.parameters())}
