"""Interfaces, configurations and loaders of face parsers, feature extractors and attribute classifiers."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raygen.core.assets import resolve
from raygen.core.config import Config
from raygen.core.location import Location
from raygen.core.precision import full_precision
from raygen.extractors.bundled import BundledClassifier, BundledNetwork, BundledParser, bundled_digest, load_bundled

__all__ = [
    "TRANSFORMERS",
    "BundledNetworkConfig",
    "Classifier",
    "FeatureConfig",
    "FeatureExtractor",
    "InceptionConfig",
    "Parser",
    "ParserConfig",
    "PublishedParserConfig",
    "by_content",
    "load_classifier",
    "load_features",
    "load_parser",
    "network_digest",
]


#: Weight files of a model folder of transformers, in order of preference.
TRANSFORMERS: Final = ("model.safetensors", "pytorch_model.bin")


class Parser(Protocol):
    """Segments pictures into the 19 classes."""

    name: str
    sha256: str

    def parse(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> official class ids uint8 [B, H, W]."""
        ...

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        ...


class FeatureExtractor(Protocol):
    """Maps pictures to feature vectors. `metric` is the name of a Fréchet distance over them: `fid@…` or `fd:…`."""

    name: str
    metric: str
    sha256: str

    def features(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, D]."""
        ...

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        ...


class Classifier(Protocol):
    """Predicts the 40 attributes of pictures."""

    name: str
    sha256: str

    def attributes(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> bool [B, 40] in the official order."""
        ...

    def probabilities(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> probabilities float32 [B, 40]; an attribute is present above 0.5."""
        ...

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        ...


class BundledNetworkConfig(Config):
    """A bundled network, or one of its kind from a folder."""

    kind: Literal["small"] = "small"
    folder: Location = Field("bundled", description="folder of a trained network, or `bundled`")


class PublishedParserConfig(Config):
    """A parser that the field uses, from weights the user has."""

    kind: Literal["parsenet", "bisenet"]
    weights: Location = Field(..., description="state dict or safetensors file")
    sha256: str | None = Field(None, description="sha256 that the file must have")


class InceptionConfig(Config):
    """The 2015 Inception network, the only one whose Fréchet distance is called `fid`."""

    kind: Literal["inception"] = "inception"
    weights: Location = Field(..., description="pt_inception-2015-12-05-6726825d.pth, or `hub` for torch's cache")
    protocol: Literal["fid@tf1", "fid@clean", "fid@pytorch"] = Field(
        "fid@clean",
        description="resize and weights of the FID: fid@clean as "
        "clean-fid, fid@pytorch as pytorch-fid, fid@tf1 as the original",
    )
    sha256: str | None = Field(
        None, description="sha256 that the file must have, or its first digits; default: that of the published file"
    )


ParserConfig = Annotated[BundledNetworkConfig | PublishedParserConfig, Field(discriminator="kind")]
FeatureConfig = Annotated[BundledNetworkConfig | InceptionConfig, Field(discriminator="kind")]


def load_parser(config: BundledNetworkConfig | PublishedParserConfig, device: torch.device) -> Parser:
    """The parser of a config on `device`; errors as `load_bundled` and `load_published`."""
    if isinstance(config, BundledNetworkConfig):
        return _BundledParserExtractor(config, device)
    from raygen.extractors.face_parsers import load_published

    return load_published(config.kind, config.weights, config.sha256, device)


def load_features(config: BundledNetworkConfig | InceptionConfig, device: torch.device) -> FeatureExtractor:
    """The feature extractor of a config on `device`."""
    if isinstance(config, BundledNetworkConfig):
        return _BundledParserExtractor(config, device)
    from raygen.extractors.inception import load_inception

    return load_inception(config.weights, config.protocol, config.sha256, device)


def load_classifier(config: BundledNetworkConfig, device: torch.device) -> Classifier:
    """The attribute classifier of a config on `device`."""
    return _BundledClassifierExtractor(config, device)


def network_digest(config: Any, kind: str) -> str:
    """sha256 of the weights of a config of an extractor, without loading them.

    `kind`: the bundled network that `bundled` stands for, such as `parser`. Weights whose name only their loader can
    resolve (`hub`) are identified by their configured sha256 or by that name.
    """
    if isinstance(config, BundledNetworkConfig):
        return bundled_digest(resolve(config.folder, kind))
    if hasattr(config, "weights"):
        path: Path | None = Path(config.weights)
    else:
        path = next((candidate for name in TRANSFORMERS if (candidate := Path(config.folder) / name).is_file()), None)
    if path is None or not path.is_file():
        return str(config.sha256 or getattr(config, "weights", None) or config.folder)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def by_content(config: Config, kind: str) -> dict[str, Any]:
    """A config of a network as plans record it: the sha256 of its weights instead of their path.

    The same file at two paths is one network; another file at the same path is another network. `kind`: see
    `network_digest`.
    """
    settings = config.model_dump(mode="json", exclude={"folder", "weights"})
    return {**settings, "sha256": network_digest(config, kind)}


class _BundledExtractor:
    """A bundled network with its name, and the preparation of pictures for it."""

    name: str
    net: BundledNetwork
    sha256: str
    device: torch.device

    def _pixels(self, images: Tensor) -> Tensor:
        x = images.to(self.device).movedim(-1, 1).float() / 127.5 - 1
        size = (self.net.config.image_size,) * 2
        return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        size = self.net.config.image_size
        return {
            "network": self.name,
            "sha256": self.sha256,
            "input": f"{size} px bilinear antialias",
            "precision": "fp32",
        }


class _BundledParserExtractor(_BundledExtractor):
    """The bundled parser as a `Parser`, and as a `FeatureExtractor` by its bottleneck."""

    name = "raygen-parser"
    metric = "fd:raygen-parser"

    def __init__(self, config: BundledNetworkConfig, device: torch.device) -> None:
        folder = resolve(config.folder, "parser")
        self.net: BundledParser = load_bundled(folder, BundledParser).to(device)
        self.device, self.sha256 = device, bundled_digest(folder)

    @torch.inference_mode()
    def parse(self, images: Tensor) -> Tensor:
        """See `Parser.parse`; logits are resized to the picture before the best class is taken."""
        with full_precision():
            logits: Tensor = self.net(self._pixels(images))
        if logits.shape[-2:] != images.shape[1:3]:
            logits = F.interpolate(logits, images.shape[1:3], mode="bilinear")
        return logits.argmax(dim=1).to(torch.uint8).cpu()

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """See `FeatureExtractor.features`."""
        with full_precision():
            vectors: Tensor = self.net.features(self._pixels(images)).float().cpu()
        return vectors


class _BundledClassifierExtractor(_BundledExtractor):
    """The bundled classifier as a `Classifier`."""

    name = "raygen-attributes"

    def __init__(self, config: BundledNetworkConfig, device: torch.device) -> None:
        folder = resolve(config.folder, "classifier")
        self.net: BundledClassifier = load_bundled(folder, BundledClassifier).to(device)
        self.device, self.sha256 = device, bundled_digest(folder)

    def attributes(self, images: Tensor) -> Tensor:
        """See `Classifier.attributes`."""
        return self._logits(images) > 0

    def probabilities(self, images: Tensor) -> Tensor:
        """See `Classifier.probabilities`."""
        return self._logits(images).sigmoid()

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        with full_precision():
            logits: Tensor = self.net(self._pixels(images))
        return logits.float().cpu()
