"""Face embedders: identity vectors of pictures, compared by cosine. Weights are local files; nothing is downloaded."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raygen.core.errors import ConfigError
from raygen.core.precision import full_precision
from raygen.extractors.bundled import BundledEmbedder, load_bundled
from raygen.extractors.config import (
    BundledNetworkConfig,
    FaceEmbedderConfig,
    ONNXEmbedderConfig,
    PackageEmbedderConfig,
)
from raygen.extractors.digests import bundled_digest
from raygen.extractors.onnx_network import ONNXNetwork
from raygen.extractors.package_network import PackageNetwork
from raygen.extractors.perceptual import DeepFeatures, load_embedder
from raygen.store.fetched import local_folder

__all__ = ["FaceEmbedder", "load_face_embedder"]


#: Default input sides of the networks.
SIDES: Final[Mapping[str, int]] = {"vggface2": 224, "torchscript": 112, "onnx": 112}


class FaceEmbedder:
    """Pictures -> identity vectors of length 1."""

    name: str
    sha256: str
    size: int

    def __init__(self, config: FaceEmbedderConfig) -> None:
        self.config = config
        self.size = config.size or SIDES.get(config.network.kind, 64)

    def embed(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, D] of length 1."""
        pixels = images.movedim(-1, 1).float() / 127.5 - 1
        size = (self.size, self.size)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        with torch.inference_mode(), full_precision():
            vectors = self._vectors(pixels)
        return F.normalize(vectors.float().flatten(1), dim=1).cpu()

    def _vectors(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, size, size] in -1..1 -> vectors of any length [B, D]."""
        raise NotImplementedError

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        return {
            "network": self.name,
            "sha256": self.sha256,
            "input": f"{self.size} px bilinear antialias",
            "region": self.config.region,
            "precision": "fp32",
            "compared by": "cosine",
        }


class _Bundled(FaceEmbedder):
    name = "raygen-identity"

    def __init__(self, config: FaceEmbedderConfig, network: BundledNetworkConfig, device: torch.device) -> None:
        super().__init__(config)
        folder = local_folder(network.folder, "embedder")
        self.net, self.device, self.sha256 = (
            load_bundled(folder, BundledEmbedder).to(device),
            device,
            bundled_digest(folder),
        )
        self.size = config.size or self.net.config.image_size
        if self.size != self.net.config.image_size:
            raise ConfigError(f"identity.size: {network.folder} takes {self.net.config.image_size} px and nothing else")

    def _vectors(self, pixels: Tensor) -> Tensor:
        vectors: Tensor = self.net(pixels.to(self.device))
        return vectors


class _Deep(FaceEmbedder):
    """The last feature map of a network, averaged over its pixels."""

    def __init__(self, config: FaceEmbedderConfig, network: DeepFeatures, device: torch.device) -> None:
        super().__init__(config)
        self.net, self.device = network.to(device), device
        self.name, self.sha256 = network.name, network.sha256

    def _vectors(self, pixels: Tensor) -> Tensor:
        return self.net.maps(pixels.to(self.device))[-1].mean(dim=(2, 3))


class _ONNX(FaceEmbedder):
    def __init__(self, config: FaceEmbedderConfig, network: ONNXEmbedderConfig) -> None:
        super().__init__(config)
        self.net = ONNXNetwork(
            "identity.network", network.weights, network.sha256, network.channels, torch.get_num_threads()
        )
        self.name, self.sha256 = self.net.name, self.net.sha256

    def _vectors(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.net(pixels.cpu().numpy()))

    def protocol(self) -> Mapping[str, Any]:
        """See `FaceEmbedder.protocol`; also the order of the channels."""
        own = super().protocol()
        return {**own, "input": f"{own['input']}, {self.net.channels}"}


class _Package(FaceEmbedder):
    """An embedder of an installed package. It takes pictures in its own size, or as they are stored."""

    def __init__(self, config: FaceEmbedderConfig, network: PackageEmbedderConfig, device: torch.device) -> None:
        super().__init__(config)
        self.net = PackageNetwork(network, device)
        self.name, self.sha256 = self.net.name, self.net.sha256
        own = self.net.offer.extractor.input_size
        self.size = own or SIDES["onnx"]
        if config.size not in (None, own):
            takes = "pictures as they are stored" if own is None else f"{own} px and nothing else"
            raise ConfigError(f"identity.size: {self.name} takes {takes}; leave `size` out")

    def embed(self, images: Tensor) -> Tensor:
        """See `FaceEmbedder.embed`; NaN where the network finds no face."""
        return F.normalize(torch.from_numpy(self.net(images, (None,)).astype(np.float32)), dim=1)

    def protocol(self) -> Mapping[str, Any]:
        """See `FaceEmbedder.protocol`."""
        return {**self.net.offer.protocol(), "region": self.config.region, "compared by": "cosine"}


def load_face_embedder(config: FaceEmbedderConfig, device: torch.device) -> FaceEmbedder:
    """The embedder of a config; `ConfigError` where its file is missing, `InputError` where it is another file."""
    network = config.network
    if isinstance(network, BundledNetworkConfig):
        return _Bundled(config, network, device)
    if isinstance(network, PackageEmbedderConfig):
        return _Package(config, network, device)
    if isinstance(network, ONNXEmbedderConfig):
        return _ONNX(config, network)
    return _Deep(config, load_embedder(network), device)
