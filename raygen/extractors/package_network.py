"""Networks of installed packages, loaded: pictures are prepared as the extractor asks, and its output is checked."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raygen.core.errors import ConfigError
from raygen.core.precision import full_precision
from raygen.core.types import AnyArray, Float32Array
from raygen.extractors.config import PackageConfig
from raygen.extractors.packages import Offer, find_extractor

__all__ = ["PackageFeatures", "PackageNetwork", "PackageScorer"]


class PackageNetwork:
    """The network of a config on a device; `ConfigError` as `find_extractor`, and where it does not load."""

    def __init__(self, config: PackageConfig, device: torch.device) -> None:
        self.offer: Offer = find_extractor(config)
        self.name, self.sha256 = self.offer.name, self.offer.extractor.sha256
        try:
            self.network = self.offer.extractor.load(str(device))
        except Exception as error:  # whatever the code of a package raises
            text = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{self.name!r} of {self.offer.package} does not load on {device} ({text})") from error

    def __call__(self, images: Tensor, shape: Sequence[int | None]) -> AnyArray:
        """uint8 [B, H, W, 3] -> the output of the network, which must have `shape` behind B; None is any length.

        `ConfigError` for an output of another shape.
        """
        with torch.inference_mode(), full_precision():
            result = np.asarray(self.network(self.pixels(images)))
        wanted = (len(images), *shape)
        if result.ndim != len(wanted) or any(w not in (None, n) for w, n in zip(wanted, result.shape, strict=True)):
            asked = ", ".join("n" if side is None else str(side) for side in wanted)
            raise ConfigError(
                f"{self.name!r} of {self.offer.package} gave an array {list(result.shape)} of {len(images)} pictures, "
                f"and a {self.offer.extractor.kind} gives [{asked}]"
            )
        return result

    def pixels(self, images: Tensor) -> Float32Array:
        """uint8 [B, H, W, 3] -> float32 [B, 3, h, w] as the extractor takes them."""
        own = self.offer.extractor
        x = images.movedim(-1, 1).float()
        size = x.shape[-2:] if own.input_size is None else (own.input_size, own.input_size)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        low, high = own.value_range
        if (low, high) != (0, 255):
            x = x * ((high - low) / 255) + low
        x = x if own.channels == "rgb" else x.flip(1)
        array: Float32Array = np.ascontiguousarray(x.cpu().numpy())
        return array


class PackageFeatures:
    """The embedder of a package as a `FeatureExtractor`."""

    def __init__(self, config: PackageConfig, device: torch.device) -> None:
        self.network = PackageNetwork(config, device)
        self.name, self.sha256 = self.network.name, self.network.sha256
        self.metric = f"fd:{self.name}"
        self.protocol = self.network.offer.protocol

    def features(self, images: Tensor) -> Tensor:
        """See `FeatureExtractor.features`; NaN where the network finds no face."""
        return torch.from_numpy(self.network(images, (None,)).astype(np.float32))


class PackageScorer:
    """The scorer of a package."""

    def __init__(self, config: PackageConfig, device: torch.device) -> None:
        self.config, self.network = config, PackageNetwork(config, device)
        self.name, self.sha256 = self.network.name, self.network.sha256
        self.protocol = self.network.offer.protocol

    def numbers(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, 1]; NaN where there is none."""
        return torch.from_numpy(self.network(images, ()).astype(np.float32))[:, None]
