"""N people x M pictures: rows for data sets that face recognition is trained on.

Knows what stays the same in all pictures of an identity, what each picture borrows from another face, and how
identities are spread over cells. Knows pictures and masks by their bytes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator, Field, field_validator, model_validator

from raygen.core.config import Config
from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import ATTRIBUTES, CLASS_INDEX, AttributeName, ClassName
from raygen.planning.base import Planning, table
from raygen.planning.identity_pool import Cells, FacePool, Ints, Needs, bits_of, columns_of, draw
from raygen.store.filenames import portable_ids
from raygen.store.lookup import Row, RowLookup
from raygen.store.schemas import ATTRIBUTE_LIST, CONDITIONS, FACES, check_id

__all__ = ["Chosen", "Identities"]


_SPELLED: Final = {name.casefold(): name for name in ATTRIBUTES}
#: An attribute in any case.
Attribute = Annotated[
    AttributeName, BeforeValidator(lambda name: _SPELLED.get(name.casefold(), name) if isinstance(name, str) else name)
]
#: What a mask shows: two rows with one mask cannot differ in these, nor rows with two masks agree by wish.
IN_MASK: Final = frozenset(
    (
        "Bald",
        "Bangs",
        "Eyeglasses",
        "Mouth_Slightly_Open",
        "Receding_Hairline",
        "Smiling",
        "Wearing_Earrings",
        "Wearing_Hat",
        "Wearing_Necklace",
    )
)
_HAIR: Final = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Straight_Hair", "Wavy_Hair")
_VARIED: Final = tuple(n for n in ATTRIBUTES if n in IN_MASK or n in _HAIR or n in ("Blurry", "Wearing_Necktie"))
_KEPT: Final = tuple(n for n in ATTRIBUTES if n not in _VARIED)

_LISTING: Final = pa.schema(
    [
        ("number", pa.int64()),
        ("identity_id", pa.string()),
        ("face_id", pa.string()),
        ("sha256", pa.string()),
        ("attributes", ATTRIBUTE_LIST),
        ("shown", pa.uint32()),
        ("donors", pa.list_(pa.string())),
        FACES.field("mask"),
    ]
)
_BANK: Final = pa.schema(
    [
        ("face_id", pa.string()),
        ("sha256", pa.string()),
        ("attributes", ATTRIBUTE_LIST),
        ("shown", pa.uint32()),
        FACES.field("mask"),
    ]
)


class Keep(Config):
    """What all pictures of an identity have in common."""

    styles: tuple[ClassName, ...] = Field(
        ("skin", "nose", "l_eye", "r_eye", "l_brow", "r_brow", "u_lip", "l_lip"),
        description="parts that a reference must show. Parts in neither list look like the reference where it has them",
    )
    attributes: tuple[Attribute, ...] = Field(_KEPT, description="as the reference has them; in neither list: unknown")


class Vary(Config):
    """What each picture has from its donor."""

    styles: tuple[ClassName, ...] = ("hair", "hat", "eye_g", "ear_r", "neck_l", "cloth", "background")
    attributes: tuple[Attribute, ...] = _VARIED


@dataclass(frozen=True)
class Chosen:
    """`listing`: a row an identity, the input of `rows`. `bank`: donors. The masks of `masked` are still to be read."""

    listing: pa.Table
    bank: pa.Table
    masked: Literal["listing", "bank"] | None
    notes: tuple[str, ...]


class Identities(Planning):
    """`identities` people x `pictures` each. An identity is one face, the reference, and no two are one real person.

    Each picture has a donor of its own, another person or another picture of the same one, that lends what varies: the
    mask (pose, expression, shape of the hair), the looks of `vary.styles`, the values of `vary.attributes`; so a row's
    mask, styles and attributes agree.
    A row depends on the seed, the faces, and the numbers of its identity and picture alone; larger `identities` and
    `pictures` keep the rows that are there.
    """

    kind: Literal["identities"] = "identities"
    identities: int = Field(..., ge=1, le=1_000_000)
    pictures: int = Field(..., ge=1, le=10_000, description="of each identity")
    identity_source: Literal["styles", "attributes", "both"] = Field(
        "styles", description="what tells identities apart: the looks of a face, its kept attributes, or each of them"
    )
    keep: Keep = Field(default_factory=Keep)
    vary: Vary = Field(default_factory=Vary)
    masks: Literal["bank", "own", "none"] = Field("bank", description="of the donor, of the reference, or none at all")
    donors: Literal["others", "person"] = Field(
        "others", description="who lends: other people, or the person's own other pictures, where the faces have some"
    )
    num_donors: int = Field(10_000, ge=1, le=1_000_000, description="faces that lend; a worker holds their masks")
    match_attributes: tuple[Attribute, ...] = Field(
        ("Male",), description="what donor and reference share besides `balance`"
    )
    balance: tuple[Attribute, ...] = Field((), max_length=6, description="attributes whose cells get equal counts")
    splits: tuple[str, ...] = Field((), description="only faces of these splits; empty takes all")
    prefix: str = Field("id-", description="of the names id-000000, id-000001 …")
    names: str | None = Field(None, description="text file with a name for each identity, one a line, in place of it")

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        try:
            _checked([f"{value}000000"])
        except InputError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for what in ("styles", "attributes"):
            if both := sorted(set(getattr(self.keep, what)) & set(getattr(self.vary, what))):
                raise ValueError(f"{both[0]} cannot be in keep.{what} and in vary.{what}")
        for names in (self.balance, self.match_attributes):
            if len(set(names)) < len(names):
                raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is there twice")
        if loose := sorted(set(self.balance) - set(self.keep.attributes)):
            raise ValueError(f"{loose[0]} is balanced, so it must be in keep.attributes")
        if self.identity_source != "styles" and not self.keep.attributes:
            raise ValueError(f"by {self.identity_source!r} needs keep.attributes")
        if self.identity_source != "attributes" and self.masks == "none":
            raise ValueError("styles need masks: bank or own, or identity_source: attributes")
        shared = {*self.match_attributes, *self.balance}
        if self.masks == "bank" and (seen := sorted(IN_MASK & set(self.keep.attributes) - shared)):
            raise ValueError(f"{seen[0]} is seen in the mask, which another face lends: vary it, or add it to `alike`")
        if self.masks == "own" and (seen := sorted(IN_MASK & set(self.vary.attributes))):
            raise ValueError(f"{seen[0]} is seen in the mask, which masks: own keeps: keep it, or take masks: bank")
        return self

    @property
    def factor(self) -> int:
        """Rows for each identity."""
        return self.pictures

    @property
    def styled(self) -> bool:
        """Whether rows take looks from faces."""
        return self.identity_source != "attributes"

    @property
    def columns(self) -> tuple[str, ...]:
        """Of FACES, for the index; pictures only to name them by their content."""
        return ("face_id", "split", "mask", "attributes", "identity_id", *(("image",) if self.styled else ()))

    # --- who: once, in the driver ---------------------------------------------------------------------------

    def chosen(self, tables: Iterable[pa.Table], names: Sequence[str] | None = None) -> Chosen:
        """References, donors and their bank from FACES in pieces; `ConfigError` where there are too few."""
        people = FacePool.of(tables, self.seed, self.splits)
        cells = Cells(self.balance)
        needs = Needs(
            picture=self.styled,
            mask=self.styled or self.masks == "own",
            shown=bits_of(self.keep.styles if self.styled else ()),
            known=columns_of(self.keep.attributes if self.identity_source != "styles" else ()),
            unlike=self.identity_source != "styles",
            cells=cells,
            others=self._borrows and self.donors == "person",
        )
        found, why = needs.references(people)
        self._enough(cells, [len(faces) for faces in found], why)
        # Identity after identity goes to the next cell, so that counts are equal to one at any number of them.
        taken = [found[n % len(cells)][n // len(cells)] for n in range(self.identities)]
        bank, groups = self._bank(people)
        fewest = self.pictures
        donors: list[Ints] = []
        for number, face in enumerate(taken):
            pool = groups.get(self._group(people, face), np.array([], np.int64))
            mine = people.person[pool] == people.person[face]
            pool = self._lenders(people, face, pool[~mine] if self.donors == "others" else pool[pool != face])
            if self._borrows and not len(pool):
                if self.donors == "person":
                    raise ConfigError(
                        f"planning.donors: no other picture of {people.ids[face]!r} can lend; take others"
                    )
                shared = ", ".join(dict.fromkeys((*self.balance, *self.match_attributes))) or "nothing"
                raise ConfigError(
                    f"planning.match_attributes: no other face can lend to {people.ids[face]!r} (alike in: {shared}); "
                    "share fewer attributes, raise `bank`, or ingest more faces"
                )
            fewest = min(fewest, len(pool)) if self._borrows else fewest
            donors.append(draw(pool, self.pictures, self.seed, number) if self._borrows else pool[:0])
        listing = self._listing(people, taken, donors, _checked(self._names(names)))
        masked: dict[str, Literal["listing", "bank"] | None] = {"own": "listing", "bank": "bank", "none": None}
        notes = tuple(self._notes(cells, len(bank), fewest))
        return Chosen(listing, _rows_of(people, bank), masked[self.masks], notes)

    @property
    def _borrows(self) -> bool:
        styles = self.styled and bool(self.vary.styles)
        return self.masks == "bank" or styles or bool(self.vary.attributes)

    def _enough(self, cells: Cells, have: Sequence[int], why: Mapping[str, int]) -> None:
        listed = ", ".join(f"{count} {reason}" for reason, count in why.items())
        for cell, there in enumerate(have):
            wanted = (self.identities - cell + len(cells) - 1) // len(cells)
            if there < wanted:
                of = f" of the cell ({cells.name(cell)})" if self.balance else ""
                left = f"; not taken: {listed}" if listed else ""
                raise ConfigError(
                    f"planning.identities: {self.identities} identities need {wanted} references{of}, and the "
                    f"faces have {there}{left}. Ask for fewer, keep fewer parts, or ingest more people"
                )

    def _group(self, people: FacePool, face: int) -> bytes:
        """Equal for faces that may lend to each other."""
        if self.donors == "person":
            return int(people.person[face]).to_bytes(8, "big")
        return people.values[face, columns_of((*self.balance, *self.match_attributes))].tobytes()

    def _bank(self, people: FacePool) -> tuple[Ints, dict[bytes, Ints]]:
        """Faces that may lend, and which of them are alike. A rare group is kept whole before a common one."""
        if not self._borrows:
            return np.array([], np.int64), {}
        able = np.ones(len(people.ids), dtype=bool)
        if self.masks == "bank" or self.styled:
            able &= people.shown > 0
        if self.styled and self.vary.styles:
            able &= np.array([sha is not None for sha in people.sha256], dtype=bool)
        if self.vary.attributes and not self.styled:
            able &= people.values[:, columns_of(self.vary.attributes)].all(axis=1)
        groups: dict[bytes, list[int]] = {}
        for face in np.flatnonzero(able).tolist():
            groups.setdefault(self._group(people, face), []).append(face)
        ranked = sorted((place, face) for faces in groups.values() for place, face in enumerate(faces))[
            : self.num_donors
        ]
        kept = {face for _, face in ranked}
        arrays = {key: np.array([f for f in faces if f in kept], np.int64) for key, faces in groups.items()}
        return np.array(sorted(kept), np.int64), arrays

    def _lenders(self, people: FacePool, face: int, pool: Ints) -> Ints:
        """Where the mask stays, those of `pool` who show most of what it shows and should vary."""
        if self.masks == "bank" or not self.styled or not len(pool):
            return pool
        shares = np.bitwise_count(people.shown[pool] & people.shown[face] & bits_of(self.vary.styles))
        most: Ints = pool[shares == shares.max()]
        return most

    def _names(self, given: Sequence[str] | None) -> list[str]:
        if given is None:
            return [f"{self.prefix}{number:06d}" for number in range(self.identities)]
        if len(given) < self.identities:
            raise ConfigError(f"planning.names: {self.names} has {len(given)} names for {self.identities} people")
        return list(given[: self.identities])

    def _listing(
        self, people: FacePool, taken: Sequence[int], donors: Sequence[Ints], names: Sequence[str]
    ) -> pa.Table:
        lent = pa.array([people.ids[d] for drawn in donors for d in drawn.tolist()], pa.string())
        ends = np.cumsum([0, *(len(drawn) for drawn in donors)])
        columns = {
            "number": pa.array(range(len(taken)), pa.int64()),
            "identity_id": pa.array(names, pa.string()),
            **_described(people, np.array(taken, np.int64)),
            "donors": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), lent),
            "mask": pa.nulls(len(taken), FACES.field("mask").type),
        }
        return pa.table([columns[name] for name in _LISTING.names], schema=_LISTING)

    def _notes(self, cells: Cells, bank: int, fewest: int) -> Iterable[str]:
        least, more = divmod(self.identities, len(cells))
        if self.balance:
            rest = f", and one more in {'; '.join(cells.name(cell) for cell in range(more))}" if more else ""
            yield f"{len(cells)} cells of {', '.join(self.balance)} with {least} identities each{rest}"
        if self._borrows:
            yield f"{bank} faces lend"
        if fewest < self.pictures:
            yield f"somebody has only {fewest} others to borrow from for {self.pictures} pictures: they come again"

    # --- rows: anywhere -------------------------------------------------------------------------------------

    def rows(self, given: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """Identities (`Chosen.listing`) -> CONDITIONS, `pictures` rows each; `faces` knows the bank."""
        assert faces is not None
        people = given.to_pylist()
        lent = faces({name for row in people for name in row["donors"]})
        made = [row for person in people for row in self._of(person, lent)]
        return table({n: pa.array([row.get(n) for row in made], CONDITIONS.field(n).type) for n in _ROW})

    def _of(self, person: Row, lent: Mapping[str, Row]) -> Iterable[Row]:
        """All pictures of one identity."""
        name = person["identity_id"]
        kept, varied = [0] * len(ATTRIBUTES), columns_of(self.vary.attributes)
        for i in columns_of(self.keep.attributes):
            kept[i] = person["attributes"][i]
        for k in range(self.pictures):
            donor = lent[person["donors"][k]] if person["donors"] else None
            values = list(kept)
            for i in varied if donor else ():
                values[i] = donor["attributes"][i]  # type: ignore[index]
            yield {
                "sample_id": check_id(f"{name}-{k:04d}"),
                "plan": self.kind,
                "seed": self.seed,
                "source": person["face_id"],
                "group_id": name,
                "identity_id": name,
                "variant": k,
                "mask": donor["mask"] if donor and self.masks == "bank" else person["mask"],
                "attributes": values if any(values) else None,
                **(self._styles(person, donor) if self.styled else {}),
            }

    def _styles(self, person: Row, donor: Row | None) -> dict[str, Any]:
        """The looks of a face but for what varies, as far as the mask shows any of it and the donor has it."""
        own = {"style_reference_a": {"face_id": person["face_id"], "sha256": person["sha256"]}}
        if donor is None:
            return own
        seen = donor["shown"] if self.masks == "bank" else person["shown"] & donor["shown"]
        if not seen & int(bits_of(self.vary.styles)):
            return own
        parts = sorted(CLASS_INDEX[part] for part in self.vary.styles)
        other = {"face_id": donor["face_id"], "sha256": donor["sha256"]}
        return {**own, "style_reference_b": other, "style_parts": parts, "style_mix": 1.0}


_ROW: Final = (
    "sample_id",
    "plan",
    "seed",
    "source",
    "group_id",
    "identity_id",
    "variant",
    "mask",
    "attributes",
    "style_reference_a",
    "style_reference_b",
    "style_parts",
    "style_mix",
)


def _checked(names: Sequence[str]) -> Sequence[str]:
    """Names of identities whose pictures have good ids, and which are files of their own everywhere."""
    for name in names:
        check_id(f"{name}-0000")
    portable_ids(names)
    return names


def _described(people: FacePool, faces: Ints) -> dict[str, pa.Array]:
    return {
        "face_id": pa.array([people.ids[face] for face in faces], pa.string()),
        "sha256": pa.array([people.sha256[face] for face in faces], pa.string()),
        "attributes": pa.FixedSizeListArray.from_arrays(pa.array(people.values[faces].ravel()), len(ATTRIBUTES)),
        "shown": pa.array(people.shown[faces], pa.uint32()),
    }


def _rows_of(people: FacePool, faces: Ints) -> pa.Table:
    """Faces as rows of the bank, masks still missing."""
    columns = {**_described(people, faces), "mask": pa.nulls(len(faces), FACES.field("mask").type)}
    return pa.table([columns[name] for name in _BANK.names], schema=_BANK)
