"""The registry of metrics: one record for each name that a METRICS table can hold, in the order of a report.

It imports no other metric and no torch, because plans, reports and comparisons read it on machines without a GPU.
The text after a `:` or an `@` in a METRICS row is the network or the protocol: `fid@clean`, `miou:bisenet`.
"""

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["REGISTRY", "SECONDS", "Metric", "better", "family", "lookup", "order", "register"]


#: Name of the cost of a picture.
SECONDS: Final = "seconds_per_picture"


@dataclass(frozen=True)
class Metric:
    """What is known about all numbers of one name, whichever network or protocol they were measured with."""

    #: Name in METRICS, without the network and the protocol.
    name: str
    #: Heading of its card in a report.
    title: str
    #: One line below the heading: what is measured, over what, and the value of a model that does nothing.
    meaning: str
    #: Direction of improvement; empty where neither direction is an improvement.
    better: Literal["lower", "higher", ""] = ""
    #: Digits after the point in a report.
    digits: int = 3
    #: Pictures below which a report warns of low n; 0 never warns.
    min_n: int = 0
    #: Whether the value moves with the number of pictures alone, so that it is compared at equal n only.
    set_level: bool = False
    #: Whether a parser or classifier decides, which errs too; its card says so.
    judged_by_network: bool = False
    #: Whether it measures the network as much as the pictures, so that an ablation keeps its rows on the reference.
    describes_network: bool = False
    #: Whether the table of slices (`Male: yes`) has a column for it.
    in_slices: bool = False
    #: Place among the plots of a sweep, from 1; 0 is not plotted.
    plotted: int = 0
    #: Whether the summary of a sweep says how many steps are enough for it.
    headline: bool = False
    #: Whether SCORES hold one number a picture under this name, whose mean (with a bootstrap interval) is the metric.
    per_image: bool = False
    #: A sentence on its card for readers who quote it; `{metric}` becomes the full name.
    note: str = ""


_FRECHET: Final = "distance between the generated and the reference pictures in feature space"

_RECORDS: Final = (
    Metric(
        "miou",
        "Mean IoU",
        "overlap of each part of the face with the mask that was asked for, averaged over the classes",
        better="higher",
        min_n=100,
        judged_by_network=True,
        in_slices=True,
        plotted=4,
        headline=True,
    ),
    Metric(
        "pixel_accuracy",
        "Pixel accuracy",
        "share of pixels whose class is the one asked for",
        better="higher",
        min_n=100,
        judged_by_network=True,
    ),
    Metric(
        "mask_accuracy",
        "Mask accuracy",
        "share of pixels as asked for, at the size the condition had",
        better="higher",
        min_n=100,
        judged_by_network=True,
    ),
    Metric(
        "class_accuracy",
        "Class accuracy",
        "share of a class's pixels that are found, averaged over the classes",
        better="higher",
        min_n=100,
        judged_by_network=True,
    ),
    Metric(
        "frequency_iou",
        "Frequency-weighted IoU",
        "overlap, classes weighted by their pixels",
        better="higher",
        min_n=100,
        judged_by_network=True,
    ),
    Metric(
        "attribute_accuracy",
        "Attribute accuracy",
        "share of attributes that are as asked for, averaged over the attributes",
        better="higher",
        min_n=100,
        judged_by_network=True,
    ),
    Metric(
        "attribute_balanced",
        "Balanced attribute accuracy",
        "attribute accuracy with equal weight for present and absent; 0.5 is chance",
        better="higher",
        min_n=100,
        judged_by_network=True,
        in_slices=True,
        plotted=5,
    ),
    Metric(
        "fid",
        "FID",
        _FRECHET,
        better="lower",
        digits=2,
        min_n=10_000,
        set_level=True,
        in_slices=True,
        plotted=1,
        headline=True,
        note="Compare only with a FID of the same protocol, reference and n.",
    ),
    Metric(
        "fd",
        "Fréchet distance",
        _FRECHET,
        better="lower",
        digits=2,
        min_n=10_000,
        set_level=True,
        in_slices=True,
        plotted=2,
        headline=True,
        note="{metric} is not FID: other features, so no published FID compares with it.",
    ),
    Metric(
        "kid",
        "KID",
        "kernel distance to the reference pictures, unbiased; 0 is no difference",
        better="lower",
        digits=4,
        min_n=1_000,
        set_level=True,
        in_slices=True,
        plotted=3,
    ),
    Metric(
        "kid_subsets",
        "KID of subsets",
        "kernel distance, mean over 100 random subsets of 1,000, as other tools print it",
        better="lower",
        digits=4,
        min_n=1_000,
        set_level=True,
    ),
    Metric(
        "fid_infinity",
        "FID, extrapolated to infinite n",
        "limit of FID for infinitely many generated pictures; the bias of the reference's own n remains",
        better="lower",
        digits=2,
        min_n=10_000,
        set_level=True,
    ),
    Metric(
        "fd_infinity",
        "Fréchet distance, extrapolated to infinite n",
        "limit for infinitely many generated pictures; the bias of the reference's own n remains",
        better="lower",
        digits=2,
        min_n=10_000,
        set_level=True,
    ),
    Metric(
        "precision",
        "Precision",
        "share of generated pictures near a reference picture: fidelity",
        better="higher",
        min_n=5_000,
        set_level=True,
    ),
    Metric(
        "recall",
        "Recall",
        "share of reference pictures near a generated picture: variety",
        better="higher",
        min_n=5_000,
        set_level=True,
        in_slices=True,
    ),
    Metric(
        "density",
        "Density",
        "how densely references surround the generated pictures; may exceed 1",
        better="higher",
        min_n=5_000,
        set_level=True,
    ),
    Metric(
        "coverage",
        "Coverage",
        "share of references with a generated picture nearby",
        better="higher",
        min_n=5_000,
        set_level=True,
    ),
    Metric(
        "memorized",
        "Memorized",
        "share of pictures closer to a training face than 99 % of held-out faces are; 0.01 is no memorization",
        better="lower",
        digits=4,
        min_n=1_000,
    ),
    Metric(
        "training_distance",
        "Distance to training",
        "median distance to the nearest training face, over that of held-out faces; 1 is no memorization",
        better="higher",
        min_n=1_000,
    ),
    Metric(
        "duplicates",
        "Duplicates",
        "share of pictures as close to another generated picture as the closest 1 % of held-out faces to each other",
        better="lower",
        digits=4,
        min_n=1_000,
        set_level=True,
    ),
    Metric(
        "eer",
        "Equal error rate",
        "error rate at the threshold where false accepts equal false rejects; 0.5 is chance",
        better="lower",
        digits=4,
        min_n=1_000,
        describes_network=True,
    ),
    Metric(
        "tar",
        "True accept rate",
        "share of genuine pairs accepted at the named false accept rate",
        better="higher",
        min_n=1_000,
        describes_network=True,
    ),
    Metric(
        "verification_accuracy",
        "Verification accuracy",
        "pairs classified correctly by a threshold of the other folds, percent; 50 is chance",
        better="higher",
        digits=2,
        min_n=1_000,
    ),
    Metric("cosine_genuine", "Cosine of genuine pairs", "mean cosine of two pictures of one person", min_n=1_000),
    Metric("cosine_impostor", "Cosine of impostor pairs", "mean cosine of pictures of two people", min_n=1_000),
    Metric(
        "clip_score",
        "CLIP score",
        "mean cosine of picture and text; compares only with the same CLIP weights",
        better="higher",
        min_n=100,
        in_slices=True,
    ),
    Metric(
        "inception_score",
        "Inception score",
        "confidence and variety of Inception's classes; for completeness, it says little of faces",
        better="higher",
        digits=2,
        min_n=5_000,
        set_level=True,
    ),
    Metric(
        "lpips", "LPIPS", "perceptual distance to the face that a row names", better="lower", min_n=100, per_image=True
    ),
    Metric(
        "ssim",
        "SSIM",
        "structural similarity to the face that a row names",
        better="higher",
        min_n=100,
        in_slices=True,
        per_image=True,
    ),
    Metric(
        "score",
        "Score of a network",
        "mean of the number that a network of an installed package gives each picture",
        min_n=100,
        judged_by_network=True,
        per_image=True,
    ),
    Metric("edit_fidelity", "Edit fidelity", "how much of what was to change has changed", better="higher", min_n=30),
    Metric(
        "edit_similarity", "Edit similarity", "similarity of the edited picture to its input", better="higher", min_n=30
    ),
    Metric(
        "leakage",
        "Leakage",
        "change outside of the edited parts, over that inside; 0 is none, 1 is as much as inside",
        better="lower",
        min_n=100,
    ),
    Metric("change", "Change", "mean absolute difference to the baseline, 0 to 1", digits=4, min_n=100),
    Metric(
        "diversity",
        "Diversity",
        "mean distance between pictures of the same conditions and other noise",
        better="higher",
        min_n=100,
    ),
    Metric("influence", "Influence", "mean share of an expert over pixels and steps", min_n=30),
    Metric(SECONDS, "Seconds per picture", "of one worker, without its start", better="lower", min_n=100),
    Metric(
        "psnr",
        "PSNR",
        "peak signal-to-noise ratio to the face that a row names, dB, at most 100",
        better="higher",
        digits=2,
        min_n=100,
        per_image=True,
    ),
    Metric(
        "iou", "IoU", "overlap of one class with the mask that was asked for", better="higher", judged_by_network=True
    ),
    Metric("loss", "Loss", "training loss at the last step", better="lower"),
    Metric(
        "mended",
        "Passed on retry",
        "share of refused samples that passed their gates in a later attempt with other noise",
    ),
    Metric(
        "picture",
        "Score of the first gate",
        "mean over pictures of the number that the first gate of a selection judges by",
    ),
    Metric(
        "rfd",
        "Reconstruction Fréchet distance",
        "distance between pictures and what the first stage makes of them, in feature space",
        better="lower",
        set_level=True,
    ),
    Metric(
        "rfid",
        "Reconstruction FID",
        "distance between pictures and what the first stage makes of them, in feature space",
        better="lower",
        set_level=True,
    ),
)

#: Every known metric by name, in the order of a report. `register` adds to it.
REGISTRY: Final[dict[str, Metric]] = {metric.name: metric for metric in _RECORDS}


def register(metric: Metric) -> Metric:
    """Adds a record at the end of `REGISTRY`, and returns it; `ValueError` where its name is taken or not a family."""
    if metric.name in REGISTRY or family(metric.name) != metric.name:
        raise ValueError(f"{metric.name!r} cannot be registered: it is taken, or has a network or protocol in it")
    REGISTRY[metric.name] = metric
    return metric


def family(metric: str) -> str:
    """The name of a METRICS row without protocol and network: `fd` of `fd:raygen-parser`, `fid` of `fid@clean`."""
    return metric.partition(":")[0].partition("@")[0]


def lookup(metric: str) -> Metric:
    """The record of the name of a METRICS row; one that makes no claims where the name is not registered."""
    name = family(metric)
    return REGISTRY.get(name) or Metric(name, name.replace("_", " "), "")


def better(metric: str) -> str:
    """`lower`, `higher`, or an empty text where neither is better."""
    return lookup(metric).better


def order(metric: str) -> int:
    """Place of a metric in a report; names that are not registered come last."""
    names = list(REGISTRY)
    name = family(metric)
    return names.index(name) if name in REGISTRY else len(names)
