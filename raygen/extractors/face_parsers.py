"""The two published face parsers, with the parameter names of their weight files, and the reading of weight files.

ParseNet is the U-Net of CelebAMask-HQ's `face_parsing`; BiSeNet is the ResNet-18 network of face-parsing.PyTorch. The
licences of their weights do not allow redistribution, so they are local files of the user.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.core.errors import ConfigError, InputError, IntegrityError
from raygen.core.face_labels import CLASSES
from raygen.extractors.segmentation import LogitParser
from raygen.store.sealed import FILES, open_record
from raygen.store.weight_file import open_weights

__all__ = ["BiSeNet", "ParseNet", "PublishedNetwork", "fill", "load_published", "read_weights"]


Net = TypeVar("Net", bound=nn.Module)
#: Input side of both networks.
SIDE: Final = 512
#: Fewest digits of a sha256 that identify a file.
MIN_DIGITS: Final = 8
#: The file of an imported network in its folder.
OWN_WEIGHTS: Final = "model.safetensors"


# --- weights ------------------------------------------------------------------------------------------------


def _compare(sha256: str, record: Path) -> None:
    """`InputError` (`weights`) where the weights of an imported folder are not those that its record names."""
    try:
        sums = open_record(record.read_bytes(), str(record)).get(FILES, {})
    except IntegrityError as error:
        raise InputError(str(error), reason="weights") from error
    if sums.get(OWN_WEIGHTS, sha256) != sha256:
        raise InputError(f"{record.parent / OWN_WEIGHTS}: sha256 differs from the one in {record}", reason="weights")


def read_weights(path: str | Path, sha256: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Tensors of a weight file by name, and its sha256; `path` may also be a folder of `raygen import`.

    `sha256`: the whole expected digest or its first digits. `ConfigError` where there is no file; `InputError` for
    another file (`weights`) or one that calls code (`unsafe`). Nothing in the file is run.
    """
    source = Path(path) / OWN_WEIGHTS if Path(path).is_dir() else Path(path)
    file = open_weights(source)
    if (record := source.with_name("raygen.json")).is_file() and source != Path(path):
        _compare(file.sha256, record)
    if sha256 is not None:
        if len(sha256) < MIN_DIGITS or set(sha256.lower()) - set("0123456789abcdef"):
            raise ConfigError(f"sha256 {sha256.lower()!r}: at least {MIN_DIGITS} hexadecimal digits are needed")
        if not file.sha256.startswith(sha256.lower()):
            raise InputError(f"{path}: sha256 is {file.sha256}, not {sha256.lower()}", reason="weights")
    # Copies, because the file may be overwritten while its network is used.
    return {name: entry.read().clone() for name, entry in file.tensors.items()}, file.sha256


def fill(make: Callable[[], Net], tensors: Mapping[str, Tensor], source: str | Path) -> Net:
    """The network of `make` with exactly these tensors, in float32 and evaluation mode.

    `InputError` (`weights`) names the first parameter that is missing, unexpected, of another shape or not finite.
    Batch counters may be missing: they are not used at inference, and old files do not have them.
    """
    with torch.device("meta"):
        network = make()
    expected = network.state_dict()
    counters = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith("num_batches_tracked")}
    state = {**counters, **tensors}
    for name in sorted(expected.keys() | state.keys()):
        problem = _problem(expected.get(name), state.get(name))
        if problem:
            raise InputError(f"{source}: {name} {problem}", reason="weights")
    network.load_state_dict(state, strict=True, assign=True)
    return network.float().eval().requires_grad_(False)


def _problem(expected: Tensor | None, tensor: Tensor | None) -> str | None:
    """What is wrong with the tensor of a parameter; None where nothing is."""
    if expected is None:
        return "is no parameter of this network"
    if tensor is None:
        return "is missing"
    if expected.shape != tensor.shape:
        return f"has shape {tuple(tensor.shape)}, not {tuple(expected.shape)}"
    if expected.is_floating_point() != tensor.is_floating_point():
        return f"is {tensor.dtype}"
    return None if bool(torch.isfinite(tensor).all()) else "is not finite"


# --- ParseNet -----------------------------------------------------------------------------------------------


class ParseNet(nn.Module):
    """Pixels [B, 3, H, W] in -1..1, sides multiples of 16 -> logits [B, 19, H, W] in the official order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _Pair(3, 16)
        self.conv2 = _Pair(16, 32)
        self.conv3 = _Pair(32, 64)
        self.conv4 = _Pair(64, 128)
        self.center = _Pair(128, 256)
        self.up_concat4 = _Up(256, 128)
        self.up_concat3 = _Up(128, 64)
        self.up_concat2 = _Up(64, 32)
        self.up_concat1 = _Up(32, 16)
        self.final = nn.Conv2d(16, len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every pixel."""
        maps = []
        for level in (self.conv1, self.conv2, self.conv3, self.conv4):
            maps.append(level(x))
            x = F.max_pool2d(maps[-1], 2)
        x = self.center(x)
        for up in (self.up_concat4, self.up_concat3, self.up_concat2, self.up_concat1):
            x = up(maps.pop(), x)
        logits: Tensor = self.final(x)
        return logits


class _Pair(nn.Module):
    """Two 3x3 convolutions with norms; the published weights have biases, which the norms cancel."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv2(self.conv1(x))
        return result


class _Up(nn.Module):
    """Doubles the size and concatenates the skip connection in front."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.conv = _Pair(inside, out)
        self.up = nn.ConvTranspose2d(inside, out, 2, stride=2)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        result: Tensor = self.conv(torch.cat([skip, self.up(x)], dim=1))
        return result


# --- BiSeNet ------------------------------------------------------------------------------------------------


class BiSeNet(nn.Module):
    """Normalised pixels [B, 3, H, W] -> logits [B, 19, H, W] in face-parsing.PyTorch's own order.

    The published network returns three maps, of which the first is used. The heads of the two others served training;
    they are here for their parameters and are never run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cp = _ContextPath()
        self.ffm = _Fusion(256, 256)
        self.conv_out = _Head(256, 256)
        self.conv_out16 = _Head(128, 64)
        self.conv_out32 = _Head(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every pixel, resized from an eighth of the resolution."""
        logits = self.conv_out(self.ffm(*self.cp(x)))
        return F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=True)


class _ConvNorm(nn.Module):
    def __init__(self, inside: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Head(nn.Module):
    def __init__(self, inside: int, middle: int) -> None:
        super().__init__()
        self.conv = _ConvNorm(inside, middle, 3)
        self.conv_out = nn.Conv2d(middle, len(CLASSES), 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv_out(self.conv(x))
        return result


class _Refine(nn.Module):
    """Channel attention by global average pooling."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.conv = _ConvNorm(inside, out, 3)
        self.conv_atten = nn.Conv2d(out, out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate: Tensor = self.bn_atten(self.conv_atten(F.adaptive_avg_pool2d(x, 1)))
        return x * gate.sigmoid()


class _Fusion(nn.Module):
    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.convblk = _ConvNorm(inside, out, 1)
        self.conv1 = nn.Conv2d(out, out // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(out // 4, out, 1, bias=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x: Tensor = self.convblk(torch.cat([spatial, context], dim=1))
        gate: Tensor = self.conv2(F.relu(self.conv1(F.adaptive_avg_pool2d(x, 1))))
        return x + x * gate.sigmoid()


class _ContextPath(nn.Module):
    """Two maps at 1/8 of the size: of the trunk, and with global context."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = _Trunk()
        self.arm16 = _Refine(256, 128)
        self.arm32 = _Refine(512, 128)
        self.conv_head32 = _ConvNorm(128, 128, 3)
        self.conv_head16 = _ConvNorm(128, 128, 3)
        self.conv_avg = _ConvNorm(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x8, x16, x32 = self.resnet(x)
        context = self.arm32(x32) + self.conv_avg(F.adaptive_avg_pool2d(x32, 1))
        context = self.conv_head32(F.interpolate(context, x16.shape[-2:], mode="nearest"))
        context = self.arm16(x16) + context
        return x8, self.conv_head16(F.interpolate(context, x8.shape[-2:], mode="nearest"))


class _Trunk(nn.Module):
    """ResNet-18 without its classifier: maps at 1/8, 1/16 and 1/32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Residual(64, 64, 1), _Residual(64, 64, 1))
        self.layer2 = nn.Sequential(_Residual(64, 128, 2), _Residual(128, 128, 1))
        self.layer3 = nn.Sequential(_Residual(128, 256, 2), _Residual(256, 256, 1))
        self.layer4 = nn.Sequential(_Residual(256, 512, 2), _Residual(512, 512, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x8 = self.layer2(self.layer1(x))
        x16 = self.layer3(x8)
        return x8, x16, self.layer4(x16)


class _Residual(nn.Module):
    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


# --- preprocessing and inference -----------------------------------------------------------------------------


def _for_parsenet(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, 512, 512] in -1..1; nearest by pixel centres, as Pillow in the released code."""
    x = images.movedim(-1, 1).float()
    return (F.interpolate(x, (SIDE, SIDE), mode="nearest-exact") / 255 - 0.5) / 0.5


def _for_bisenet(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, 512, 512], normalised with the mean and deviation of ImageNet."""
    x = F.interpolate(images.movedim(-1, 1).float(), (SIDE, SIDE), mode="bilinear", antialias=True) / 255
    mean, deviation = (x.new_tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (x - mean) / deviation


class PublishedNetwork(LogitParser):
    """A published network as a `Parser`."""

    def __init__(self, kind: Literal["parsenet", "bisenet"], network: nn.Module, sha256: str) -> None:
        self.name: str = kind
        self.sha256, self.network = sha256, network
        self.device = next(network.parameters()).device
        self.label_order = "celebamask" if kind == "parsenet" else "face_parsing"
        self._prepare = _for_parsenet if kind == "parsenet" else _for_bisenet

    def logits(self, images: Tensor) -> Tensor:
        """See `LogitParser.logits`."""
        logits: Tensor = self.network(self._prepare(images.to(self.device)))
        return logits

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        nearest = self.name == "parsenet"
        return {
            "network": self.name,
            "sha256": self.sha256,
            "input": f"{SIDE} px " + ("nearest, -1..1" if nearest else "bilinear antialias, ImageNet mean"),
            "labels": f"logits at {SIDE} px, bilinear to picture size, then the best class",
            "label_order": "official" if nearest else "face-parsing.PyTorch, remapped to official",
            "precision": "fp32",
        }


def load_published(
    kind: Literal["parsenet", "bisenet"], weights: str, sha256: str | None, device: torch.device
) -> PublishedNetwork:
    """A published parser from a weight file; errors as `read_weights` and `fill`."""
    tensors, digest = read_weights(weights, sha256)
    network = fill(ParseNet, tensors, weights) if kind == "parsenet" else fill(BiSeNet, tensors, weights)
    return PublishedNetwork(kind, network.to(device), digest)
