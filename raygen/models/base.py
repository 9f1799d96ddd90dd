"""The interface of a denoiser: what training, sampling and editing ask of every model family."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raygen.core.config import Config
from raygen.core.errors import ConfigError
from raygen.models.autoencoder import FirstStage
from raygen.models.conditions import Conditions, Shapes
from raygen.models.config.noise import NoiseSchedule
from raygen.models.text import Tokenizer

__all__ = ["Context", "Model", "Record", "Tokens", "concatenate"]


#: Embedded conditions by name, each [B, ...]: trained with the model, optimised by edits, mixed by interpolation.
Tokens = Mapping[str, Tensor]
#: All that depends on conditions alone, by name, each [B, ...].
Context = Mapping[str, Tensor]
#: Where a model puts influence or attention maps, where a caller passes one.
Record = MutableMapping[str, Tensor]


def concatenate(contexts: Sequence[Context]) -> Context:
    """Contexts of several batches as one, in their order; they must have the same names."""
    return {name: torch.cat([context[name] for context in contexts]) for name in contexts[0]}


class Model(nn.Module, ABC):
    """A denoiser with its conditions, its schedule and its first stage.

    `modalities`: the conditions it takes. `required_conditions`: those a row must have; a condition that is
    taken but not required may be absent, which is what dropout trained. The first stage is frozen.
    """

    #: Its `kind` is that of the model's `Family`.
    config: Any
    modalities: frozenset[str]
    required_conditions: frozenset[str]
    schedule: NoiseSchedule
    first_stage: FirstStage
    #: None for a model that reads no texts.
    tokenizer: Tokenizer | None = None
    #: Whether its network also predicts the variance of a step, see `outputs`.
    learns_variance: bool = False
    #: Whether it combines several denoisers, whose influence can be recorded.
    mixes: bool = False

    @abstractmethod
    def embed(self, conditions: Conditions) -> Tokens:
        """Conditions of B slots -> tokens."""

    @abstractmethod
    def prepare(self, tokens: Tokens) -> Context:
        """Tokens -> everything that does not depend on zt and t; computed once a batch at inference."""

    @abstractmethod
    def predict(self, zt: Tensor, t: Tensor, ctx: Context, record: Record | None = None) -> Tensor:
        """The network's output for zt [B, C, h, w] at t int64 [B], as `schedule.prediction_type` says; float32.

        Guidance and samplers work on this output: guidance is linear, so it is the same for eps and v.
        """

    def outputs(self, zt: Tensor, t: Tensor, ctx: Context, record: Record | None = None) -> Tensor:
        """All outputs of the network: those of `predict` [B, C, h, w], or [B, 2C, h, w] where it `learns_variance`.

        The second half says where the log variance of a ddpm step lies, from -1, the posterior's, to 1, beta (Nichol
        and Dhariwal 2021, equation 15).
        """
        return self.predict(zt, t, ctx, record)

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The modules that run in every step."""
        return [self]

    @property
    def editable(self) -> "Mapping[str, Model]":
        """The denoisers that an edit tunes one by one, by the prefix that their tokens have in `embed`."""
        return {"": self}

    def must_do_without(self, why: str) -> None:
        """`ConfigError` where the model is known to be trained without condition dropout. `why` opens the message."""

    def mix(self, mixing: Config) -> None:
        """Combine several denoisers in another way; `ConfigError` for a single denoiser."""
        raise ConfigError(f"mixing: {type(self).__name__} is one denoiser, there is nothing to mix")

    def eps(self, zt: Tensor, t: Tensor, ctx: Context, record: Record | None = None) -> Tensor:
        """The predicted noise in zt [B, C, h, w], for every prediction type."""
        return self.schedule.eps_from(self.predict(zt, t, ctx, record), zt, t)

    def null(self, n: int) -> Conditions:
        """`n` slots without conditions, on the model's device."""
        return Conditions.null(n, self.modalities, self.shapes, self.device)

    @property
    def shapes(self) -> Shapes:
        """Sizes of its conditions, and its tokenizer."""
        size = self.first_stage.config.image_size
        return Shapes(size) if self.tokenizer is None else Shapes(size, self.tokenizer.length, self.tokenizer)

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters training may change: all but the first stage's."""
        frozen = {id(p) for p in self.first_stage.parameters()}
        return (p for p in self.parameters() if id(p) not in frozen)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of zt."""
        return self.first_stage.latent_shape

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next(self.parameters()).device
