"""A patch discriminator, its hinge losses, and the adaptive weight that balances it against the reconstruction loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.training.config.losses import DiscriminatorConfig

__all__ = ["PatchDiscriminator", "adaptive_weight", "hinge"]


#: Bounds of the adaptive weight and of its divisor, as the published first stages were trained with.
LARGEST, SMALLEST = 1e4, 1e-4


class PatchDiscriminator(nn.Sequential):
    """Pixels [B, 3, H, W] in -1..1 -> logits of patches [B, 1, h, w]; larger is more real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, config.layers + 1):
            stride = 2 if i < config.layers else 1
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i]) if config.norm == "batch" else nn.GroupNorm(8, widths[i]),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss for logits of real and of reconstructed pictures (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, layer: Tensor, largest: float = LARGEST) -> Tensor:
    """|grad of the reconstruction loss| / |grad of the adversarial one| at `layer` (Esser et al. 2021, equation 7)."""
    (first,) = torch.autograd.grad(reconstruction, layer, retain_graph=True)
    (second,) = torch.autograd.grad(adversarial, layer, retain_graph=True)
    ratio: Tensor = first.norm() / (second.norm() + SMALLEST)
    return ratio.clamp(0, largest).detach()
