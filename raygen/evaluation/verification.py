"""Face verification of a set: SCORES `identity:…` and the identity of each row -> METRICS, histogram, ROC, pairs."""

import csv
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from raygen.core.errors import InputError
from raygen.core.types import BoolArray, Int64Array
from raygen.evaluation.aggregate import MetricRows
from raygen.evaluation.config import VerificationConfig
from raygen.evaluation.memorization import ScoreSets
from raygen.evaluation.reference import Stores
from raygen.evaluation.score_matrix import IDENTITY, ScoreMatrix
from raygen.evaluation.slices import column
from raygen.metrics.verification import BINS, VerificationHistogram, fold_accuracy, unit, verification
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore

__all__ = [
    "ROC_HEAD",
    "VerificationPairs",
    "as_csv",
    "as_lfw",
    "draw_pairs",
    "histogram",
    "identities_of",
    "pairs_of",
    "roc_lines",
    "verification_metrics",
    "write_verification",
]


COLUMNS: Final = ("sample_id_1", "sample_id_2", "same", "fold", "identity_id_1", "identity_id_2")


@dataclass(frozen=True)
class VerificationPairs:
    """Rows sorted by person and id (`ids`, `who`, `number`), and the row indices `first`, `second` of pairs [pairs].

    Pairs are sorted by fold; each fold has `each` genuine pairs and then as many impostor pairs. `number`: see
    `draw_pairs`.
    """

    ids: tuple[str, ...]
    who: tuple[str, ...]
    number: tuple[int, ...]
    first: Int64Array
    second: Int64Array
    folds: int
    each: int

    @property
    def same(self) -> BoolArray:
        """Whether both rows show one person, [pairs]."""
        return np.tile(np.repeat([True, False], self.each), self.folds)

    @property
    def fold(self) -> Int64Array:
        """Number of the fold from 0, [pairs]."""
        return np.repeat(np.arange(self.folds), 2 * self.each)


def draw_pairs(
    people: Mapping[str, str], variants: Mapping[str, int] | None, *, pairs: int, folds: int, seed: int
) -> VerificationPairs:
    """Draws different pairs of the rows in `people` (identity by id), half of them genuine; folds share no person.

    The number of a row is its variant, which an export uses in file names (`name/003.png`). Where a variant is missing
    or a person has one twice, it is the position of the row among the person's ids, from 1. `InputError` (`pairs`)
    where a fold does not have enough pairs.
    """
    rows = sorted((who, row_id) for row_id, who in people.items())
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
    # People in random order within the same number of pictures, dealt in turn, so that folds are alike.
    shuffled = random.permutation(len(count))
    order = shuffled[np.argsort(-count[shuffled], kind="stable")]
    parts = []
    for k in range(folds):
        fold = np.sort(order[k::folds])
        parts.append(_genuine(random, start[fold], count[fold], each))
        parts.append(_impostors(random, start[fold], count[fold], each))
    first, second = (np.concatenate(side) for side in zip(*parts, strict=True))
    who, ids = tuple(name for name, _ in rows), tuple(row_id for _, row_id in rows)
    number = tuple((np.arange(len(rows)) - np.repeat(start, count) + 1).tolist())
    known = [v for row_id in ids if variants is not None and (v := variants.get(row_id)) is not None]
    if len(known) == len(rows) and len(set(zip(who, known, strict=True))) == len(rows):
        number = tuple(known)
    return VerificationPairs(ids, who, number, first, second, folds, each)


def _chosen(random: np.random.Generator, ends: Int64Array, each: int, kind: str) -> tuple[Int64Array, Int64Array]:
    """Draws `each` of `ends[-1]` pairs without replacement: person of each pair, and its number among the person's."""
    total = int(ends[-1])
    if total < each:
        raise InputError(f"a fold has {total} {kind} pairs, {each} are asked for", reason="pairs")
    drawn = random.choice(total, each, replace=False)
    person = np.searchsorted(ends, drawn, side="right")
    return person, drawn - np.append(0, ends)[person]


def _genuine(
    random: np.random.Generator, start: Int64Array, count: Int64Array, each: int
) -> tuple[Int64Array, Int64Array]:
    """Row indices of genuine pairs: pair k of a person is (k - j (j - 1) / 2, j)."""
    person, k = _chosen(random, np.cumsum(count * (count - 1) // 2), each, "genuine")
    j = ((1 + np.sqrt(1 + 8 * k)) // 2).astype(np.int64)
    return start[person] + k - j * (j - 1) // 2, start[person] + j


def _impostors(
    random: np.random.Generator, start: Int64Array, count: Int64Array, each: int
) -> tuple[Int64Array, Int64Array]:
    """Row indices of impostor pairs: each row of a person with each of the `before` rows of earlier people."""
    before = np.cumsum(count) - count
    person, k = _chosen(random, np.cumsum(count * before), each, "impostor")
    place = k % before[person]
    other = np.searchsorted(before + count, place, side="right")
    return start[other] + place - before[other], start[person] + k // before[person]


def as_lfw(pairs: VerificationPairs) -> str:
    """The pairs in the format of LFW's pairs.txt, separated by tabs.

    The first line has the folds and the pairs of each kind in a fold; then come the genuine pairs (name, n1, n2) and
    impostor pairs (name, n1, name, n2) of each fold. n: the number of a row, see `draw_pairs`.
    """
    lines = [f"{pairs.folds}\t{pairs.each}"]
    for i, j, same in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True):
        middle = [] if same else [pairs.who[j]]
        lines.append("\t".join([pairs.who[i], str(pairs.number[i]), *middle, str(pairs.number[j])]))
    return "\n".join(lines) + "\n"


def as_csv(pairs: VerificationPairs) -> str:
    """The pairs as CSV with `COLUMNS`, in the same order; ids as in the labels of an export, `same` is 1 or 0."""
    buffer = io.StringIO()
    write = csv.writer(buffer, lineterminator="\n").writerow
    write(COLUMNS)
    columns = (side.tolist() for side in (pairs.first, pairs.second, pairs.same, pairs.fold))
    for i, j, same, fold in zip(*columns, strict=True):
        write([pairs.ids[i], pairs.ids[j], int(same), fold, pairs.who[i], pairs.who[j]])
    return buffer.getvalue()


#: Bars of a drawn histogram.
BARS: Final = 100
#: Pairs whose cosines are computed at once.
CHUNK: Final = 4096
#: Header of roc.csv.
ROC_HEAD: Final = "set,threshold,far,tar"


def verification_metrics(
    config: VerificationConfig,
    slice_: str,
    name: str,
    scored: ScoreMatrix,
    people: Mapping[str, str],
    protocol: Mapping[str, Any],
    rows: MetricRows,
) -> VerificationHistogram:
    """Adds EER, TAR at each FAR and the mean cosines of one set to `rows`, and returns its histogram.

    `people`: identity by id; rows without one are left out. `InputError` (`people`) where there are fewer than two
    people, or none of them has two pictures.
    """
    ids = [row_id for row_id in scored.ids if row_id in people]
    everyone = sorted({people[row_id] for row_id in ids})
    names = everyone[:: max(1, -(-len(ids) // config.most))]
    chosen = set(names)
    used = [row_id for row_id in ids if people[row_id] in chosen]
    place = {row_id: i for i, row_id in enumerate(scored.ids)}
    number = {who: i for i, who in enumerate(names)}
    who = np.array([number[people[row_id]] for row_id in used], np.int64)
    try:
        cosines = verification(scored.vectors[[place[row_id] for row_id in used]], who)
    except ValueError as error:
        size = f"it has {len(names)} people in {len(used)} pictures"
        raise InputError(f"{slice_}: {error}; {size}", reason="people") from error
    genuine, impostor = cosines.pairs
    network = name.removeprefix(IDENTITY)
    protocol = {
        **protocol,
        "people": len(names),
        "pictures": len(used),
        "genuine_pairs": genuine,
        "impostor_pairs": impostor,
        "interval": "bootstrap over people",
        "threshold_step": 2 / BINS,
    }
    rows.add(f"eer:{network}", slice_, cosines.eer(), len(used), protocol, cosines.interval(cosines.eer))
    for far in config.far:
        tar, threshold = cosines.tar(far)
        # Fewer than ten impostor pairs above the threshold do not determine it.
        of_tar = {**protocol, "far": far, "threshold": threshold, "low_n": far * impostor < 10}
        interval = cosines.interval(lambda weight, far=far: cosines.tar(far, weight)[0])  # type: ignore[misc]
        rows.add(f"tar@{far:g}:{network}", slice_, tar, len(used), of_tar, interval)
    for kind, value in zip(("genuine", "impostor"), cosines.means(), strict=True):
        of_kind = {**protocol, "level": f"mean over {kind} pairs"}
        rows.add(f"cosine_{kind}:{network}", slice_, value, len(used), of_kind)
    return cosines


def histogram(cosines: VerificationHistogram) -> dict[str, Any]:
    """Shares of genuine and of impostor pairs by cosine in `BARS` equal parts of -1..1, for a plot."""
    parts = {"genuine": cosines.genuine.sum(axis=0), "impostor": cosines.impostor.sum(axis=0)}
    shares = {k: v.reshape(BARS, -1).sum(axis=1) / max(int(v.sum()), 1) for k, v in parts.items()}
    return {"bars": BARS, **{k: [round(float(x), 6) for x in v] for k, v in shares.items()}}


def identities_of(store: RunStore, table: str, key: str) -> tuple[dict[str, str], dict[str, int] | None]:
    """Identity by id of the rows with a picture, and their variants; None where the table has no variants.

    Failed rows, and rows that a selection refused, keep their identity but have no picture.
    """
    people = column(store, table, key, "identity_id")
    if table != "samples":
        return people, None
    failed = column(store, table, key, "error").keys()
    variants: Mapping[str, Any] = column(store, table, key, "variant")
    return {row_id: who for row_id, who in people.items() if row_id not in failed}, dict(variants)


def pairs_of(
    config: VerificationConfig,
    slice_: str,
    name: str,
    scored: ScoreMatrix,
    people: Mapping[str, str],
    variants: Mapping[str, int] | None,
    protocol: Mapping[str, Any],
    rows: MetricRows,
) -> VerificationPairs:
    """Draws pairs of the rows with an embedding, and adds their accuracy over folds, in percent, to `rows`.

    A single fold has no accuracy, as its threshold would be chosen on itself. `InputError` (`pairs`) where there are
    not enough pairs.
    """
    place = {row_id: i for i, row_id in enumerate(scored.ids)}
    known = {row_id: who for row_id, who in people.items() if row_id in place}
    pairs = draw_pairs(known, variants, pairs=config.pairs, folds=config.folds, seed=config.seed)
    if config.folds == 1:
        return pairs
    at = np.array([place[row_id] for row_id in pairs.ids], np.int64)
    cosines = []
    for start in range(0, len(pairs.first), CHUNK):
        first, second = (at[side[start : start + CHUNK]] for side in (pairs.first, pairs.second))
        a, b = unit(scored.vectors[first]), unit(scored.vectors[second])
        cosines.append(np.einsum("nd,nd->n", a, b, dtype=np.float64))
    mean, error = fold_accuracy(np.concatenate(cosines), pairs.same, pairs.fold)
    protocol = {
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
    metric = f"verification_accuracy:{name.removeprefix(IDENTITY)}"
    rows.add(metric, slice_, mean, len(pairs.first), protocol, interval)
    return pairs


def roc_lines(slice_: str, cosines: VerificationHistogram) -> list[str]:
    """Lines of roc.csv: set, threshold, FAR and TAR, by ascending threshold."""
    thresholds = np.arange(BINS + 1) * 2 / BINS - 1
    rates = zip(thresholds.tolist(), *(side.tolist() for side in cosines.rates()), strict=True)
    return [f"{slice_},{threshold:.3f},{far:.9g},{tar:.9g}" for threshold, far, tar in rates]


def write_verification(
    config: VerificationConfig,
    stores: Stores,
    sets: ScoreSets,
    protocols: Mapping[str, Any],
    folder: FileStore,
    rows: MetricRows,
) -> None:
    """Add the verification METRICS of each set to `rows`; write verification.json, roc.csv and the pairs of one set."""
    histograms: dict[str, Any] = {}
    roc = [ROC_HEAD]
    for where, (store, table, key) in stores.items():
        name = next((name for name in sets.get(where, {}) if name.startswith(IDENTITY)), None)
        if name is None:
            continue
        people, variants = identities_of(store, table, key)
        protocol = protocols.get(name.removeprefix(IDENTITY), {})
        scores = sets[where][name]
        if config.pairs and not histograms:
            pairs = pairs_of(config, where, name, scores, people, variants, protocol, rows)
            folder.update("pairs.txt", as_lfw(pairs).encode())
            folder.update("pairs.csv", as_csv(pairs).encode())
        elif config.pairs:
            with suppress(InputError):  # too few pairs in the reference are no error of the evaluation
                pairs_of(config, where, name, scores, people, variants, protocol, rows)
        verification = verification_metrics(config, where, name, scores, people, protocol, rows)
        histograms[where] = histogram(verification)
        roc += roc_lines(where, verification)
    folder.update("verification.json", json.dumps(histograms).encode())
    folder.update("roc.csv", "\n".join([*roc, ""]).encode())
