"""Verification of a set of faces: SCORES `identity:…` and who each row shows -> METRICS, a histogram, a list of pairs.

Knows rows and people. Does not know how faces are embedded, nor how a rate is computed.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raygen.gates import IDENTITY
from raygen.measures import MetricRows, Scored
from raygen.metrics.identity import BINS, Verification, verification
from raygen.spec import InputError, Spec

__all__ = ["IDENTITY", "VerificationSpec", "histogram", "pair_list", "verified"]

#: Two people and the number of a picture of each.
Impostors = tuple[str, int, str, int]
#: Bars of a drawn histogram.
BARS: Final = 100


class VerificationSpec(Spec):
    """How people are told apart, and how much of it is written down."""

    far: tuple[float, ...] = Field((1e-3, 1e-4), description="shares of impostors that may be accepted")
    most: int = Field(20_000, ge=2, description="pictures that are compared, of whole people; time grows as its square")
    pairs: int = Field(0, ge=0, le=1_000_000, description="pairs in pairs.txt, half of them genuine; 0 writes none")
    folds: int = Field(10, ge=1, le=100, description="parts that pairs.txt is in, as LFW's")
    seed: int = Field(0, ge=0, description="of the pairs in pairs.txt")


def verified(
    spec: VerificationSpec, where: str, name: str, scored: Scored, people: Mapping[str, str],
    protocol: Mapping[str, Any], rows: MetricRows,
) -> Verification:  # fmt: skip
    """Add EER, TAR at each FAR and the mean cosines of one set to `rows`; all its counts.

    `people`: identity by row; rows without one do not take part. `InputError` where there are no two people, or
    nobody with two pictures.
    """
    ids = [one for one in scored.ids if one in people]
    everyone = sorted({people[one] for one in ids})
    names = everyone[:: max(1, -(-len(ids) // spec.most))]
    chosen = set(names)
    used = [one for one in ids if people[one] in chosen]
    place = {one: i for i, one in enumerate(scored.ids)}
    number = {who: i for i, who in enumerate(names)}
    who = np.array([number[people[one]] for one in used], np.int64)
    try:
        found = verification(scored.vectors[[place[one] for one in used]], who)
    except ValueError as error:
        there = f"it has {len(names)} people in {len(used)} pictures"
        raise InputError(f"{where}: {error}; {there}", reason="people") from error
    genuine, impostor = found.pairs
    network = name.removeprefix(IDENTITY)
    said = {
        **protocol, "people": len(names), "pictures": len(used), "genuine_pairs": genuine, "impostor_pairs": impostor,
        "interval": "bootstrap over people", "threshold_step": 2 / BINS,
    }  # fmt: skip
    rows.add(f"eer:{network}", where, found.eer(), len(used), said, found.interval(found.eer))
    for far in spec.far:
        tar, threshold = found.tar(far)
        # With fewer than ten impostor pairs above the threshold its place is chance.
        how = {**said, "far": far, "threshold": threshold, "low_n": far * impostor < 10}
        interval = found.interval(partial(_tar, found, far))
        rows.add(f"tar@{far:g}:{network}", where, tar, len(used), how, interval)
    for kind, value in zip(("genuine", "impostor"), found.means(), strict=True):
        rows.add(f"cosine_{kind}:{network}", where, value, len(used), {**said, "level": f"mean over {kind} pairs"})
    return found


def _tar(found: Verification, far: float, weight: npt.NDArray[np.int64]) -> float:
    return found.tar(far, weight)[0]


def histogram(found: Verification) -> dict[str, Any]:
    """Shares of genuine and of impostor pairs by cosine in `BARS` equal parts of -1..1, for a drawing."""
    parts = {"genuine": found.genuine.sum(axis=0), "impostor": found.impostor.sum(axis=0)}
    shares = {k: v.reshape(BARS, -1).sum(axis=1) / max(int(v.sum()), 1) for k, v in parts.items()}
    return {"bars": BARS, **{k: [round(float(x), 6) for x in v] for k, v in shares.items()}}


def pair_list(spec: VerificationSpec, people: Mapping[str, str]) -> str:
    """Pairs as LFW lists them: folds and pairs of a fold; then each fold's genuine pairs (name, i, j) and impostor
    pairs (name, i, name, j), tabs between. A picture's number is its place, from 1, among the person's rows by id.

    `InputError` where there are not so many pairs.
    """
    by: dict[str, list[str]] = {}
    for one in sorted(people):
        by.setdefault(people[one], []).append(one)
    each = spec.pairs // (2 * spec.folds)
    random = np.random.Generator(np.random.Philox(key=spec.seed))
    genuine = [(who, i, j) for who, rows in by.items() for i, j in combinations(range(1, len(rows) + 1), 2)]
    if each == 0 or len(genuine) < each * spec.folds or len(by) < 2:
        raise InputError(
            f"pairs: {len(genuine)} genuine pairs are there, {each * spec.folds} are asked for", reason="pairs"
        )
    chosen = random.choice(len(genuine), each * spec.folds, replace=False)
    others = _impostors(random, by, each * spec.folds)
    lines = [f"{spec.folds}\t{each}"]
    for fold in range(spec.folds):
        part = slice(fold * each, (fold + 1) * each)
        lines += ["\t".join(map(str, genuine[i])) for i in chosen[part]]
        lines += ["\t".join(map(str, pair)) for pair in others[part]]
    return "\n".join(lines) + "\n"


def _impostors(random: np.random.Generator, by: Mapping[str, Sequence[str]], count: int) -> list[Impostors]:
    """Different pairs of two people's pictures."""
    names, found = list(by), dict[Impostors, None]()
    most = (sum(map(len, by.values())) ** 2 - sum(len(rows) ** 2 for rows in by.values())) // 2
    if most < count:
        raise InputError(f"pairs: {most} impostor pairs are there, {count} are asked for", reason="pairs")
    for pair in _drawn(random, names, by):
        found.setdefault(pair)
        if len(found) == count:
            break
    return list(found)


def _drawn(random: np.random.Generator, names: Sequence[str], by: Mapping[str, Sequence[str]]) -> Iterator[Impostors]:
    while True:
        a, b = sorted(random.choice(len(names), 2, replace=False).tolist())
        i, j = (int(random.integers(1, len(by[names[k]]) + 1)) for k in (a, b))
        yield names[a], i, names[b], j
