"""Settings of a training: batch, learning rate, averages, precision, how long, and what is written on the way."""

from typing import Literal

from pydantic import Field, model_validator

from raygen.core.config import Config
from raygen.core.types import PRECISION, TunedPrecision
from raygen.models.config.compile import Compile

__all__ = ["TrainConfig"]


class TrainConfig(Config):
    """How long and how to train. It ends at `steps` or after `max_seconds`, whichever comes first."""

    steps: int | None = Field(None, ge=1, description="number of optimiser steps; or give max_seconds")
    max_seconds: float | None = Field(
        None, gt=0, description="seconds of training after which it ends, without the time of restarts"
    )
    batch: int = Field(64, ge=1, description="pictures per step over all ranks")
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="number of parts that a rank divides its share of the batch into, to save memory"
    )
    lr: float = Field(
        2e-4, gt=0, description="learning rate for the whole batch; it is not scaled by the number of ranks"
    )
    warmup: int = Field(200, ge=0, description="steps of linear warm-up of the learning rate")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning rate after the warm-up: cosine decays to 0"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="beta1 and beta2 of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    max_grad_norm: float = Field(
        1.0, ge=0, description="largest norm of the gradient, to which it is clipped; 0 does not clip"
    )
    ema: float = Field(
        0.9999, ge=0, lt=1, description="decay of the exponential moving average of the weights; 0 keeps none"
    )
    horizontal_flip: bool = Field(
        True,
        description="mirror half of the pictures, and exchange their left and right classes; with `latents`, whether "
        "those of mirrored pictures are used",
    )
    precision: TunedPrecision = Field(
        "float32", description=PRECISION + ". Weights and what the optimiser keeps are always float32"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, noise, timesteps and the order of the data")
    save_every: int = Field(
        1000, ge=1, description="steps between training states, from which an interrupted training continues"
    )
    log_every: int = Field(50, ge=1, description="steps per record of the history")
    sheet_every: int | None = Field(
        None, ge=1, description="steps between sheets of sample pictures; default: no sheets"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass, to save memory"
    )
    sharding: Literal["none", "zero1"] = Field(
        "none",
        description="zero1: the ranks share the state of the optimizer and the averaged weights instead of each having "
        "all of it; weights and gradients stay whole",
    )
    compile: Compile = Field(
        "off",
        description="compile the repeated blocks of the network with torch.compile, in the first steps; max-autotune "
        "also tries several kernels. Without a compiler the training goes on as with off",
    )
    keep: int = Field(2, ge=1, description="number of training states that are kept")

    @model_validator(mode="after")
    def _ends(self) -> "TrainConfig":
        if self.steps is None and self.max_seconds is None:
            raise ValueError("training needs steps or max_seconds")
        return self
