"""Distances and agreements between sets of pictures, each an update, a merge and a compute.

`OVERVIEW` says what each name in a METRICS table is. What follows the colon or the `@` there is the network or the
protocol; a number without it means nothing.
"""

from collections.abc import Mapping
from typing import Final

__all__ = ["OVERVIEW"]

OVERVIEW: Final[Mapping[str, str]] = {
    "fid": "Fréchet distance over the published Inception of 2015; lower is closer to the reference",
    "fd": "the same over any other features; comparable with itself only",
    "miou": "mean intersection over union of the wanted masks and the parsed pictures, data-set level, 19 classes",
    "iou": "the same of one class",
    "pixel_accuracy": "share of pixels that were parsed as the class that was wanted",
    "class_accuracy": "mean over the wanted classes of the share of their pixels that were found",
    "attribute_accuracy": "share of the asked-for attributes that a classifier finds as asked, mean over attributes",
    "attribute_balanced": "the same with yes and no counting alike: 0.5 is what a model that ignores them reaches",
    "ssim": "structural similarity to the face that a row names",
    "change": "mean absolute difference to the pictures of a baseline, 0..1, inside or outside of the parts to change",
    "leakage": "change outside over change inside: 0 where nothing else moved, 1 where everything moved alike",
    "diversity": "mean distance (1 - SSIM, or LPIPS) between the pictures of a group, alike but for their noise",
    "seconds_per_picture": "a worker's seconds over the pictures it made, without its start",
    "frequency_iou": "intersection over union weighted by the wanted classes' share of pixels",
}
