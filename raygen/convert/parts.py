"""Parts that several families of published checkpoints share: first stage, UNet, average, schedule, vocabulary."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from raygen.convert.infer_config import Shapes, below, noise_schedule, stage_config
from raygen.convert.key_maps import Rename, averaged, first_stage_names, unet_names
from raygen.core.errors import ConfigError, InputError
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.text import TextConfig
from raygen.models.text import Tokenizer, tokenizer_of

__all__ = [
    "LOGITS",
    "LOSS",
    "READER",
    "SCHEDULE",
    "STAGE",
    "UNET",
    "Draft",
    "Options",
    "Part",
    "Read",
    "schedule_of",
    "stage_part",
    "unet_part",
    "vocabulary_of",
    "which_weights",
]


Which = Literal["ema", "raw"]
UNET, STAGE, READER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
#: Buffers of every latent diffusion model, which its schedule gives.
BUFFERS: Final = (
    r"(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|"
    r"log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance|"
    r"posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2|lvlb_weights|logvar)"
)


@dataclass(frozen=True)
class Options:
    """Settings that a file does not have. None takes the published value of the family."""

    image_size: int | None = None
    weights: str | None = None
    scaling_factor: float | None = None
    vocabulary: str | None = None
    open_vocabulary: bool = True  # False where only names and shapes are read

    def __post_init__(self) -> None:
        if self.weights not in (None, "ema", "raw"):
            raise ConfigError(f"weights: {self.weights!r} is neither 'ema' nor 'raw'")


class Part(NamedTuple):
    """One network: the module to fill, and the names of its tensors in the file."""

    name: str
    module: nn.Module
    prefix: str
    rename: Rename


@dataclass
class Draft:
    """A model on torch's `meta` device, the parts to fill, and what is left out: pairs of a pattern and a reason.

    `notes`: for the user, of choices that the files do not settle.
    """

    model: Model | FirstStage | nn.Module
    parts: list[Part]
    left: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Read = Callable[[str], Tensor]


def stage_part(shapes: Shapes, options: Options, image_size: int, scale: float, prefix: str) -> tuple[FirstStage, Part]:
    """The first stage under a prefix, or bare; `InputError` where there is none."""
    inner = below(shapes, prefix)
    if "encoder.conv_in.weight" not in inner:
        prefix, inner = "", dict(shapes)
    if "encoder.conv_in.weight" not in inner:
        missing = "VQ-f4" if scale == 1.0 else "KL"
        raise InputError(f"no first stage in it: give its {missing} file as well, after it", reason="weights")
    config = stage_config(inner, options.image_size or image_size)
    stage = FirstStage(config)
    factor = options.scaling_factor if options.scaling_factor is not None else scale
    if config.stage == "vq" and scale != 1.0 and options.scaling_factor is None:
        factor = 1.0
    stage.net.register_to_config(scaling_factor=factor)
    return stage, Part("vae", stage.net, prefix, first_stage_names(len(config.channels)))


def which_weights(shapes: Shapes, options: Options, default: Which) -> Which:
    """The weights to take, `default` by default; `InputError` where the average is asked for and there is none."""
    has_average = any(name.startswith("model_ema.diffusion_model") for name in shapes)
    if options.weights == "ema" and not has_average:
        raise InputError("no moving average (model_ema.*) in it", reason="weights")
    chosen: Which = "raw" if options.weights == "raw" else "ema" if options.weights == "ema" else default
    return chosen if has_average else "raw"


def unet_part(shapes: Shapes, config: Any, module: nn.Module, which: Which) -> tuple[Part, list[tuple[str, str]]]:
    """The UNet under its usual prefix, and what is left out of the other kind of weights."""
    rename = unet_names(config)
    if which == "raw":
        return Part("unet", module, UNET, rename), [(r"model_ema\..+", "the moving average; --weights ema takes it")]
    part = Part("unet", module, "", averaged(rename, UNET.removeprefix("model.")))
    return part, [
        (r"model\.diffusion_model\..+", "the last weights, of which the moving average is taken"),
        (r"model_ema\.(decay|num_updates)", "counters of the moving average"),
    ]


def schedule_of(shapes: Shapes, read: Read) -> NoiseSchedule:
    """The schedule of the file's betas; latent diffusion's where it has none."""
    if "betas" not in shapes:
        return noise_schedule(None)
    if len(shapes["betas"]) != 1 or not 2 <= shapes["betas"][0] <= MOST_STEPS:
        raise InputError(f"betas of the shape {list(shapes['betas'])} are no schedule", reason="weights")
    return noise_schedule(read("betas"))


def vocabulary_of(config: TextConfig, words: int | None, options: Options) -> Tokenizer | None:
    """The tokenizer by name or path; `ConfigError` where it cannot be loaded or has another number of words."""
    if not options.open_vocabulary:
        return None
    try:
        with torch.device("cpu"):
            tokenizer = tokenizer_of(config, list)
    except ConfigError as error:
        hint = "the file has no vocabulary: name one with --vocabulary, a vocab.txt or a tokenizer's folder"
        raise ConfigError(f"{error}; {hint}") from error
    if len(tokenizer) != words:
        raise ConfigError(f"the vocabulary has {len(tokenizer):,} words, the text encoder {words:,}")
    return tokenizer


MOST_STEPS: Final = 100_000
SCHEDULE: Final = [(BUFFERS, "the noise schedule, which is kept as its first and last beta")]
LOSS: Final = [(r"(.+\.)?loss\..+", "networks that only training needs")]
LOGITS: Final = r"(.+\.)?transformer\.to_logits\..+"
