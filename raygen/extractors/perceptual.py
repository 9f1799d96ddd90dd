"""Networks whose feature maps compare two pictures with gradients: LPIPS, face embedders, the bundled classifier.

Sources: Zhang et al. 2018 (LPIPS); Cao et al. 2018 (VGGFace2), the ResNet-50 that halves in the first convolution of a
block, as its converted Caffe weights want it; layer weights from "Improving Latent Diffusion with Perceptual Mask-Aware
Loss".
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.core.errors import ConfigError, InputError
from raygen.extractors.bundled import BundledClassifier, load_bundled
from raygen.extractors.config import BundledNetworkConfig, LPIPSConfig, TorchScriptConfig, VGGFace2Config
from raygen.extractors.digests import bundled_digest
from raygen.extractors.face_parsers import fill, read_weights
from raygen.extractors.lpips import load_lpips
from raygen.store.fetched import local_folder

__all__ = ["DeepFeatures", "load_embedder", "load_perceptual"]


#: Weights of the five feature maps of the VGGFace2 network, as released.
VGGFACE2_WEIGHTS: Final = (0.1, 0.0025, 0.025, 0.05, 0.005)


class DeepFeatures(nn.Module):
    """The feature maps of some layers of a frozen network. Never trained or saved."""

    def __init__(self, network: nn.Module, name: str, sha256: str, weights: Sequence[float]) -> None:
        """`weights`: one for each layer, in `difference`."""
        super().__init__()
        self.network = network.eval()
        for parameter in self.network.parameters():  # a TorchScript module has no requires_grad_()
            parameter.requires_grad_(False)
        self.name, self.sha256, self.weights = name, sha256, tuple(weights)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Pixels [B, 3, H, W] in -1..1 -> one map [B, C, h, w] a layer; gradients reach the pixels."""
        raise NotImplementedError

    def difference(self, one: Tensor, other: Tensor, layer: int) -> Tensor:
        """Feature maps [B, C, h, w] of two pictures -> weighted squared distance at each pixel, [B, 1, h, w]."""
        a, b = (F.normalize(x, dim=1, eps=1e-10) for x in (one, other))
        return self.weights[layer] * (a - b).square().sum(dim=1, keepdim=True)

    def train(self, mode: bool = True) -> "DeepFeatures":
        """Stays in evaluation mode."""
        return super().train(False)


class _BundledFeatures(DeepFeatures):
    """All levels of the bundled attribute classifier."""

    def __init__(self, config: BundledNetworkConfig) -> None:
        folder = local_folder(config.folder, "classifier")
        network = load_bundled(folder, BundledClassifier)
        levels = len(network.config.channels)
        super().__init__(network, "raygen-attributes", bundled_digest(folder), [1 / levels] * levels)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """See `DeepFeatures.maps`; pictures of another size are resized."""
        assert isinstance(self.network, BundledClassifier)
        size = (self.network.config.image_size,) * 2
        same = pixels.shape[-2:] == size
        return self.network.trunk(pixels if same else F.interpolate(pixels, size, mode="bilinear", antialias=True))


class _LPIPSFeatures(DeepFeatures):
    """The five feature maps of the trunk, with the channel weights of LPIPS v0.1."""

    def __init__(self, config: LPIPSConfig) -> None:
        loaded = load_lpips(config)
        super().__init__(loaded.network, f"lpips-{config.network}", loaded.sha256, [1.0] * 5)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """See `DeepFeatures.maps`."""
        network: Any = self.network
        return list(network.net(network.scaling_layer(pixels)))

    def difference(self, one: Tensor, other: Tensor, layer: int) -> Tensor:
        """See `DeepFeatures.difference`; channels are weighted as in the package."""
        # A masked pixel is 0 in every channel, and the square root has no gradient at 0.
        lengths = (x.square().sum(dim=1, keepdim=True).clamp(min=1e-20).sqrt() + 1e-10 for x in (one, other))
        a, b = (x / length for x, length in zip((one, other), lengths, strict=True))
        network: Any = self.network
        distance: Tensor = network.lins[layer]((a - b).square())
        return distance


def load_perceptual(config: BundledNetworkConfig | LPIPSConfig) -> DeepFeatures:
    """The network of a perceptual term; errors as for `load_lpips` and `load_bundled`."""
    return _BundledFeatures(config) if isinstance(config, BundledNetworkConfig) else _LPIPSFeatures(config)


# --- face embedders -----------------------------------------------------------------------------------------


class _VGGFace2Net(nn.Module):
    """ResNet-50 with the strides of the VGGFace2 weights, without the classifier."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        net = resnet50(weights=None)
        for block in (net.layer2[0], net.layer3[0], net.layer4[0]):
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
        self.conv1, self.bn1, self.relu = net.conv1, net.bn1, net.relu
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=0, ceil_mode=True)
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4


class _VGGFace2Features(DeepFeatures):
    """Outputs of the first convolution, before its norm, and of the four stages."""

    def __init__(self, config: VGGFace2Config) -> None:
        tensors, sha256 = read_weights(config.weights, config.sha256)
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
        super().__init__(fill(_VGGFace2Net, kept, config.weights), "vggface2-resnet50", sha256, VGGFACE2_WEIGHTS)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """See `DeepFeatures.maps`; the input is BGR in 0..255 without subtracting means, as released."""
        net: Any = self.network
        first = net.conv1((pixels.flip(1) + 1) * 127.5)
        maps, x = [first], net.maxpool(net.relu(net.bn1(first)))
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            maps.append(x)
        return maps


class _TorchScriptFeatures(DeepFeatures):
    """The output of a TorchScript module as one feature map."""

    def __init__(self, config: TorchScriptConfig) -> None:
        path = Path(config.weights)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != (config.sha256 or "").lower():
            raise InputError(f"{path}: sha256 is {digest}, not the trusted {config.sha256}", reason="weights")
        try:
            network = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
        except Exception as error:
            raise InputError(f"{path}: no TorchScript module ({type(error).__name__})", reason="weights") from error
        super().__init__(network, path.name, digest, [1.0])

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """See `DeepFeatures.maps`."""
        features: Tensor = self.network(pixels)
        return [features if features.ndim == 4 else features.flatten(1)[:, :, None, None]]


def load_embedder(config: BundledNetworkConfig | VGGFace2Config | TorchScriptConfig) -> DeepFeatures:
    """The face embedder of a config; `ConfigError` where its file is missing, `InputError` where it is another file."""
    if isinstance(config, BundledNetworkConfig):
        return _BundledFeatures(config)
    return _VGGFace2Features(config) if isinstance(config, VGGFace2Config) else _TorchScriptFeatures(config)
