"""The bundled networks: a face parser, an attribute classifier and a face embedder, trained on drawn faces.

The pooled bottleneck of the parser is the feature vector of Fréchet distances without Inception. The networks are small
and do not replace published ones; every number carries the name of its network.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from raygen.core.config import Config, parse
from raygen.core.errors import ConfigError, InputError, IntegrityError
from raygen.core.face_labels import ATTRIBUTES, CLASSES
from raygen.extractors.config import BundledClassifierConfig, BundledEmbedderConfig, BundledParserConfig
from raygen.extractors.digests import WEIGHTS, bundled_digest
from raygen.store.sealed import FILES, file_sha256, open_record, to_text

__all__ = [
    "BundledClassifier",
    "BundledEmbedder",
    "BundledNetwork",
    "BundledParser",
    "augment",
    "load_bundled",
    "save_bundled",
]


class BundledNetwork(nn.Module):
    """Feature maps of pixels [B, 3, H, W] in -1..1. The first level works at half resolution inside."""

    def __init__(self, config: BundledParserConfig | BundledClassifierConfig | BundledEmbedderConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.stem = _block(12, c[0])  # on 2x2 pixels as channels: full resolution adds cost and little accuracy
        self.down = nn.ModuleList(_block(a, b, stride=2) for a, b in itertools.pairwise(c))

    def trunk(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of every level, the coarsest last."""
        maps = [self.stem(F.pixel_unshuffle(pixels, 2))]
        for block in self.down:
            maps.append(block(maps[-1]))
        return maps


class BundledParser(BundledNetwork):
    """Pixels [B, 3, H, W] in -1..1 -> logits [B, 19, H, W]."""

    def __init__(self, config: BundledParserConfig) -> None:
        super().__init__(config)
        c = config.channels
        self.up = nn.ModuleList(_block(a + b, a) for a, b in zip(c[::-1][1:], c[::-1], strict=False))
        self.head = nn.Conv2d(c[0], 4 * len(CLASSES), 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of every pixel."""
        maps = self.trunk(pixels)
        x = maps.pop()
        for block in self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = block(torch.cat([maps.pop(), x], dim=1))
        logits: Tensor = F.pixel_shuffle(self.head(x), 2)
        return logits

    def features(self, pixels: Tensor) -> Tensor:
        """Mean and deviation of the bottleneck over the picture, [B, 2 x channels[-1]]."""
        x = self.trunk(pixels)[-1].flatten(2)
        return torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1)


class BundledClassifier(BundledNetwork):
    """Pixels [B, 3, H, W] in -1..1 -> logits of the 40 attributes [B, 40].

    Attributes differ in size, so every level is pooled by its mean (hair) and by its maximum (an earring). The
    coarsest level is also used unpooled, as some attributes depend on positions (a smile).
    """

    def __init__(self, config: BundledClassifierConfig) -> None:
        super().__init__(config)
        side = config.image_size // 2 ** len(config.channels)
        width = 2 * sum(config.channels) + config.channels[-1] * side**2
        self.head = nn.Sequential(nn.Linear(width, config.hidden), nn.SiLU(), nn.Linear(config.hidden, len(ATTRIBUTES)))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits; above 0 is yes."""
        maps = self.trunk(pixels)
        read = [pool for x in maps for pool in (x.mean(dim=(2, 3)), x.amax(dim=(2, 3)))]
        logits: Tensor = self.head(torch.cat([*read, maps[-1].flatten(1)], dim=1))
        return logits


class BundledEmbedder(BundledNetwork):
    """Pixels [B, 3, H, W] in -1..1 -> identity embeddings of length 1 [B, width], compared by cosine."""

    def __init__(self, config: BundledEmbedderConfig) -> None:
        super().__init__(config)
        side = config.image_size // 2 ** len(config.channels)
        inside = sum(config.channels) + config.channels[-1] * side**2
        self.norm = nn.LayerNorm(inside)
        self.head = nn.Linear(inside, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings from the means of all levels (colours, textures) and the coarsest level unpooled (shapes)."""
        maps = self.trunk(pixels)
        read = torch.cat([*(x.mean(dim=(2, 3)) for x in maps), maps[-1].flatten(1)], dim=1)
        return F.normalize(self.head(self.norm(read)), dim=1)


#: Every configuration that a folder can hold.
_AnyNetworkConfig = Annotated[
    BundledParserConfig | BundledClassifierConfig | BundledEmbedderConfig, Field(discriminator="kind")
]
Net = TypeVar("Net", BundledParser, BundledClassifier, BundledEmbedder)

SHAPES: Final[Mapping[type[BundledNetwork], type[Config]]] = {
    BundledParser: BundledParserConfig,
    BundledClassifier: BundledClassifierConfig,
    BundledEmbedder: BundledEmbedderConfig,
}


def _block(inside: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, out, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, out),
        nn.SiLU(),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        nn.GroupNorm(8, out),
        nn.SiLU(),
    )


def augment(pixels: Tensor, uniform: Tensor) -> Tensor:
    """Augments pixels [B, 3, H, W] in -1..1 in colour, brightness, sharpness and noise, by `uniform` [B, 8] in [0, 1).

    Generated pictures are softer than photographs and off in colour; a parser trained without augmentation would score
    that as a wrong shape.
    """
    u = (uniform * 2 - 1).view(-1, 8, 1, 1)  # -1..1
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    x = (pixels - mean) * (1 + 0.25 * u[:, 0:1]) + mean + 0.15 * u[:, 1:2]  # contrast, brightness
    x = x * (1 + 0.15 * u[:, 2:5])  # white balance
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, soft, u[:, 5:6].clamp(min=0))
    wave = torch.sin(torch.arange(x[0].numel(), device=x.device, dtype=x.dtype) * 12.9898).view(1, *x.shape[1:])
    noise = torch.sin((wave + u[:, 6:7]) * 43758.5453)
    return (x + 0.05 * u[:, 7:8].clamp(min=0) * noise).clamp(-1, 1)


def save_bundled(model: BundledNetwork, folder: Path, *, weights: str, extra: Mapping[str, Any]) -> str:
    """Writes config.json (config, labels and `extra`) and the weights into `folder`; returns the digest.

    `weights`: `float16`, or float32 for any other value.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if weights == "float16" else torch.float32
    tensors = {n: t.detach().cpu().to(dtype).contiguous() for n, t in model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(serialize(tensors, metadata={"format": "pt"}))
    labels = {"parser": CLASSES, "classifier": ATTRIBUTES}.get(model.config.kind)
    document: dict[str, Any] = {"network": model.config.model_dump(mode="json"), "extra": dict(extra)}
    if labels is not None:
        document["labels"] = labels
    document[FILES] = {WEIGHTS: file_sha256(folder / WEIGHTS)}
    (folder / "config.json").write_bytes(to_text(document))
    return bundled_digest(folder)


def load_bundled(folder: str | Path, kind: type[Net]) -> Net:
    """The network in a folder, in evaluation mode and without gradients.

    `ConfigError` where there is none or it is of another kind; `InputError` where a file is damaged.
    """
    root = Path(folder)
    sha256 = bundled_digest(root)
    try:
        document = open_record((root / "config.json").read_bytes(), str(root / "config.json"))
        if document.get(FILES, {WEIGHTS: sha256}) != {WEIGHTS: sha256}:
            raise ValueError(f"{WEIGHTS}: sha256 differs from the one it was written with")
        config: Any = parse(_AnyNetworkConfig, document["network"], str(root / "config.json"))
        shape = SHAPES[kind]
        if not isinstance(config, shape):
            raise ConfigError(f"{root}: holds a {config.kind}, not a {shape.model_fields['kind'].default}")
        model = kind(cast(Any, config))
        tensors = load_file(root / WEIGHTS)
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (OSError, IntegrityError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{root}: {error}", reason="network") from error
    return model.eval().requires_grad_(False)
