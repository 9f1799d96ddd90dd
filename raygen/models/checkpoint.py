"""Checkpoint folders in the diffusers layout, and the closed union of model families.

Knows how a model becomes `model_index.json`, `unet/`, `vae/`, `scheduler/` and its own encoders' folders, and
back: inner models are built first and passed in. Reads safetensors and JSON only; nothing in a checkpoint is
executed. Knows neither training state nor where checkpoints come from.

    model_index.json  raygen.json          which classes; our config
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
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import Field

from raygen.core.assets import resolve
from raygen.core.config import parse
from raygen.core.errors import ConfigError
from raygen.core.hashing import canonical
from raygen.models.autoencoder import AutoencoderConfig, FirstStage, pixel_stage
from raygen.models.base import Model
from raygen.models.checkpoint_files import Writing, read_diffusers, read_json, write_diffusers, write_json
from raygen.models.checkpoint_layouts import FORMAT, FamilyLayout, family, family_of
from raygen.models.collaborative import Collaborative, CollaborativeConfig, DynamicDiffuser, diffuser_config, same_stage
from raygen.models.controlnet import ControlNetConfig, ControlNetLDM, new_branch
from raygen.models.expert_mixing import Mixing
from raygen.models.ldm import LDM, LDMConfig, build_unet, condition_encoders
from raygen.models.scadm import SCADM, SCADMConfig, build_scadm_unet, new_style_encoder
from raygen.models.schedule import SamplerConfig, build_sampler, diffusers_scheduler
from raygen.models.stable_diffusion import KIND, is_stable, load_stable_stage, stable_document, stable_tokenizer
from raygen.models.text import PretrainedTextConfig, Tokenizer, pretrained_encoder

__all__ = [
    "FORMAT",
    "DenoiserConfig",
    "ModelConfig",
    "build",
    "check_mixing",
    "count",
    "count_branch",
    "count_diffusers",
    "digest",
    "first_stage_config",
    "ldm_config",
    "load",
    "load_first_stage",
    "load_tokenizer",
    "modalities",
    "save",
]


#: Every family a checkpoint can hold.
ModelConfig = Annotated[
    AutoencoderConfig | LDMConfig | ControlNetConfig | CollaborativeConfig | SCADMConfig, Field(discriminator="kind")
]
#: Folder of the first stage, and how diffusers' pipeline for models without conditions calls it.
STAGE: Final = "vae"
PLAIN_STAGE: Final = "vqvae"
#: Those that can be sampled.
DenoiserConfig = Annotated[
    LDMConfig | ControlNetConfig | CollaborativeConfig | SCADMConfig, Field(discriminator="kind")
]


def build(
    config: LDMConfig | ControlNetConfig | CollaborativeConfig | SCADMConfig,
    first_stage: FirstStage,
    *,
    seed: int,
    tokenizer: Tokenizer | None = None,
) -> Model:
    """A new model with random weights that depend on `seed` alone; experts of a collaboration are loaded.

    `tokenizer` where an ldm reads texts; a pretrained text encoder is loaded here. `ConfigError` as the family has it,
    and where experts come from another first stage than the one given.
    """
    if isinstance(config, CollaborativeConfig):
        experts = {name: load_expert(folder) for name, folder in config.experts.items()}
        for name, expert in experts.items():
            if not same_stage(expert.first_stage, first_stage):
                raise ConfigError(f"expert {name!r} has another first stage than the one of this training")
        nulls = nulls_of(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Collaborative(config, experts, nulls=nulls)
    if isinstance(config, ControlNetConfig):
        base = load_expert(config.base)
        if not same_stage(base.first_stage, first_stage):
            raise ConfigError(f"base {config.base} has another first stage than the one of this training")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ControlNetLDM(config, base)
    if isinstance(config, SCADMConfig):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SCADM(config, first_stage)
    pretrained = "text" in config.modalities and isinstance(config.text, PretrainedTextConfig)
    frozen = (
        pretrained_encoder(config.text.name) if pretrained and isinstance(config.text, PretrainedTextConfig) else None
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LDM(config, first_stage, tokenizer=tokenizer, frozen_text=frozen)


def load_expert(folder: str) -> LDM:
    """A trained ldm; `ConfigError` where the folder holds something else."""
    expert = load(folder)
    if not isinstance(expert, LDM):
        raise ConfigError(f"{folder}: an expert or a base is an ldm, this is a {type(expert).__name__}")
    return expert


def nulls_of(config: CollaborativeConfig) -> tuple[str, ...]:
    """Experts that were trained to do without their condition: as the config says, or as their recipes say."""
    return config.nulls if config.nulls is not None else tuple(n for n, f in config.experts.items() if _knows_null(f))


def _knows_null(folder: str) -> bool:
    recipe = _open(folder)[1].get("extra", {}).get("recipe", {})
    return float(recipe.get("dropout", {}).get("null", 0.0)) > 0


def count(config: LDMConfig | SCADMConfig, latent_shape: tuple[int, int, int], factor: int = 4) -> dict[str, int]:
    """Parameters of the parts of a model, counted without making it; a pretrained text encoder counts nothing.

    `factor`, pixels along a latent position, matters only where the mask enters as channels.
    """
    if isinstance(config, SCADMConfig):
        with torch.device("meta"):
            made = {"unet": build_scadm_unet(config, latent_shape), "style_encoder": new_style_encoder(config)}
        return {
            name: sum(p.numel() for p in module.parameters()) for name, module in made.items() if module is not None
        }
    with torch.device("meta"):
        parts = {"unet": build_unet(config, latent_shape)}
        known = config
        if isinstance(config.text, PretrainedTextConfig):
            known = config.model_copy(update={"modalities": tuple(m for m in config.modalities if m != "text")})
        parts |= condition_encoders(known, factor)
    return {name: sum(p.numel() for p in module.parameters()) for name, module in parts.items()}


def count_diffusers(config: CollaborativeConfig) -> dict[str, int]:
    """Parameters of the dynamic diffusers of experts that are there, counted without making them."""
    made: dict[str, int] = {}
    for name, folder in config.experts.items():
        expert, latent = ldm_config(folder), first_stage_config(folder).latent_shape
        with torch.device("meta"):
            diffuser = DynamicDiffuser(diffuser_config(config, expert), latent, expert.vector_width)
        made[f"diffuser of {name}"] = sum(p.numel() for p in diffuser.parameters())
    return made


def count_branch(config: ControlNetConfig) -> dict[str, int]:
    """Parameters of the branch beside a base that is there, counted without making it."""
    base, stage = ldm_config(config.base), first_stage_config(config.base)
    with torch.device("meta"):
        branch = new_branch(config, build_unet(base, stage.latent_shape), stage.factor)
    return {"branch": sum(p.numel() for p in branch.parameters())}


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
        how = Writing(torch.float16 if weights == "float16" else torch.float32, metadata or {})
        _write(model, temporary, how, extra or {}, sampler)
        _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest(target)


def _replace(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.rename(temporary, target)
        return
    old = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
    os.rename(target, old)
    os.rename(temporary, target)
    shutil.rmtree(old)


def _write(
    model: Model | FirstStage, folder: Path, how: Writing, extra: Mapping[str, Any], sampler: SamplerConfig | None
) -> None:
    first_stage = model if isinstance(model, FirstStage) else model.first_stage
    plain = isinstance(model, LDM) and _is_plain(model)
    index: dict[str, Any] = {"_class_name": "LDMPipeline" if plain else "DiffusionPipeline"}
    document: dict[str, Any] = {"format": FORMAT, "first_stage": first_stage.config.model_dump(mode="json")}
    if first_stage.net is not None:
        write_diffusers(first_stage.net, folder / (PLAIN_STAGE if plain else STAGE), how, index)
    if isinstance(model, Model):
        document |= family_of(model).write(model, folder, how, index)
        sampler = sampler or SamplerConfig(name="ddim", steps=50)
        scheduler = diffusers_scheduler(build_sampler(model.schedule, sampler))
        scheduler.save_pretrained(folder / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
    write_json(folder / "model_index.json", index)
    write_json(folder / "raygen.json", {**document, "extra": dict(extra)})


def _is_plain(model: LDM) -> bool:
    """Whether diffusers' own pipeline for latent diffusion without conditions makes the same of it."""
    stage = model.first_stage
    known = stage.config.stage in ("kl", "vq") and stage.config.patch == 1 and not stage.net.config.get("latents_mean")
    return known and not model.config.uses_tokens and not model.modalities


# --- loading ------------------------------------------------------------------------------------------------


def load(folder: str | Path, device: Any = "cpu") -> Model:
    """The model of a checkpoint folder in float32 on `device`, ready for inference.

    `ConfigError` where there is no checkpoint or it holds only a first stage; `InputError` (`checkpoint`) where
    a file is missing, damaged or does not fit the spec.
    """
    root, document = _open(folder)
    if "model" not in document:
        raise ConfigError(f"{root}: holds a first stage, not a model that can be sampled")
    stage = _first_stage(root, document)
    model = _family(root, document).read(root, document, stage)
    return model.to(device).eval().requires_grad_(False)  # a CPU takes other kernels where gradients may be asked for


def modalities(folder: str | Path) -> frozenset[str]:
    """The conditions that the model of a folder reads, without loading it; errors as for `load`."""
    root, document = _open(folder)
    if "model" not in document:
        return frozenset()
    return _family(root, document).modalities(root, document)


def _family(root: Path, document: Mapping[str, Any]) -> FamilyLayout:
    return family(document.get("layout", document["model"].get("kind")), root)


def check_mixing(folder: str | Path, mixing: Mixing) -> None:
    """`ConfigError` where the model of a folder cannot be mixed so, without loading it; errors as for `load`."""
    root, document = _open(folder)
    if document.get("model", {}).get("kind") != "collaborative":
        raise ConfigError(f"mixing: {root} holds one denoiser, there is nothing to mix")
    config: CollaborativeConfig = parse(CollaborativeConfig, document["model"], str(root / "raygen.json"))
    mixing.check(config.experts, config.nulls or ())


def ldm_config(folder: str | Path) -> LDMConfig:
    """The shape of the ldm of a folder, without loading it; errors as for `load`."""
    root, document = _open(folder)
    config: LDMConfig = parse(LDMConfig, document.get("model"), str(root / "raygen.json"))
    return config


def first_stage_config(folder: str | Path) -> AutoencoderConfig:
    """The shape of the first stage of a folder, or of `pixels-64`, without loading it; errors as for `load`."""
    return pixel_stage(str(folder)) or _stage_config(*_open(folder))


def load_tokenizer(folder: str | Path) -> Tokenizer | None:
    """The tokenizer of the ldm of a folder, None where it reads no texts; errors as for `load`."""
    root, document = _open(folder)
    if "text" not in modalities(folder):
        return None
    return stable_tokenizer(root, document) if document.get("layout") == KIND else Tokenizer.load(root / "tokenizer")


def load_first_stage(folder: str | Path, device: Any = "cpu") -> FirstStage:
    """The first stage of any checkpoint folder, or the identity of `pixels-64`; errors as for `load`."""
    if (pixels := pixel_stage(str(folder))) is not None:
        return FirstStage(pixels).to(device).eval()
    root, document = _open(folder)
    return _first_stage(root, document).to(device).eval()


def digest(folder: str | Path) -> str:
    """sha256 over the sorted lines `name sha256` of the files that make the model.

    Notes beside them do not count (nor the recipe and the times in raygen.json: the same model is the same however
    long it took), nor does the folder `training`, where a job keeps what it resumes from.
    """
    if pixel_stage(str(folder)) is not None:
        return hashlib.sha256(str(folder).encode()).hexdigest()
    root = Path(resolve(str(folder)))
    _open(root)
    files = {p.relative_to(root): p for p in root.rglob("*") if p.suffix in (".safetensors", ".json") and p.is_file()}
    lines = sorted(f"{name.as_posix()} {_sha256(p)}\n" for name, p in files.items() if name.parts[0] != "training")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    if path.name == "raygen.json":
        document = {name: value for name, value in read_json(path).items() if name != "extra"}
        return hashlib.sha256(canonical(document)).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    root = Path(resolve(str(folder)))
    if is_stable(root):
        return root, stable_document(root)
    if not (root / "raygen.json").is_file():
        raise ConfigError(f"{root}: no checkpoint here (raygen.json is missing)")
    document = read_json(root / "raygen.json")
    if document.get("format") != FORMAT:
        raise ConfigError(f"{root}: checkpoint format {document.get('format')!r}, this version reads {FORMAT}")
    return root, document


def _stage_config(root: Path, document: Mapping[str, Any]) -> AutoencoderConfig:
    config: AutoencoderConfig = parse(AutoencoderConfig, document.get("first_stage"), str(root / "raygen.json"))
    return config


def _first_stage(root: Path, document: Mapping[str, Any]) -> FirstStage:
    if document.get("layout") == KIND:
        return load_stable_stage(root, document)
    config = _stage_config(root, document)
    folder = root / PLAIN_STAGE if (root / PLAIN_STAGE).is_dir() else root / STAGE
    return FirstStage(config, None if config.stage == "pixel" else read_diffusers(folder))
