"""The experiments of SCA-DM: masks from faces, styles from the same or from other faces.

Knows which face lends what. Names pictures by their content and looks into none.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from raygen.core.errors import InputError
from raygen.core.face_labels import CLASS_INDEX, ClassName
from raygen.core.hashing import digest
from raygen.planning.base import Planning, table
from raygen.store.images import decode_mask
from raygen.store.lookup import Row, RowLookup
from raygen.store.schemas import CONDITIONS, check_id

__all__ = ["Styles"]


class Styles(Planning):
    """The experiments of SCA-DM: masks from faces, styles from the same or from other faces.

    `reconstruction`: the face's own style. `swap`: a partner's. `partial`: the partner's for `parts`. `interpolation`:
    from the face's to the partner's in `steps` pictures, for `parts` or all. `noise`: nobody's, `per_face` times.
    `mixed`: the face's own, but nobody's for `parts`. The partner is the next face in the same piece that has a mask,
    and one of the `parts` where any are named; a face that shows none of them is left out, as nothing could change.
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

    def rows(self, given: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """FACES -> CONDITIONS; `group_id` holds the rows of a face together. Faces without a mask have an error."""
        if self.splits:
            given = given.filter(pc.is_in(given["split"], pa.array(self.splits)))
        listed = given.select(["face_id", "image", "mask", "attributes"]).to_pylist()
        if self.parts:
            listed = [face for face in listed if face["mask"] is None or self._shows(face)]
        masked = [face for face in listed if face["mask"] is not None]
        digests = {face["face_id"]: _digest(face) for face in masked}
        names = list(digests)
        next_of = dict(zip(names, [*names[1:], *names[:1]], strict=True))
        made = [row for face in listed for row in self._of(face, next_of.get(face["face_id"]), digests)]
        columns = {name: [row.get(name) for row in made] for name in _STYLE_ROW}
        made_rows = table({n: pa.array(v, CONDITIONS.field(n).type) for n, v in columns.items()})
        return made_rows.append_column("error", pa.array([row.get("error") for row in made], pa.string()))

    def _shows(self, face: Row) -> bool:
        """Whether its mask has one of the parts; one that cannot be read is left to those who need it."""
        try:
            labels = decode_mask(face["mask"]["bytes"])
        except InputError:
            return True
        return bool(np.isin(labels, [CLASS_INDEX[part] for part in self.parts]).any())

    def _of(self, face: Row, partner: str | None, digests: Mapping[str, str | None]) -> Iterable[Row]:
        name = face["face_id"]
        if partner is None:
            yield {"sample_id": name, "plan": self.kind, "seed": self.seed, "error": "mask: the face has none"}
            return
        if partner == name and self.experiment in ("swap", "partial", "interpolation"):
            why = "partner: no other face of the same piece has a mask" + (" with these parts" if self.parts else "")
            yield {"sample_id": name, "plan": self.kind, "seed": self.seed, "error": why}
            return
        own, other = ({"face_id": n, "sha256": digests[n]} for n in (name, partner))
        parts = [CLASS_INDEX[part] for part in self.parts] or None
        values: dict[str, dict[str, Any]] = {
            "reconstruction": {"style_reference_a": own},
            "swap": {"style_reference_a": other},
            "partial": {"style_reference_a": own, "style_reference_b": other, "style_parts": parts, "style_mix": 1.0},
            "interpolation": {"style_reference_a": own, "style_reference_b": other, "style_parts": parts},
            "noise": {},
            "mixed": {"style_reference_a": own, "style_parts": parts, "style_mix": 1.0},
        }
        for k in range(self.factor):
            place = k // self.per_face
            mix = {"style_mix": place / (self.steps - 1)} if self.experiment == "interpolation" else {}
            yield {
                "sample_id": check_id(f"{name}-{k:03d}"),
                "plan": self.kind,
                "seed": self.seed,
                "source": name,
                "group_id": name,
                "variant": k,
                "mask": face["mask"],
                "attributes": face["attributes"],
                **values[self.experiment],
                **mix,
            }


def _digest(face: Row) -> str | None:
    """Of the picture, so that a reference cannot be another one when its turn comes."""
    image = face["image"]
    return None if image is None or image["bytes"] is None else digest(image["bytes"])


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
