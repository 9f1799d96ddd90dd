"""Checkpoint folders in the diffusers layout, and the closed union of model families.

Knows how a model becomes `model_index.json`, `unet/`, `vae/`, `scheduler/` and its own encoders' folders, and
back: inner models are built first and passed in. Reads safetensors and JSON only; nothing in a checkpoint is
executed. Knows neither training state nor where checkpoints come from.

    model_index.json  raygen.json          which classes; our spec
    unet/  vae/                            config.json + diffusion_pytorch_model.safetensors
    attribute_encoder/  mask_encoder/  …   config.json + model.safetensors
    tokenizer/                             tokenizer.json
    scheduler/                             scheduler_config.json
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from diffusers import AutoencoderDC, AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from raygen.bundled import resolve
from raygen.models.autoencoder import AutoencoderSpec, FirstStage
from raygen.models.base import Model
from raygen.models.ldm import LDM, LDMSpec, build_unet, condition_encoders
from raygen.models.schedule import SamplerSpec, build_sampler
from raygen.models.text import FrozenText, PretrainedText, Tokenizer, empty_encoder, pretrained_encoder
from raygen.spec import ConfigError, InputError, canonical, parse

__all__ = [
    "FORMAT",
    "ModelSpec",
    "build",
    "count",
    "digest",
    "first_stage_spec",
    "load",
    "load_first_stage",
    "modalities",
    "save",
]

FORMAT: Final = 1
DIFFUSERS_WEIGHTS: Final = "diffusion_pytorch_model.safetensors"
OWN_WEIGHTS: Final = "model.safetensors"
CLASSES: Final[Mapping[str, Any]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderDC": AutoencoderDC,
    "VQModel": VQModel,
    "UNet2DModel": UNet2DModel,
    "UNet2DConditionModel": UNet2DConditionModel,
}

#: Every family a checkpoint can hold.
ModelSpec = Annotated[AutoencoderSpec | LDMSpec, Field(discriminator="kind")]


def build(spec: LDMSpec, first_stage: FirstStage, *, seed: int, tokenizer: Tokenizer | None = None) -> Model:
    """A new model with random weights that depend on `seed` alone.

    `tokenizer` where text is a modality; a pretrained text encoder is loaded here. `ConfigError` as the family has it.
    """
    pretrained = "text" in spec.modalities and isinstance(spec.text, PretrainedText)
    frozen = pretrained_encoder(spec.text.name) if pretrained and isinstance(spec.text, PretrainedText) else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LDM(spec, first_stage, tokenizer=tokenizer, frozen_text=frozen)


def count(spec: LDMSpec, latent_shape: tuple[int, int, int], factor: int = 4) -> dict[str, int]:
    """Parameters of the parts of a model, counted without making it; a pretrained text encoder counts nothing.

    `factor`, pixels along a latent position, matters only where the mask enters as channels.
    """
    with torch.device("meta"):
        parts = {"unet": build_unet(spec, latent_shape)}
        known = spec
        if isinstance(spec.text, PretrainedText):
            known = spec.model_copy(update={"modalities": tuple(m for m in spec.modalities if m != "text")})
        parts |= condition_encoders(known, factor)
    return {name: sum(p.numel() for p in module.parameters()) for name, module in parts.items()}


# --- saving -------------------------------------------------------------------------------------------------


def save(
    model: Model | FirstStage,
    folder: str | Path,
    *,
    weights: Literal["float32", "float16"] = "float32",
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write `model` as a new folder, whole or not at all, and return its digest.

    `float16` halves the files; they load back as float32. `extra` goes into raygen.json (recipe, scores). An
    existing checkpoint of that name is replaced; any other existing folder is a `ConfigError`.
    """
    target = Path(folder)
    if target.exists() and not (target / "raygen.json").exists():
        raise ConfigError(f"{target}: exists and is not a checkpoint; it is left alone")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    try:
        _write(model, temporary, torch.float16 if weights == "float16" else torch.float32, extra or {})
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


def _write(model: Model | FirstStage, folder: Path, dtype: torch.dtype, extra: Mapping[str, Any]) -> None:
    first_stage = model if isinstance(model, FirstStage) else model.first_stage
    index: dict[str, Any] = {"_class_name": "DiffusionPipeline"}
    document: dict[str, Any] = {"format": FORMAT, "first_stage": first_stage.spec.model_dump(mode="json")}
    if first_stage.net is not None:
        _write_diffusers(first_stage.net, folder / "vae", dtype, index)
    if isinstance(model, LDM):
        document["model"] = model.spec.model_dump(mode="json")
        _write_diffusers(model.unet, folder / "unet", dtype, index)
        for name, module in model.encoders().items():
            _write_json(folder / name / "config.json", module.config)
            _write_weights(module, folder / name / OWN_WEIGHTS, dtype)
        if model.tokenizer is not None:
            model.tokenizer.save(folder / "tokenizer")
        scheduler = build_sampler(model.schedule, SamplerSpec(name="ddim", steps=50))
        scheduler.save_pretrained(folder / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
    _write_json(folder / "model_index.json", index)
    _write_json(folder / "raygen.json", {**document, "extra": dict(extra)})


def _write_diffusers(module: Any, folder: Path, dtype: torch.dtype, index: dict[str, Any]) -> None:
    module.save_config(folder)
    _write_weights(module, folder / DIFFUSERS_WEIGHTS, dtype)
    index[folder.name] = ["diffusers", type(module).__name__]


def _write_weights(module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in module.state_dict().items()
    }
    path.write_bytes(serialize(tensors, metadata={"format": "pt"}))


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# --- loading ------------------------------------------------------------------------------------------------


def load(folder: str | Path, device: Any = "cpu") -> Model:
    """The model of a checkpoint folder in float32 on `device`, ready for inference.

    `ConfigError` where there is no checkpoint or it holds only a first stage; `InputError` (`checkpoint`) where
    a file is missing, damaged or does not fit the spec.
    """
    root, document = _open(folder)
    if "model" not in document:
        raise ConfigError(f"{root}: holds a first stage, not a model that can be sampled")
    spec: LDMSpec = parse(LDMSpec, document["model"], str(root / "raygen.json"))
    tokenizer, frozen = _text(root, spec)
    stage = _first_stage(root, document)
    model = LDM(spec, stage, _diffusers(root / "unet"), tokenizer=tokenizer, frozen_text=frozen)
    for name, module in model.encoders().items():
        if _read_json(root / name / "config.json") != module.config:
            raise InputError(f"{root / name}: config.json does not fit raygen.json", reason="checkpoint")
        _fill(module, root / name / OWN_WEIGHTS)
    return model.to(device).eval()


def _text(root: Path, spec: LDMSpec) -> tuple[Tokenizer | None, FrozenText | None]:
    """The tokenizer, and the shell of a pretrained encoder whose weights are filled in like any other's."""
    if "text" not in spec.modalities:
        return None, None
    pretrained = isinstance(spec.text, PretrainedText)
    frozen = empty_encoder(_read_json(root / "text_encoder" / "config.json")) if pretrained else None
    return Tokenizer.load(root / "tokenizer"), frozen


def modalities(folder: str | Path) -> frozenset[str]:
    """The conditions that the model of a folder reads, without loading it; errors as for `load`."""
    _, document = _open(folder)
    return frozenset(document.get("model", {}).get("modalities", ()))


def first_stage_spec(folder: str | Path) -> AutoencoderSpec:
    """The shape of the first stage of a folder, without loading it; errors as for `load`."""
    return _stage_spec(*_open(folder))


def load_first_stage(folder: str | Path, device: Any = "cpu") -> FirstStage:
    """The first stage of any checkpoint folder; errors as for `load`."""
    root, document = _open(folder)
    return _first_stage(root, document).to(device).eval()


def digest(folder: str | Path) -> str:
    """sha256 over the sorted lines `name sha256` of the files that make the model.

    Notes beside them do not count (nor the recipe and the times in raygen.json: the same model is the same however
    long it took), nor does the folder `training`, where a job keeps what it resumes from.
    """
    root = Path(resolve(str(folder)))
    if not (root / "raygen.json").is_file():
        raise ConfigError(f"{root}: no checkpoint here (raygen.json is missing)")
    files = {p.relative_to(root): p for p in root.rglob("*") if p.suffix in (".safetensors", ".json") and p.is_file()}
    lines = sorted(f"{name.as_posix()} {_sha256(p)}\n" for name, p in files.items() if name.parts[0] != "training")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    if path.name == "raygen.json":
        document = {name: value for name, value in _read_json(path).items() if name != "extra"}
        return hashlib.sha256(canonical(document)).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    root = Path(resolve(str(folder)))
    if not (root / "raygen.json").is_file():
        raise ConfigError(f"{root}: no checkpoint here (raygen.json is missing)")
    document = _read_json(root / "raygen.json")
    if document.get("format") != FORMAT:
        raise ConfigError(f"{root}: checkpoint format {document.get('format')!r}, this version reads {FORMAT}")
    return root, document


def _stage_spec(root: Path, document: Mapping[str, Any]) -> AutoencoderSpec:
    spec: AutoencoderSpec = parse(AutoencoderSpec, document.get("first_stage"), str(root / "raygen.json"))
    return spec


def _first_stage(root: Path, document: Mapping[str, Any]) -> FirstStage:
    spec = _stage_spec(root, document)
    return FirstStage(spec, None if spec.stage == "pixel" else _diffusers(root / "vae"))


def _diffusers(folder: Path) -> Any:
    """A diffusers model from its own config and weights."""
    config = _read_json(folder / "config.json")
    kind = CLASSES.get(str(config.get("_class_name")))
    if kind is None:
        raise InputError(f"{folder}: class {config.get('_class_name')!r} is not one of ours", reason="checkpoint")
    try:
        module = kind.from_config(config)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{folder / 'config.json'}: {error}", reason="checkpoint") from error
    _fill(module, folder / DIFFUSERS_WEIGHTS)
    return module


def _fill(module: nn.Module, path: Path) -> None:
    """Load weights into `module`: exactly its names and shapes, as float32."""
    tensors = _read_tensors(path)
    wanted = module.state_dict()
    if unlike := sorted(set(wanted) ^ set(tensors)):
        raise InputError(f"{path}: names differ from the config's, first {unlike[0]!r}", reason="checkpoint")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)}, not {list(wanted[name].shape)}"
            raise InputError(f"{path}: {name} has shape {shapes}", reason="checkpoint")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} is not finite", reason="checkpoint")
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: {error}", reason="checkpoint") from error
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}", reason="checkpoint") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object", reason="checkpoint")
    return value
