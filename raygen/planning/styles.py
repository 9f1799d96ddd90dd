"""The experiments of SCA-DM: masks from faces, styles from the same or from other faces.

Knows which face lends what. Reads no pictures.
"""

from collections.abc import Iterable
from typing import Any, Final, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from raygen.faces import CLASS_INDEX, ClassName
from raygen.planning.base import Lookup, Planning, Row, table
from raygen.tables import CONDITIONS, check_id

__all__ = ["Styles"]


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
        made_rows = table({n: pa.array(v, CONDITIONS.field(n).type) for n, v in columns.items()})
        return made_rows.append_column("error", pa.array([row.get("error") for row in made], pa.string()))

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
