"""Who may be an identity, and who lends what varies: a small index over all faces, and choices from it.

Knows which classes a face's mask shows, its attributes, and whose picture it is. Holds no picture. Every choice depends
on the seed, the ids of the faces and a number alone: not on the order of the faces, nor on how much else is chosen.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raygen.core.errors import InputError
from raygen.core.face_labels import ATTRIBUTE_INDEX, ATTRIBUTES, CLASS_INDEX, CLASSES
from raygen.core.hashing import digest
from raygen.store.images import decode_mask

__all__ = ["Cells", "FacePool", "Needs", "bits_of", "columns_of", "draw"]


Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FacePool:
    """What is known of each face, in an order that its id and the seed give. About 400 bytes a face.

    `person`: a number for each real person; a picture that nobody named is a person of its own. `shown` uint32 [n]: bit
    c is set where the mask has class c, 0 without a mask. `values` int8 [n, 40], 0 where nobody knows. `sha256`: of the
    picture, None where there is none.
    """

    ids: Sequence[str]
    person: Ints
    shown: npt.NDArray[np.uint32]
    values: npt.NDArray[np.int8]
    sha256: Sequence[str | None]

    @staticmethod
    def of(tables: Iterable[pa.Table], seed: int, splits: Sequence[str] = ()) -> "FacePool":
        """FACES in pieces -> index. Pictures are hashed where the column `image` is there."""
        found = sorted(_described(tables, seed, splits))
        numbers: dict[str, int] = {}
        person = [numbers.setdefault(who, len(numbers)) for _, _, who, _, _, _ in found]
        values = b"".join(value for _, _, _, _, value, _ in found)
        return FacePool(
            [name for _, name, *_ in found],
            np.array(person, dtype=np.int64),
            np.array([shown for _, _, _, shown, _, _ in found], dtype=np.uint32),
            np.frombuffer(values, dtype=np.int8).reshape(len(found), len(ATTRIBUTES)),
            [sha or None for *_, sha in found],
        )


def _described(
    tables: Iterable[pa.Table], seed: int, splits: Sequence[str]
) -> Iterator[tuple[bytes, str, str, int, bytes, str]]:
    """Place in the order, id, person, classes, attributes, digest of the picture; of each face."""
    for table in tables:
        for row in table.to_pylist():
            if splits and row["split"] not in splits:
                continue
            name = row["face_id"]
            values = np.array(row["attributes"] or [0] * len(ATTRIBUTES), dtype=np.int8).tobytes()
            image = (row.get("image") or {}).get("bytes")
            sha = digest(image) if image else ""
            # Nobody is named by two of these words: one picture that lies there twice is one person.
            alone = f"picture:{sha}" if sha else f"face:{name}"
            who = alone if row["identity_id"] is None else f"person:{row['identity_id']}"
            yield _keyed("people", seed, name), name, who, _shown(row["mask"]), values, sha


def _shown(mask: Mapping[str, Any] | None) -> int:
    """A bit for each class that a mask has; 0 for one that is not there or cannot be read."""
    try:
        labels = decode_mask(None if mask is None else mask["bytes"])
    except InputError:
        return 0
    counts = np.bincount(labels.ravel(), minlength=len(CLASSES))
    return int(((counts > 0).astype(np.uint32) << np.arange(len(CLASSES), dtype=np.uint32)).sum())


def bits_of(parts: Iterable[str]) -> np.uint32:
    """Classes by name -> their bits."""
    return np.uint32(sum(1 << CLASS_INDEX[part] for part in parts))


def columns_of(names: Iterable[str]) -> list[int]:
    """Attributes by name -> their places."""
    return [ATTRIBUTE_INDEX[name] for name in names]


class Cells:
    """Every combination of a few attributes, `Male and Young` first; one cell of everybody where there are none."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.columns = names, columns_of(names)
        self.values = list(product((1, -1), repeat=len(names)))

    def __len__(self) -> int:
        return len(self.values)

    def of(self, values: npt.NDArray[np.int8]) -> int | None:
        """The cell of a face with these attributes [40]; None where one of them is not known."""
        known = tuple(int(v) for v in values[self.columns])
        return self.values.index(known) if 0 not in known else None

    def name(self, cell: int) -> str:
        """`Male, not Young`."""
        pairs = zip(self.names, self.values[cell], strict=True)
        return ", ".join(name if value > 0 else f"not {name}" for name, value in pairs) or "everybody"


@dataclass(frozen=True)
class Needs:
    """What a face must have to be an identity: a picture, a mask with these classes, known attributes, a cell.

    `known` [k]: attributes that must be known; with `unlike` no two identities have the same values of them. With
    `others` the person has more pictures with a mask.
    """

    picture: bool
    mask: bool
    shown: np.uint32
    known: Sequence[int]
    unlike: bool
    cells: Cells
    others: bool = False

    def references(self, people: FacePool) -> tuple[list[list[int]], Counter[str]]:
        """Faces by cell, at most one of each person, in the order of `people`; and why others are none."""
        found: list[list[int]] = [[] for _ in range(len(self.cells))]
        persons, vectors, pictures = set[int](), set[bytes](), set[str | None]()
        why = Counter[str]()
        pictures_of = np.bincount(people.person[people.shown > 0], minlength=len(people.ids))
        for face in range(len(people.ids)):
            cell = self.cells.of(people.values[face])
            vector, person = people.values[face, self.known], int(people.person[face])
            if reason := self._lacks(people, face):
                why[reason] += 1
            elif self.others and pictures_of[person] < 2:
                why["without another picture of the person"] += 1
            elif cell is None or not vector.all():
                why["without the attributes"] += 1
            elif person in persons or people.sha256[face] in pictures:
                why["of a person who is taken"] += 1
            elif self.unlike and vector.tobytes() in vectors:
                why["with attributes that are taken"] += 1
            else:
                persons.add(person)
                vectors.add(vector.tobytes())
                pictures |= {people.sha256[face]} - {None}
                found[cell].append(face)
        return found, why

    def _lacks(self, people: FacePool, face: int) -> str:
        if self.picture and people.sha256[face] is None:
            return "without a picture"
        if self.mask and not people.shown[face]:
            return "without a mask"
        return "whose mask lacks a kept part" if self.shown & ~people.shown[face] else ""


def draw(pool: Ints, count: int, seed: int, number: int) -> Ints:
    """`count` members of `pool` in an order of their own for each `number`; nobody twice before everybody came once.

    The first ones do not depend on `count`.
    """
    key = int.from_bytes(_keyed("donors", seed, number), "little")
    random = np.random.Generator(np.random.Philox(key=key))
    rounds = [random.permutation(pool) for _ in range(-(-count // len(pool)))]
    return np.concatenate(rounds)[:count].copy()  # a view would hold the whole pool, for every identity


def _keyed(*words: object) -> bytes:
    data = "|".join(map(str, words)).encode()
    return hashlib.blake2b(data, digest_size=16, person=b"raygen-people-1").digest()
