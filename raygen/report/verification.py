"""What a report shows of verification: how alike pictures of one person and of two people are, the rates, the ROC.

Knows what an evaluation wrote of it. Knows no HTML and no embeddings.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raygen.metrics.registry import family
from raygen.report.line_plot import Roc, roc
from raygen.store.filesystem import FileStore

__all__ = ["FILE", "ROC", "RateRow", "VerificationSection", "roc_svg", "verification_section"]


#: Histograms of an evaluation.
FILE: Final = "metrics/verification.json"
#: Rates by threshold, of every set one after the other.
ROC: Final = "metrics/roc.csv"
SAID: Final[Mapping[str, str]] = {"all": "these pictures", "reference": "the reference"}
RATES: Final = ("eer", "tar")
ACCURACY: Final = "verification_accuracy"


@dataclass(frozen=True)
class RateRow:
    """One number with its interval; `few`: too few impostor pairs for this share of them."""

    name: str
    value: float
    low: float | None
    high: float | None
    few: bool
    digits: int = 4


@dataclass(frozen=True)
class VerificationSection:
    """One set: areas of genuine and impostor pairs over cosines from `left` to 1 in percent of a drawing, and rates."""

    name: str
    genuine: str
    impostor: str
    left: float
    pairs: tuple[int, int]
    people: int
    network: str
    rates: tuple[RateRow, ...]


def verification_section(root: str, rows: Sequence[Mapping[str, Any]]) -> list[VerificationSection]:
    """Of the evaluation in `root`; empty where it verified nothing."""
    storage = FileStore(root)
    drawn = json.loads(storage.get(FILE)) if storage.exists(FILE) else {}
    found = []
    for where, shares in drawn.items():
        mine = [row for row in rows if row["slice"] == where and family(str(row["metric"])) in RATES]
        if not mine:
            continue
        said = json.loads(mine[0]["protocol"])
        bars = int(shares["bars"])
        # What nearly no pair reaches is not drawn: embeddings of faces seldom lie opposite each other.
        first = min((i for i in range(bars) if shares["genuine"][i] > 1e-4 or shares["impostor"][i] > 1e-4), default=0)
        first = min(first, bars // 2)
        most = max(*shares["genuine"][first:], *shares["impostor"][first:])
        found.append(
            VerificationSection(
                SAID.get(where, where),
                _area(shares["genuine"][first:], most),
                _area(shares["impostor"][first:], most),
                2 * first / bars - 1,
                (int(said["genuine_pairs"]), int(said["impostor_pairs"])),
                int(said["people"]),
                str(said.get("network", "")),
                tuple(_rate(row) for row in (*mine, *_accuracy(rows, where))),
            )
        )
    return found


def roc_svg(root: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """SVG of the ROC of the evaluation in `root`, EER and each TAR marked; empty where it wrote none.

    It ends where a single pair of two people would be more than the share that is drawn.
    """
    storage = FileStore(root)
    if not storage.exists(ROC):
        return ""
    rates: dict[str, list[tuple[float, float]]] = {}
    for line in csv.DictReader(io.StringIO(storage.get(ROC).decode())):
        rates.setdefault(line["set"], []).append((float(line["far"]), float(line["tar"])))
    lines, lowest = [], [1e-1]
    for where, found in rates.items():
        mine = [row for row in rows if row["slice"] == where and family(str(row["metric"])) in RATES]
        far, tar = (list(side) for side in zip(*found, strict=True))
        lines.append(Roc(SAID.get(where, where), far, tar, [_mark(row) for row in mine]))
        lowest += [1 / json.loads(row["protocol"])["impostor_pairs"] for row in mine]
        lowest += [json.loads(row["protocol"]).get("far", 1) for row in mine]
    return roc(lines, max(min(lowest), 1e-6))


def _mark(row: Mapping[str, Any]) -> tuple[str, float, float]:
    """A number as a point of its line: what it says, FAR and TAR."""
    rate = _rate(row)
    words = f"{rate.name} {rate.value:.3g}"
    if family(row["metric"]) == "eer":
        return words, rate.value, 1 - rate.value
    return words, float(json.loads(row["protocol"])["far"]), rate.value


def _accuracy(rows: Sequence[Mapping[str, Any]], where: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["slice"] == where and family(str(row["metric"])) == ACCURACY]


def _rate(row: Mapping[str, Any]) -> RateRow:
    said = json.loads(row["protocol"])
    if family(row["metric"]) == ACCURACY:
        name = f"accuracy over {said['folds']} folds, %"
        return RateRow(name, float(row["value"]), row["ci_low"], row["ci_high"], few=False, digits=2)
    name = "EER" if family(row["metric"]) == "eer" else f"TAR at FAR {said['far']:g}"
    return RateRow(name, float(row["value"]), row["ci_low"], row["ci_high"], bool(said.get("low_n")))


def _area(shares: Sequence[float], most: float) -> str:
    """A path with a step for each share, the highest of both areas 94 % of the drawing."""
    width = 100 / len(shares)
    words = ["M0 100"]
    for i, share in enumerate(shares):
        words.append(f"V{100 - 94 * share / most:.2f}H{(i + 1) * width:.2f}")
    return "".join([*words, "V100Z"])
