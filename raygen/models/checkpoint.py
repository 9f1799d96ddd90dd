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

import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch

from raygen.core.assets import resolve
from raygen.core.config import Config
from raygen.core.errors import ConfigError, InputError, IntegrityError
from raygen.core.hashing import canonical
from raygen.models import collaborative, controlnet, ldm, scadm, stable_diffusion
from raygen.models.autoencoder import AutoencoderConfig, FirstStage, pixel_stage
from raygen.models.base import Model
from raygen.models.checkpoint_files import (
    FORMAT,
    PLAIN_STAGE,
    STAGE,
    OpenedCheckpoint,
    Writing,
    read_first_stage,
    read_json,
    write_diffusers,
    write_json,
)
from raygen.models.expert_mixing import Mixing
from raygen.models.family import BuildInputs, CountInputs, Family
from raygen.models.schedulers import NoiseSchedule, SamplerConfig, build_sampler, diffusers_scheduler
from raygen.models.text import Tokenizer
from raygen.models.weight_variants import weight_file
from raygen.store.sealed import FILES, SEAL, check_files, open_record, seal_folder

__all__ = [
    "FAMILIES",
    "build",
    "check_mixing",
    "check_sampler",
    "count",
    "digest",
    "family_of",
    "first_stage_config",
    "load",
    "load_first_stage",
    "load_tokenizer",
    "modalities",
    "modalities_of",
    "save",
]


#: Every kind of denoiser. The last one is a layout of folders that other software writes.
FAMILIES: Final[dict[str, Family]] = {
    family.kind: family
    for family in (ldm.FAMILY, controlnet.FAMILY, collaborative.FAMILY, scadm.FAMILY, stable_diffusion.FAMILY)
}


def family_of(config: Config) -> Family:
    """The family of a denoiser's config; `KeyError` where it is none."""
    return FAMILIES[config.kind]  # type: ignore[attr-defined]


# --- building and counting ----------------------------------------------------------------------------------


def build(config: Config, first_stage: FirstStage, *, seed: int, tokenizer: Tokenizer | None = None) -> Model:
    """A new model with random weights that depend on `seed` alone. Trained models that it contains are loaded.

    `tokenizer` where an ldm reads texts; a pretrained text encoder is loaded here. `ConfigError` as the family has it,
    and where parts were trained on another first stage than the one given.
    """
    family = family_of(config)
    opened = _open_parts(config)
    parts = {name: load(part.root) for name, part in opened.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.build(config, BuildInputs(first_stage, tokenizer, parts, opened))


def count(config: Config, latent_shape: tuple[int, int, int] | None = None, factor: int = 4) -> dict[str, int]:
    """Parameters that train, by network, counted without making the model; a pretrained text encoder counts nothing.

    `latent_shape` and `factor`, pixels along a latent position, are those of the first stage; a model that is put
    together from trained ones takes theirs. The factor matters only where the mask enters as channels or as a hint.
    """
    opened = _open_parts(config)
    if opened:
        stage = next(iter(opened.values())).first_stage
        latent_shape, factor = stage.latent_shape, stage.factor
    if latent_shape is None:
        raise ValueError("the shape of latents is missing")
    parts = {name: _family(part).parse(part) for name, part in opened.items()}
    with torch.device("meta"):
        networks = family_of(config).count(config, CountInputs(latent_shape, factor, parts))
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def modalities_of(config: Config) -> frozenset[str]:
    """The conditions that a new model of this config will take; errors as for `load`."""
    family = family_of(config)
    return family.needs(config, {name: modalities(folder) for name, folder in family.folders(config).items()})


def _open_parts(config: Config) -> dict[str, OpenedCheckpoint]:
    """The trained models that a config is put together from, each of them an ldm."""
    opened = {name: _open_model(folder) for name, folder in family_of(config).folders(config).items()}
    for part in opened.values():
        if (kind := part.document["model"].get("kind")) != ldm.FAMILY.kind:
            raise ConfigError(f"{part.root}: an expert or a base is an ldm, this is a {kind}")
    return opened


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
        family, first_stage = family_of(model.config), model.first_stage
        if family.is_plain(model):
            index["_class_name"], stage_folder = "LDMPipeline", PLAIN_STAGE
        document |= family.save(model, folder, writing, index)
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
    opened = _open_model(folder)
    _compare_files(opened)
    model = _load(opened, _load_first_stage(opened))
    return model.to(device).eval().requires_grad_(False)  # a CPU takes other kernels where gradients may be asked for


def _load(opened: OpenedCheckpoint, first_stage: FirstStage) -> Model:
    family = _family(opened)
    config = family.parse(opened)
    parts = {name: _load(part, first_stage) for name, part in family.inside(opened).items()}
    return family.load(opened, config, first_stage, parts)


def modalities(folder: str | Path) -> frozenset[str]:
    """The conditions that the model of a folder reads, without loading it; errors as for `load`."""
    opened = _open(folder)
    return _modalities(opened) if "model" in opened.document else frozenset()


def _modalities(opened: OpenedCheckpoint) -> frozenset[str]:
    family = _family(opened)
    parts = {name: _modalities(part) for name, part in family.inside(opened).items()}
    return family.needs(family.parse(opened), parts)


def check_mixing(folder: str | Path, mixing: Mixing) -> None:
    """`ConfigError` where the model of a folder cannot be mixed so, without loading it; errors as for `load`."""
    opened = _open(folder)
    family = _family(opened) if "model" in opened.document else None
    if family is None or family.check_mixing is None:
        raise ConfigError(f"mixing: {opened.root} holds one denoiser, there is nothing to mix")
    family.check_mixing(family.parse(opened), mixing)


def check_sampler(folder: str | Path, sampler: SamplerConfig) -> None:
    """`ConfigError` where the model of a folder cannot be sampled so, without loading it; see `build_sampler`."""
    build_sampler(_schedule(_open_model(folder)), sampler)


def _schedule(opened: OpenedCheckpoint) -> NoiseSchedule:
    family = _family(opened)
    return family.schedule(family.parse(opened), {name: _schedule(p) for name, p in family.inside(opened).items()})


def first_stage_config(folder: str | Path) -> AutoencoderConfig:
    """The shape of the first stage of a folder, or of `pixels-64`, without loading it; errors as for `load`."""
    return pixel_stage(str(folder)) or _open(folder).first_stage


def load_tokenizer(folder: str | Path) -> Tokenizer | None:
    """The tokenizer of the ldm of a folder, None where it reads no texts; errors as for `load`."""
    opened = _open(folder)
    if "text" not in modalities(folder):
        return None
    _compare_files(opened, but=".safetensors")
    return _family(opened).load_tokenizer(opened)


def load_first_stage(folder: str | Path, device: Any = "cpu") -> FirstStage:
    """The first stage of any checkpoint folder, or the identity of `pixels-64`; errors as for `load`."""
    if (pixels := pixel_stage(str(folder))) is not None:
        return FirstStage(pixels).to(device).eval()
    opened = _open(folder)
    _compare_files(opened, (STAGE, PLAIN_STAGE))
    return _load_first_stage(opened).to(device).eval()


def _load_first_stage(opened: OpenedCheckpoint) -> FirstStage:
    family = FAMILIES.get(_kind(opened))
    return read_first_stage(opened) if family is None else family.load_first_stage(opened)


def digest(folder: str | Path) -> str:
    """sha256 over the sorted lines `name sha256` of the files that make the model.

    Notes beside them do not count (nor check sums, the recipe and the times in raygen.json: the same model is the same
    however long it took), nor does the folder `training`, where a job keeps what it resumes from.
    """
    if pixel_stage(str(folder)) is not None:
        return hashlib.sha256(str(folder).encode()).hexdigest()
    root = Path(resolve(str(folder)))
    _open(root)
    files = {p.relative_to(root): p for p in root.rglob("*") if _makes_the_model(p)}
    lines = []
    for name, path in files.items():
        if name.parts[0] == "training":
            continue
        if path.name == "raygen.json":
            document = {key: value for key, value in read_json(path).items() if key not in ("extra", FILES, SEAL)}
            sha256 = hashlib.sha256(canonical(document)).hexdigest()
        else:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{name.as_posix()} {sha256}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _makes_the_model(path: Path) -> bool:
    """Whether a file is read when its folder is loaded; pickles are where there is nothing else."""
    if path.suffix == ".bin":
        first = weight_file(path.parent)
        return first is not None and ".bin" in first.suffixes
    return path.suffix in (".safetensors", ".json") and path.is_file()


# --- opening ------------------------------------------------------------------------------------------------


def _open(folder: str | Path) -> OpenedCheckpoint:
    root = Path(resolve(str(folder)))
    if stable_diffusion.is_stable(root):
        return OpenedCheckpoint(root, stable_diffusion.stable_document(root))
    if not (root / "raygen.json").is_file():
        raise ConfigError(f"{root}: no checkpoint here (raygen.json is missing)")
    try:
        document = open_record((root / "raygen.json").read_bytes(), str(root / "raygen.json"))
    except (OSError, IntegrityError) as error:
        raise InputError(str(error), reason="checkpoint") from error
    if document.get("format") != FORMAT:
        raise ConfigError(f"{root}: checkpoint format {document.get('format')!r}, this version reads {FORMAT}")
    if not isinstance(document.get("model", {}), dict):
        raise InputError(f"{root / 'raygen.json'}: `model` is not a group of keys", reason="checkpoint")
    return OpenedCheckpoint(root, document)


def _compare_files(opened: OpenedCheckpoint, folders: Collection[str] = (), but: str = "-") -> None:
    """`InputError` (`checkpoint`) where a file is not as it was written; folders without check sums pass.

    `folders`: only files in these. `but`: no files with this extension.
    """

    def wanted(name: str) -> bool:
        return (not folders or name.partition("/")[0] in folders) and not name.endswith(but)

    if FILES in opened.document and (problems := check_files(opened.root, opened.document[FILES], wanted)):
        raise InputError(f"{opened.root}: {problems[0]}", reason="checkpoint")


def _open_model(folder: str | Path) -> OpenedCheckpoint:
    opened = _open(folder)
    if "model" not in opened.document:
        raise ConfigError(f"{opened.root}: holds a first stage, not a model that can be sampled")
    return opened


def _kind(opened: OpenedCheckpoint) -> str:
    return str(opened.document.get("layout", opened.document.get("model", {}).get("kind")))


def _family(opened: OpenedCheckpoint) -> Family:
    family = FAMILIES.get(_kind(opened))
    if family is None:
        raise InputError(f"{opened.root}: a {_kind(opened)!r} is no family of ours", reason="checkpoint")
    return family
