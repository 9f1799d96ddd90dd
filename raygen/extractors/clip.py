"""How well a picture fits a text: the cosine of CLIP's two embeddings, from a folder the user has.

Knows what CLIP wants of a picture and of a text, and which files make such a folder. Knows neither captions nor what
is done with a cosine. Fetches nothing and runs no code of the folder.

Source: Radford et al. 2021; Hessel et al. 2021 (CLIPScore), of which this is the cosine before it is clipped at 0 and
scaled. What a cosine is depends on the model, so its name is that of the weights.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raygen.core.config import Config
from raygen.core.errors import ConfigError, InputError
from raygen.core.precision import full_precision
from raygen.extractors.base import TRANSFORMERS
from raygen.extractors.face_parsers import read_weights

__all__ = ["ClipConfig", "ClipScore", "load_clip"]


VOCABULARIES: Final = ("tokenizer.json", "vocab.json")
#: A table of 0, 1, 2 … that older files carry along.
COUNTERS: Final = "position_ids"
#: Pillow's number of the bicubic filter.
BICUBIC: Final = 3
#: Pictures or texts a pass.
CHUNK: Final = 32


class ClipConfig(Config):
    """A CLIP model as `transformers` saves it."""

    kind: Literal["clip"] = "clip"
    folder: str = Field(..., description="folder with config.json, weights, preprocessor and tokenizer of a CLIP model")
    sha256: str | None = Field(None, description="whole or leading digits of the weights file; refuse any other")


class _Preparation(NamedTuple):
    """Short side, height and width of the crop, and the statistics of the channels."""

    side: int
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


class ClipScore:
    """Pictures and texts -> how well each picture fits its text."""

    def __init__(self, network: Any, tokenizer: Any, preparation: _Preparation, sha256: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.tokenizer, self.preparation, self.sha256 = tokenizer, preparation, sha256
        self.name = f"clip:{sha256[:8]}"
        self.length = int(network.config.text_config.max_position_embeddings)
        self.device = next(network.parameters()).device

    @torch.inference_mode()
    def scores(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """uint8 [B, H, W, 3] and a text a picture -> cosine float32 [B] in -1..1, neither clipped nor scaled.

        `ValueError` where there are not as many texts as pictures. A text that occurs twice is encoded once.
        """
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures, but {len(texts)} texts")
        if not texts:
            return torch.zeros(0)
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        unique = list(place)
        with full_precision():
            words = torch.cat([self._texts(unique[at : at + CHUNK]) for at in range(0, len(unique), CHUNK)])
            seen = torch.cat([self._images(part) for part in torch.split(images, CHUNK)])
            cosine: Tensor = (seen * words[[place[text] for text in texts]]).sum(dim=1)
        return cosine.float().cpu()

    def protocol(self) -> Mapping[str, Any]:
        """What a number made with it depends on."""
        vision, (height, width) = self.network.config.vision_config, self.preparation.crop
        layers, side = vision.num_hidden_layers, vision.image_size
        return {
            "network": self.name,
            "sha256": self.sha256,
            "model": f"ViT {vision.hidden_size} x {layers}, patch {vision.patch_size}, {side} px",
            "input": f"short side {self.preparation.side} px bicubic antialias, {height} x {width} px of the centre",
            "text": f"cut to {self.length} tokens",
            "score": "cosine, not clipped, not times 100",
            "precision": "fp32",
        }

    def _images(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> unit vectors [B, D]."""
        pixels = _prepared(images.to(self.device), self.preparation)
        vectors: Tensor = self.network.visual_projection(self.network.vision_model(pixel_values=pixels).pooler_output)
        return F.normalize(vectors, dim=1)

    def _texts(self, texts: list[str]) -> Tensor:
        """Texts -> unit vectors [B, D]."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        found = self.network.text_model(
            input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
        )
        vectors: Tensor = self.network.text_projection(found.pooler_output)
        return F.normalize(vectors, dim=1)


def load_clip(config: ClipConfig, device: torch.device) -> ClipScore:
    """The score of a config on `device`.

    `ConfigError` where the folder is not there, is no CLIP model, or lacks a part; `InputError` (`weights`) where the
    weights are others than `sha256` or `config.json` say.
    """
    folder = Path(config.folder)
    network_config = _config(folder)
    path = next((folder / name for name in TRANSFORMERS if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(f"{folder}: no CLIP weights here, neither {' nor '.join(TRANSFORMERS)}")
    tensors, sha256 = read_weights(path, config.sha256)
    from transformers import AutoTokenizer, CLIPImageProcessor

    preparation = _preparation(_part(CLIPImageProcessor, folder, "picture preprocessor"), folder)
    if not any((folder / name).is_file() for name in VOCABULARIES):  # the library would make an empty one
        raise ConfigError(f"{folder}: the tokenizer of CLIP is missing, neither {' nor '.join(VOCABULARIES)}")
    tokenizer = _part(AutoTokenizer, folder, "tokenizer")
    if len(tokenizer) > network_config.text_config.vocab_size:
        raise ConfigError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {network_config.text_config.vocab_size}"
        )
    return ClipScore(_network(network_config, tensors, path).to(device), tokenizer, preparation, sha256)


def _config(folder: Path) -> Any:
    """The configuration of a CLIP folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no CLIP model here (config.json is missing). Name a folder that `transformers` saved one in; "
            "nothing is downloaded"
        )
    try:
        document = json.loads(path.read_bytes())
        kind = document.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not a configuration ({error})") from error
    if kind != "clip":
        raise ConfigError(f"{folder}: a model of type {kind!r}, not CLIP")
    from transformers import CLIPConfig

    try:
        return CLIPConfig.from_dict(document)
    except Exception as error:  # the library checks a configuration with errors of its own
        raise ConfigError(f"{path}: not a configuration of CLIP ({error})") from error


def _part(kind: Any, folder: Path, what: str) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises anything from OSError to its tokenizers' bare Exception
        raise ConfigError(f"{folder}: the {what} of CLIP is missing or cannot be read ({error})") from error


def _preparation(processor: Any, folder: Path) -> _Preparation:
    """What the folder's processor does; `ConfigError` where it is not what CLIP does."""
    side = int((processor.size or {}).get("shortest_edge") or 0)
    crop = processor.crop_size or {}
    height, width = (int(crop.get(name) or 0) for name in ("height", "width"))
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    usual = all(getattr(processor, step) for step in steps) and int(processor.resample) == BICUBIC
    fits = 0 < min(height, width) <= max(height, width) <= side
    if not usual or not fits or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ConfigError(f"{folder}: prepares pictures otherwise than CLIP (bicubic short side, centre, mean)")
    return _Preparation(side, (height, width), tuple(processor.image_mean), tuple(processor.image_std))


def _network(config: Any, tensors: Mapping[str, Tensor], path: Path) -> Any:
    """CLIP with exactly these tensors, float32."""
    from transformers import CLIPModel

    state = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)}
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise InputError(f"{path}: {min(broken)} is not finite", reason="weights")
    try:
        network, found = CLIPModel.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    except RuntimeError as error:
        raise InputError(f"{path}: is not the CLIP of its config.json ({error})", reason="weights") from error
    for what, names in (("is missing", found["missing_keys"]), ("is no parameter of CLIP", found["unexpected_keys"])):
        if names:
            raise InputError(f"{path}: {min(names)} {what}", reason="weights")
    return network.float()


def _prepared(images: Tensor, preparation: _Preparation) -> Tensor:
    """uint8 [B, H, W, 3] -> normalised pixels [B, 3, h, w], resized to whole levels as Pillow does.

    The long side, and half of what it is too long, are cut down to whole pixels.
    """
    short = min(images.shape[1:3])
    height, width = (int(preparation.side * length / short) for length in images.shape[1:3])
    x = images.movedim(-1, 1).float()
    for size in ((images.shape[1], width), (height, width)):  # Pillow clamps and rounds between both directions
        if tuple(x.shape[-2:]) != size:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 255).round()
    top, left = ((a - b) // 2 for a, b in zip((height, width), preparation.crop, strict=True))
    x = x[..., top : top + preparation.crop[0], left : left + preparation.crop[1]] / 255
    mean, deviation = (x.new_tensor(v).view(3, 1, 1) for v in (preparation.mean, preparation.deviation))
    return (x - mean) / deviation
