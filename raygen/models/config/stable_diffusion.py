"""Folders of Stable Diffusion, read as settings of an ldm."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from raygen.core.errors import InputError
from raygen.models.checkpoint_documents import FORMAT, read_json
from raygen.models.config.ldm import FAMILY as LDM_FAMILY

__all__ = ["FAMILY", "is_stable", "stable_document"]


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
    """The document that raygen.json would hold; `InputError` (`checkpoint`) names a setting that has no counterpart."""
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
    return {"format": FORMAT, "layout": KIND, "first_stage": stage, "model": model}


def _noise(root: Path) -> dict[str, Any]:
    """Fields of the training schedule, which every diffusers scheduler stores."""
    config = read_json(root / "scheduler" / "scheduler_config.json")
    same = ("beta_start", "beta_end", "beta_schedule", "prediction_type", "rescale_betas_zero_snr")
    names = {"num_train_timesteps": "timesteps", **{name: name for name in same}}
    return {field: config[name] for name, field in names.items() if name in config}


#: A folder of this layout is read as an ldm; saved again it is one of ours.
FAMILY: Final = replace(LDM_FAMILY, kind=KIND, networks="raygen.models.stable_diffusion")
