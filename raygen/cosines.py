"""What a report shows of verification: how alike pictures of one person and of two people are, and the rates.

Knows what an evaluation wrote of it. Knows no HTML and no embeddings.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raygen.metrics import family
from raygen.storage import Storage

__all__ = ["FILE", "Cosines", "Rate", "cosines"]

#: Histograms of an evaluation.
FILE: Final = "metrics/verification.json"
SAID: Final[Mapping[str, str]] = {"all": "these pictures", "reference": "the reference"}
RATES: Final = ("eer", "tar")


@dataclass(frozen=True)
class Rate:
    """One number with its interval; `few`: too few impostor pairs for this share of them."""

    name: str
    value: float
    low: float | None
    high: float | None
    few: bool


@dataclass(frozen=True)
class Cosines:
    """One set: areas of genuine and impostor pairs over cosines from `left` to 1 in percent of a drawing, and rates."""

    name: str
    genuine: str
    impostor: str
    left: float
    pairs: tuple[int, int]
    people: int
    network: str
    rates: tuple[Rate, ...]


def cosines(root: str, rows: Sequence[Mapping[str, Any]]) -> list[Cosines]:
    """Of the evaluation in `root`; empty where it verified nothing."""
    storage = Storage(root)
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
            Cosines(
                SAID.get(where, where), _area(shares["genuine"][first:], most), _area(shares["impostor"][first:], most),
                2 * first / bars - 1, (int(said["genuine_pairs"]), int(said["impostor_pairs"])), int(said["people"]),
                str(said.get("network", "")), tuple(_rate(row) for row in mine),
            )
        )  # fmt: skip
    return found


def _rate(row: Mapping[str, Any]) -> Rate:
    said = json.loads(row["protocol"])
    name = "EER" if family(row["metric"]) == "eer" else f"TAR at FAR {said['far']:g}"
    return Rate(name, float(row["value"]), row["ci_low"], row["ci_high"], bool(said.get("low_n")))


def _area(shares: Sequence[float], most: float) -> str:
    """A path with a step for each share, the highest of both areas 94 % of the drawing."""
    width = 100 / len(shares)
    words = ["M0 100"]
    for i, share in enumerate(shares):
        words.append(f"V{100 - 94 * share / most:.2f}H{(i + 1) * width:.2f}")
    return "".join([*words, "V100Z"])
