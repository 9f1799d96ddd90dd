"""Interfaces, configurations and loaders of face parsers, feature extractors and attribute classifiers."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from raygen.core.precision import full_precision
from raygen.extractors.bundled import BundledClassifier, BundledNetwork, BundledParser, load_bundled
from raygen.extractors.bundled_protocol import CLASSIFIER, PARSER, protocol_of
from raygen.extractors.config import (
    BundledNetworkConfig,
    InceptionConfig,
    ONNXParserConfig,
    PackageEmbedderConfig,
    PackageParserConfig,
    PublishedParserConfig,
)
from raygen.extractors.digests import bundled_digest
from raygen.extractors.package_network import PackageFeatures
from raygen.extractors.segmentation import LogitParser, ONNXParser, PackageParser
from raygen.store.fetched import local_folder

__all__ = ["Classifier", "FeatureExtractor", "Parser", "load_classifier", "load_features", "load_parser"]


class Parser(Protocol):
    """Segments pictures into the 19 classes."""

    name: str
    sha256: str

    def parse(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> official class ids uint8 [B, H, W]."""
        ...

    def segment(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, H, W, 3] -> official class ids uint8 [B, H, W], and the confidence of each picture, float32 [B].

        Confidence is the mean over the pixels of the largest softmax: 1 is certain everywhere, 1/19 knows nothing.
        """
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


def load_parser(
    config: BundledNetworkConfig | PublishedParserConfig | ONNXParserConfig | PackageParserConfig, device: torch.device
) -> Parser:
    """The parser of a config on `device`; errors as `load_bundled`, `load_published` and those of its network."""
    if isinstance(config, BundledNetworkConfig):
        return _BundledParserExtractor(config, device)
    if isinstance(config, ONNXParserConfig):
        return ONNXParser(config)
    if isinstance(config, PackageParserConfig):
        return PackageParser(config, device)
    from raygen.extractors.face_parsers import load_published

    return load_published(config.kind, config.weights, config.sha256, device)


def load_features(
    config: BundledNetworkConfig | InceptionConfig | PackageEmbedderConfig, device: torch.device
) -> FeatureExtractor:
    """The feature extractor of a config on `device`."""
    if isinstance(config, BundledNetworkConfig):
        return _BundledParserExtractor(config, device)
    if isinstance(config, PackageEmbedderConfig):
        return PackageFeatures(config, device)
    from raygen.extractors.inception import load_inception

    return load_inception(config.weights, config.protocol, config.sha256, device)


def load_classifier(config: BundledNetworkConfig, device: torch.device) -> Classifier:
    """The attribute classifier of a config on `device`."""
    return _BundledClassifierExtractor(config, device)


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
        return protocol_of(self.name, self.sha256, self.net.config.image_size)


class _BundledParserExtractor(_BundledExtractor, LogitParser):
    """The bundled parser as a `Parser`, and as a `FeatureExtractor` by its bottleneck."""

    name = PARSER
    chunk = None
    metric = f"fd:{PARSER}"

    def __init__(self, config: BundledNetworkConfig, device: torch.device) -> None:
        folder = local_folder(config.folder, "parser")
        self.net: BundledParser = load_bundled(folder, BundledParser).to(device)
        self.device, self.sha256 = device, bundled_digest(folder)

    def logits(self, images: Tensor) -> Tensor:
        """See `LogitParser.logits`."""
        logits: Tensor = self.net(self._pixels(images))
        return logits

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """See `FeatureExtractor.features`."""
        with full_precision():
            vectors: Tensor = self.net.features(self._pixels(images)).float().cpu()
        return vectors


class _BundledClassifierExtractor(_BundledExtractor):
    """The bundled classifier as a `Classifier`."""

    name = CLASSIFIER

    def __init__(self, config: BundledNetworkConfig, device: torch.device) -> None:
        folder = local_folder(config.folder, "classifier")
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
