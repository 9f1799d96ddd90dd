"""The JSON files of a checkpoint folder, read without its weights: nothing here imports torch."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

from raygen.core.config import parse
from raygen.core.documents import load_json
from raygen.core.errors import InputError
from raygen.models.config.autoencoder import AutoencoderConfig

__all__ = ["FORMAT", "PLAIN_STAGE", "STAGE", "OpenedCheckpoint", "read_json", "weight_file"]


#: Version of raygen.json.
FORMAT: Final = 1


#: Folder of the first stage, and its name in diffusers' `LDMPipeline`.
STAGE: Final = "vae"


PLAIN_STAGE: Final = "vqvae"


class OpenedCheckpoint(NamedTuple):
    """A checkpoint folder and its document: raygen.json, or what it would be for a folder of another layout."""

    root: Path
    document: Mapping[str, Any]

    @property
    def source(self) -> str:
        """Where the document comes from, for error messages."""
        return str(self.root if "layout" in self.document else self.root / "raygen.json")

    @property
    def first_stage(self) -> AutoencoderConfig:
        """The shape of its first stage; `ConfigError` where the document has none."""
        config: AutoencoderConfig = parse(AutoencoderConfig, self.document.get("first_stage"), self.source)
        return config


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `InputError` (`checkpoint`) where there is none."""
    try:
        value = load_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}", reason="checkpoint") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object", reason="checkpoint")
    return value


#: Names of weights without their ending, of diffusers and of transformers: as safetensors, and as pickles.
STEMS: Final = (("diffusion_pytorch_model", "diffusion_pytorch_model"), ("model", "pytorch_model"))


def weight_file(folder: Path) -> Path | None:
    """The weights of a model's folder, or their index: full precision first, then safetensors; None without any."""
    for variant, ending, stems in product(("", ".fp16", ".bf16"), ("safetensors", "bin"), STEMS):
        name = stems[ending == "bin"]
        whole = f"{name}{variant}.{ending}"
        for file in (whole, f"{whole}.index.json", f"{name}.{ending}.index{variant}.json"):
            if (folder / file).is_file():
                return folder / file
    return None
