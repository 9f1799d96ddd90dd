"""Stable Diffusion folders, opened as an ldm: its shape from their configurations, its weights by diffusers' loaders.

Weights may be safetensors, whole or in several files, half precision (`fp16`, `bf16`), or `.bin` files, which are read
as data. Nothing in a folder is executed, and nothing is downloaded.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from diffusers import AutoencoderKL, UNet2DConditionModel

from raygen.core.errors import InputError
from raygen.core.precision import copy_parameters
from raygen.models.autoencoder import FirstStage
from raygen.models.checkpoint_documents import OpenedCheckpoint
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.text import PretrainedTextConfig
from raygen.models.ldm import LDM
from raygen.models.ldm import NETWORKS as LDM_NETWORKS
from raygen.models.text import Tokenizer, pretrained_encoder, tokenizer_of
from raygen.models.weight_variants import readable

__all__ = ["NETWORKS"]


def _load_first_stage(opened: OpenedCheckpoint) -> FirstStage:
    return FirstStage(opened.first_stage, _pretrained(AutoencoderKL, opened.root / "vae"))


def _load_tokenizer(opened: OpenedCheckpoint) -> Tokenizer:
    length = int(opened.document["model"]["text"]["length"])
    return tokenizer_of(PretrainedTextConfig(name=str(opened.root / "tokenizer"), length=length), list)


def _load(opened: OpenedCheckpoint, config: LDMConfig, first_stage: FirstStage, parts: Mapping[str, Any]) -> LDM:
    assert isinstance(config.text, PretrainedTextConfig)
    return LDM(
        config,
        first_stage,
        _pretrained(UNet2DConditionModel, opened.root / "unet"),
        tokenizer=_load_tokenizer(opened),
        frozen_text=pretrained_encoder(config.text.name),
    )


def _pretrained(kind: Any, folder: Path) -> Any:
    """By diffusers' own loader, which knows the older names of published files."""
    try:
        with readable(folder) as source:
            network = kind.from_pretrained(source, use_safetensors=True, local_files_only=True).float()
            copy_parameters(network)  # before a temporary folder goes
    except InputError as error:
        raise InputError(str(error).partition(": ")[2], reason="checkpoint") from error
    except Exception as error:  # its errors come from several libraries
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"{folder}: cannot be loaded ({reason})", reason="checkpoint") from error
    return network


NETWORKS: Final = replace(LDM_NETWORKS, load=_load, load_first_stage=_load_first_stage, load_tokenizer=_load_tokenizer)
