"""Plans that use each face's own conditions, and plans without conditions."""

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raygen.planning.base import Planning, conditions_table
from raygen.store.lookup import RowLookup
from raygen.store.schemas import check_id, texts_by_name

__all__ = ["FromFaces", "Unconditional"]


Modality = Literal["mask", "attributes", "text", "hint"]


class FromFaces(Planning):
    """Each face's own conditions, `per_face` times with different noise."""

    kind: Literal["from_faces"] = "from_faces"
    conditions: tuple[Modality, ...] = Field(
        ("mask", "attributes"), description="conditions that are taken from each face"
    )
    per_face: int = Field(1, ge=1, le=100_000, description="rows per face, which differ in their noise only")
    splits: tuple[str, ...] = Field((), description="use only faces of these splits, such as [test]; empty uses all")
    caption: str = Field("overall", description="name of the text in `texts` that becomes the text of the row")

    @property
    def factor(self) -> int:
        """Rows for each face."""
        return self.per_face

    @property
    def columns(self) -> tuple[str, ...]:
        """See `Planning.columns`."""
        return (*super().columns, *(("hint",) if "hint" in self.conditions else ()))

    def rows(self, inputs: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """FACES -> CONDITIONS; `sample_id` is the face's id with a running number."""
        if self.splits:
            inputs = inputs.filter(pc.is_in(inputs["split"], pa.array(self.splits)))
        index = pa.array([i for i in range(inputs.num_rows) for _ in range(self.per_face)], pa.int64())
        repeated = inputs.take(index)
        variants = list(range(self.per_face)) * inputs.num_rows
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
        for name in ("mask", "attributes", "hint"):
            if name in self.conditions:
                columns[name] = repeated[name]
        if "text" in self.conditions:
            columns["text"] = [texts_by_name(texts).get(self.caption) for texts in repeated["texts"].to_pylist()]
        return conditions_table(columns)


class Unconditional(Planning):
    """`count` rows without conditions."""

    kind: Literal["unconditional"] = "unconditional"
    count: int = Field(..., ge=1, description="number of rows")
    prefix: str = Field("s", description="beginning of every sample_id")

    @property
    def factor(self) -> int:
        """One row for each number."""
        return 1

    def rows(self, inputs: pa.Table, faces: RowLookup | None = None) -> pa.Table:
        """Row numbers (column `index`) -> CONDITIONS."""
        numbers = inputs["index"].to_pylist()
        ids = [check_id(f"{self.prefix}{n:09d}") for n in numbers]
        return conditions_table({"sample_id": ids, "plan": [self.kind] * len(ids), "seed": [self.seed] * len(ids)})
