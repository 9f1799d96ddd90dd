"""The experiments of SCA-DM: masks from faces, styles from the same or from other faces."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from raygen.core.errors import InputError
from raygen.core.face_labels import CLASS_INDEX, ClassName
from raygen.core.hashing import digest
from raygen.planning.base import Planning, conditions_table
from raygen.store.images import decode_mask
from raygen.store.lookup import Row, RowLookup
from raygen.store.schemas import CONDITIONS, check_id

__all__ = ["Styles"]


class Styles(Planning):
    """The experiments of SCA-DM: masks from faces, styles from the same or from other faces.

    `reconstruction`: the face's own style. `swap`: that of a partner. `partial`: that of the partner for `parts`.
    `interpolation`: from the face's style to the partner's in `steps` pictures, for `parts` or all. `noise`: no style
    reference. `mixed`: the face's own style, but no reference for `parts`. The partner is the next face in the same
    piece that has a mask and, with `parts`, one of them in it. With `parts`, faces that show none of them are left out.
    """

    kind: Literal["styles"] = "styles"
    experiment: Literal["reconstruction", "swap", "partial", "interpolation", "noise", "mixed"] = Field(
        "reconstruction", description="where mask and style of a row come from"
    )
    parts: tuple[ClassName, ...] = Field((), description="classes whose style is changed; empty changes all")
    steps: int = Field(
        5, ge=2, le=1000, description="interpolation only: number of pictures from one style to the other"
    )
    per_face: int = Field(1, ge=1, le=100_000, description="rows per face, which differ in their noise only")
    splits: tuple[str, ...] = Field((), description="use only faces of these splits, such as [test]; empty uses all")

    @model_validator(mode="after")
    def _parts_named(self) -> "Styles":
        if self.experiment in ("partial", "mixed") and not self.parts:
            raise ValueError(f"{self.experiment} needs `parts`, such as hair")
        return self

    @property
    def factor(self) -> int:
        """Rows for each face."""
        return self.per_face * (self.steps if self.experiment == "interpolation" else 1)

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Planning.columns`; `image` is only hashed."""
        return (*super().columns, "image")

    def rows(self, inputs: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """FACES -> CONDITIONS; the rows of a face share its `group_id`. A face without a mask is a row with an error.

        `style_reference_*` name pictures by their sha256, so that a picture that is replaced later is detected.
        """
        if self.splits:
            inputs = inputs.filter(pc.is_in(inputs["split"], pa.array(self.splits)))
        listed = inputs.select(["face_id", "image", "mask", "attributes"]).to_pylist()
        if self.parts:
            listed = [face for face in listed if face["mask"] is None or self._shows_parts(face)]
        digests: dict[str, str | None] = {}
        for face in listed:
            if face["mask"] is not None:
                data = (face["image"] or {}).get("bytes")
                digests[face["face_id"]] = None if data is None else digest(data)
        names = list(digests)
        partner_of = dict(zip(names, [*names[1:], *names[:1]], strict=True))
        rows = [row for face in listed for row in self._rows_of(face, partner_of.get(face["face_id"]), digests)]
        table = conditions_table(
            {n: pa.array([row.get(n) for row in rows], CONDITIONS.field(n).type) for n in _STYLE_ROW}
        )
        return table.append_column("error", pa.array([row.get("error") for row in rows], pa.string()))

    def _shows_parts(self, face: Row) -> bool:
        """Whether the mask has one of the parts. A damaged mask counts as having them: sampling reports it."""
        try:
            labels = decode_mask(face["mask"]["bytes"])
        except InputError:
            return True
        return bool(np.isin(labels, [CLASS_INDEX[part] for part in self.parts]).any())

    def _rows_of(self, face: Row, partner: str | None, digests: Mapping[str, str | None]) -> Iterable[Row]:
        name, error = face["face_id"], None
        if partner is None:
            error = "mask: the face has none"
        elif partner == name and self.experiment in ("swap", "partial", "interpolation"):
            error = "partner: no other face of the same piece has a mask" + (" with these parts" if self.parts else "")
        if partner is None or error is not None:
            yield {"sample_id": name, "plan": self.kind, "seed": self.seed, "error": error}
            return
        own, other = ({"face_id": n, "sha256": digests[n]} for n in (name, partner))
        parts = [CLASS_INDEX[part] for part in self.parts] or None
        styles: dict[str, dict[str, Any]] = {
            "reconstruction": {"style_reference_a": own},
            "swap": {"style_reference_a": other},
            "partial": {"style_reference_a": own, "style_reference_b": other, "style_parts": parts, "style_mix": 1.0},
            "interpolation": {"style_reference_a": own, "style_reference_b": other, "style_parts": parts},
            "noise": {},
            "mixed": {"style_reference_a": own, "style_parts": parts, "style_mix": 1.0},
        }
        for k in range(self.factor):
            step = k // self.per_face
            mix = {"style_mix": step / (self.steps - 1)} if self.experiment == "interpolation" else {}
            yield {
                "sample_id": check_id(f"{name}-{k:03d}"),
                "plan": self.kind,
                "seed": self.seed,
                "source": name,
                "group_id": name,
                "variant": k,
                "mask": face["mask"],
                "attributes": face["attributes"],
                **styles[self.experiment],
                **mix,
            }


_STYLE_ROW: Final = (
    "sample_id",
    "plan",
    "seed",
    "source",
    "group_id",
    "variant",
    "mask",
    "attributes",
    "style_reference_a",
    "style_reference_b",
    "style_parts",
    "style_mix",
)
