"""Pairs of pictures to verify people with: drawn by a seed, in folds that share nobody, as LFW lists them and as CSV.

Knows who each row shows and what its picture is called. Knows no embeddings. Pairs are numbers that are turned into
two rows by arithmetic, so that memory depends on the rows and on the pairs that are drawn, never on all there are.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from raygen.spec import InputError

__all__ = ["Pairs", "as_csv", "as_lfw", "drawn"]

Ints = npt.NDArray[np.int64]
COLUMNS: Final = ("sample_id_1", "sample_id_2", "same", "fold", "identity_id_1", "identity_id_2")


@dataclass(frozen=True)
class Pairs:
    """`ids`, `who` and `number` of rows, sorted by person and id; places of two rows of each pair, int64 [pairs].

    By fold, and in each fold `each` genuine pairs and then as many impostor pairs. `number`: see `drawn`.
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


def drawn(
    people: Mapping[str, str], variants: Mapping[str, int] | None, *, pairs: int, folds: int, seed: int
) -> Pairs:  # fmt: skip
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
            "people or more are asked for", reason="pairs",
        )  # fmt: skip
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
    return Pairs(tuple(one for _, one in rows), who, _numbers(rows, variants, start, count), first, second, folds, each)


def _numbers(
    rows: list[tuple[str, str]], variants: Mapping[str, int] | None, start: Ints, count: Ints
) -> tuple[int, ...]:  # fmt: skip
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


def as_lfw(pairs: Pairs) -> str:
    """Folds and pairs of a fold; then each fold's genuine pairs (name, n1, n2) and impostor pairs (name, n1, name,
    n2), tabs between. n: the number of a row, see `drawn`.
    """
    lines = [f"{pairs.folds}\t{pairs.each}"]
    for i, j, same in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True):
        middle = [] if same else [pairs.who[j]]
        lines.append("\t".join([pairs.who[i], str(pairs.number[i]), *middle, str(pairs.number[j])]))
    return "\n".join(lines) + "\n"


def as_csv(pairs: Pairs) -> str:
    """`COLUMNS` of every pair in the same order; ids are those of an export's labels. `same` is 1 or 0."""
    buffer = io.StringIO()
    write = csv.writer(buffer, lineterminator="\n").writerow
    write(COLUMNS)
    columns = (side.tolist() for side in (pairs.first, pairs.second, pairs.same, pairs.fold))
    for i, j, same, fold in zip(*columns, strict=True):
        write([pairs.ids[i], pairs.ids[j], int(same), fold, pairs.who[i], pairs.who[j]])
    return buffer.getvalue()
