"""CLIP score: the cosine of the CLIP embeddings of a picture and a text, from a local folder of `transformers`.

Downloads nothing and runs no code of the folder. Cosines of different models are not comparable, so the name of the
metric has the digest of the weights.

Sources: Radford et al. 2021; Hessel et al. 2021 (CLIPScore), of which this is the cosine, neither clipped nor scaled.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from raygen.core.documents import load_json
from raygen.core.errors import ConfigError, InputError
from raygen.core.precision import full_precision
from raygen.extractors.config import ClipConfig
from raygen.extractors.digests import TRANSFORMERS
from raygen.extractors.face_parsers import read_weights
from raygen.store.fetched import local_folder

__all__ = ["ClipScore", "load_clip"]


VOCABULARIES: Final = ("tokenizer.json", "vocab.json")
#: A buffer 0, 1, 2 … in older weight files.
COUNTERS: Final = "position_ids"
#: Pillow's number of the bicubic filter.
BICUBIC: Final = 3
#: Pictures or texts a pass.
CHUNK: Final = 32


class _Preprocessing(NamedTuple):
    """Short side after the resize, height and width of the crop, mean and standard deviation of the channels."""

    side: int
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


class ClipScore:
    """Pictures and texts -> the cosine of each picture and its text."""

    def __init__(self, network: Any, tokenizer: Any, preprocessing: _Preprocessing, sha256: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.tokenizer, self.preprocessing, self.sha256 = tokenizer, preprocessing, sha256
        self.name = f"clip:{sha256[:8]}"
        self.length = int(network.config.text_config.max_position_embeddings)
        self.device = next(network.parameters()).device

    @torch.inference_mode()
    def scores(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """uint8 [B, H, W, 3] and a text a picture -> cosines float32 [B] in -1..1, neither clipped nor scaled.

        `ValueError` where the numbers of pictures and texts differ. Equal texts are encoded once.
        """
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures, but {len(texts)} texts")
        if not texts:
            return torch.zeros(0)
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        unique = list(place)
        text_parts, image_parts = [], []
        with full_precision():
            for start in range(0, len(unique), CHUNK):
                tokens = self.tokenizer(
                    unique[start : start + CHUNK],
                    padding=True,
                    truncation=True,
                    max_length=self.length,
                    return_tensors="pt",
                ).to(self.device)
                output = self.network.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
                text_parts.append(F.normalize(self.network.text_projection(output.pooler_output), dim=1))
            for part in torch.split(images, CHUNK):
                pixels = _preprocess(part.to(self.device), self.preprocessing)
                output = self.network.vision_model(pixel_values=pixels)
                image_parts.append(F.normalize(self.network.visual_projection(output.pooler_output), dim=1))
            text_vectors = torch.cat(text_parts)[[place[text] for text in texts]]
            cosine: Tensor = (torch.cat(image_parts) * text_vectors).sum(dim=1)
        return cosine.float().cpu()

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        vision, (height, width) = self.network.config.vision_config, self.preprocessing.crop
        layers, side = vision.num_hidden_layers, vision.image_size
        return {
            "network": self.name,
            "sha256": self.sha256,
            "model": f"ViT {vision.hidden_size} x {layers}, patch {vision.patch_size}, {side} px",
            "input": f"short side {self.preprocessing.side} px bicubic antialias, {height} x {width} px of the centre",
            "text": f"cut to {self.length} tokens",
            "score": "cosine, not clipped, not times 100",
            "precision": "fp32",
        }


def load_clip(config: ClipConfig, device: torch.device) -> ClipScore:
    """The score of a config on `device`.

    `ConfigError` where the folder or a part of it is missing, or it is not a CLIP model; `InputError` (`weights`) where
    the weights do not match `sha256` or `config.json`.
    """
    folder = Path(local_folder(config.folder))
    network_config = _config(folder)
    path = next((folder / name for name in TRANSFORMERS if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(f"{folder}: no CLIP weights here, neither {' nor '.join(TRANSFORMERS)}")
    tensors, sha256 = read_weights(path, config.sha256)
    from transformers import AutoTokenizer, CLIPImageProcessor

    processor = _part(CLIPImageProcessor, folder, "picture preprocessor")
    side = int((processor.size or {}).get("shortest_edge") or 0)
    height, width = (int((processor.crop_size or {}).get(name) or 0) for name in ("height", "width"))
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    usual = all(getattr(processor, step) for step in steps) and int(processor.resample) == BICUBIC
    fits = 0 < min(height, width) <= max(height, width) <= side
    if not usual or not fits or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ConfigError(f"{folder}: prepares pictures otherwise than CLIP (bicubic short side, centre, mean)")
    preprocessing = _Preprocessing(side, (height, width), tuple(processor.image_mean), tuple(processor.image_std))
    if not any((folder / name).is_file() for name in VOCABULARIES):  # transformers would make an empty tokenizer
        raise ConfigError(f"{folder}: the tokenizer of CLIP is missing, neither {' nor '.join(VOCABULARIES)}")
    tokenizer = _part(AutoTokenizer, folder, "tokenizer")
    if len(tokenizer) > network_config.text_config.vocab_size:
        raise ConfigError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {network_config.text_config.vocab_size}"
        )
    return ClipScore(_network(network_config, tensors, path).to(device), tokenizer, preprocessing, sha256)


def _config(folder: Path) -> Any:
    """The configuration of a CLIP folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no CLIP model here (config.json is missing). Name a folder that `transformers` saved one in; "
            "nothing is downloaded"
        )
    try:
        document = load_json(path.read_bytes())
        kind = document.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not a configuration ({error})") from error
    if kind != "clip":
        raise ConfigError(f"{folder}: a model of type {kind!r}, not CLIP")
    from transformers import CLIPConfig

    try:
        return CLIPConfig.from_dict(document)
    except Exception as error:  # transformers raises errors of many classes here
        raise ConfigError(f"{path}: not a configuration of CLIP ({error})") from error


def _part(kind: Any, folder: Path, title: str) -> Any:
    """A processor or tokenizer of the folder; `ConfigError` names it by its `title`."""
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError or a bare Exception
        raise ConfigError(f"{folder}: the {title} of CLIP is missing or cannot be read ({error})") from error


def _network(config: Any, tensors: Mapping[str, Tensor], path: Path) -> Any:
    """CLIP with exactly these tensors, float32."""
    from transformers import CLIPModel

    state = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)}
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise InputError(f"{path}: {min(broken)} is not finite", reason="weights")
    try:
        network, report = CLIPModel.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    except RuntimeError as error:
        raise InputError(f"{path}: is not the CLIP of its config.json ({error})", reason="weights") from error
    for problem, names in (
        ("is missing", report["missing_keys"]),
        ("is no parameter of CLIP", report["unexpected_keys"]),
    ):
        if names:
            raise InputError(f"{path}: {min(names)} {problem}", reason="weights")
    return network.float()


def _preprocess(images: Tensor, preprocessing: _Preprocessing) -> Tensor:
    """uint8 [B, H, W, 3] -> normalised pixels [B, 3, h, w], as CLIPImageProcessor of Pillow computes them, in a batch.

    The long side, and the offset of the crop, are rounded down to whole pixels.
    """
    # CLIPImageProcessor is not used, because its bits differ: with transformers 5.23.0, on random pictures of 64 to
    # 1024 pixels, by up to 2 of 255 levels, for the torchvision and for the Pillow processor.
    short = min(images.shape[1:3])
    height, width = (int(preprocessing.side * length / short) for length in images.shape[1:3])
    x = images.movedim(-1, 1).float()
    for size in ((images.shape[1], width), (height, width)):  # Pillow clamps and rounds between the two directions
        if tuple(x.shape[-2:]) != size:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 255).round()
    top, left = ((a - b) // 2 for a, b in zip((height, width), preprocessing.crop, strict=True))
    x = x[..., top : top + preprocessing.crop[0], left : left + preprocessing.crop[1]] / 255
    mean, deviation = (x.new_tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.deviation))
    return (x - mean) / deviation
