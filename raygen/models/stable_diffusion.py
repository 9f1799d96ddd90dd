"""A Stable Diffusion folder as the ldm that it is: its shape from its own configurations, its weights by their loaders.

Knows which settings of a pipeline of diffusers are fields of ours, and which have no counterpart. Opens safetensors
only; nothing in a folder is run. Fetches nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from diffusers import AutoencoderKL, UNet2DConditionModel

from raygen.core.config import parse
from raygen.core.errors import InputError
from raygen.models.autoencoder import AutoencoderConfig, FirstStage
from raygen.models.checkpoint_files import read_json
from raygen.models.ldm import LDM, LDMConfig
from raygen.models.text import PretrainedTextConfig, Tokenizer, pretrained_encoder, tokenizer_of

__all__ = ["KIND", "is_stable", "load_stable", "load_stable_stage", "stable_document", "stable_tokenizer"]


#: How a folder is named in `stable_document`, where ours name a family.
KIND: Final = "stable_diffusion"
#: Of the UNet's configuration: what our networks always have. Anything else would be another network.
UNET: Final[Mapping[str, Any]] = {
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "class_embed_type": None,
    "num_class_embeds": None,
    "time_cond_proj_dim": None,
    "encoder_hid_dim_type": None,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "resnet_time_scale_shift": "default",
}


def is_stable(root: Path) -> bool:
    """Whether a folder without raygen.json holds a Stable Diffusion pipeline."""
    if (root / "raygen.json").is_file() or not (root / "model_index.json").is_file():
        return False
    return str(read_json(root / "model_index.json").get("_class_name", "")).startswith("StableDiffusion")


def stable_document(root: Path) -> dict[str, Any]:
    """What raygen.json would say of it; `InputError` (`checkpoint`) names a setting that has no counterpart."""
    unet, vae = read_json(root / "unet" / "config.json"), read_json(root / "vae" / "config.json")
    for name, value in UNET.items():
        if unet.get(name, value) != value:
            raise InputError(f"{root / 'unet'}: {name} is {unet[name]!r}; only {value!r} is ours", reason="checkpoint")
    latent = vae.get("latent_channels", 4)
    if (unet.get("in_channels", 4), unet.get("out_channels", 4)) != (latent, latent):
        seen = f"{unet.get('in_channels')} channels in and {unet.get('out_channels')} out"
        raise InputError(f"{root / 'unet'}: {seen}; only {latent}, the latent's, are ours", reason="checkpoint")
    if missing := sorted({"block_out_channels", "sample_size", "down_block_types", "cross_attention_dim"} - set(unet)):
        raise InputError(f"{root / 'unet' / 'config.json'}: {missing[0]} is missing", reason="checkpoint")
    levels = len(unet["block_out_channels"])
    heads = unet.get("num_attention_heads") or unet.get("attention_head_dim", 8)
    if isinstance(heads, list) and len(set(heads)) > 1:
        raise InputError(f"{root / 'unet'}: heads {heads} differ between levels", reason="checkpoint")
    text = read_json(root / "text_encoder" / "config.json")
    model = {
        "kind": "ldm",
        "modalities": ["text"],
        "channels": unet["block_out_channels"],
        "layers_per_block": unet.get("layers_per_block", 2),
        "attention": [kind.startswith("CrossAttn") for kind in unet["down_block_types"]],
        "heads": heads[0] if isinstance(heads, list) else heads,
        "head_dim": 4,
        "token_width": unet["cross_attention_dim"],
        "noise": _noise(root),
        "text": {
            "kind": "pretrained",
            "name": str(root / "text_encoder"),
            "length": text.get("max_position_embeddings", 77),
        },
    }
    if levels != len(unet["up_block_types"]):
        raise InputError(f"{root / 'unet'}: {levels} levels down and others up", reason="checkpoint")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    stage = {
        "kind": "autoencoder",
        "stage": "kl",
        "image_size": unet["sample_size"] * factor,
        "patch": 1,
        "channels": vae["block_out_channels"],
        "layers_per_block": vae.get("layers_per_block", 2),
        "latent_channels": vae.get("latent_channels", 4),
    }
    return {"format": 1, "layout": KIND, "first_stage": stage, "model": model}


def _noise(root: Path) -> dict[str, Any]:
    """The training schedule; a scheduler of another kind says the same of it."""
    config = read_json(root / "scheduler" / "scheduler_config.json")
    names = {"num_train_timesteps": "timesteps", "rescale_betas_zero_snr": "rescale_betas_zero_snr"}
    names |= {name: name for name in ("beta_start", "beta_end", "beta_schedule", "prediction_type")}
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def load_stable_stage(root: Path, document: Mapping[str, Any]) -> FirstStage:
    """Its first stage; `InputError` (`checkpoint`) where files are missing or damaged."""
    config: AutoencoderConfig = parse(AutoencoderConfig, document["first_stage"], str(root / "vae"))
    return FirstStage(config, _pretrained(AutoencoderKL, root / "vae"))


def load_stable(root: Path, document: Mapping[str, Any], stage: FirstStage) -> LDM:
    """Its UNet, text encoder and tokenizer over its first stage; errors as for `load_stable_stage`."""
    config: LDMConfig = parse(LDMConfig, document["model"], str(root))
    assert isinstance(config.text, PretrainedTextConfig)
    return LDM(
        config,
        stage,
        _pretrained(UNet2DConditionModel, root / "unet"),
        tokenizer=stable_tokenizer(root, document),
        frozen_text=pretrained_encoder(config.text.name),
    )


def stable_tokenizer(root: Path, document: Mapping[str, Any]) -> Tokenizer:
    """Its tokenizer; `ConfigError` where it cannot be opened."""
    length = int(document["model"]["text"]["length"])
    return tokenizer_of(PretrainedTextConfig(name=str(root / "tokenizer"), length=length), list)


def _pretrained(kind: Any, folder: Path) -> Any:
    """By diffusers' own loader, which knows the older names of published files."""
    try:
        return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True).float()
    except Exception as error:  # its errors come from several libraries
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"{folder}: cannot be loaded ({reason})", reason="checkpoint") from error
