"""Section: the metrics of the run, one card each with its protocol and caveats."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from raygen.metrics.registry import better
from raygen.report.metric_rows import GENERATED, REFERENCE, ROUNDTRIP, Number, share_of_ceiling
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section

__all__ = ["Card", "cards", "position", "section"]


class _Kind(NamedTuple):
    title: str
    meaning: str
    enough: int
    digits: int


_OVERLAP: Final = "overlap of each part of the face with the mask that was asked for, averaged over the classes"
_FRECHET: Final = "distance between the generated and the reference pictures in feature space"
_KINDS: Final[Mapping[str, _Kind]] = {
    "miou": _Kind("Mean IoU", _OVERLAP, 100, 3),
    "pixel_accuracy": _Kind("Pixel accuracy", "share of pixels whose class is the one asked for", 100, 3),
    "mask_accuracy": _Kind("Mask accuracy", "share of pixels as asked for, at the size the condition had", 100, 3),
    "class_accuracy": _Kind("Class accuracy", "share of a class's pixels that are found, averaged", 100, 3),
    "frequency_iou": _Kind("Frequency-weighted IoU", "overlap, classes weighted by their pixels", 100, 3),
    "attribute_accuracy": _Kind("Attribute accuracy", "attributes that are as asked for, averaged", 100, 3),
    "attribute_balanced": _Kind(
        "Balanced attribute accuracy", "the same with yes and no counting alike; 0.5 is chance", 100, 3
    ),
    "fid": _Kind("FID", _FRECHET, 10_000, 2),
    "fd": _Kind("Fréchet distance", _FRECHET, 10_000, 2),
    "kid": _Kind("KID", "kernel distance to the reference pictures", 1_000, 4),
    "kid_subsets": _Kind("KID of subsets", "kernel distance, a mean over subsets of 1,000", 1_000, 4),
    "fid_infinity": _Kind("FID for endless rows", "extrapolated; the reference's own bias stays", 10_000, 2),
    "fd_infinity": _Kind("Fréchet distance for endless rows", "extrapolated over 1/n", 10_000, 2),
    "precision": _Kind("Precision", "share of generated pictures near a reference picture", 5_000, 3),
    "recall": _Kind("Recall", "share of reference pictures near a generated picture", 5_000, 3),
    "density": _Kind("Density", "how densely references surround the generated pictures", 5_000, 3),
    "coverage": _Kind("Coverage", "share of references with a generated picture nearby", 5_000, 3),
    "memorized": _Kind("Near to training", "share nearer to a training face than 1 % of held-out faces", 1_000, 4),
    "training_distance": _Kind("Distance to training", "over that of held-out faces; 1 is as far", 1_000, 3),
    "duplicates": _Kind("Duplicates", "share of pictures with a near twin", 1_000, 4),
    "eer": _Kind("Equal error rate", "impostors accepted and genuine pairs refused alike; 0.5 is chance", 1_000, 4),
    "tar": _Kind("True accept rate", "genuine pairs accepted at the named share of impostors", 1_000, 3),
    "verification_accuracy": _Kind(
        "Verification accuracy", "pairs told apart by a threshold of the other folds, percent; 50 is chance", 1_000, 2
    ),
    "cosine_genuine": _Kind("Alike: one person", "mean cosine of two pictures of one person", 1_000, 3),
    "cosine_impostor": _Kind("Alike: two people", "mean cosine of pictures of two people", 1_000, 3),
    "clip_score": _Kind("CLIP score", "cosine of picture and text; depends on the model", 100, 3),
    "inception_score": _Kind("Inception score", "for completeness; says little of faces", 5_000, 2),
    "lpips": _Kind("LPIPS", "perceptual distance to the face that a row names", 100, 3),
    "ssim": _Kind("SSIM", "structural similarity to the face that a row names", 100, 3),
    "edit_fidelity": _Kind("Edit fidelity", "how much of what was to change has changed", 30, 3),
    "edit_similarity": _Kind("Edit similarity", "how much of the input is left", 30, 3),
    "leakage": _Kind("Leakage", "change outside of the parts that were to change, over that inside", 100, 3),
    "change": _Kind("Change", "mean absolute difference to the baseline, 0 to 1", 100, 4),
    "diversity": _Kind("Diversity", "mean distance between pictures of the same conditions", 100, 3),
    "influence": _Kind("Influence", "mean share of an expert over pixels and steps", 30, 3),
    "seconds_per_picture": _Kind("Seconds a picture", "of one worker, without its start", 100, 3),
    "psnr": _Kind("PSNR", "peak signal to noise to the face that a row names, dB", 100, 2),
}
#: Metrics that are a network's opinion.
_JUDGED: Final = frozenset(
    {
        "miou",
        "pixel_accuracy",
        "mask_accuracy",
        "iou",
        "attribute_accuracy",
        "attribute_balanced",
    }
)
_HASH: Final = re.compile("[0-9a-f]{40,}")
_ORDER: Final = {name: i for i, name in enumerate(_KINDS)}


class Card(NamedTuple):
    """One metric as text: value, meaning, values of the other populations, caveats and protocol."""

    title: str
    metric: str
    value: str
    meaning: str
    better: str
    n: int
    counts: str
    interval: str
    others: Sequence[tuple[str, str]]
    share: float | None
    share_of: str
    notes: Sequence[str]
    warning: str
    protocol: Sequence[tuple[str, str]]


def section(run: RunFolder) -> Section | None:
    """A card for each metric; None without metrics."""
    variables = {"cards": cards(run.numbers)}
    return Section("metrics", "Metrics", "cards.html.j2", variables) if variables["cards"] else None


def position(family: str) -> int:
    """Place of a metric family in the order of the cards."""
    return _ORDER.get(family, len(_ORDER))


def cards(numbers: Sequence[Number]) -> list[Card]:
    """One card for each metric over whole populations; the generated images come first where they were measured."""
    by_metric: dict[str, dict[str, Number]] = {}
    for number in numbers:
        if not number.part:
            by_metric.setdefault(number.metric, {})[number.population] = number
    names = sorted(by_metric, key=lambda name: (position(next(iter(by_metric[name].values())).base), name))
    return [_card(by_metric[name]) for name in names]


def _card(group: Mapping[str, Number]) -> Card:
    lead = group.get(GENERATED) or group.get(ROUNDTRIP) or next(iter(group.values()))
    kind = _KINDS.get(lead.base, _Kind(lead.base.replace("_", " "), "", 0, 3))
    labels = {GENERATED: "generated", ROUNDTRIP: "reconstructed reference", REFERENCE: "reference"}
    interval = ""
    if lead.low is not None and lead.high is not None:
        interval = f"{_text(lead.low, kind.digits)} to {_text(lead.high, kind.digits)}"
    return Card(
        kind.title + (f" ({labels[lead.population]})" if lead.population != GENERATED else ""),
        lead.metric,
        _text(lead.value, kind.digits),
        kind.meaning,
        better(lead.metric),
        lead.n,
        str(lead.protocol.get("counts", "images")),
        interval,
        [(labels[k], _text(v.value, kind.digits)) for k, v in group.items() if v is not lead],
        share_of_ceiling(group) if better(lead.metric) == "higher" else None,
        "the reconstructed reference" if ROUNDTRIP in group else "the reference",
        _notes(lead),
        _warning(lead, kind),
        _protocol_lines(lead),
    )


def _text(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:,.{digits}f}"


def _notes(number: Number) -> list[str]:
    """Caveats that belong to the number wherever it is quoted."""
    notes = []
    if number.base == "fd":
        notes.append(f"{number.metric} is not FID: it uses other features, so it cannot be compared with published FIDs.")
    if number.base == "fid":
        notes.append("Compare only with a FID of the same protocol, reference and n.")
    if number.base in _JUDGED and number.network:
        notes.append(f"Measured by {number.network}, which makes errors too: compare with the value on the reference.")
    stored = [number.protocol.get(key) for key in ("warning", "warnings", "note", "notes", "caveat")]
    notes += [str(text) for value in stored if value for text in (value if isinstance(value, list) else [value])]
    return notes


def _warning(number: Number, kind: _Kind) -> str:
    """Says that n is too low: by the protocol, which knows the reference too, else by the number of images."""
    flag, reference = number.protocol.get("low_n"), number.protocol.get("n_reference")
    words = []
    if number.n < kind.enough if flag is None else flag is True:
        smaller = reference if isinstance(reference, int) and reference < number.n else None
        n, counts = (
            (number.n, number.protocol.get("counts", "images")) if smaller is None else (smaller, "reference images")
        )
        words.append(f"Low n: {n:,} {counts}, {kind.enough:,} advised" if n < kind.enough else "Low n: too few pairs")
    if number.protocol.get("fewer_rows_than_values") is True:
        words.append("No more images than a feature has values, so most of it may be bias")
    return ". ".join(words)


def _protocol_lines(number: Number) -> list[tuple[str, str]]:
    """The protocol as names and values; a hash by its first 12 digits."""
    lines = [("reference", number.reference)] if number.reference else []
    for key, value in number.protocol.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        lines.append((str(key).replace("_", " "), f"{text[:12]}…" if _HASH.fullmatch(text) else text))
    return lines
