"""Face embedders: identity vectors of pictures, compared by cosine. Weights are local files; nothing is downloaded."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raygen.core.errors import ConfigError, InputError
from raygen.core.precision import full_precision
from raygen.extractors.bundled import BundledEmbedder, load_bundled
from raygen.extractors.config import BundledNetworkConfig, FaceEmbedderConfig, ONNXEmbedderConfig
from raygen.extractors.digests import bundled_digest
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
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError("identity.network: kind onnx needs onnxruntime; install raygen[onnx]") from error
        path = Path(network.weights)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
        self.sha256, self.name, self.channels = hashlib.sha256(data).hexdigest(), path.stem, network.channels
        if network.sha256 is not None and not self.sha256.startswith(network.sha256.lower()):
            raise InputError(f"{path}: sha256 is {self.sha256}, not {network.sha256}", reason="weights")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised, not printed
        try:
            # From bytes, so that the model cannot read other files of its folder.
            self.session = onnxruntime.InferenceSession(data, options, providers=onnxruntime.get_available_providers())
        except Exception as error:
            raise InputError(f"{path}: no ONNX model ({type(error).__name__})", reason="weights") from error
        self.input = self.session.get_inputs()[0].name

    def _vectors(self, pixels: Tensor) -> Tensor:
        array = (pixels if self.channels == "rgb" else pixels.flip(1)).cpu().numpy()
        try:
            vectors = self.session.run(None, {self.input: np.ascontiguousarray(array)})[0]
        except Exception as error:
            raise ConfigError(f"{self.name}: does not take pixels {list(array.shape)}: {str(error)[:200]}") from error
        return torch.from_numpy(np.asarray(vectors, np.float32))


def load_face_embedder(config: FaceEmbedderConfig, device: torch.device) -> FaceEmbedder:
    """The embedder of a config; `ConfigError` where its file is missing, `InputError` where it is another file."""
    network = config.network
    if isinstance(network, BundledNetworkConfig):
        return _Bundled(config, network, device)
    return (
        _ONNX(config, network)
        if isinstance(network, ONNXEmbedderConfig)
        else _Deep(config, load_embedder(network), device)
    )
