"""Five landmarks of a picture: from its mask, and refined by a landmark network where there is one.

A network sees a square around the face, turned so that the eyes are level, as networks of landmarks are trained. The
landmarks of the mask say where that is. Without them it sees the whole picture.
"""

import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from PIL import Image

from raygen.core.errors import ConfigError, InputError
from raygen.core.landmarks import ARCFACE_TEMPLATE, REASON, from_mask, frontal, similarity
from raygen.core.types import Float64Array, UInt8Array
from raygen.extractors.config import LandmarksConfig, MaskLandmarksConfig, ONNXLandmarkerConfig, PackageLandmarkerConfig
from raygen.extractors.onnx_network import ONNXNetwork
from raygen.store.face_crop import crop

__all__ = ["LandmarkFinder"]


#: Largest mean distance of a network's landmarks to those of the mask, as a share of the distance of the eyes. The
#: mask's own error is a tenth of that (docs/guides/export.md).
FARTHEST: Final = 0.4
#: Sides of the square that a network without an input size sees, pixels.
SMALLEST, LARGEST = 16, 1024
#: uint8 [H, W, 3] -> points [5, 2] as fractions of its sides.
_Points = Callable[[UInt8Array], Float64Array]


class LandmarkFinder:
    """Pictures and masks -> landmarks float64 [5, 2], see `raygen.core.landmarks`. It may be called by threads.

    `source`: `mask` or the name of the network. `needs_pixels`: whether pictures are looked at.
    """

    def __init__(self, config: LandmarksConfig, threads: int = 1) -> None:
        """Errors as `ONNXNetwork` and `PackageNetwork`."""
        self.source, self.size = "mask", None
        self._points: _Points | None = None
        self._one_at_a_time = threading.Lock()
        self.margin = 1.0 if isinstance(config, MaskLandmarksConfig) else config.margin
        if isinstance(config, ONNXLandmarkerConfig):
            network = ONNXNetwork("landmarks", config.weights, config.sha256, config.channels, threads)
            self.source, self.size = network.name, config.size
            self._points = lambda image: _onnx_points(network, config, image)
        elif isinstance(config, PackageLandmarkerConfig):
            self.source = config.name
            self._points, self.size = _package_points(config)

    @property
    def needs_pixels(self) -> bool:
        """Whether pictures are looked at."""
        return self._points is not None

    def __call__(self, pixels: UInt8Array | None, mask: UInt8Array | None) -> Float64Array:
        """uint8 [H, W, 3] and class ids [h, w], whose sides are of the same proportions -> landmarks.

        `InputError` (`landmarks`) where they cannot be told: a part is missing or hidden, the face is seen from the
        side, or the network's points are far from those of the mask.
        """
        start, problem = None, InputError("the row has no mask", reason=REASON)
        try:
            start = None if mask is None else from_mask(mask)
        except InputError as error:
            problem = error
        if self._points is None:
            if start is None:
                raise problem
            return start
        if pixels is None:
            raise InputError("the row has no picture", reason=REASON)
        sides = [pixels.shape[1], pixels.shape[0]]
        points = self._whole(pixels) if start is None else self._around(pixels, start)
        if not np.isfinite(points).all():
            raise InputError(f"{self.source} finds no face", reason=REASON)
        if start is not None:
            _compare(self.source, points * sides, start * sides)
        if np.ptp(points, axis=0).min() == 0:
            raise InputError(f"{self.source} gave points that are no face", reason=REASON)
        return frontal(points, sides)

    def _whole(self, pixels: UInt8Array) -> Float64Array:
        if self.size is not None and pixels.shape[:2] != (self.size, self.size):
            resized = Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.LANCZOS)
            pixels = np.asarray(resized)
        return self._seen(pixels)

    def _around(self, pixels: UInt8Array, start: Float64Array) -> Float64Array:
        """Landmarks of the square around the landmarks `start`, as fractions of the sides of the picture."""
        sides = [pixels.shape[1], pixels.shape[0]]
        template = (ARCFACE_TEMPLATE - 0.5) / self.margin + 0.5
        matrix = similarity(start * sides, template)
        native = round(1 / float(np.hypot(matrix[0, 0], matrix[1, 0])))
        size = self.size or min(max(native, SMALLEST), LARGEST)
        found = self._seen(crop(pixels, start, template, size))
        return (found - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T / sides

    def _seen(self, pixels: UInt8Array) -> Float64Array:
        assert self._points is not None
        with self._one_at_a_time:
            return self._points(pixels)


def _compare(source: str, points: Float64Array, start: Float64Array) -> None:
    """`InputError` where points in pixels are far from those of the mask."""
    eyes = float(np.hypot(*(start[1] - start[0])))
    distance = float(np.hypot(*(points - start).T).mean()) / eyes
    if distance > FARTHEST:
        raise InputError(
            f"those of {source} are {distance:.2f} of the distance of the eyes away from those of the mask",
            reason=REASON,
        )


def _onnx_points(network: ONNXNetwork, config: ONNXLandmarkerConfig, image: UInt8Array) -> Float64Array:
    """The five landmarks of uint8 [size, size, 3]; `ConfigError` where the model gives too few points."""
    low, high = config.value_range
    pixels = image.transpose(2, 0, 1)[None].astype(np.float32) * ((high - low) / 255) + low
    result = network(pixels)
    if result.size % 2 or (result.ndim > 2 and result.shape[-1] != 2):
        raise ConfigError(f"landmarks: {network.name} gave an array {list(result.shape)}, which is not [1, n, 2]")
    points = result.reshape(-1, 2).astype(np.float64)
    most = max(number for numbers in config.points for number in numbers)
    if most >= len(points):
        raise ConfigError(
            f"landmarks.points: {network.name} gives {len(points)} points, and number {most} is asked for"
        )
    five = np.stack([points[list(numbers)].mean(axis=0) for numbers in config.points])
    match config.coordinates:
        case "signed":
            return (five + 1) / 2
        case "pixels":
            return five / config.size
    return five


def _package_points(config: PackageLandmarkerConfig) -> tuple[_Points, int | None]:
    """The landmarks of a package's network, and the side of the pictures that it takes."""
    import torch  # ingest with masks or ONNX needs none

    from raygen.extractors.package_network import PackageNetwork

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network: Any = PackageNetwork(config, device)

    def points(image: UInt8Array) -> Float64Array:
        found: Float64Array = network(torch.from_numpy(image[None].copy()), (5, 2))[0].astype(np.float64)
        return found

    return points, network.offer.extractor.input_size
