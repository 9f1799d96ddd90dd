"""Conversion between uint8 pictures and float pixels."""

import torch
from torch import Tensor

__all__ = ["to_pixels", "to_uint8"]


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> pixels float32 [B, 3, H, W] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] in -1..1 -> uint8 [B, H, W, 3], rounded to nearest; what is not finite becomes 0."""
    levels = ((pixels.float() + 1) * 127.5).nan_to_num(0.0, 0.0, 0.0).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
