"""LPIPS over VGG-16 or AlexNet by the `lpips` package, and the distances of all pairs with one pass of each picture.

The package has the calibrated linear layers; the trunks are weight files of torchvision that the user has. Nothing is
downloaded.

Source: Zhang et al. 2018, equation 1. All pairs: |a - b|² = a² + b² - 2ab, summed over a layer as one product.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from raygen.core.errors import ConfigError, InputError
from raygen.core.precision import full_precision
from raygen.extractors.config import LPIPSConfig
from raygen.extractors.face_parsers import read_weights

__all__ = ["FILES", "LPIPS", "load_lpips"]


class _Trunk(NamedTuple):
    """Name, file in the cache of torchvision, and floats per pixel of the widest feature map."""

    title: str
    file: str
    widest: int


TRUNKS: Final[Mapping[str, _Trunk]] = {
    "vgg": _Trunk("VGG-16", "vgg16-397923af.pth", 64),
    "alex": _Trunk("AlexNet", "alexnet-owt-7be5be79.pth", 4),
}
#: Names of the files in torchvision's cache; each ends with the first digits of its sha256.
FILES: Final[Mapping[str, str]] = {name: trunk.file for name, trunk in TRUNKS.items()}
FEATURES: Final = "features."
#: Added to the length of a feature vector, as the package does.
EPS: Final = 1e-10
#: Pictures a pass of the trunk for all pairs.
CHUNK: Final = 8
#: Bytes of the feature maps of one layer that are held at once.
HELD: Final = 1 << 30
#: Numbers of one product: on a CPU few enough for the cache of a core, on a GPU enough to keep it busy.
BLOCK: Final[Mapping[str, int]] = {"cpu": 1 << 17, "cuda": 1 << 24}


class LPIPS(nn.Module):
    """Distance [B] of pictures [B, 3, H, W] in -1..1 to others of the same shape. Never trained or saved."""

    def __init__(self, network: Any, sha256: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.sha256 = sha256

    @property
    def trunk(self) -> str:
        """Name of the network below: `vgg` or `alex`."""
        return str(self.network.pnet_type)

    def forward(self, generated: Tensor, real: Tensor) -> Tensor:
        """Distances [B]; gradients reach both pictures."""
        distance: Tensor = self.network(generated, real).flatten()
        return distance

    @torch.inference_mode()
    def pairs(self, images: Tensor) -> Tensor:
        """Pictures [n, 3, H, W] in -1..1 -> distances of all pairs float64 [n, n], exactly 0 on the diagonal.

        Every picture passes the trunk once, in full float32. Where the feature maps of all would take more than `HELD`
        bytes, pairs of tiles pass instead: more passes, bounded memory. Without gradients.
        """
        n, pixel_bytes = len(images), 4 * images.shape[-2] * images.shape[-1]
        fit = max(2, HELD // (pixel_bytes * TRUNKS[self.network.pnet_type].widest))
        if n <= fit:
            return self._tile(images)
        distances = images.new_zeros(n, n, dtype=torch.float64)
        for tile, other in combinations(torch.split(torch.arange(n, device=images.device), fit // 2), 2):
            both = torch.cat([tile, other])
            distances[both[:, None], both] = self._tile(images[both])
        return distances

    def _tile(self, images: Tensor) -> Tensor:
        """Distances of all pairs, with the feature maps of one layer at a time."""
        distances = images.new_zeros(len(images), len(images), dtype=torch.float64)
        layers = [part for name, part in self.network.net.named_children() if name.startswith("slice")]
        if images.device.type == "cpu":  # saves a quarter of the time there
            images = images.contiguous(memory_format=torch.channels_last)
        with full_precision():
            maps = [self.network.scaling_layer(part) for part in torch.split(images, CHUNK)]
            for layer, lin in zip(layers, self.network.lins, strict=True):
                for i in range(len(maps)):  # in place, so that two layers are not held at once
                    maps[i] = layer(maps[i])
                distances += _layer_pairs(maps, lin.model[-1].weight.flatten().double())
        return distances

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in evaluation mode, as dropout would make the distance random."""
        return super().train(False)


def _layer_pairs(maps: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Feature maps [b, C, h, w] and channel weights [C] -> weighted squared distances of one layer, float64 [n, n].

    Weights may be negative, so their square roots cannot be taken. Unit vectors are float32 as in the package; products
    and sums are float64, because their difference may be small.
    """
    flat = [x.movedim(1, -1).flatten(1, 2) for x in maps]
    n, places = sum(map(len, flat)), flat[0].shape[1]
    step = max(1, BLOCK[weights.device.type] // (n * len(weights)))
    gram = weights.new_zeros(n, n)
    for start in range(0, places, step):
        x = torch.cat([part[:, start : start + step] for part in flat])
        x = (x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + EPS)).double()
        gram += (x * weights).flatten(1) @ x.flatten(1).T
    own = gram.diagonal()
    # One sum of both triangles, so that (i, j) and (j, i) are rounded alike.
    return (own[:, None] + own - (gram + gram.T)) / places


def load_lpips(config: LPIPSConfig) -> LPIPS:
    """The distance of a config.

    `ConfigError` where the weights are missing, with the alternatives; `InputError` (`weights`) where the file is
    another one or does not hold the network.
    """
    import lpips

    trunk = TRUNKS[config.network]
    path = Path(torch.hub.get_dir()) / "checkpoints" / trunk.file if config.weights == "hub" else Path(config.weights)
    if not path.is_file():
        raise ConfigError(
            f"{path}: LPIPS needs {trunk.title}'s weights, and they are not there. Either put torchvision's "
            f"{trunk.file} there (or name it: reconstruction.perceptual.weights=PATH), or go on without: "
            "reconstruction.perceptual=none, mask_aware.network={kind: small}, and no `lpips` elsewhere"
        )
    published = Path(trunk.file).stem.rpartition("-")[2]
    tensors, sha256 = read_weights(path, config.sha256 or published)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package uses a deprecated call of torchvision
        network = lpips.LPIPS(net=config.network, pnet_rand=True, verbose=False)
    state = {}
    for name, expected in network.net.state_dict().items():
        layer = name.partition(".")[2]  # `slice4.17.weight` is `features.17.weight` of torchvision
        tensor = tensors.get(FEATURES + layer)
        if tensor is None or tensor.shape != expected.shape:
            raise InputError(f"{path}: is not {trunk.title} ({layer} is missing or differs)", reason="weights")
        state[name] = tensor.float()
    network.net.load_state_dict(state)
    return LPIPS(network, sha256)
