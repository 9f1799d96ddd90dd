"""N identities x M pictures: CONDITIONS rows for data sets that train face recognition."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import ATTRIBUTES, CLASS_INDEX
from raygen.core.location import Location
from raygen.core.types import Int64Array
from raygen.planning.base import Planning, conditions_table
from raygen.planning.identity_pool import (
    AttributeCells,
    FacePool,
    ReferenceFilter,
    attribute_indices,
    class_bits,
    draw_donors,
)
from raygen.planning.identity_traits import IN_MASK, Attribute, KeptTraits, VariedTraits
from raygen.store.filenames import portable_ids
from raygen.store.lookup import RowLookup
from raygen.store.schemas import ATTRIBUTE_VALUES, FACES, STYLE, check_id

__all__ = ["ChosenFaces", "Identities"]


#: The 40 values in the order of `ATTRIBUTES`.
_VALUES: Final = pa.list_(pa.int8(), len(ATTRIBUTES))
#: A row an identity. Its digest is part of the run id.
_LISTING: Final = pa.schema(
    [
        ("number", pa.int64()),
        ("identity_id", pa.string()),
        ("face_id", pa.string()),
        ("sha256", pa.string()),
        ("attributes", _VALUES),
        ("shown", pa.uint32()),
        ("donors", pa.list_(pa.string())),
        FACES.field("mask"),
    ]
)
#: A row a donor.
_DONORS: Final = pa.schema(
    [
        ("face_id", pa.string()),
        ("sha256", pa.string()),
        ("attributes", _VALUES),
        ("shown", pa.uint32()),
        FACES.field("mask"),
    ]
)


@dataclass(frozen=True)
class ChosenFaces:
    """The faces of a plan: `listing` has a row an identity and is the input of `Identities.rows`, `donors` a row each.

    `without_masks` names the table whose column `mask` the caller has to fill, if any. `notes` are for the user.
    """

    listing: pa.Table
    donors: pa.Table
    without_masks: Literal["listing", "donors"] | None
    notes: tuple[str, ...]


class Identities(Planning):
    """`identities` people x `pictures` each. An identity is one face, the reference; no two are one real person.

    Each picture has a donor: another person, or another picture of the same person. The donor lends what varies: the
    mask (pose, expression, shape of the hair), the looks of `vary.styles`, the values of `vary.attributes`. So mask,
    styles and attributes of a row agree.
    A row depends only on the seed, the faces, and the numbers of its identity and picture: larger `identities` and
    `pictures` keep the existing rows.
    """

    kind: Literal["identities"] = "identities"
    identities: int = Field(..., ge=1, le=1_000_000, description="number of identities")
    pictures: int = Field(..., ge=1, le=10_000, description="pictures of each identity")
    identity_source: Literal["styles", "attributes", "both"] = Field(
        "styles",
        description="what identities differ in: styles (the appearance of a face), its kept attributes, or both",
    )
    keep: KeptTraits = Field(default_factory=KeptTraits, description="what all pictures of an identity share")
    vary: VariedTraits = Field(default_factory=VariedTraits, description="what each picture takes from its donor")
    masks: Literal["bank", "own", "none"] = Field(
        "bank", description="where masks come from: bank (the donor), own (the reference face), or none"
    )
    donors: Literal["others", "person"] = Field(
        "others",
        description="others: donors are other people; person: other pictures of the same person, where there are any",
    )
    num_donors: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="number of faces that can be donors; a worker keeps their masks in memory",
    )
    match_attributes: tuple[Attribute, ...] = Field(
        ("Male",), description="attributes that donor and reference must share, besides `balance`"
    )
    balance: tuple[Attribute, ...] = Field(
        (), max_length=6, description="attributes whose combinations get equal numbers of identities; default none"
    )
    splits: tuple[str, ...] = Field((), description="use only faces of these splits, such as [test]; empty uses all")
    prefix: str = Field("id-", description="beginning of the identity_ids, as in id-000000, id-000001 …")
    names: Location | None = Field(
        None, description="text file with an identity_id per line, in place of prefix and number"
    )

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        try:
            _check_names([f"{value}000000"])
        except InputError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for trait in ("styles", "attributes"):
            if both := sorted(set(getattr(self.keep, trait)) & set(getattr(self.vary, trait))):
                raise ValueError(f"{both[0]} cannot be in keep.{trait} and in vary.{trait}")
        for names in (self.balance, self.match_attributes):
            if len(set(names)) < len(names):
                raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is there twice")
        if not_kept := sorted(set(self.balance) - set(self.keep.attributes)):
            raise ValueError(f"{not_kept[0]} is balanced, so it must be in keep.attributes")
        if self.identity_source != "styles" and not self.keep.attributes:
            raise ValueError(f"by {self.identity_source!r} needs keep.attributes")
        if self.identity_source != "attributes" and self.masks == "none":
            raise ValueError("styles need masks: bank or own, or identity_source: attributes")
        shared = {*self.match_attributes, *self.balance}
        if self.masks == "bank" and (seen := sorted(IN_MASK & set(self.keep.attributes) - shared)):
            raise ValueError(
                f"{seen[0]} is seen in the mask, which another face lends: vary it, or add it to match_attributes"
            )
        if self.masks == "own" and (seen := sorted(IN_MASK & set(self.vary.attributes))):
            raise ValueError(f"{seen[0]} is seen in the mask, which masks: own keeps: keep it, or take masks: bank")
        return self

    @property
    def factor(self) -> int:
        """Rows for each identity."""
        return self.pictures

    @property
    def has_styles(self) -> bool:
        """Whether rows take looks from faces."""
        return self.identity_source != "attributes"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of FACES for the index; `image` is only hashed."""
        return ("face_id", "split", "mask", "attributes", "identity_id", *(("image",) if self.has_styles else ()))

    # --- choosing faces: once, in the driver ----------------------------------------------------------------

    def choose(self, tables: Iterable[pa.Table], names: Sequence[str] | None = None) -> ChosenFaces:
        """References and donors from FACES in pieces; `ConfigError` where there are too few.

        `names` are those of the identities, in place of `prefix` and a number.
        """
        if names is None:
            names = [f"{self.prefix}{number:06d}" for number in range(self.identities)]
        pool, cells = FacePool.of(tables, self.seed, self.splits), AttributeCells(self.balance)
        references = self._references(pool, cells)
        if len(names) < self.identities:
            raise ConfigError(f"planning.names: {self.names} has {len(names)} names for {self.identities} people")
        names = names[: self.identities]
        donors_by_group = self._donor_groups(pool)
        fewest = self.pictures
        donors: list[Int64Array] = []
        for number, face in enumerate(references):
            faces = self._donors_of(pool, face, donors_by_group)
            fewest = min(fewest, len(faces)) if self._needs_donors else fewest
            donors.append(draw_donors(faces, self.pictures, self.seed, number) if self._needs_donors else faces[:0])
        _check_names(names)
        all_donors = np.sort(np.concatenate([np.array([], np.int64), *donors_by_group.values()]))
        donor_ids = pa.array([pool.ids[donor] for drawn in donors for donor in drawn.tolist()], pa.string())
        ends = pa.array(np.cumsum([0, *(len(drawn) for drawn in donors)]), pa.int32())
        columns = {
            "number": pa.array(range(len(references)), pa.int64()),
            "identity_id": pa.array(names, pa.string()),
            "donors": pa.ListArray.from_arrays(ends, donor_ids),
        }
        masks: dict[str, Literal["listing", "donors"] | None] = {"own": "listing", "bank": "donors", "none": None}
        return ChosenFaces(
            _face_rows(pool, np.array(references, np.int64), _LISTING, columns),
            _face_rows(pool, all_donors, _DONORS),
            masks[self.masks],
            tuple(self._notes(cells, len(all_donors), fewest)),
        )

    @property
    def _needs_donors(self) -> bool:
        styles = self.has_styles and bool(self.vary.styles)
        return self.masks == "bank" or styles or bool(self.vary.attributes)

    def _references(self, pool: FacePool, cells: AttributeCells) -> list[int]:
        """The face of each identity; `ConfigError` names the cell that has too few, and why faces were not taken."""
        distinct = self.identity_source != "styles"
        candidates, reasons = ReferenceFilter(
            picture=self.has_styles,
            mask=self.has_styles or self.masks == "own",
            shown=class_bits(self.keep.styles if self.has_styles else ()),
            known=attribute_indices(self.keep.attributes if distinct else ()),
            distinct=distinct,
            cells=cells,
            several_pictures=self._needs_donors and self.donors == "person",
        ).references(pool)
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        for cell, faces in enumerate(candidates):
            wanted = (self.identities - cell + len(cells) - 1) // len(cells)
            if len(faces) < wanted:
                of_cell = f" of the cell ({cells.name(cell)})" if self.balance else ""
                not_taken = f"; not taken: {listed}" if listed else ""
                raise ConfigError(
                    f"planning.identities: {self.identities} identities need {wanted} references{of_cell}, and the "
                    f"faces have {len(faces)}{not_taken}. Ask for fewer, keep fewer parts, or ingest more people"
                )
        # Identities go to the cells in turn, so that for any number of them the counts differ by at most one.
        return [candidates[n % len(cells)][n // len(cells)] for n in range(self.identities)]

    def _group(self, pool: FacePool, face: int) -> bytes:
        """Equal for faces that may lend to each other."""
        if self.donors == "person":
            return int(pool.person[face]).to_bytes(8, "big")
        return pool.values[face, attribute_indices((*self.balance, *self.match_attributes))].tobytes()

    def _donor_groups(self, pool: FacePool) -> dict[bytes, Int64Array]:
        """At most `num_donors` faces by group. Each group keeps its first faces, so that rare groups are not lost."""
        if not self._needs_donors:
            return {}
        suitable = np.ones(len(pool.ids), dtype=bool)
        if self.masks == "bank" or self.has_styles:
            suitable &= pool.shown > 0
        if self.has_styles and self.vary.styles:
            suitable &= np.array([sha is not None for sha in pool.sha256], dtype=bool)
        if self.vary.attributes and not self.has_styles:
            suitable &= pool.values[:, attribute_indices(self.vary.attributes)].all(axis=1)
        groups: dict[bytes, list[int]] = {}
        for face in np.flatnonzero(suitable).tolist():
            groups.setdefault(self._group(pool, face), []).append(face)
        ranked = sorted((rank, face) for faces in groups.values() for rank, face in enumerate(faces))
        kept = {face for _, face in ranked[: self.num_donors]}
        return {key: np.array([f for f in faces if f in kept], np.int64) for key, faces in groups.items()}

    def _donors_of(self, pool: FacePool, face: int, donors_by_group: Mapping[bytes, Int64Array]) -> Int64Array:
        """Donors for the reference `face`; `ConfigError` where it needs one and there is none."""
        faces: Int64Array = donors_by_group.get(self._group(pool, face), np.array([], np.int64))
        others = pool.person[faces] != pool.person[face] if self.donors == "others" else faces != face
        faces = faces[others]
        if self._needs_donors and not len(faces):
            if self.donors == "person":
                raise ConfigError(f"planning.donors: no other picture of {pool.ids[face]!r} can lend; take others")
            shared = ", ".join(dict.fromkeys((*self.balance, *self.match_attributes))) or "nothing"
            raise ConfigError(
                f"planning.match_attributes: no other face can lend to {pool.ids[face]!r} (alike in: {shared}); "
                "share fewer attributes, raise `num_donors`, or ingest more faces"
            )
        if self.masks == "bank" or not self.has_styles or not len(faces):
            return faces
        # The reference keeps its mask: prefer the donors that show most of the varying parts which that mask shows.
        shares = np.bitwise_count(pool.shown[faces] & pool.shown[face] & class_bits(self.vary.styles))
        best: Int64Array = faces[shares == shares.max()]
        return best

    def _notes(self, cells: AttributeCells, donors: int, fewest: int) -> Iterable[str]:
        each, rest = divmod(self.identities, len(cells))
        if self.balance:
            more = f", and one more in {'; '.join(cells.name(cell) for cell in range(rest))}" if rest else ""
            yield f"{len(cells)} cells of {', '.join(self.balance)} with {each} identities each{more}"
        if self._needs_donors:
            yield f"{donors} faces lend"
        if fewest < self.pictures:
            yield f"some identity has only {fewest} donors for {self.pictures} pictures: donors are used again"

    # --- writing rows: in any worker ------------------------------------------------------------------------

    def rows(self, inputs: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """`ChosenFaces.listing` -> CONDITIONS, `pictures` rows each; `faces` looks up rows of `ChosenFaces.donors`."""
        assert faces is not None
        names, drawn = inputs["identity_id"].to_pylist(), inputs["donors"].to_pylist()
        lent = faces(name for donors in drawn for name in donors[: self.pictures])
        place = {name: i for i, name in enumerate(lent)}
        own = inputs.select(_DONORS.names).take(np.repeat(np.arange(len(names)), self.pictures))
        donor = None
        if lent:
            donor = pa.Table.from_pylist(list(lent.values()), _DONORS)
            donor = donor.take([place[name] for donors in drawn for name in donors[: self.pictures]])
        kin = pa.array([name for name in names for _ in range(self.pictures)], pa.string())
        return conditions_table(
            {
                "sample_id": [check_id(f"{name}-{k:04d}") for name in names for k in range(self.pictures)],
                "plan": [self.kind] * len(kin),
                "seed": pa.array([self.seed] * len(kin), pa.int64()),
                "source": own["face_id"],
                "group_id": kin,
                "identity_id": kin,
                "variant": pa.array(np.tile(np.arange(self.pictures, dtype=np.int32), len(names))),
                "mask": own["mask"] if donor is None or self.masks != "bank" else donor["mask"],
                "attributes": self._attributes(own, donor),
                **(self._styles(own, donor) if self.has_styles else {}),
            }
        )

    def _attributes(self, own: pa.Table, donor: pa.Table | None) -> pa.Array:
        """The kept values of the references and the varied ones of the donors; null where none is known."""
        values = np.zeros((own.num_rows, len(ATTRIBUTES)), np.int8)
        for table, names in ((own, self.keep.attributes), (donor, self.vary.attributes)):
            if table is not None:
                known = table["attributes"].combine_chunks().flatten().to_numpy().reshape(values.shape)
                values[:, attribute_indices(names)] = known[:, attribute_indices(names)]
        unknown = pa.array(~values.any(axis=1))
        columns = [pa.array(np.ascontiguousarray(column)) for column in values.T]
        return pa.StructArray.from_arrays(columns, fields=list(ATTRIBUTE_VALUES), mask=unknown)

    def _styles(self, own: pa.Table, donor: pa.Table | None) -> dict[str, pa.Array]:
        """The columns of styles. They vary only as far as the mask of a row shows the parts and the donor has them."""
        columns: dict[str, pa.Array] = {"style_reference_a": _reference(own)}
        if donor is not None:
            shown = donor["shown"].to_numpy()
            shown = shown if self.masks == "bank" else shown & own["shown"].to_numpy()
            same = pa.array((shown & class_bits(self.vary.styles)) == 0)
            parts = pa.array([sorted(CLASS_INDEX[part] for part in self.vary.styles)], pa.list_(pa.uint8()))
            varied = {
                "style_reference_b": _reference(donor),
                "style_parts": parts.take(pa.array(np.zeros(len(same), np.int64))),
                "style_mix": pa.array(np.ones(len(same), np.float32)),
            }
            columns |= {name: pc.if_else(same, pa.scalar(None, v.type), v) for name, v in varied.items()}
        return columns


def _reference(rows: pa.Table) -> pa.Array:
    """Faces whose style is taken."""
    columns = [rows[name].combine_chunks() for name in ("face_id", "sha256")]
    return pa.StructArray.from_arrays(columns, fields=list(STYLE))


def _check_names(names: Sequence[str]) -> None:
    """`InputError` where a name makes invalid ids of pictures, or is no file name of its own on every system."""
    for name in names:
        check_id(f"{name}-0000")
    portable_ids(names)


def _face_rows(
    pool: FacePool, faces: Int64Array, schema: pa.Schema, more: Mapping[str, pa.Array] | None = None
) -> pa.Table:
    """Faces of the pool, with the columns `more`, in `schema`; the column `mask` is null."""
    columns = {
        "face_id": pa.array([pool.ids[face] for face in faces], pa.string()),
        "sha256": pa.array([pool.sha256[face] for face in faces], pa.string()),
        "attributes": pa.FixedSizeListArray.from_arrays(pa.array(pool.values[faces].ravel()), len(ATTRIBUTES)),
        "shown": pa.array(pool.shown[faces], pa.uint32()),
        "mask": pa.nulls(len(faces), FACES.field("mask").type),
        **(more or {}),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)
