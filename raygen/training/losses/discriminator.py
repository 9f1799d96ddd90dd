"""A patch discriminator, its hinge losses, and the adaptive weight that balances it against the reconstruction loss."""

from typing import Any, Final

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.training.config.losses import DiscriminatorConfig

__all__ = ["PatchDiscriminator", "adaptive_weight", "hinge"]


#: Bounds of the adaptive weight and of its divisor, as the published first stages were trained with.
LARGEST: Final = 1e4
SMALLEST: Final = 1e-4


class RankMean(torch.autograd.Function):
    """The mean of a tensor over all ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """The same on every rank."""
        return rank_mean(value.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The loss is the mean over ranks, so each rank's part of it is, too."""
        return rank_mean(gradients[0].clone())


def rank_mean(value: Tensor) -> Tensor:
    """`value`, in place, as its mean over all ranks."""
    dist.all_reduce(value)
    return value.div_(dist.get_world_size())


class RankBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of all ranks; `nn.SyncBatchNorm` has no kernel for CPUs.

    Its running averages, which nothing here reads, are not kept.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> the same shape."""
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        mean: Tensor = RankMean.apply(x.float().mean(dim=(0, 2, 3), keepdim=True))
        centred = x.float() - mean
        var: Tensor = RankMean.apply(centred.square().mean(dim=(0, 2, 3), keepdim=True))
        scale, shift = (value.view(1, -1, 1, 1) for value in (self.weight, self.bias))
        return (centred * (var + self.eps).rsqrt() * scale + shift).to(x.dtype)


class PatchDiscriminator(nn.Sequential):
    """Pixels [B, 3, H, W] in -1..1 -> logits of patches [B, 1, h, w]; larger is more real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, config.layers + 1):
            stride = 2 if i < config.layers else 1
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                RankBatchNorm2d(widths[i]) if config.norm == "batch" else nn.GroupNorm(8, widths[i]),
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


def loss_gradients(reconstruction: Tensor, adversarial: Tensor, layer: Tensor) -> Tensor:
    """The gradients of both losses at `layer`, [2, ...]. The graph stays."""
    losses = (reconstruction, adversarial)
    return torch.stack([torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in losses])


def adaptive_weight(gradients: Tensor, largest: float = LARGEST) -> Tensor:
    """|grad of the reconstruction loss| / |grad of the adversarial one| (Esser et al. 2021, equation 7).

    `gradients`: those of `loss_gradients`, of the whole batch: a mean of ratios is not the ratio of means.
    """
    first, second = gradients
    ratio: Tensor = first.norm() / (second.norm() + SMALLEST)
    return ratio.clamp(0, largest).detach()
