"""Section: face verification, as histograms of similarity, error rates and the ROC."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from markupsafe import Markup

from raygen.metrics.registry import family
from raygen.report.plots import RocCurve, histogram_plot, roc_plot
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section

__all__ = ["FILE", "ROC", "RateRow", "VerifiedSet", "section"]


#: Histograms of an evaluation.
FILE: Final = "metrics/verification.json"
#: Rates by threshold, of every set one after the other.
ROC: Final = "metrics/roc.csv"
SETS: Final[Mapping[str, str]] = {"all": "these images", "reference": "the reference"}
RATES: Final = ("eer", "tar")
ACCURACY: Final = "verification_accuracy"
#: The smallest false accept rate that is drawn.
MIN_FAR: Final = 1e-6


class RateRow(NamedTuple):
    """One number with its interval; `few`: too few impostor pairs for this share of them."""

    name: str
    value: float
    low: float | None
    high: float | None
    few: bool
    digits: int = 4


class VerifiedSet(NamedTuple):
    """One set: histogram of cosines, numbers of genuine and impostor pairs and of identities, network and rates."""

    name: str
    histogram: Markup
    pairs: tuple[int, int]
    identities: int
    network: str
    rates: Sequence[RateRow]


def section(run: RunFolder) -> Section | None:
    """What an evaluation wrote of verification; None where it wrote nothing."""
    sets = []
    for name, shares in (run.json(FILE) or {}).items():
        rates = _rows(run, name, RATES)
        if not rates:
            continue
        protocol = json.loads(rates[0]["protocol"])
        sets.append(
            VerifiedSet(
                SETS.get(name, name),
                Markup(_histogram(name, shares)),
                (int(protocol["genuine_pairs"]), int(protocol["impostor_pairs"])),
                int(protocol["people"]),
                str(protocol.get("network", "")),
                tuple(_rate(row) for row in (*rates, *_rows(run, name, (ACCURACY,)))),
            )
        )
    variables = {"sets": sets, "roc": Markup(_roc(run))}
    return Section("verification", "Face verification", "verification.html.j2", variables) if sets else None


def _rows(run: RunFolder, name: str, families: Sequence[str]) -> list[Mapping[str, Any]]:
    return [row for row in run.rows if row["slice"] == name and family(str(row["metric"])) in families]


def _histogram(name: str, shares: Mapping[str, Any]) -> str:
    """Histogram of cosines, from the lowest that a share of 1e-4 of the pairs reaches (0 at most) to 1."""
    bins = int(shares["bars"])
    first = min((i for i in range(bins) if shares["genuine"][i] > 1e-4 or shares["impostor"][i] > 1e-4), default=0)
    first = min(first, bins // 2)
    return histogram_plot(
        {"same identity": shares["genuine"][first:], "different identities": shares["impostor"][first:]},
        (2 * first / bins - 1, 1.0),
        name=f"verification-{name}",
        title=f"Cosine similarity of pairs, {SETS.get(name, name)}",
        xlabel="cosine similarity",
        ylabel="share of pairs",
    )


def _roc(run: RunFolder) -> str:
    """SVG of the ROC, EER and each TAR marked; empty where the evaluation wrote none.

    It ends where a single impostor pair would be more than the share that is drawn.
    """
    if not run.storage.exists(ROC):
        return ""
    rates: dict[str, list[tuple[float, float]]] = {}
    for line in csv.DictReader(io.StringIO(run.storage.get(ROC).decode())):
        rates.setdefault(line["set"], []).append((float(line["far"]), float(line["tar"])))
    lines, lowest = [], [1e-1]
    for name, points in rates.items():
        rows = _rows(run, name, RATES)
        far, tar = (list(side) for side in zip(*points, strict=True))
        lines.append(RocCurve(SETS.get(name, name), far, tar, [_mark(row) for row in rows]))
        lowest += [1 / json.loads(row["protocol"])["impostor_pairs"] for row in rows]
        lowest += [json.loads(row["protocol"]).get("far", 1) for row in rows]
    return roc_plot(lines, max(min(lowest), MIN_FAR), name="roc")


def _mark(row: Mapping[str, Any]) -> tuple[str, float, float]:
    """A rate as a point of its ROC: label, FAR and TAR."""
    rate = _rate(row)
    label = f"{rate.name} {rate.value:.3g}"
    if family(row["metric"]) == "eer":
        return label, rate.value, 1 - rate.value
    return label, float(json.loads(row["protocol"])["far"]), rate.value


def _rate(row: Mapping[str, Any]) -> RateRow:
    protocol = json.loads(row["protocol"])
    if family(row["metric"]) == ACCURACY:
        name = f"accuracy over {protocol['folds']} folds, %"
        return RateRow(name, float(row["value"]), row["ci_low"], row["ci_high"], few=False, digits=2)
    name = "EER" if family(row["metric"]) == "eer" else f"TAR at FAR {protocol['far']:g}"
    return RateRow(name, float(row["value"]), row["ci_low"], row["ci_high"], bool(protocol.get("low_n")))
