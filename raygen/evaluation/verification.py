"""Verification of a set of faces: SCORES `identity:…` and who each row shows -> METRICS, a histogram, ROC, pairs.

Knows rows and people. Does not know how faces are embedded, nor how a rate is computed or a pair is drawn.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raygen.core.config import Config
from raygen.core.errors import InputError
from raygen.evaluation.aggregate import MetricRows, ScoreMatrix
from raygen.evaluation.slices import column
from raygen.metrics.verification import BINS, VerificationHistogram, fold_accuracy, unit, verification
from raygen.store.run_store import RunStore

__all__ = [
    "IDENTITY",
    "ROC_HEAD",
    "VerificationConfig",
    "VerificationPairs",
    "as_csv",
    "as_lfw",
    "draw_pairs",
    "histogram",
    "identities_of",
    "pairs_of",
    "roc_lines",
    "verification_metrics",
]


Ints = npt.NDArray[np.int64]
COLUMNS: Final = ("sample_id_1", "sample_id_2", "same", "fold", "identity_id_1", "identity_id_2")


@dataclass(frozen=True)
class VerificationPairs:
    """`ids`, `who` and `number` of rows, sorted by person and id; places of two rows of each pair, int64 [pairs].

    By fold, and in each fold `each` genuine pairs and then as many impostor pairs. `number`: see `draw_pairs`.
    """

    ids: tuple[str, ...]
    who: tuple[str, ...]
    number: tuple[int, ...]
    first: Ints
    second: Ints
    folds: int
    each: int

    @property
    def same(self) -> npt.NDArray[np.bool_]:
        """Whether both rows show one person, [pairs]."""
        return np.tile(np.repeat([True, False], self.each), self.folds)

    @property
    def fold(self) -> Ints:
        """Number of the fold from 0, [pairs]."""
        return np.repeat(np.arange(self.folds), 2 * self.each)


def draw_pairs(
    people: Mapping[str, str], variants: Mapping[str, int] | None, *, pairs: int, folds: int, seed: int
) -> VerificationPairs:
    """`pairs` different pairs of the rows `people` names, half of them of one person; no two folds share a person.

    A row's number is its variant, after which an export calls its file (`name/003.png`). Where a row has none, or two
    rows of a person have one, it is the row's place, from 1, among the person's by id. `InputError` (`pairs`) where a
    fold has not so many pairs.
    """
    rows = sorted((who, one) for one, who in people.items())
    names, start, count = np.unique(np.array([who for who, _ in rows], np.str_), return_index=True, return_counts=True)
    each = pairs // (2 * folds)
    genuine = int((count * (count - 1) // 2).sum())
    if each == 0 or genuine < each * folds or len(names) < 2 * folds:
        raise InputError(
            f"{genuine} genuine pairs of {len(names)} people are there; {each * folds} in {folds} folds of two "
            "people or more are asked for",
            reason="pairs",
        )
    random = np.random.Generator(np.random.Philox(key=seed))
    parts = [
        pair
        for fold in _dealt(random, count, folds)
        for pair in (
            _genuine(random, start[fold], count[fold], each),
            _impostors(random, start[fold], count[fold], each),
        )
    ]
    first, second = (np.concatenate(side) for side in zip(*parts, strict=True))
    who = tuple(name for name, _ in rows)
    return VerificationPairs(
        tuple(one for _, one in rows), who, _numbers(rows, variants, start, count), first, second, folds, each
    )


def _numbers(
    rows: list[tuple[str, str]], variants: Mapping[str, int] | None, start: Ints, count: Ints
) -> tuple[int, ...]:
    known = [None if variants is None else variants.get(one) for _, one in rows]
    if None not in known and len({(who, v) for (who, _), v in zip(rows, known, strict=True)}) == len(rows):
        return tuple(v for v in known if v is not None)
    return tuple((np.arange(len(rows)) - np.repeat(start, count) + 1).tolist())


def _dealt(random: np.random.Generator, count: Ints, folds: int) -> list[Ints]:
    """People of each fold by number: who has as many pictures is anywhere, and each fold gets as many of them."""
    mixed = random.permutation(len(count))
    order = mixed[np.argsort(-count[mixed], kind="stable")]
    return [np.sort(order[fold::folds]) for fold in range(folds)]


def _chosen(random: np.random.Generator, ends: Ints, each: int, kind: str) -> tuple[Ints, Ints]:
    """Different pairs out of `ends[-1]`: the person that each belongs to, and its number among that person's."""
    there = int(ends[-1])
    if there < each:
        raise InputError(f"a fold has {there} {kind} pairs, {each} are asked for", reason="pairs")
    found = random.choice(there, each, replace=False)
    person = np.searchsorted(ends, found, side="right")
    return person, found - np.append(0, ends)[person]


def _genuine(random: np.random.Generator, start: Ints, count: Ints, each: int) -> tuple[Ints, Ints]:
    """Rows of pairs of one person: pair k of a person is (k - j (j - 1) / 2, j)."""
    person, k = _chosen(random, np.cumsum(count * (count - 1) // 2), each, "genuine")
    j = ((1 + np.sqrt(1 + 8 * k)) // 2).astype(np.int64)
    return start[person] + k - j * (j - 1) // 2, start[person] + j


def _impostors(random: np.random.Generator, start: Ints, count: Ints, each: int) -> tuple[Ints, Ints]:
    """Rows of pairs of two people: each row of a person with each row of those before, who have `before` rows."""
    before = np.cumsum(count) - count
    person, k = _chosen(random, np.cumsum(count * before), each, "impostor")
    place = k % before[person]
    other = np.searchsorted(before + count, place, side="right")
    return start[other] + place - before[other], start[person] + k // before[person]


def as_lfw(pairs: VerificationPairs) -> str:
    """Folds and pairs of a fold; then each fold's genuine pairs (name, n1, n2) and impostor pairs (name, n1, name,
    n2), tabs between. n: the number of a row, see `draw_pairs`.
    """
    lines = [f"{pairs.folds}\t{pairs.each}"]
    for i, j, same in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True):
        middle = [] if same else [pairs.who[j]]
        lines.append("\t".join([pairs.who[i], str(pairs.number[i]), *middle, str(pairs.number[j])]))
    return "\n".join(lines) + "\n"


def as_csv(pairs: VerificationPairs) -> str:
    """`COLUMNS` of every pair in the same order; ids are those of an export's labels. `same` is 1 or 0."""
    buffer = io.StringIO()
    write = csv.writer(buffer, lineterminator="\n").writerow
    write(COLUMNS)
    columns = (side.tolist() for side in (pairs.first, pairs.second, pairs.same, pairs.fold))
    for i, j, same, fold in zip(*columns, strict=True):
        write([pairs.ids[i], pairs.ids[j], int(same), fold, pairs.who[i], pairs.who[j]])
    return buffer.getvalue()


#: Begin of the name of embeddings.
IDENTITY: Final = "identity:"

#: Bars of a drawn histogram.
BARS: Final = 100
#: Pairs that are compared at once.
CHUNK: Final = 4096
#: First line of roc.csv.
ROC_HEAD: Final = "set,threshold,far,tar"


class VerificationConfig(Config):
    """How people are told apart, and how much of it is written down."""

    far: tuple[float, ...] = Field((1e-3, 1e-4), description="shares of impostors that may be accepted")
    most: int = Field(20_000, ge=2, description="pictures that are compared, of whole people; time grows as its square")
    pairs: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="pairs in pairs.txt and pairs.csv, half of them genuine, with their accuracy; 0 draws none",
    )
    folds: int = Field(10, ge=1, le=100, description="parts that pairs are in, as LFW's; no two share a person")
    seed: int = Field(0, ge=0, description="of the pairs")


def verification_metrics(
    config: VerificationConfig,
    where: str,
    name: str,
    scored: ScoreMatrix,
    people: Mapping[str, str],
    protocol: Mapping[str, Any],
    rows: MetricRows,
) -> VerificationHistogram:
    """Add EER, TAR at each FAR and the mean cosines of one set to `rows`; all its counts.

    `people`: identity by row; rows without one do not take part. `InputError` where there are no two people, or
    nobody with two pictures.
    """
    ids = [one for one in scored.ids if one in people]
    everyone = sorted({people[one] for one in ids})
    names = everyone[:: max(1, -(-len(ids) // config.most))]
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
        **protocol,
        "people": len(names),
        "pictures": len(used),
        "genuine_pairs": genuine,
        "impostor_pairs": impostor,
        "interval": "bootstrap over people",
        "threshold_step": 2 / BINS,
    }
    rows.add(f"eer:{network}", where, found.eer(), len(used), said, found.interval(found.eer))
    for far in config.far:
        tar, threshold = found.tar(far)
        # With fewer than ten impostor pairs above the threshold its place is chance.
        how = {**said, "far": far, "threshold": threshold, "low_n": far * impostor < 10}
        interval = found.interval(partial(_tar, found, far))
        rows.add(f"tar@{far:g}:{network}", where, tar, len(used), how, interval)
    for kind, value in zip(("genuine", "impostor"), found.means(), strict=True):
        rows.add(f"cosine_{kind}:{network}", where, value, len(used), {**said, "level": f"mean over {kind} pairs"})
    return found


def _tar(found: VerificationHistogram, far: float, weight: npt.NDArray[np.int64]) -> float:
    return found.tar(far, weight)[0]


def histogram(found: VerificationHistogram) -> dict[str, Any]:
    """Shares of genuine and of impostor pairs by cosine in `BARS` equal parts of -1..1, for a drawing."""
    parts = {"genuine": found.genuine.sum(axis=0), "impostor": found.impostor.sum(axis=0)}
    shares = {k: v.reshape(BARS, -1).sum(axis=1) / max(int(v.sum()), 1) for k, v in parts.items()}
    return {"bars": BARS, **{k: [round(float(x), 6) for x in v] for k, v in shares.items()}}


def identities_of(store: RunStore, table: str, key: str) -> tuple[dict[str, str], dict[str, int] | None]:
    """Who each row with a picture shows, by id; and variants, None where the table knows none.

    A row that failed, or that a selection refused, keeps its identity and has no picture.
    """
    people = column(store, table, key, "identity_id")
    if table != "samples":
        return people, None
    gone = column(store, table, key, "error").keys()
    variants: Mapping[str, Any] = column(store, table, key, "variant")
    return {one: who for one, who in people.items() if one not in gone}, dict(variants)


def pairs_of(
    config: VerificationConfig,
    where: str,
    name: str,
    scored: ScoreMatrix,
    people: Mapping[str, str],
    variants: Mapping[str, int] | None,
    protocol: Mapping[str, Any],
    rows: MetricRows,
) -> VerificationPairs:
    """Pairs among the rows with an embedding, and their accuracy over folds in percent, added to `rows`.

    `InputError` (`pairs`) where there are not so many. One fold has no others to choose a threshold on: no accuracy.
    """
    place = {one: i for i, one in enumerate(scored.ids)}
    known = {one: who for one, who in people.items() if one in place}
    pairs = draw_pairs(known, variants, pairs=config.pairs, folds=config.folds, seed=config.seed)
    if config.folds == 1:
        return pairs
    at = np.array([place[one] for one in pairs.ids], np.int64)
    mean, error = fold_accuracy(_cosines(scored, at[pairs.first], at[pairs.second]), pairs.same, pairs.fold)
    said = {
        **protocol,
        "people": len(set(pairs.who)),
        "pictures": len(pairs.ids),
        "pairs": len(pairs.first),
        "folds": config.folds,
        "seed": config.seed,
        "standard_error": error,
        "unit": "percent",
        "counts": "pairs",
        "threshold": "of each fold the best of the others",
        "interval": "mean +- 1.96 standard errors over folds",
    }
    interval = max(mean - 1.96 * error, 0.0), min(mean + 1.96 * error, 100.0)
    rows.add(f"verification_accuracy:{name.removeprefix(IDENTITY)}", where, mean, len(pairs.first), said, interval)
    return pairs


def _cosines(
    scored: ScoreMatrix, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Of pairs of rows, a few thousand at a time."""
    parts = [slice(i, i + CHUNK) for i in range(0, len(first), CHUNK)]
    sides = ((unit(scored.vectors[first[part]]), unit(scored.vectors[second[part]])) for part in parts)
    return np.concatenate([np.einsum("nd,nd->n", a, b, dtype=np.float64) for a, b in sides])


def roc_lines(where: str, found: VerificationHistogram) -> list[str]:
    """Lines of roc.csv: set, threshold, share of impostor and of genuine pairs at or above it, by rising threshold."""
    thresholds = np.arange(BINS + 1) * 2 / BINS - 1
    rates = zip(thresholds.tolist(), *(side.tolist() for side in found.rates()), strict=True)
    return [f"{where},{threshold:.3f},{far:.9g},{tar:.9g}" for threshold, far, tar in rates]
