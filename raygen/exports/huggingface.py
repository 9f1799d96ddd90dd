"""Parquet that `datasets` and the hub's viewer show as pictures: `data/train-00000-of-000NN.parquet`.

Knows the feature metadata in the schema (without it pictures are shown as bytes) and the files' names.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field

from raygen.exports.base import Export, Packed, Ready, RecordLocation
from raygen.exports.columns import FIELDS, facts_of_row
from raygen.store.parquet import to_parquet
from raygen.store.schemas import ATTRIBUTE_LIST, IMAGE, picture_schema

__all__ = ["SCHEMA", "HuggingFaceExport"]


_TYPES: Final[dict[str, pa.DataType]] = {
    "label": pa.int64(),
    "variant": pa.int32(),
    "is_synthetic": pa.bool_(),
    "attempt": pa.int32(),
    "seed": pa.int64(),
    "steps": pa.int32(),
}
#: Columns of a file: the picture first, so that a viewer shows it first.
SCHEMA: Final = picture_schema(
    [
        ("image", IMAGE),
        *((name, _TYPES.get(name, pa.string())) for name in FIELDS),
        ("attributes", ATTRIBUTE_LIST),
        ("mask", IMAGE),
    ]
)


class HuggingFaceExport(Export):
    """A Parquet file a shard."""

    hub_files: ClassVar[str | None] = "data/train-*.parquet"

    kind: Literal["huggingface"] = "huggingface"
    masks: bool = Field(True, description="also write masks, as PNG of class indices")

    def pack(self, part: int, parts: int, rows: Sequence[Ready]) -> Packed:
        """One file; needs no assembly. A row's offset is its number in the file."""
        path = f"data/train-{part:05d}-of-{parts:05d}.parquet"
        table = pa.Table.from_pylist([self._row(row) for row in rows], SCHEMA)
        places = [RecordLocation(path, number, len(row.image)) for number, row in enumerate(rows)]
        return Packed(places, {path: to_parquet(table)})

    def _row(self, ready: Ready) -> dict[str, Any]:
        mask = None if ready.mask is None else {"bytes": ready.mask, "path": f"{ready.stem}.png"}
        return {
            **facts_of_row(ready),
            "attributes": ready.row.get("attributes"),
            "mask": mask,
            "image": {"bytes": ready.image, "path": f"{ready.stem}.{self.ending}"},
        }

    def reading(self) -> str:
        """See `Export.reading`."""
        return (
            "`data/train-00000-of-000NN.parquet`: pictures and masks (class indices 0..18) are `Image` columns; "
            "`label` is the "
            "number of `identity_id`; `attributes` holds -1, 1, or 0 where nobody knows, in CelebA's order.\n\n"
            '```python\nfrom datasets import load_dataset\n\nload_dataset("path/of/this/folder", split="train")\n```'
        )
