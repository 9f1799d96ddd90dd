"""Checkpoint folders in the diffusers layout, and the mapping of model families.

A model is written as `model_index.json`, `unet/`, `vae/`, `scheduler/` and the folders of its condition encoders. Parts
of a model are built or loaded first and passed in. Only safetensors and JSON are read; nothing in a folder is executed.

    model_index.json  raygen.json          classes; the model's config
    unet/  vae/                            config.json + diffusion_pytorch_model.safetensors
    attribute_encoder/  mask_encoder/  …   config.json + model.safetensors
    experts/NAME/  diffusers/NAME/         of a collaboration: each expert as above, but for the first stage they share
    vqvae/                                 instead of vae/, where diffusers' LDMPipeline opens the folder
    tokenizer/                             tokenizer.json
    scheduler/                             scheduler_config.json
"""

import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from raygen.core.config import Config
from raygen.core.errors import ConfigError, InputError
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.checkpoint_documents import FORMAT, PLAIN_STAGE, STAGE, OpenedCheckpoint
from raygen.models.checkpoint_files import Writing, read_first_stage, write_diffusers, write_json
from raygen.models.checkpoint_folder import (
    FAMILIES,
    digest,
    family_in,
    family_of,
    kind_of,
    modalities,
    open_checkpoint,
    open_model,
    open_parts,
    schedule_in,
)
from raygen.models.config.autoencoder import pixel_stage
from raygen.models.config.sampler import SamplerConfig
from raygen.models.networks import BuildInputs, CountInputs, networks_of
from raygen.models.schedulers import build_sampler, diffusers_scheduler
from raygen.models.text import Tokenizer
from raygen.store.sealed import FILES, check_files, seal_folder

__all__ = ["build", "check_sampler", "count", "load", "load_first_stage", "load_tokenizer", "save"]


# --- building and counting ----------------------------------------------------------------------------------


def build(config: Config, first_stage: FirstStage, *, seed: int, tokenizer: Tokenizer | None = None) -> Model:
    """A new model with random weights that depend on `seed` alone. Trained models that it contains are loaded.

    `tokenizer` where an ldm reads texts; a pretrained text encoder is loaded here. `ConfigError` as the family has it,
    and where parts were trained on another first stage than the one given.
    """
    family = family_of(config)
    opened = open_parts(config)
    parts = {name: load(part.root) for name, part in opened.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return networks_of(family).build(config, BuildInputs(first_stage, tokenizer, parts, opened))


def count(config: Config, latent_shape: tuple[int, int, int] | None = None, factor: int = 4) -> dict[str, int]:
    """Parameters that train, by network, counted without making the model; a pretrained text encoder counts nothing.

    `latent_shape` and `factor`, pixels along a latent position, are those of the first stage; a model that is put
    together from trained ones takes theirs. The factor matters only where the mask enters as channels or as a hint.
    """
    opened = open_parts(config)
    if opened:
        stage = next(iter(opened.values())).first_stage
        latent_shape, factor = stage.latent_shape, stage.factor
    if latent_shape is None:
        raise ValueError("the shape of latents is missing")
    parts = {name: family_in(part).parse(part) for name, part in opened.items()}
    with torch.device("meta"):
        networks = networks_of(family_of(config)).count(config, CountInputs(latent_shape, factor, parts))
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


# --- saving -------------------------------------------------------------------------------------------------


def save(
    model: Model | FirstStage,
    folder: str | Path,
    *,
    weights: Literal["float32", "float16"] = "float32",
    extra: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    sampler: SamplerConfig | None = None,
) -> str:
    """Write `model` as a new folder, whole or not at all, and return its digest.

    `float16` halves the files; they load back as float32. `extra` goes into raygen.json (recipe, scores), `metadata`
    into every file of weights; `sampler` is the one that pipelines of diffusers find. An existing checkpoint of that
    name is replaced; any other existing folder is a `ConfigError`.
    """
    target = Path(folder)
    if target.exists() and not (target / "raygen.json").exists():
        raise ConfigError(f"{target}: exists and is not a checkpoint; it is left alone")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    try:
        writing = Writing(torch.float16 if weights == "float16" else torch.float32, metadata or {})
        _write(model, temporary, writing, extra or {}, sampler)
        if target.exists():
            old = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
            os.rename(target, old)
            os.rename(temporary, target)
            shutil.rmtree(old)
        else:
            os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest(target)


def _write(
    model: Model | FirstStage, folder: Path, writing: Writing, extra: Mapping[str, Any], sampler: SamplerConfig | None
) -> None:
    index: dict[str, Any] = {"_class_name": "DiffusionPipeline"}
    document: dict[str, Any] = {"format": FORMAT}
    stage_folder, first_stage = STAGE, model
    if isinstance(model, Model):
        networks, first_stage = networks_of(family_of(model.config)), model.first_stage
        if networks.is_plain(model):
            index["_class_name"], stage_folder = "LDMPipeline", PLAIN_STAGE
        document |= networks.save(model, folder, writing, index)
        scheduler = diffusers_scheduler(model.schedule, sampler or SamplerConfig(name="ddim", steps=50))
        scheduler.save_pretrained(folder / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
    if first_stage.net is not None:
        write_diffusers(first_stage.net, folder / stage_folder, writing, index)
    document["first_stage"] = first_stage.config.model_dump(mode="json")
    write_json(folder / "model_index.json", index)
    seal_folder(folder, "raygen.json", {**document, "extra": dict(extra)})


# --- loading ------------------------------------------------------------------------------------------------


def load(folder: str | Path, device: Any = "cpu") -> Model:
    """The model of a checkpoint folder in float32 on `device`, ready for inference.

    `ConfigError` where there is no checkpoint or it holds only a first stage; `InputError` (`checkpoint`) where
    a file is missing, damaged or does not fit the spec.
    """
    opened = open_model(folder)
    _compare_files(opened)
    model = _load(opened, _load_first_stage(opened))
    return model.to(device).eval().requires_grad_(False)  # a CPU takes other kernels where gradients may be asked for


def _load(opened: OpenedCheckpoint, first_stage: FirstStage) -> Model:
    family = family_in(opened)
    config = family.parse(opened)
    parts = {name: _load(part, first_stage) for name, part in family.inside(opened).items()}
    return networks_of(family).load(opened, config, first_stage, parts)


def check_sampler(folder: str | Path, sampler: SamplerConfig) -> None:
    """`ConfigError` where the model of a folder cannot be sampled so, without loading it; see `build_sampler`."""
    build_sampler(schedule_in(open_model(folder)), sampler)


def load_tokenizer(folder: str | Path) -> Tokenizer | None:
    """The tokenizer of the ldm of a folder, None where it reads no texts; errors as for `load`."""
    opened = open_checkpoint(folder)
    if "text" not in modalities(folder):
        return None
    _compare_files(opened, but=".safetensors")
    return networks_of(family_in(opened)).load_tokenizer(opened)


def load_first_stage(folder: str | Path, device: Any = "cpu") -> FirstStage:
    """The first stage of any checkpoint folder, or the identity of `pixels-64`; errors as for `load`."""
    if (pixels := pixel_stage(str(folder))) is not None:
        return FirstStage(pixels).to(device).eval()
    opened = open_checkpoint(folder)
    _compare_files(opened, (STAGE, PLAIN_STAGE))
    return _load_first_stage(opened).to(device).eval()


def _load_first_stage(opened: OpenedCheckpoint) -> FirstStage:
    family = FAMILIES.get(kind_of(opened))
    return read_first_stage(opened) if family is None else networks_of(family).load_first_stage(opened)


# --- opening ------------------------------------------------------------------------------------------------


def _compare_files(opened: OpenedCheckpoint, folders: Collection[str] = (), but: str = "-") -> None:
    """`InputError` (`checkpoint`) where a file is not as it was written; folders without check sums pass.

    `folders`: only files in these. `but`: no files with this extension.
    """

    def wanted(name: str) -> bool:
        return (not folders or name.partition("/")[0] in folders) and not name.endswith(but)

    if FILES in opened.document and (problems := check_files(opened.root, opened.document[FILES], wanted)):
        raise InputError(f"{opened.root}: {problems[0]}", reason="checkpoint")
