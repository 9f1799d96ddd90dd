"""Files of a checkpoint folder: diffusers models, own weights and JSON, written and read.

Reads safetensors and JSON only; nothing in a file is executed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from diffusers import AutoencoderDC, AutoencoderKL, ControlNetModel, UNet2DConditionModel, UNet2DModel, VQModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raygen.core.errors import InputError
from raygen.models.autoencoder import FirstStage
from raygen.models.checkpoint_documents import PLAIN_STAGE, STAGE, OpenedCheckpoint, read_json
from raygen.store.not_weights import check_start
from raygen.store.tensor_file import save_tensors

__all__ = [
    "DIFFUSERS_WEIGHTS",
    "OWN_WEIGHTS",
    "Writing",
    "fill",
    "read_diffusers",
    "read_first_stage",
    "write_diffusers",
    "write_json",
    "write_weights",
]


DIFFUSERS_WEIGHTS: Final = "diffusion_pytorch_model.safetensors"
OWN_WEIGHTS: Final = "model.safetensors"
CLASSES: Final[Mapping[str, Any]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderDC": AutoencoderDC,
    "VQModel": VQModel,
    "UNet2DModel": UNet2DModel,
    "UNet2DConditionModel": UNet2DConditionModel,
    "ControlNetModel": ControlNetModel,
}


class Writing(NamedTuple):
    """How weights are written: the type of floating-point tensors, and metadata of every file."""

    dtype: torch.dtype = torch.float32
    metadata: Mapping[str, str] = {}


def write_diffusers(module: Any, folder: Path, writing: Writing, index: dict[str, Any]) -> None:
    """A diffusers model as `folder`, and its line in `index`, the document of model_index.json."""
    module.save_config(folder)
    write_weights(module, folder / DIFFUSERS_WEIGHTS, writing)
    index[folder.name] = ["diffusers", type(module).__name__]


def write_weights(module: nn.Module, path: Path, writing: Writing) -> None:
    """All tensors of `module` as safetensors, without a second copy of them in memory; folders are made.

    Only tied weights, such as T5's embedding, are copied: safetensors refuses tensors that share memory.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, given in module.state_dict().items():
        tensor = given.detach().cpu().to(writing.dtype if given.is_floating_point() else given.dtype).contiguous()
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in places else tensor
        places.add(place)
    save_tensors(tensors, path, writing.metadata)


def write_json(path: Path, value: object) -> None:
    """`value` as sorted, indented JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_diffusers(folder: Path) -> Any:
    """A diffusers model from its own config and weights; `InputError` (`checkpoint`) where a file is damaged."""
    config = read_json(folder / "config.json")
    kind = CLASSES.get(str(config.get("_class_name")))
    if kind is None:
        raise InputError(f"{folder}: class {config.get('_class_name')!r} is not one of ours", reason="checkpoint")
    try:
        module = kind.from_config(config)
    except Exception as error:  # the classes are built from whatever the file holds
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"{folder / 'config.json'}: {reason}", reason="checkpoint") from error
    fill(module, folder / DIFFUSERS_WEIGHTS)
    return module


def read_first_stage(opened: OpenedCheckpoint) -> FirstStage:
    """The first stage of a folder; `InputError` (`checkpoint`) where a file is missing or damaged."""
    config = opened.first_stage
    folder = opened.root / PLAIN_STAGE if (opened.root / PLAIN_STAGE).is_dir() else opened.root / STAGE
    return FirstStage(config, None if config.stage == "pixel" else read_diffusers(folder))


def fill(module: nn.Module, path: Path) -> None:
    """Load weights into `module`: exactly its names and shapes, as float32; `InputError` (`checkpoint`) otherwise."""
    try:
        if path.is_file():
            check_start(path)
        tensors: dict[str, Tensor] = load_file(path)
    except InputError as error:
        raise InputError(str(error).partition(": ")[2], reason="checkpoint") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: {error}", reason="checkpoint") from error
    expected = module.state_dict()
    if unlike := sorted(set(expected) ^ set(tensors)):
        raise InputError(f"{path}: names differ from the config's, first {unlike[0]!r}", reason="checkpoint")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, not {list(expected[name].shape)}"
            raise InputError(f"{path}: {name} has shape {shapes}", reason="checkpoint")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name} is not finite", reason="checkpoint")
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
