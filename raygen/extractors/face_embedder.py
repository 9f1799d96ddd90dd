"""Face embedders that say who a picture shows: vectors that are compared by cosine.

Knows which embedders there are, what each wants to see, and which files may be opened how. Knows no people and no
thresholds. Fetches nothing.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raygen.core.assets import resolve
from raygen.core.config import Spec
from raygen.core.errors import ConfigError, InputError
from raygen.core.precision import full_precision
from raygen.extractors.base import Small
from raygen.extractors.bundled import SmallEmbedder, load_small, small_digest
from raygen.extractors.perceptual import DeepFeatures, TorchScript, VGGFace2, load_embedder

__all__ = ["ONNX", "Embedder", "IdentitySpec", "load_identity"]


#: Sides that networks were made for, where the job names none.
SIDES: Final[Mapping[str, int]] = {"vggface2": 224, "torchscript": 112, "onnx": 112}


class ONNX(Spec):
    """Any embedder as ONNX: pixels [B, 3, H, W] in -1..1 -> features [B, D]. Needs `raygen[onnx]`."""

    kind: Literal["onnx"] = "onnx"
    weights: str = Field(..., description="file; what it keeps in other files is not read")
    sha256: str | None = Field(None, description="refuse any other file")
    channels: Literal["rgb", "bgr"] = Field("rgb", description="order of the colours")


AnyEmbedder = Annotated[Small | VGGFace2 | TorchScript | ONNX, Field(discriminator="kind")]


class IdentitySpec(Spec):
    """Who looks at faces, and at what part of the picture."""

    network: AnyEmbedder = Field(default_factory=Small)
    region: Literal["picture", "face"] = Field(
        "picture", description="the whole picture, or the bounding box of the face in its mask"
    )
    size: int | None = Field(None, ge=16, le=1024, description="side it is brought to; none: as the network was made")


class Embedder:
    """Pictures -> vectors of length 1."""

    name: str
    sha256: str
    size: int

    def __init__(self, spec: IdentitySpec) -> None:
        self.spec = spec
        self.size = spec.size or SIDES.get(spec.network.kind, 64)

    def embed(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, D]."""
        pixels = images.movedim(-1, 1).float() / 127.5 - 1
        size = (self.size, self.size)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        with torch.inference_mode(), full_precision():
            vectors = self._vectors(pixels)
        return F.normalize(vectors.float().flatten(1), dim=1).cpu()

    def _vectors(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def protocol(self) -> Mapping[str, Any]:
        """What a number made with it depends on."""
        return {
            "network": self.name, "sha256": self.sha256, "input": f"{self.size} px bilinear antialias",
            "region": self.spec.region, "precision": "fp32", "compared by": "cosine",
        }  # fmt: skip


class _Bundled(Embedder):
    name = "raygen-identity"

    def __init__(self, spec: IdentitySpec, network: Small, device: torch.device) -> None:
        super().__init__(spec)
        folder = resolve(network.folder, "embedder")
        self.net, self.device, self.sha256 = load_small(folder, SmallEmbedder).to(device), device, small_digest(folder)
        self.size = spec.size or self.net.spec.image_size
        if self.size != self.net.spec.image_size:
            raise ConfigError(f"identity.size: {network.folder} takes {self.net.spec.image_size} px and nothing else")

    def _vectors(self, pixels: Tensor) -> Tensor:
        vectors: Tensor = self.net(pixels.to(self.device))
        return vectors


class _Deep(Embedder):
    """The last map of a network, averaged over its places."""

    def __init__(self, spec: IdentitySpec, network: DeepFeatures, device: torch.device) -> None:
        super().__init__(spec)
        self.net, self.device = network.to(device), device
        self.name, self.sha256 = network.name, network.sha256

    def _vectors(self, pixels: Tensor) -> Tensor:
        return self.net.maps(pixels.to(self.device))[-1].mean(dim=(2, 3))


class _ONNX(Embedder):
    def __init__(self, spec: IdentitySpec, network: ONNX) -> None:
        super().__init__(spec)
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
        options.log_severity_level = 4  # what is wrong is raised
        try:
            # From bytes: a model in memory has no folder that further files could be read from.
            self.session = onnxruntime.InferenceSession(data, options, providers=onnxruntime.get_available_providers())
        except Exception as error:
            raise InputError(f"{path}: no ONNX model ({type(error).__name__})", reason="weights") from error
        self.input = self.session.get_inputs()[0].name

    def _vectors(self, pixels: Tensor) -> Tensor:
        given = (pixels if self.channels == "rgb" else pixels.flip(1)).cpu().numpy()
        try:
            found = self.session.run(None, {self.input: np.ascontiguousarray(given)})[0]
        except Exception as error:
            raise ConfigError(f"{self.name}: does not take pixels {list(given.shape)}: {str(error)[:200]}") from error
        return torch.from_numpy(np.asarray(found, np.float32))


def load_identity(spec: IdentitySpec, device: torch.device) -> Embedder:
    """The embedder of a spec; `ConfigError` where its file is not there, `InputError` where it is another."""
    network = spec.network
    if isinstance(network, Small):
        return _Bundled(spec, network, device)
    return _ONNX(spec, network) if isinstance(network, ONNX) else _Deep(spec, load_embedder(network), device)
