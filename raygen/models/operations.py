"""Operations of networks, counted on models without weights: how long a job of paper size takes, before it is started.

Counted are convolutions and matrix products, a multiplication and an addition as two. Attention counts as the products
that it is; flash kernels compute the scores once more in their backward pass, which is not counted. Nothing is
computed: the tensors are on torch's `meta` device, which knows shapes only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raygen.core.config import Config
from raygen.core.errors import ConfigError, RaygenError
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.checkpoint_documents import OpenedCheckpoint, read_json
from raygen.models.checkpoint_folder import family_in, family_of, open_parts
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.text import PretrainedTextConfig
from raygen.models.ldm import LDM
from raygen.models.networks import BuildInputs, networks_of
from raygen.models.text import empty_encoder

__all__ = [
    "UNCOUNTABLE",
    "hours_of",
    "hours_text",
    "operations_of_decoding",
    "operations_of_encoding",
    "operations_of_steps",
    "weightless",
    "weightless_folder",
]


#: Operations a second of one H100 (SXM) in dense bfloat16, by its data sheet, and the share that is assumed of it.
H100: Final = 989e12
SHARE: Final = 0.4
PEAK: Final = f"{H100 / 1e12:g} TFLOP/s in dense bfloat16"
#: What counting raises for a model that it cannot follow.
UNCOUNTABLE: Final = (RaygenError, NotImplementedError, RuntimeError, TypeError)


class _Words:
    """Stands for a tokenizer: only its sizes matter."""

    def __init__(self, words: int, length: int) -> None:
        self.words, self.length = words, length

    def __len__(self) -> int:
        return self.words

    def __call__(self, texts: Any) -> Tensor:
        return torch.zeros(len(texts), self.length, dtype=torch.int64)

    def same_as(self, other: object) -> bool:
        """Experts of one collaboration have one tokenizer."""
        return True


def hours_of(operations: float) -> float:
    """Hours on one H100 at the assumed share of its operations."""
    return operations / (H100 * SHARE) / 3600


def hours_text(operations: float) -> str:
    """`1.2e+18 operations, 0.84 hours on one H100 at an assumed 40% of 989 TFLOP/s in dense bfloat16`."""
    hours = f"{float(f'{hours_of(operations):.2g}'):,g}"  # 120, not 1.2e+02
    return f"{operations:.2g} operations, {hours} hours on one H100 at an assumed {SHARE:.0%} of {PEAK}"


def weightless(config: Config, stage: AutoencoderConfig | None) -> Model:
    """The model of a config on the `meta` device; `stage` is its first stage, or None where its parts have one.

    `ConfigError` where a part is missing; of a text encoder that comes with its weights, config.json is read.
    """
    opened = open_parts(config)
    if opened:
        stage = next(iter(opened.values())).first_stage
    if stage is None:
        raise ConfigError("the first stage is missing")
    with torch.device("meta"):
        first_stage = FirstStage(stage)
        parts = {name: _of_folder(part, first_stage) for name, part in opened.items()}
        return _built(family_of(config), config, BuildInputs(first_stage, _words(config), parts, opened))


def weightless_folder(opened: OpenedCheckpoint) -> Model:
    """The model of a checkpoint folder on the `meta` device, from its documents alone; errors as `weightless`."""
    with torch.device("meta"):
        return _of_folder(opened, FirstStage(opened.first_stage))


def _of_folder(opened: OpenedCheckpoint, first_stage: FirstStage) -> Model:
    family = family_in(opened)
    config, inside = family.parse(opened), family.inside(opened)
    parts = {name: _of_folder(part, first_stage) for name, part in inside.items()}
    return _built(family, config, BuildInputs(first_stage, _words(config), parts, inside))


def _built(family: Any, config: Config, inputs: BuildInputs) -> Model:
    if isinstance(text := getattr(config, "text", None), PretrainedTextConfig) and "text" in config.modalities:  # type: ignore[attr-defined]
        document = read_json(Path(text.name) / "config.json")
        kind = (document.get("architectures") or ["CLIPTextModel"])[0]
        encoder = empty_encoder({"class": kind, "config": document})
        words: Any = _Words(int(document["vocab_size"]), text.length)
        return LDM(config, inputs.first_stage, tokenizer=words, frozen_text=encoder).to("meta")  # type: ignore[arg-type]
    return networks_of(family).build(config, inputs).to("meta")


def _words(config: Any) -> Any:
    text = getattr(config, "text", None) if "text" in getattr(config, "modalities", ()) else None
    if text is None or isinstance(text, PretrainedTextConfig):
        return None
    if (words := getattr(text, "vocabulary_size", None)) is None:
        raise ConfigError("a text encoder without a known vocabulary")
    return _Words(words, text.length)


def operations_of_steps(model: Model, steps: int, terms: int) -> float:
    """Operations a picture of `steps` steps with `terms` predictions each, the encoding of its conditions included."""
    zt = torch.zeros(1, *model.latent_shape, device="meta")
    t = torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.no_grad(), torch.device("meta"):
        with FlopCounterMode(display=False) as once:
            ctx: Mapping[str, Tensor] = model.prepare(model.embed(model.null(1))) if model.modalities else {}
        with FlopCounterMode(display=False) as each:
            model.predict(zt, t, ctx)
    return float(terms * (once.get_total_flops() + steps * each.get_total_flops()))


def operations_of_decoding(stage: FirstStage) -> float:
    """Operations of one latent's way to a picture."""
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        stage.decode(torch.zeros(1, *stage.latent_shape))
    return float(counter.get_total_flops())


def operations_of_encoding(stage: FirstStage) -> float:
    """Operations of one picture's way to a latent."""
    side = stage.config.image_size
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        stage.encode(torch.zeros(1, 3, side, side))
    return float(counter.get_total_flops())
