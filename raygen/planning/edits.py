"""Edits of faces: what should change, in the caption, in the mask, in both, and how far.

Knows files of edits, partners that differ in one thing, and masks with parts of another face. Knows no model.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator
from scipy.ndimage import distance_transform_edt

from raygen.core.config import Config
from raygen.core.errors import InputError
from raygen.core.face_labels import ATTRIBUTE_INDEX, ATTRIBUTES, CAPTIONED, CLASS_INDEX, CLASSES, ClassName
from raygen.planning.base import Planning, table
from raygen.store.images import decode_mask, encode_mask, picture
from raygen.store.lookup import Row, RowLookup
from raygen.store.schemas import CONDITIONS, check_id, reason_of

__all__ = ["ALPHAS", "EditLine", "EditsFromFile", "EditsFromPairs", "paste"]


#: From the embedding that was optimised for the input (0) to the target (1) and beyond.
ALPHAS: Final = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2)
#: Classes that lie within a face.
INNER: Final = [CLASS_INDEX[n] for n in CLASSES[1:13] if n not in ("eye_g", "l_ear", "r_ear")]
#: What a sentence of a caption is about.
Sentence = Literal["Young", "Bangs", "Eyeglasses", "No_Beard", "Smiling"]


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
        made = table(
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
        return made.append_column("error", pa.array([edit.get("error") for edit, _ in pairs], pa.string()))


class EditLine(Config):
    """One line of a file of edits. What is not asked for stays as the face has it."""

    edit_id: str
    source: str = Field(..., description="face_id of the picture to edit")
    text: str | None = Field(None, description="what the picture should be said to show")
    mask_of: str | None = Field(None, description="face_id whose mask is the target")
    parts: tuple[ClassName, ...] = Field((), description="only these parts of it, pasted into the source's own mask")
    attributes: dict[str, Literal[-1, 1]] = Field(
        default_factory=dict, description="what changes of the face's attributes; also for the judge: Smiling: 1"
    )

    @field_validator("edit_id")
    @classmethod
    def _id(cls, value: str) -> str:
        try:
            check_id(f"{value}-a000")
        except InputError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _parts_of_somebody(self) -> "EditLine":
        if self.parts and self.mask_of is None:
            raise ValueError("parts are of another face's mask: name it as mask_of")
        return self


class EditsFromFile(_Editing):
    """The edits of a JSON-lines file, one `EditLine` each."""

    kind: Literal["edits"] = "edits"
    file: str = Field(..., description="JSON lines: edit_id, source, and text, mask_of, parts, attributes as wanted")
    caption: str = Field("overall", description="which of a face's texts stands where an edit brings none")

    def rows(self, given: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """Lines (column `line`, checked) -> CONDITIONS; an edit whose face or mask is missing has an error."""
        assert faces is not None
        return self._rows(
            [self._tried(EditLine.model_validate_json(text), faces) for text in given["line"].to_pylist()]
        )

    def _tried(self, line: EditLine, faces: RowLookup) -> Row:
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
        text = line.text if line.text is not None else dict(own["texts"] or ()).get(self.caption)
        wanted = _wanted(own["attributes"], line.attributes)
        return {"edit_id": line.edit_id, "source": line.source, "mask": mask, "text": text, "attributes": wanted}


class EditsFromPairs(_Editing):
    """An edit for each face that finds a partner among the faces after it in the same piece: somebody of the same
    sex who differs in `change`. The partner lends the sentence about it, and the `parts` of the mask.

    Faces that find nobody are left out, and so are those without attributes or without a sentence that is needed.
    """

    kind: Literal["edit_pairs"] = "edit_pairs"
    change: Sentence = "Smiling"
    text: bool = Field(True, description="the sentence about it is the partner's; else the face's own caption stays")
    sentences: tuple[Sentence, ...] = Field(CAPTIONED, min_length=1, description="texts that a caption is joined of")
    parts: tuple[ClassName, ...] = Field((), description="parts of the partner's mask, in place of the face's own")
    splits: tuple[str, ...] = Field((), description="only faces of these splits; empty takes all")

    @model_validator(mode="after")
    def _says_it(self) -> "EditsFromPairs":
        if self.text and self.change not in self.sentences:
            raise ValueError(f"the caption ({', '.join(self.sentences)}) says nothing of {self.change}")
        return self

    def rows(self, given: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """FACES -> CONDITIONS; `edit_id` is the face's id and what is changed. A bad mask has an error."""
        if self.splits:
            given = given.filter(pc.is_in(given["split"], pa.array(self.splits)))
        able = [face for face in given.to_pylist() if self._able(face)]
        pairs = ((face, self._partner(face, able[i + 1 :] + able[:i])) for i, face in enumerate(able))
        return self._rows([self._tried(face, partner) for face, partner in pairs if partner is not None])

    def _able(self, face: Row) -> bool:
        said = dict(face["texts"] or ())
        return bool(face["attributes"] and set(self.sentences) <= set(said) and (face["mask"] or not self.parts))

    def _partner(self, face: Row, others: Sequence[Row]) -> Row | None:
        male, changed = ATTRIBUTE_INDEX["Male"], ATTRIBUTE_INDEX[self.change]

        def fits(other: Row) -> bool:
            same = face["attributes"][male] == other["attributes"][male]
            return bool(same and face["attributes"][changed] * other["attributes"][changed] == -1)

        return next((other for other in others if fits(other)), None)

    def _tried(self, face: Row, partner: Row) -> Row:
        name = f"{face['face_id']}.{self.change}"
        try:
            return {"edit_id": name, "source": face["face_id"], **self._edit(face, partner)}
        except InputError as error:
            return {"edit_id": name, "source": face["face_id"], "error": reason_of(error)}

    def _edit(self, face: Row, partner: Row) -> Row:
        own, lent = dict(face["texts"]), dict(partner["texts"])
        said = {name: own[name] for name in self.sentences} | ({self.change: lent[self.change]} if self.text else {})
        mask = face["mask"]
        if self.parts:
            mask = picture(paste(mask["bytes"], partner["mask"]["bytes"], self.parts))
        changed: dict[str, int] = (
            {self.change: partner["attributes"][ATTRIBUTE_INDEX[self.change]]} if self.text else {}
        )
        text = " ".join(said[name] for name in self.sentences)
        return {"mask": mask, "text": text, "attributes": _wanted(face["attributes"], changed)}


def paste(mask: bytes, other: bytes, parts: Sequence[str]) -> bytes:
    """An encoded mask whose `parts` are those of another one: pasted where that has them, gone where it has not.

    What was under a part that is gone is what the other face has there, if that is part of a face, else the nearest
    other class. `InputError` (`size`) where the sizes differ.
    """
    own, lent = decode_mask(mask).copy(), decode_mask(other)
    if own.shape != lent.shape:
        raise InputError(f"masks of {own.shape} and {lent.shape} pixels", reason="size")
    ids = [CLASS_INDEX[part] for part in parts]
    here, gone = np.isin(lent, ids), np.isin(own, ids)
    if gone.any() and not gone.all():
        nearest = distance_transform_edt(gone, return_distances=False, return_indices=True)
        under = np.where(np.isin(lent, INNER) & ~here, lent, own[tuple(nearest)])
        own[gone] = under[gone]
    own[here] = lent[here]
    return encode_mask(own)


def _wanted(own: Sequence[int] | None, values: Mapping[str, int]) -> list[int] | None:
    """A face's attributes with those of an edit in their place; 0 where nobody knows, None where nothing is known."""
    if own is None and not values:
        return None
    known = own if own is not None else [0] * len(ATTRIBUTES)
    return [values.get(name, int(there)) for name, there in zip(ATTRIBUTES, known, strict=True)]
