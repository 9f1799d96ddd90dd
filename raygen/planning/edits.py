"""Plans of edits: what should change in the caption, the mask or the attributes of a face, and how far."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from raygen.core.config import Config
from raygen.core.errors import InputError
from raygen.core.face_labels import ATTRIBUTES, CAPTIONED, CLASS_INDEX, CLASSES, ClassName, attribute_list
from raygen.core.location import Location
from raygen.planning.base import Planning, conditions_table
from raygen.store.images import decode_mask, encode_mask, picture
from raygen.store.lookup import Row, RowLookup
from raygen.store.schemas import CONDITIONS, check_id, reason_of, texts_by_name

__all__ = ["ALPHAS", "EditLine", "EditsFromFile", "EditsFromPairs", "paste"]


#: From the embedding that Imagic optimises for the input (0) to the target (1), and beyond.
ALPHAS: Final = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2)
#: Classes that lie within a face.
INNER: Final = [CLASS_INDEX[n] for n in CLASSES[1:13] if n not in ("eye_g", "l_ear", "r_ear")]
#: The attribute that a sentence of a caption describes.
Sentence = Literal["Young", "Bangs", "Eyeglasses", "No_Beard", "Smiling"]


class _Editing(Planning):
    """Base of plans of edits: a row is one (edit, alpha), and the rows of an edit follow each other."""

    alphas: tuple[float, ...] = Field(
        ALPHAS,
        min_length=1,
        description="strengths of the edit, one picture each; 0 is the unedited face, 1 the target",
    )

    @property
    def factor(self) -> int:
        """Rows for each edit."""
        return len(self.alphas)

    def _rows(self, edits: Sequence[Row]) -> pa.Table:
        """Edits with `edit_id`, `source` and any of `mask`, `text`, `attributes` -> CONDITIONS."""
        # A failed edit is one quarantined row, not one for each alpha.
        pairs = [(edit, k) for edit in edits for k in range(1 if edit.get("error") else len(self.alphas))]
        names = [str(edit["edit_id"]) for edit, _ in pairs]
        table = conditions_table(
            {
                "sample_id": [check_id(f"{name}-a{k:02d}") for name, (_, k) in zip(names, pairs, strict=True)],
                "plan": [self.kind] * len(pairs),
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


class EditLine(Config):
    """One line of a file of edits. Conditions that are not named stay as the face has them."""

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
    def _parts_need_mask_of(self) -> "EditLine":
        if self.parts and self.mask_of is None:
            raise ValueError("parts are of another face's mask: name it as mask_of")
        return self


class EditsFromFile(_Editing):
    """The edits of a JSON-lines file, one `EditLine` each."""

    kind: Literal["edits"] = "edits"
    file: Location = Field(
        ...,
        description="JSON Lines file with an edit per line: edit_id, source, and optionally text, "
        "mask_of, parts, attributes",
    )
    caption: str = Field("overall", description="name of the text in `texts` that is used where an edit has none")

    def rows(self, inputs: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """Lines (column `line`, checked) -> CONDITIONS; an edit whose face or mask is missing has an error."""
        assert faces is not None
        edits: list[Row] = []
        for text in inputs["line"].to_pylist():
            line = EditLine.model_validate_json(text)
            try:
                known = faces([name for name in (line.source, line.mask_of) if name is not None])
                edits.append(self._edit(line, known))
            except InputError as error:
                edits.append({"edit_id": line.edit_id, "source": line.source, "error": reason_of(error)})
        return self._rows(edits)

    def _edit(self, line: EditLine, faces: Mapping[str, Row]) -> Row:
        source = faces[line.source]
        mask = source["mask"]
        if line.mask_of is not None:
            other = faces[line.mask_of]["mask"]
            if other is None or (line.parts and mask is None):
                without = line.mask_of if other is None else line.source
                raise InputError(f"{line.edit_id}: {without!r} has no mask", reason="mask")
            mask = picture(paste(mask["bytes"], other["bytes"], line.parts)) if line.parts else other
        if unknown := sorted(set(line.attributes) - set(ATTRIBUTES)):
            raise InputError(f"{line.edit_id}: no attribute {unknown[0]!r}", reason="attributes")
        text = line.text if line.text is not None else texts_by_name(source["texts"]).get(self.caption)
        attributes = _changed_attributes(source["attributes"], line.attributes)
        return {"edit_id": line.edit_id, "source": line.source, "mask": mask, "text": text, "attributes": attributes}


class EditsFromPairs(_Editing):
    """An edit for each face that has a partner: the next face in the same piece with the same value of `Male` and the
    opposite value of `change`. The partner lends the sentence about `change`, and the `parts` of the mask.

    Faces without a partner, without attributes or without one of the sentences are left out.
    """

    kind: Literal["edit_pairs"] = "edit_pairs"
    change: Sentence = Field(
        "Smiling", description="attribute that the edit adds or removes; the partner is a face with the other value"
    )
    text: bool = Field(
        True,
        description="take the sentence about the attribute from the partner's caption; false keeps the "
        "face's own caption",
    )
    sentences: tuple[Sentence, ...] = Field(
        CAPTIONED, min_length=1, description="names of the texts in `texts` that are joined into the caption"
    )
    parts: tuple[ClassName, ...] = Field((), description="classes that are copied from the partner's mask")
    splits: tuple[str, ...] = Field((), description="use only faces of these splits, such as [test]; empty uses all")

    @model_validator(mode="after")
    def _caption_describes_change(self) -> "EditsFromPairs":
        if self.text and self.change not in self.sentences:
            raise ValueError(f"the caption ({', '.join(self.sentences)}) says nothing of {self.change}")
        return self

    def rows(self, inputs: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """FACES -> CONDITIONS; `edit_id` is the id of the face and `change`. A bad mask has an error."""
        if self.splits:
            inputs = inputs.filter(pc.is_in(inputs["split"], pa.array(self.splits)))
        suitable = [
            face
            for face in inputs.to_pylist()
            if face["attributes"]
            and set(self.sentences) <= texts_by_name(face["texts"]).keys()
            and (face["mask"] or not self.parts)
        ]
        edits: list[Row] = []
        for i, face in enumerate(suitable):
            others = suitable[i + 1 :] + suitable[:i]
            own, name = face["attributes"], self.change
            partners = (
                other
                for other in others
                if own["Male"] == other["attributes"]["Male"] and own[name] * other["attributes"][name] == -1
            )
            partner = next(partners, None)
            if partner is None:
                continue
            names = {"edit_id": f"{face['face_id']}.{self.change}", "source": face["face_id"]}
            try:
                edits.append({**names, **self._edit(face, partner)})
            except InputError as error:
                edits.append({**names, "error": reason_of(error)})
        return self._rows(edits)

    def _edit(self, face: Row, partner: Row) -> Row:
        sentences, attributes, mask = texts_by_name(face["texts"]), dict[str, int](), face["mask"]
        if self.text:
            sentences[self.change] = texts_by_name(partner["texts"])[self.change]
            attributes[self.change] = partner["attributes"][self.change]
        if self.parts:
            mask = picture(paste(mask["bytes"], partner["mask"]["bytes"], self.parts))
        text = " ".join(sentences[name] for name in self.sentences)
        return {"mask": mask, "text": text, "attributes": _changed_attributes(face["attributes"], attributes)}


def paste(mask: bytes, other: bytes, parts: Sequence[str]) -> bytes:
    """`mask` with the `parts` of the mask `other` in place of its own; both are encoded.

    Where an own part is removed, pixels get the class of `other` if that lies within a face, else the class of the
    nearest other pixel. `InputError` (`size`) where the sizes differ.
    """
    labels, lent = decode_mask(mask).copy(), decode_mask(other)
    if labels.shape != lent.shape:
        raise InputError(f"masks of {labels.shape} and {lent.shape} pixels", reason="size")
    ids = [CLASS_INDEX[part] for part in parts]
    pasted, removed = np.isin(lent, ids), np.isin(labels, ids)
    if removed.any() and not removed.all():
        from scipy.ndimage import distance_transform_edt  # here, because few plans need it

        nearest = distance_transform_edt(removed, return_distances=False, return_indices=True)
        under = np.where(np.isin(lent, INNER) & ~pasted, lent, labels[tuple(nearest)])
        labels[removed] = under[removed]
    labels[pasted] = lent[pasted]
    return encode_mask(labels)


def _changed_attributes(own: Mapping[str, int] | None, changes: Mapping[str, int]) -> dict[str, int] | None:
    """The attributes of a face with `changes` applied; 0 where a value is unknown, None where all are."""
    if own is None and not changes:
        return None
    return {**dict(zip(ATTRIBUTES, attribute_list(own), strict=True)), **changes}
