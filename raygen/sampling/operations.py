"""Operations of jobs that sample or encode, counted without weights; see `raygen.models.operations`."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from raygen.models.autoencoder import FirstStage
from raygen.models.checkpoint_folder import first_stage_config, open_model
from raygen.models.operations import (
    operations_of_decoding,
    operations_of_encoding,
    operations_of_steps,
    weightless_folder,
)
from raygen.sampling.config import Guidance, GuidanceParametrization, SampleConfig

__all__ = ["Counted", "count_encoding", "count_sampling", "guidance_terms"]


class Counted(NamedTuple):
    """Parameters of the networks that run, and operations of one picture."""

    parameters: int
    operations: float


def guidance_terms(guidance: Guidance, parametrization: GuidanceParametrization = "cfg") -> int:
    """Predictions of a guided step: those of `build_guidance`, which leaves out weights of 0."""
    if isinstance(guidance, Mapping):
        return sum(weight != 0 for weight in guidance.values()) + (sum(guidance.values()) != 1)
    return 1 if guidance + (parametrization == "cfg_minus_one") in (0.0, 1.0) else 2


def count_sampling(config: SampleConfig) -> Counted:
    """Of one picture from its conditions to its pixels; raises `UNCOUNTABLE` where the model cannot be followed."""
    model = weightless_folder(open_model(config.checkpoint))
    steps, terms = config.sampler.steps, guidance_terms(config.guidance, config.guidance_parametrization)
    low, high = config.guidance_interval
    guided = sum(low <= i / steps < high for i in range(steps)) if terms > 1 else steps
    operations = operations_of_steps(model, guided, terms)
    if guided < steps:
        operations += operations_of_steps(model, steps - guided, 1)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Counted(parameters, operations + operations_of_decoding(model.first_stage))


def count_encoding(checkpoint: str, *, flips: bool) -> Counted:
    """Of one face, and its mirrored copy with `flips`."""
    with torch.device("meta"):
        stage = FirstStage(first_stage_config(checkpoint))
    parameters = sum(parameter.numel() for parameter in stage.parameters())
    return Counted(parameters, operations_of_encoding(stage) * (2 if flips else 1))
