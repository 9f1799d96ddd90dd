"""Distances and agreements between sets of pictures, each an update, a merge and a compute.

`OVERVIEW` says what each name in a METRICS table is. What follows the colon or the `@` there is the network or the
protocol; a number without it means nothing.
"""

from collections.abc import Mapping
from typing import Final

__all__ = ["OVERVIEW", "SECONDS", "better", "family"]


#: Name of what a picture costs.
SECONDS: Final = "seconds_per_picture"

OVERVIEW: Final[Mapping[str, str]] = {
    "fid": "Fréchet distance over the published Inception of 2015; lower is closer to the reference",
    "fd": "the same over any other features; comparable with itself only",
    "fid_infinity": "fid extrapolated to endless generated rows; the reference's own bias stays",
    "fd_infinity": "the same of fd",
    "kid": "squared distance of means under a cubic kernel, unbiased over all pairs; lower is closer, 0 is alike",
    "kid_subsets": "the same as a mean over 100 random subsets of 1,000 rows, as other tools print it",
    "precision": "share of made pictures within reach of a real one: fidelity",
    "recall": "share of real pictures within reach of a made one: variety",
    "density": "how many real pictures reach a made one, over k; may exceed 1",
    "coverage": "share of real pictures with a made one within their reach",
    "memorized": "share of pictures nearer to a training face than the nearest 1 % of held-out faces are; 0.01 is none",
    "training_distance": "median distance to the nearest training face, over that of held-out faces; 1 is none nearer",
    "duplicates": "share of pictures as near to another one as the nearest 1 % of held-out faces are to each other",
    "miou": "mean intersection over union of the wanted masks and the parsed pictures, data-set level, 19 classes",
    "iou": "the same of one class",
    "pixel_accuracy": "share of pixels that were parsed as the class that was wanted",
    "class_accuracy": "mean over the wanted classes of the share of their pixels that were found",
    "attribute_accuracy": "share of the asked-for attributes that a classifier finds as asked, mean over attributes",
    "attribute_balanced": "the same with yes and no counting alike: 0.5 is what a model that ignores them reaches",
    "eer": "share of impostor pairs taken for one person where as many genuine pairs are not; 0.5 is chance",
    "tar": "share of genuine pairs that are accepted where at most the named share of impostor pairs is",
    "verification_accuracy": "percent of pairs told apart, mean over folds, threshold of the other folds; 50 is chance",
    "cosine_genuine": "mean cosine of two pictures of one person",
    "cosine_impostor": "mean cosine of pictures of two people",
    "picture": "a picture's own number by the first gate of a selection, mean over pictures",
    "mended": "share of refused pictures that passed when they were tried again",
    "clip_score": "mean cosine of CLIP's embeddings of a picture and its text; comparable with the same weights only",
    "inception_score": "how sure and how varied Inception's classes are; for completeness, it says little of faces",
    "mask_accuracy": "share of pixels that were parsed as wanted, both maps at the size the condition had (`@32`)",
    "ssim": "structural similarity to the face that a row names; of `roundtrip`, to what went in",
    "psnr": "peak signal to noise to the same, dB, at most 100",
    "lpips": "perceptual distance to the same, by the network that is named",
    "change": "mean absolute difference to the pictures of a baseline, 0..1, inside or outside of the parts to change",
    "leakage": "change outside over change inside: 0 where nothing else moved, 1 where everything moved alike",
    "diversity": "mean distance (1 - SSIM, or LPIPS) between the pictures of a group, alike but for their noise",
    "seconds_per_picture": "a worker's seconds over the pictures it made, without its start",
    "frequency_iou": "intersection over union weighted by the wanted classes' share of pixels",
}
#: Families of which less is better, and of which more is; of the others (change, influence) neither.
LOWER: Final = frozenset(
    {
        "fid",
        "fd",
        "fid_infinity",
        "fd_infinity",
        "kid",
        "kid_subsets",
        "lpips",
        "leakage",
        "memorized",
        "duplicates",
        "eer",
        SECONDS,
        "loss",
    }
)
HIGHER: Final = frozenset(
    {
        "miou",
        "iou",
        "pixel_accuracy",
        "mask_accuracy",
        "class_accuracy",
        "frequency_iou",
        "attribute_accuracy",
        "attribute_balanced",
        "precision",
        "recall",
        "density",
        "coverage",
        "training_distance",
        "clip_score",
        "inception_score",
        "ssim",
        "psnr",
        "edit_fidelity",
        "edit_similarity",
        "diversity",
        "tar",
        "verification_accuracy",
    }
)


def family(metric: str) -> str:
    """The metric without protocol and network: `fd` of `fd:raygen-parser`, `fid` of `fid@clean`."""
    return metric.partition(":")[0].partition("@")[0]


def better(metric: str) -> str:
    """`lower`, `higher`, or nothing where neither is."""
    name = family(metric)
    return "lower" if name in LOWER else "higher" if name in HIGHER else ""
