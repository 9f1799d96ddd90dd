"""A small index over all faces, from which references and donors of identities are chosen. It holds no pictures.

Every choice depends only on the seed, the ids of the faces and a number, so it is the same for any order of the faces
and for any number of other choices.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raygen.core.errors import InputError
from raygen.core.face_labels import ATTRIBUTE_INDEX, ATTRIBUTES, CLASS_INDEX, CLASSES, attribute_list
from raygen.core.hashing import digest
from raygen.core.types import Int64Array
from raygen.store.images import decode_mask

__all__ = [
    "AttributeCells",
    "FacePool",
    "Int64Array",
    "ReferenceFilter",
    "attribute_indices",
    "class_bits",
    "draw_donors",
]


@dataclass(frozen=True)
class FacePool:
    """The index over FACES, in an order that follows from the ids and the seed. About 400 bytes a face.

    `person` int64 [n]: a number for each real person; a picture without `identity_id` is a person of its own.
    `shown` uint32 [n]: bit c is set where the mask has class c, 0 without a mask. `values` int8 [n, 40]: attributes,
    0 where unknown. `sha256`: of the picture, None without one.
    """

    ids: Sequence[str]
    person: Int64Array
    shown: npt.NDArray[np.uint32]
    values: npt.NDArray[np.int8]
    sha256: Sequence[str | None]

    @staticmethod
    def of(tables: Iterable[pa.Table], seed: int, splits: Sequence[str] = ()) -> "FacePool":
        """The index of FACES in pieces, of all splits where `splits` is empty.

        Pictures are hashed where the tables have the column `image`.
        """
        faces = sorted(_index_rows(tables, seed, splits))
        numbers: dict[str, int] = {}
        person = [numbers.setdefault(name, len(numbers)) for _, _, name, _, _, _ in faces]
        values = b"".join(value for _, _, _, _, value, _ in faces)
        return FacePool(
            [face_id for _, face_id, *_ in faces],
            np.array(person, dtype=np.int64),
            np.array([shown for _, _, _, shown, _, _ in faces], dtype=np.uint32),
            np.frombuffer(values, dtype=np.int8).reshape(len(faces), len(ATTRIBUTES)),
            [sha or None for *_, sha in faces],
        )


def _index_rows(
    tables: Iterable[pa.Table], seed: int, splits: Sequence[str]
) -> Iterator[tuple[bytes, str, str, int, bytes, str]]:
    """For each face: sort key, id, person, bits of the mask's classes, attributes, digest of the picture."""
    for table in tables:
        for row in table.to_pylist():
            if splits and row["split"] not in splits:
                continue
            face_id = row["face_id"]
            values = np.array(attribute_list(row["attributes"]), dtype=np.int8).tobytes()
            image = (row.get("image") or {}).get("bytes")
            sha = digest(image) if image else ""
            # Without a name, equal pictures are one person. The prefixes keep names, digests and ids apart.
            person = f"picture:{sha}" if sha else f"face:{face_id}"
            if row["identity_id"] is not None:
                person = f"person:{row['identity_id']}"
            try:
                labels = decode_mask(None if row["mask"] is None else row["mask"]["bytes"])
                shown = int(class_bits(CLASSES[label] for label in np.flatnonzero(np.bincount(labels.ravel()))))
            except InputError:  # no mask, or a damaged one
                shown = 0
            yield _hash_key("people", seed, face_id), face_id, person, shown, values, sha


def class_bits(parts: Iterable[str]) -> np.uint32:
    """A bit mask of classes by name, as in `FacePool.shown`."""
    return np.uint32(sum(1 << CLASS_INDEX[part] for part in parts))


def attribute_indices(names: Iterable[str]) -> list[int]:
    """Positions of attributes by name."""
    return [ATTRIBUTE_INDEX[name] for name in names]


class AttributeCells:
    """Every combination of a few attributes, `Male and Young` first; a single cell of all faces without attributes."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.columns = names, attribute_indices(names)
        self.values = list(product((1, -1), repeat=len(names)))

    def __len__(self) -> int:
        return len(self.values)

    def of(self, values: npt.NDArray[np.int8]) -> int | None:
        """The cell of a face with the attributes `values` [40]; None where one of the cells' attributes is unknown."""
        known = tuple(int(v) for v in values[self.columns])
        return self.values.index(known) if 0 not in known else None

    def name(self, cell: int) -> str:
        """`Male, not Young`."""
        pairs = zip(self.names, self.values[cell], strict=True)
        return ", ".join(name if value > 0 else f"not {name}" for name, value in pairs) or "everybody"


@dataclass(frozen=True)
class ReferenceFilter:
    """What a face needs to be the reference of an identity.

    `picture`, `mask`: whether it needs one. `shown`: classes that the mask has to show. `known` [k]: attributes that
    have to be known; with `distinct` no two references have the same values of them. `cells`: attributes of the cells
    have to be known as well. `several_pictures`: the person needs another picture with a mask.
    """

    picture: bool
    mask: bool
    shown: np.uint32
    known: Sequence[int]
    distinct: bool
    cells: AttributeCells
    several_pictures: bool = False

    def references(self, pool: FacePool) -> tuple[list[list[int]], Counter[str]]:
        """Suitable faces by cell, at most one of each person, in the order of `pool`; and the others by reason."""
        references: list[list[int]] = [[] for _ in range(len(self.cells))]
        persons, vectors, pictures = set[int](), set[bytes](), set[str | None]()
        reasons = Counter[str]()
        pictures_of = np.bincount(pool.person[pool.shown > 0], minlength=len(pool.ids))
        for face in range(len(pool.ids)):
            cell = self.cells.of(pool.values[face])
            vector, person, sha = pool.values[face, self.known], int(pool.person[face]), pool.sha256[face]
            if self.picture and sha is None:
                reasons["without a picture"] += 1
            elif self.mask and not pool.shown[face]:
                reasons["without a mask"] += 1
            elif self.shown & ~pool.shown[face]:
                reasons["whose mask lacks a kept part"] += 1
            elif self.several_pictures and pictures_of[person] < 2:
                reasons["without another picture of the person"] += 1
            elif cell is None or not vector.all():
                reasons["without the attributes"] += 1
            elif person in persons or sha in pictures:
                reasons["of a person who is taken"] += 1
            elif self.distinct and vector.tobytes() in vectors:
                reasons["with attributes that are taken"] += 1
            else:
                persons.add(person)
                vectors.add(vector.tobytes())
                pictures |= {sha} - {None}
                references[cell].append(face)
        return references, reasons


def draw_donors(faces: Int64Array, count: int, seed: int, number: int) -> Int64Array:
    """`count` of `faces` for identity `number`, in an order of its own; all come once before one comes again.

    The first ones do not depend on `count`.
    """
    key = int.from_bytes(_hash_key("donors", seed, number), "little")
    random = np.random.Generator(np.random.Philox(key=key))
    rounds = [random.permutation(faces) for _ in range(-(-count // len(faces)))]
    return np.concatenate(rounds)[:count].copy()  # a view would keep all of `faces` in memory, for every identity


def _hash_key(*words: object) -> bytes:
    data = "|".join(map(str, words)).encode()
    return hashlib.blake2b(data, digest_size=16, person=b"raygen-people-1").digest()
