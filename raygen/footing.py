"""Which numbers may stand beside each other: measured alike, against the same, over as many rows.

Knows METRICS rows and what their protocols say of how they were measured. Knows no measurement; needs no torch.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Final

from raygen.metrics import better, family
from raygen.spec import ConfigError, InputError

__all__ = ["JUDGES", "check_counts", "check_names", "check_protocols"]

Row = Mapping[str, Any]
#: Families that say as much of who judges as of what is judged.
JUDGES: Final = ("eer", "tar")
#: What a protocol says of how a number was measured; the rest (`clipped`, `low_n`) is what came out, or is the variant.
METHOD: Final = (
    "network", "sha256", "version", "model", "input", "text", "labels", "label_order", "region", "precision", "compare",
    "compared by", "window", "k", "range", "border", "level", "kernel", "estimator", "splits", "split", "seed", "size",
    "n_reference", "statistics", "distance", "against", "margin", "inside", "q", "n_training", "n_held_out",
)  # fmt: skip
#: Families whose value moves with the number of rows alone, so that unequal numbers of them say nothing.
SETS: Final = (
    "fd", "fd_infinity", "rfd", "kid", "kid_subsets", "precision", "recall", "density", "coverage", "inception_score",
    "duplicates",
)  # fmt: skip
#: Digits of a digest that a message shows.
SHORT: Final = 12


def check_protocols(column: str, rows: Mapping[str, Row]) -> None:
    """`ConfigError` where the METRICS rows of one column, by the name of what they judge, were not measured alike.

    It names the two and what differs: reference, sha256 of the network, picture size, or another part of the protocol.
    """
    (one, first), *others = rows.items()  # what is equal to the first is equal
    for other, second in others:
        a, b = _method(first), _method(second)
        differs = [f"{key} {_said(a.get(key))} and {_said(b.get(key))}" for key in a | b if a.get(key) != b.get(key)]
        if differs:
            raise ConfigError(f"{column}: {one} and {other} are not comparable: {'; '.join(differs)}")


def check_names(rows: Mapping[str, Sequence[Row]]) -> None:
    """`ConfigError` where two have numbers of one kind and none by the same protocol, such as `fid@clean` and `fid@tf`.

    `rows`: whole sets' METRICS rows, by the name of what they judge.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for name, own in rows.items():
        for row in own:
            kind = _kind(row["metric"])
            if better(row["metric"]) and kind not in JUDGES:
                found.setdefault(f"{kind} [{row['slice']}]", {}).setdefault(name, set()).add(row["metric"])
    for kind, by in found.items():
        for (one, first), (other, second) in combinations(by.items(), 2):
            if not first & second:
                ours, theirs = (", ".join(sorted(names)) for names in (first, second))
                raise ConfigError(f"{kind}: {one} and {other} are not comparable: protocol {ours} and {theirs}")


def check_counts(column: str, rows: Mapping[str, Row]) -> None:
    """`InputError` (`n`) where a distance or another number of whole sets is over unequal numbers of rows."""
    (one, first), *others = rows.items()
    for other, second in others:
        if _kind(first["metric"]) in SETS and first["n"] != second["n"]:
            counts = f"{one} has n {first['n']:,} and {other} n {second['n']:,}"
            raise InputError(f"{column}: {counts}; over unequal n it is not comparable", reason="n")


def _method(row: Row) -> dict[str, Any]:
    said = json.loads(row.get("protocol") or "{}")
    against = said.get("reference") or {}
    found = {"reference": row.get("reference"), "made from": against.get("made"), "picture size": against.get("size")}
    if row["slice"] == "reference" and _kind(row["metric"]) in JUDGES:
        return found  # it is the judge that is judged
    return found | {key: said.get(key) for key in METHOD}


def _kind(metric: str) -> str:
    """The family, distances over the published Inception (`fid`) and over other features (`fd`) being of one kind."""
    return family(metric).replace("fid", "fd")


def _said(value: Any) -> str:
    if value is None:
        return "unknown"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text[:SHORT] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
