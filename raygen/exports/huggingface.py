"""Parquet for Hugging Face `datasets` and the viewer of the hub: `data/train-00000-of-000NN.parquet`.

Without the feature metadata in the schema, pictures would be shown as bytes.
"""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field

from raygen.exports.base import Export, ExportRow, PackedShard, RecordLocation
from raygen.exports.columns import FIELDS, row_columns
from raygen.store.parquet import to_parquet
from raygen.store.schemas import ATTRIBUTE_VALUES, IMAGE, picture_schema

__all__ = ["SCHEMA", "HuggingFaceExport"]


_TYPES: Final[dict[str, pa.DataType]] = {
    "label": pa.int64(),
    "variant": pa.int32(),
    "is_synthetic": pa.bool_(),
    "attempt": pa.int32(),
    "seed": pa.int64(),
    "steps": pa.int32(),
}
#: Columns of a file. Viewers show the first one, the picture, first.
SCHEMA: Final = picture_schema(
    [
        ("image", IMAGE),
        *((name, _TYPES.get(name, pa.string())) for name in FIELDS),
        ("attributes", ATTRIBUTE_VALUES),
        ("mask", IMAGE),
    ]
)


class HuggingFaceExport(Export):
    """A Parquet file a shard."""

    hub_files: ClassVar[str | None] = "data/train-*.parquet"

    kind: Literal["huggingface"] = "huggingface"
    masks: bool = Field(True, description="also write the masks, as PNG files of class indices")

    def pack(self, part: int, parts: int, rows: Sequence[ExportRow]) -> PackedShard:
        """One file. The offset of a row is its number in the file."""
        path = f"data/train-{part:05d}-of-{parts:05d}.parquet"
        values = [
            {
                **row_columns(row),
                "attributes": row.row.get("attributes"),
                "mask": None if row.mask is None else {"bytes": row.mask, "path": f"{row.stem}.png"},
                "image": {"bytes": row.image, "path": f"{row.stem}.{self.extension}"},
            }
            for row in rows
        ]
        locations = [RecordLocation(path, number, len(row.image)) for number, row in enumerate(rows)]
        return PackedShard(locations, {path: to_parquet(pa.Table.from_pylist(values, SCHEMA))})

    def usage(self) -> str:
        """See `Export.usage`."""
        return (
            "`data/train-00000-of-000NN.parquet`: pictures and masks (class indices 0..18) are `Image` columns; "
            "`label` is the "
            "number of `identity_id`; `attributes` holds CelebA's 40 by name: -1, 1, or 0 where unknown. Pages have "
            "checksums, which `datasets`, pandas, Polars and DuckDB do not look at by default.\n\n"
            '```python\nfrom datasets import load_dataset\n\nload_dataset("path/of/this/folder", split="train")\n```'
        )
