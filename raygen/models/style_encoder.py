"""The multi-resolution style encoder: a picture and its mask -> one style a class.

Its convolutions are grouped, one group a class. Features are averaged over the pixels of a class at several scales.

Source: Ergasti et al. 2024 (SCA-DM), section 3.3. In the released encoder the groups of the decoder's convolutions do
not line up with the classes, because features of encoder and decoder are joined one after the other; `aligned` joins
them class by class instead.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.core.face_labels import CLASSES

__all__ = ["StyleEncoder"]


EPSILON = 1e-5


class StyleEncoder(nn.Module):
    """Pixels [B, 3, S, S] and class maps [B, K, S, S] -> styles [B, K, scales x width], each value in -1..1.

    `base`: channels a class at full size, doubled by each of `downs` halvings; `ups` of them are undone, and each of
    these gives one scale. The published one: base 4, downs 6, ups 5, width 256 for pictures of 256 pixels.
    """

    def __init__(
        self, base: int, downs: int, ups: int, width: int, *, aligned: bool = True, classes: int = len(CLASSES)
    ) -> None:
        super().__init__()
        if not 1 <= ups <= downs:
            raise ValueError(f"{ups} scales out of {downs} halvings")
        self.config: dict[str, Any] = {
            "base": base,
            "downs": downs,
            "ups": ups,
            "width": width,
            "aligned": aligned,
            "classes": classes,
        }
        self.classes, self.aligned = classes, aligned
        sizes = [classes * base * 2**i for i in range(downs + 1)]
        self.first = _normed(nn.Conv2d(3, sizes[0], 3, padding=1), classes)
        self.down = nn.ModuleList(
            _normed(nn.Conv2d(a, b, 3, stride=2, padding=1, groups=classes), classes) for a, b in pairwise(sizes)
        )
        outs = sizes[::-1][1 : ups + 1]
        ins = [sizes[-1], *(2 * out for out in outs[:-1])]  # from the second on joined with the encoder's
        self.up = nn.ModuleList(
            _normed(nn.Conv2d(a, b, 3, padding=1, groups=classes), classes) for a, b in zip(ins, outs, strict=True)
        )
        self.out = nn.ModuleList(nn.Conv1d(c, classes * width, 1, groups=classes) for c in outs)
        self.to(memory_format=torch.channels_last)

    @property
    def width(self) -> int:
        """Numbers of a class's style."""
        return int(self.config["ups"] * self.config["width"])

    def forward(self, pixels: Tensor, maps: Tensor) -> Tensor:
        """See the class. A class without pixels gets a style that depends on no picture.

        One picture [1, 3, S, S] for all the maps is read once.
        """
        # Grouped convolutions are 1.5 times as fast on a CPU with channels last, the conversion included.
        features = [self.first(pixels.contiguous(memory_format=torch.channels_last))]
        for layer in self.down:
            features.append(layer(features[-1]))
        x, styles = features.pop(), []
        for index, (layer, head) in enumerate(zip(self.up, self.out, strict=True)):
            skip = features.pop()
            x = layer(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
            styles.append(self._class_means(x, maps, head))
            if index + 1 < len(self.up) and self.aligned:
                x = torch.cat([self._grouped(x), self._grouped(skip)], dim=-1).flatten(3).movedim(-1, 1)
            elif index + 1 < len(self.up):
                x = torch.cat([x, skip], dim=1)
        return torch.cat(styles, dim=2)

    def _grouped(self, x: Tensor) -> Tensor:
        """Features [B, K c, h, w] -> [B, h, w, K, c]."""
        last = x.movedim(1, -1)
        return last.reshape(*last.shape[:-1], self.classes, -1)

    def _class_means(self, x: Tensor, maps: Tensor, head: nn.Module) -> Tensor:
        """Features [B, K c, h, w] -> [B, K, width]: the mean over each class's pixels, then its own linear layer."""
        small = F.interpolate(maps, size=x.shape[2:], mode="nearest").movedim(1, -1).unsqueeze(-1)  # [B, h, w, K, 1]
        mean = (self._grouped(x) * small).sum(dim=(1, 2)) / (small.sum(dim=(1, 2)) + EPSILON)  # [B, K, c]
        styles: Tensor = head(mean.flatten(1).unsqueeze(-1))
        return styles.view(len(maps), self.classes, -1).tanh()


def _normed(conv: nn.Conv2d, groups: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.GroupNorm(groups, conv.out_channels), nn.ReLU())
