"""LPIPS over VGG-16 or AlexNet, through the `lpips` package, from weights the user has.

Knows where torchvision keeps both trunks and how their layers are called inside the package, which brings the small
calibrated layers itself; and how all pairs of a group cost one pass of each picture. Fetches nothing.

Source: Zhang et al. 2018, equation 1. All pairs: |a - b|² = a² + b² - 2ab, summed over a layer as one product.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from raygen.core.config import Config
from raygen.core.errors import ConfigError, InputError
from raygen.core.precision import full_precision
from raygen.extractors.face_parsers import read_weights

__all__ = ["FILES", "LPIPS", "LPIPSConfig", "load_lpips"]


Trunk = Literal["vgg", "alex"]


class _Trunk(NamedTuple):
    """What it is called, its file in torchvision's cache, and floats a pixel in the widest of its maps."""

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
#: Added to the length of a place's vector, as the package does.
EPS: Final = 1e-10
#: Pictures a pass of the trunk where all pairs are wanted.
CHUNK: Final = 8
#: Bytes of maps of one layer that may be held at once.
HELD: Final = 1 << 30
#: Numbers a product: few enough to stay in a core's cache, and enough to keep an accelerator busy.
BLOCK: Final[Mapping[str, int]] = {"cpu": 1 << 17, "cuda": 1 << 24}


class LPIPSConfig(Config):
    """Learned perceptual distance (Zhang et al. 2018, v0.1), and its weight in a loss."""

    weight: float = Field(1.0, gt=0)
    weights: str = Field("hub", description="torchvision's file of the network, or `hub` for torchvision's own cache")
    sha256: str | None = Field(None, description="whole or leading digits; none demands the published file")
    network: Trunk = Field("vgg", description="VGG-16, as losses use it, or AlexNet, as papers measure")


class LPIPS(nn.Module):
    """Two pictures [B, 3, H, W] in -1..1 -> a distance a picture [B]. Never trained, never saved."""

    def __init__(self, network: Any, sha256: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.sha256 = sha256

    @property
    def trunk(self) -> str:
        """Name of the network below: `vgg` or `alex`."""
        return str(self.network.pnet_type)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Gradients reach both pictures."""
        distance: Tensor = self.network(made, real).flatten()
        return distance

    @torch.inference_mode()
    def pairs(self, images: Tensor) -> Tensor:
        """Pictures [n, 3, H, W] in -1..1 -> distances of all pairs float64 [n, n], exactly 0 on the diagonal.

        Every picture passes the trunk once, in whole float32. Where the maps of all would take more than `HELD`, tiles
        of them pass in pairs instead: more passes, bounded memory. Has no gradients.
        """
        n, place = len(images), 4 * images.shape[-2] * images.shape[-1]
        fit = max(2, HELD // (place * TRUNKS[self.network.pnet_type].widest))
        if n <= fit:
            return self._tile(images)
        found = images.new_zeros(n, n, dtype=torch.float64)
        for one, other in combinations(torch.split(torch.arange(n, device=images.device), fit // 2), 2):
            both = torch.cat([one, other])
            found[both[:, None], both] = self._tile(images[both])
        return found

    def _tile(self, images: Tensor) -> Tensor:
        """All pairs with the maps of one layer held for every picture."""
        found = images.new_zeros(len(images), len(images), dtype=torch.float64)
        layers = [part for name, part in self.network.net.named_children() if name.startswith("slice")]
        if images.device.type == "cpu":  # a quarter of the trunk's time there
            images = images.contiguous(memory_format=torch.channels_last)
        with full_precision():
            maps = [self.network.scaling_layer(part) for part in torch.split(images, CHUNK)]
            for layer, lin in zip(layers, self.network.lins, strict=True):
                for i in range(len(maps)):  # in place, so that two layers are never held
                    maps[i] = layer(maps[i])
                found += _layer_pairs(maps, lin.model[-1].weight.flatten().double())
        return found

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in evaluation: its dropout would make the distance random."""
        return super().train(False)


def _layer_pairs(maps: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Maps [b, C, h, w] and channel weights [C] -> weighed squared distances of one layer, float64 [n, n].

    Weights may be negative, so none is split into two roots. Unit vectors are rounded to float32 as in the package;
    their products and sums, whose difference may be small, are not.
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
    # One sum of both triangles: two subtractions in turn would round (i, j) and (j, i) apart.
    return (own[:, None] + own - (gram + gram.T)) / places


def load_lpips(config: LPIPSConfig) -> LPIPS:
    """The distance of a spec.

    `ConfigError` where the weights are not there, with the two ways on; `InputError` (`weights`) where the file is
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
        warnings.simplefilter("ignore")  # the package calls torchvision as older versions wanted it
        network = lpips.LPIPS(net=config.network, pnet_rand=True, verbose=False)
    _fill(network.net, tensors, path, trunk.title)
    return LPIPS(network, sha256)


def _fill(trunk: Any, tensors: Mapping[str, Tensor], path: Path, title: str) -> None:
    """torchvision's `features.17.weight` is `slice4.17.weight` in the package; the classifier is not used."""
    state = {}
    for name, wanted in trunk.state_dict().items():
        layer = name.partition(".")[2]
        found = tensors.get(FEATURES + layer)
        if found is None or found.shape != wanted.shape:
            raise InputError(f"{path}: is not {title} ({layer} is missing or differs)", reason="weights")
        state[name] = found.float()
    trunk.load_state_dict(state)
