"""The Inception network of 2015 that FID is defined by, with the resize of three protocols.

The key layout is that of `pt_inception-2015-12-05-6726825d.pth`. The network differs from later Inceptions in average
pools that do not count padding, and in one max pool in place of an average. Only distances over the published weights
are named `fid`. Nothing is downloaded.

Sources: Szegedy et al. 2016; Heusel et al. 2017; Parmar et al. 2022 (`fid@clean`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.core.errors import ConfigError
from raygen.core.precision import full_precision
from raygen.extractors.face_parsers import fill, read_weights

__all__ = ["FILE", "PUBLISHED", "Inception2015", "InceptionFeatures", "load_inception", "resize"]


FidProtocol = Literal["fid@tf1", "fid@clean", "fid@pytorch"]
FILE: Final = "pt_inception-2015-12-05-6726825d.pth"
#: First digits of the sha256 of the published file, as in its name.
PUBLISHED: Final = "6726825d"
SIDE: Final = 299
#: Pictures a pass.
CHUNK: Final = 32
EPS: Final = 1e-3


# --- the network --------------------------------------------------------------------------------------------

#: A convolution: name, outputs, kernel, stride. A branch is a sequence of steps; both parts of a forked step have the
#: same input.
Conv = tuple[str, int, tuple[int, int], int]
Branch = list[list[Conv]]
Pool = Callable[[Tensor], Tensor]


class _Convolution(nn.Module):
    """Convolution, norm, ReLU. `same`: padded, so that the sides stay the same at stride 1."""

    def __init__(self, inside: int, out: int, kernel: tuple[int, int], stride: int = 1, *, same: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if same and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inside, out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Concatenated branches, and a last one that pools first. `width`: number of output channels."""

    def __init__(self, inside: int, branches: list[Branch], pool: Pool, pooled: int) -> None:
        super().__init__()
        self.branches, self.pool, self.pooled = branches, pool, pooled
        self.width = pooled or inside
        for branch in branches:
            channels = inside
            for step in branch:
                for name, out, kernel, stride in step:
                    self.add_module(name, _Convolution(channels, out, kernel, stride))
                channels = sum(out for _, out, _, _ in step)
            self.width += channels
        if pooled:
            self.branch_pool = _Convolution(inside, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for branch in self.branches:
            y = x
            for step in branch:
                y = torch.cat([self.get_submodule(name)(y) for name, *_ in step], dim=1)
            maps.append(y)
        pool = self.pool(x)
        maps.append(self.branch_pool(pool) if self.pooled else pool)
        return torch.cat(maps, dim=1)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


def _row(prefix: str, *convs: tuple[int, tuple[int, int]] | tuple[int, tuple[int, int], int]) -> Branch:
    """Consecutive convolutions with the names `prefix`_1, `prefix`_2 …"""
    return [[(f"{prefix}_{i}", c[0], c[1], c[2] if len(c) == 3 else 1)] for i, c in enumerate(convs, 1)]


def _block_a(inside: int, pooled: int) -> _Mixed:
    branches: list[Branch] = [
        [[("branch1x1", 64, (1, 1), 1)]],
        _row("branch5x5", (48, (1, 1)), (64, (5, 5))),
        _row("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
    ]
    return _Mixed(inside, branches, _average, pooled)


def _block_b(inside: int) -> _Mixed:
    branches: list[Branch] = [
        [[("branch3x3", 384, (3, 3), 2)]],
        _row("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3), 2)),
    ]
    return _Mixed(inside, branches, _halved, 0)


def _block_c(inside: int, c: int) -> _Mixed:
    branches: list[Branch] = [
        [[("branch1x1", 192, (1, 1), 1)]],
        _row("branch7x7", (c, (1, 1)), (c, (1, 7)), (192, (7, 1))),
        _row("branch7x7dbl", (c, (1, 1)), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))),
    ]
    return _Mixed(inside, branches, _average, 192)


def _block_d(inside: int) -> _Mixed:
    branches: list[Branch] = [
        _row("branch3x3", (192, (1, 1)), (320, (3, 3), 2)),
        _row("branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2)),
    ]
    return _Mixed(inside, branches, _halved, 0)


def _block_e(inside: int, pool: Pool) -> _Mixed:
    branches: list[Branch] = [
        [[("branch1x1", 320, (1, 1), 1)]],
        [*_row("branch3x3", (384, (1, 1))), _fork("branch3x3_2")],
        [*_row("branch3x3dbl", (448, (1, 1)), (384, (3, 3))), _fork("branch3x3dbl_3")],
    ]
    return _Mixed(inside, branches, pool, 192)


def _fork(prefix: str) -> list[Conv]:
    return [(f"{prefix}a", 384, (1, 3), 1), (f"{prefix}b", 384, (3, 1), 1)]


class Inception2015(nn.Module):
    """Normalised pixels [B, 3, 299, 299] -> features [B, 2048]. `forward` does not apply the classifier `fc`."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, (3, 3), same=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Convolution(80, 192, (3, 3), same=False)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(self.Mixed_5b.width, 64)
        self.Mixed_5d = _block_a(self.Mixed_5c.width, 64)
        self.Mixed_6a = _block_b(self.Mixed_5d.width)
        self.Mixed_6b = _block_c(self.Mixed_6a.width, 128)
        self.Mixed_6c = _block_c(self.Mixed_6b.width, 160)
        self.Mixed_6d = _block_c(self.Mixed_6c.width, 160)
        self.Mixed_6e = _block_c(self.Mixed_6d.width, 192)
        self.Mixed_7a = _block_d(self.Mixed_6e.width)
        self.Mixed_7b = _block_e(self.Mixed_7a.width, _average)
        self.Mixed_7c = _block_e(self.Mixed_7b.width, partial(F.max_pool2d, kernel_size=3, stride=1, padding=1))
        self.fc = nn.Linear(self.Mixed_7c.width, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the last pool."""
        x = _halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = _halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


# --- the protocols ------------------------------------------------------------------------------------------


def resize(images: Tensor, protocol: FidProtocol) -> Tensor:
    """uint8 [B, H, W, 3] -> input of the network by `protocol`, float32 [B, 3, 299, 299]."""
    x = images.movedim(-1, 1).float()
    if protocol == "fid@tf1":
        # TensorFlow 1 samples pixel i at i * old / new, and not at its centre.
        top, bottom, dy = _neighbours(x.shape[-2], x.device)
        left, right, dx = _neighbours(x.shape[-1], x.device)
        x = x[..., left] + (x[..., right] - x[..., left]) * dx
        x = x[..., top, :] + (x[..., bottom, :] - x[..., top, :]) * dy[:, None]
        return (x - 128) / 128
    if protocol == "fid@clean":
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
        return (x.clamp(0, 255) - 128) / 128
    return 2 * F.interpolate(x / 255, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1


def _neighbours(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices [299] of the lower and upper neighbour of each output pixel in `size` pixels, and its weight [299]."""
    place = torch.arange(SIDE, dtype=torch.float32, device=device) * torch.tensor(size / SIDE, dtype=torch.float32)
    low = place.long()
    return low, (low + 1).clamp(max=size - 1), place - low


_INPUT: Final[Mapping[str, str]] = {
    "fid@tf1": "299 px TF1 bilinear, (x-128)/128",
    "fid@clean": "299 px bicubic antialias in float, clamped, (x-128)/128",
    "fid@pytorch": "299 px bilinear without antialias, 2x-1",
}


class InceptionFeatures:
    """The network as a `FeatureExtractor`, with one protocol."""

    def __init__(self, network: Inception2015, protocol: FidProtocol, sha256: str) -> None:
        self.network, self.sha256 = network, sha256
        self.device = next(network.parameters()).device
        self._protocol: FidProtocol = protocol
        published = sha256.startswith(PUBLISHED)
        resizing = protocol.removeprefix("fid@")
        self.name = f"inception-2015:{resizing}" if published else f"inception-{sha256[:8]}:{resizing}"
        self.metric = protocol if published else f"fd:{self.name}"

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, 2048]."""
        with full_precision():
            parts = [self.network(resize(part.to(self.device), self._protocol)) for part in torch.split(images, CHUNK)]
        return torch.cat(parts).float().cpu()

    def logits(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> class logits float32 [B, 1008] without the bias, for the inception score."""
        return self.logits_of(self.features(images))

    @torch.inference_mode()
    def logits_of(self, features: Tensor) -> Tensor:
        """Features [B, 2048] -> class logits float32 [B, 1008] without the bias."""
        with full_precision():
            logits = F.linear(features.to(self.device), self.network.fc.weight)
        return logits.float().cpu()

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        return {
            "network": self.name,
            "sha256": self.sha256,
            "input": _INPUT[self._protocol],
            "precision": "fp32",
        }


def load_inception(weights: str, protocol: FidProtocol, sha256: str | None, device: torch.device) -> InceptionFeatures:
    """The network from `weights`, a path or `hub` for the cache of torch.hub; nothing is downloaded.

    Without `sha256` only the published file is accepted; with it another file, whose distances are named `fd`.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE if weights == "hub" else Path(weights)
    if not path.is_file():
        raise ConfigError(
            f"{path}: no Inception weights here. Either put {FILE} there, or name the file you have in `weights`; "
            "without it, use the bundled features (kind: small), whose distance is not called fid"
        )
    tensors, digest = read_weights(path, PUBLISHED if sha256 is None else sha256)
    return InceptionFeatures(fill(Inception2015, tensors, path).to(device), protocol, digest)
