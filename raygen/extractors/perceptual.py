"""LPIPS over VGG-16, through the `lpips` package, from weights the user has.

Knows where torchvision keeps VGG-16 and how its layers are called inside the package; the package brings the small
calibrated layers itself. Fetches nothing.
"""

import warnings
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import Field
from torch import Tensor, nn

from raygen.extractors.published import read_weights
from raygen.spec import ConfigError, InputError, Spec

__all__ = ["FILE", "LPIPS", "LPIPSSpec", "load_lpips"]

#: Name of the file in torchvision's cache; it begins with its sha256.
FILE: Final = "vgg16-397923af.pth"
PUBLISHED: Final = "397923af"
FEATURES: Final = "features."


class LPIPSSpec(Spec):
    """Learned perceptual distance (Zhang et al. 2018, v0.1) over VGG-16, and its weight in a loss."""

    weight: float = Field(1.0, gt=0)
    weights: str = Field("hub", description=f"{FILE} as a path, or `hub` for torchvision's own cache")
    sha256: str | None = Field(None, description="whole or leading digits; none demands the published file")


class LPIPS(nn.Module):
    """Two pictures [B, 3, H, W] in -1..1 -> a distance a picture [B]. Never trained, never saved."""

    def __init__(self, network: Any, sha256: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.sha256 = sha256

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Gradients reach both pictures."""
        distance: Tensor = self.network(made, real).flatten()
        return distance

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in evaluation: its dropout would make the distance random."""
        return super().train(False)


def load_lpips(spec: LPIPSSpec) -> LPIPS:
    """The distance of a spec.

    `ConfigError` where the weights are not there, with the two ways on; `InputError` (`weights`) where the file is
    another one or does not hold VGG-16.
    """
    import lpips

    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE if spec.weights == "hub" else Path(spec.weights)
    if not path.is_file():
        raise ConfigError(
            f"{path}: the perceptual loss needs VGG-16's weights, and they are not there. Either put torchvision's "
            f"{FILE} there (or name it: reconstruction.perceptual.weights=PATH), or go on without: "
            "reconstruction.perceptual=none, mask_aware.network={kind: small}, and no `lpips` elsewhere"
        )
    tensors, sha256 = read_weights(path, spec.sha256 or PUBLISHED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision as older versions wanted it
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    _fill(network.net, tensors, path)
    return LPIPS(network, sha256)


def _fill(trunk: Any, tensors: dict[str, Tensor], path: Path) -> None:
    """torchvision's `features.17.weight` is `slice4.17.weight` in the package; the classifier is not used."""
    state = {}
    for name, wanted in trunk.state_dict().items():
        found = tensors.get(FEATURES + name.partition(".")[2])
        if found is None or found.shape != wanted.shape:
            layer = name.partition(".")[2]
            raise InputError(f"{path}: is not VGG-16 ({layer} is missing or differs)", reason="weights")
        state[name] = found.float()
    trunk.load_state_dict(state)
