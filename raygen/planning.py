"""Experiments as functions that write condition rows: FACES (or nothing) -> CONDITIONS.

Knows how faces become the rows that ask for pictures. Knows nothing of models or Ray: masks travel as the bytes they
came in, unless an experiment changes them. A new experiment is one more spec with `rows`, and nothing else changes.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from raygen.faces import ATTRIBUTE_INDEX, ATTRIBUTES, CAPTIONED, CLASS_INDEX, ClassName
from raygen.spec import InputError, Spec
from raygen.tables import CONDITIONS, check_id, decode_mask, encode_mask, picture, reason_of

__all__ = [
    "ALPHAS",
    "AnyPlanning",
    "EditLine",
    "EditPairs",
    "Edits",
    "FromFaces",
    "PlanWorker",
    "Planning",
    "Styles",
    "Unconditional",
    "paste",
]

Modality = Literal["mask", "attributes", "text"]
Row = Mapping[str, Any]
#: Rows of FACES by id, for experiments that refer to faces.
Lookup = Callable[[Iterable[str]], Mapping[str, Row]]
#: From the embedding that was optimised for the input (0) to the target (1) and beyond.
ALPHAS: Final = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2)


class Planning(Spec):
    """One way to write condition rows. Subclasses add `kind: Literal[...]`."""

    seed: int = Field(0, ge=0, description="kept in every row")

    @abstractmethod
    def rows(self, given: pa.Table, faces: Lookup | None = None) -> pa.Table:
        """CONDITIONS rows for a piece of the input, depending on nothing but that piece, the spec and `faces`.

        A column `error` may stand beside them: such rows go to quarantine.
        """

    @property
    @abstractmethod
    def factor(self) -> int:
        """Condition rows for each input row."""


class FromFaces(Planning):
    """Each face's own conditions, `per_face` times: same mask and attributes, another noise each time."""

    kind: Literal["from_faces"] = "from_faces"
    conditions: tuple[Modality, ...] = ("mask", "attributes")
    per_face: int = Field(1, ge=1, le=100_000, description="pictures asked for from each face's conditions")
    splits: tuple[str, ...] = Field((), description="only faces of these splits; empty takes all")
    recipe: str = Field("overall", description="which of a face's texts becomes the row's text")

    @property
    def factor(self) -> int:
        """Rows for each face."""
        return self.per_face

    def rows(self, given: pa.Table, faces: Lookup | None = None) -> pa.Table:
        """FACES -> CONDITIONS; `sample_id` is the face's id with a running number."""
        if self.splits:
            given = given.filter(pa.compute.is_in(given["split"], pa.array(self.splits)))
        index = pa.array([i for i in range(given.num_rows) for _ in range(self.per_face)], pa.int64())
        repeated = given.take(index)
        variants = list(range(self.per_face)) * given.num_rows
        sources = repeated["face_id"].to_pylist()
        columns: dict[str, object] = {
            "sample_id": [check_id(f"{face}-{k:03d}") for face, k in zip(sources, variants, strict=True)],
            "plan": [self.kind] * len(sources),
            "seed": [self.seed] * len(sources),
            "source": sources,
            "group_id": sources,
            "identity_id": repeated["identity_id"],
            "variant": pa.array(variants, pa.int32()),
        }
        for name in ("mask", "attributes"):
            if name in self.conditions:
                columns[name] = repeated[name]
        if "text" in self.conditions:
            columns["text"] = [dict(texts or ()).get(self.recipe) for texts in repeated["texts"].to_pylist()]
        return _table(columns)


class Unconditional(Planning):
    """`count` rows without conditions."""

    kind: Literal["unconditional"] = "unconditional"
    count: int = Field(..., ge=1)
    prefix: str = "s"

    @property
    def factor(self) -> int:
        """One row for each number."""
        return 1

    def rows(self, given: pa.Table, faces: Lookup | None = None) -> pa.Table:
        """Row numbers (column `index`) -> CONDITIONS."""
        numbers = given["index"].to_pylist()
        ids = [check_id(f"{self.prefix}{n:09d}") for n in numbers]
        return _table({"sample_id": ids, "plan": [self.kind] * len(ids), "seed": [self.seed] * len(ids)})


# --- styles -------------------------------------------------------------------------------------------------


class Styles(Planning):
    """The experiments of SCA-DM: masks from faces, styles from the same or from other faces.

    `reconstruction`: the face's own style. `swap`: a partner's. `partial`: the partner's for `parts`. `interpolation`:
    from the face's to the partner's in `steps` pictures, for `parts` or all. `noise`: nobody's, `per_face` times.
    `mixed`: the face's own, but nobody's for `parts`. The partner is the next face in the same piece that has a mask.
    """

    kind: Literal["styles"] = "styles"
    experiment: Literal["reconstruction", "swap", "partial", "interpolation", "noise", "mixed"] = "reconstruction"
    parts: tuple[ClassName, ...] = Field((), description="of the face; empty takes all")
    steps: int = Field(5, ge=2, le=1000, description="interpolation: pictures from one style to the other")
    per_face: int = Field(1, ge=1, le=100_000, description="pictures of each row, each with its own noise")
    splits: tuple[str, ...] = Field((), description="only faces of these splits; empty takes all")

    @model_validator(mode="after")
    def _has_parts(self) -> "Styles":
        if self.experiment in ("partial", "mixed") and not self.parts:
            raise ValueError(f"{self.experiment} needs `parts`, such as hair")
        return self

    @property
    def factor(self) -> int:
        """Rows for each face."""
        return self.per_face * (self.steps if self.experiment == "interpolation" else 1)

    def rows(self, given: pa.Table, faces: Lookup | None = None) -> pa.Table:
        """FACES -> CONDITIONS; `group_id` holds the rows of a face together. Faces without a mask have an error."""
        if self.splits:
            given = given.filter(pa.compute.is_in(given["split"], pa.array(self.splits)))
        listed = given.select(["face_id", "mask", "attributes"]).to_pylist()
        masked = [face["face_id"] for face in listed if face["mask"] is not None]
        next_of = dict(zip(masked, [*masked[1:], *masked[:1]], strict=True))
        made = [row for face in listed for row in self._of(face, next_of.get(face["face_id"]))]
        columns = {name: [row.get(name) for row in made] for name in _STYLE_ROW}
        table = _table({n: pa.array(v, CONDITIONS.field(n).type) for n, v in columns.items()})
        return table.append_column("error", pa.array([row.get("error") for row in made], pa.string()))

    def _of(self, face: Row, partner: str | None) -> Iterable[Row]:
        name = face["face_id"]
        if partner is None:
            yield {"sample_id": name, "plan": self.kind, "seed": self.seed, "error": "mask: the face has none"}
            return
        own, other = {"face_id": name, "sha256": None}, {"face_id": partner, "sha256": None}
        parts = [CLASS_INDEX[part] for part in self.parts] or None
        values: dict[str, dict[str, Any]] = {
            "reconstruction": {"style_a": own},
            "swap": {"style_a": other},
            "partial": {"style_a": own, "style_b": other, "style_parts": parts, "style_mix": 1.0},
            "interpolation": {"style_a": own, "style_b": other, "style_parts": parts},
            "noise": {},
            "mixed": {"style_a": own, "style_parts": parts, "style_mix": 1.0},
        }
        for k in range(self.factor):
            place = k // self.per_face
            mix = {"style_mix": place / (self.steps - 1)} if self.experiment == "interpolation" else {}
            yield {
                "sample_id": check_id(f"{name}-{k:03d}"), "plan": self.kind, "seed": self.seed, "source": name,
                "group_id": name, "variant": k, "mask": face["mask"], "attributes": face["attributes"],
                **values[self.experiment], **mix,
            }  # fmt: skip


_STYLE_ROW: Final = (
    "sample_id", "plan", "seed", "source", "group_id", "variant", "mask", "attributes", "style_a", "style_b",
    "style_parts", "style_mix",
)  # fmt: skip


# --- edits --------------------------------------------------------------------------------------------------


class _Editing(Planning):
    """What all plans of edits share: a row is one (edit, alpha), and the rows of an edit follow each other."""

    alphas: tuple[float, ...] = Field(
        ALPHAS, min_length=1, description="how far to go, one picture each; 1 is the target"
    )

    @property
    def factor(self) -> int:
        """Rows for each edit."""
        return len(self.alphas)

    def _rows(self, edits: Sequence[Row]) -> pa.Table:
        """Edits with `edit_id`, `source` and any of `mask`, `text`, `attributes` -> CONDITIONS."""
        # An edit that failed is one row that goes to quarantine, not one for each alpha.
        pairs = [(edit, k) for edit in edits for k in range(1 if edit.get("error") else len(self.alphas))]
        names = [str(edit["edit_id"]) for edit, _ in pairs]
        table = _table(
            {
                "sample_id": [check_id(f"{name}-a{k:02d}") for name, (_, k) in zip(names, pairs, strict=True)],
                "plan": [self.kind] * len(pairs),  # type: ignore[attr-defined]
                "seed": [self.seed] * len(pairs),
                "source": [edit["source"] for edit, _ in pairs],
                "group_id": names,
                "edit_id": names,
                "alpha": pa.array([self.alphas[k] for _, k in pairs], pa.float32()),
                **{
                    name: pa.array([edit.get(name) for edit, _ in pairs], CONDITIONS.field(name).type)
                    for name in ("mask", "text", "attributes")
                },
            }
        )
        return table.append_column("error", pa.array([edit.get("error") for edit, _ in pairs], pa.string()))


class EditLine(Spec):
    """One line of a file of edits. What is not asked for stays as the face has it."""

    edit_id: str
    source: str = Field(..., description="face_id of the picture to edit")
    text: str | None = Field(None, description="what the picture should be said to show")
    mask_of: str | None = Field(None, description="face_id whose mask is the target")
    parts: tuple[ClassName, ...] = Field((), description="only these parts of it, pasted into the source's own mask")
    attributes: dict[str, Literal[-1, 1]] = Field(
        default_factory=dict, description="what the text changes, for the judge: Smiling: 1"
    )


class Edits(_Editing):
    """The edits of a JSON-lines file, one `EditLine` each."""

    kind: Literal["edits"] = "edits"
    file: str = Field(..., description="JSON lines: edit_id, source, and text, mask_of, parts, attributes as wanted")
    recipe: str = Field("overall", description="which of a face's texts stands where an edit brings none")

    def rows(self, given: pa.Table, faces: Lookup | None = None) -> pa.Table:
        """Lines (column `line`, checked) -> CONDITIONS; an edit whose face or mask is missing has an error."""
        assert faces is not None
        return self._rows(
            [self._tried(EditLine.model_validate_json(text), faces) for text in given["line"].to_pylist()]
        )

    def _tried(self, line: EditLine, faces: Lookup) -> Row:
        try:
            return self._edit(line, faces([name for name in (line.source, line.mask_of) if name is not None]))
        except InputError as error:
            return {"edit_id": line.edit_id, "source": line.source, "error": reason_of(error)}

    def _edit(self, line: EditLine, faces: Mapping[str, Row]) -> Row:
        own = faces[line.source]
        mask = own["mask"]
        if line.mask_of is not None:
            other = faces[line.mask_of]["mask"]
            if other is None or (line.parts and mask is None):
                who = line.mask_of if other is None else line.source
                raise InputError(f"{line.edit_id}: {who!r} has no mask", reason="mask")
            mask = picture(paste(mask["bytes"], other["bytes"], line.parts)) if line.parts else other
        if unknown := sorted(set(line.attributes) - set(ATTRIBUTES)):
            raise InputError(f"{line.edit_id}: no attribute {unknown[0]!r}", reason="attributes")
        text = line.text if line.text is not None else dict(own["texts"] or ()).get(self.recipe)
        wanted = _wanted(line.attributes) if line.attributes else None
        return {"edit_id": line.edit_id, "source": line.source, "mask": mask, "text": text, "attributes": wanted}


class EditPairs(_Editing):
    """An edit for each face that finds a partner among the faces after it in the same piece: somebody of the same
    sex who differs in `change`. The partner lends the sentence about it, and the `parts` of the mask.

    Faces that find nobody are left out.
    """

    kind: Literal["edit_pairs"] = "edit_pairs"
    change: Literal["Bangs", "Eyeglasses", "No_Beard", "Smiling", "Young"] = "Smiling"
    text: bool = Field(True, description="the sentence about it is the partner's; else the face's own caption stays")
    parts: tuple[ClassName, ...] = Field((), description="parts of the partner's mask, pasted into the face's own")
    splits: tuple[str, ...] = Field((), description="only faces of these splits; empty takes all")

    def rows(self, given: pa.Table, faces: Lookup | None = None) -> pa.Table:
        """FACES -> CONDITIONS; `edit_id` is the face's id and what is changed."""
        if self.splits:
            given = given.filter(pa.compute.is_in(given["split"], pa.array(self.splits)))
        able = [face for face in given.to_pylist() if face["attributes"] and face["texts"]]
        pairs = ((face, self._partner(face, able[i + 1 :] + able[:i])) for i, face in enumerate(able))
        return self._rows([self._edit(face, partner) for face, partner in pairs if partner is not None])

    def _partner(self, face: Row, others: Sequence[Row]) -> Row | None:
        male, changed = ATTRIBUTE_INDEX["Male"], ATTRIBUTE_INDEX[self.change]

        def fits(other: Row) -> bool:
            same = face["attributes"][male] == other["attributes"][male]
            return bool(same and face["attributes"][changed] * other["attributes"][changed] == -1)

        return next((other for other in others if fits(other)), None)

    def _edit(self, face: Row, partner: Row) -> Row:
        own, lent = dict(face["texts"]), dict(partner["texts"])
        said = {name: own[name] for name in CAPTIONED} | ({self.change: lent[self.change]} if self.text else {})
        mask = face["mask"]
        if self.parts and mask is not None:
            mask = picture(paste(mask["bytes"], partner["mask"]["bytes"], self.parts))
        wanted = _wanted({self.change: partner["attributes"][ATTRIBUTE_INDEX[self.change]]}) if self.text else None
        return {
            "edit_id": f"{face['face_id']}.{self.change}", "source": face["face_id"], "mask": mask,
            "text": " ".join(said[name] for name in CAPTIONED), "attributes": wanted,
        }  # fmt: skip


def paste(mask: bytes, other: bytes, parts: Sequence[str]) -> bytes:
    """An encoded mask with those parts of another one on top; `InputError` (`size`) where their sizes differ."""
    own, lent = decode_mask(mask).copy(), decode_mask(other)
    if own.shape != lent.shape:
        raise InputError(f"masks of {own.shape} and {lent.shape} pixels", reason="size")
    here = np.isin(lent, [CLASS_INDEX[part] for part in parts])
    own[here] = lent[here]
    return encode_mask(own)


def _wanted(values: Mapping[str, int]) -> list[int]:
    """Attributes that an edit is about; 0 for the others, about which it says nothing."""
    return [values.get(name, 0) for name in ATTRIBUTES]


def _table(columns: dict[str, object]) -> pa.Table:
    arrays = {n: v if isinstance(v, pa.Array | pa.ChunkedArray) else pa.array(v) for n, v in columns.items()}
    table = pa.table(arrays)
    missing = [field for field in CONDITIONS if field.name not in arrays]
    for field in missing:
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(CONDITIONS.names).cast(CONDITIONS)


AnyPlanning = Annotated[FromFaces | Unconditional | Styles | Edits | EditPairs, Field(discriminator="kind")]


class PlanWorker:
    """Input rows -> `{"conditions": …}`: the worker of a plan job. `faces` for experiments that refer to faces."""

    def __init__(self, planning: Planning, faces: Lookup | None = None) -> None:
        self.planning, self.faces = planning, faces

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """Nothing for a device to do: all of it happens in the returned call."""
        return lambda: {"conditions": self.planning.rows(rows, self.faces)}


def columns_needed(planning: Planning) -> Iterable[str]:
    """Columns of FACES that a planning function reads; pictures are never among them."""
    return ("face_id", "split", "mask", "attributes", "texts", "identity_id")
