"""Parquet for Hugging Face `datasets` and the viewer of the hub: `data/train-00000-of-000NN.parquet`.

Without the feature metadata in the schema, pictures would be shown as bytes.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field

from raygen.exports.base import Assembly, Export, ExportRow, PackedShard, RecordLocation
from raygen.exports.columns import FIELDS, row_columns
from raygen.exports.croissant_nodes import (
    DataSetParts,
    attribute_fields,
    file_set,
    record_set,
    row_fields,
    source,
    typed_field,
)
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

    def hub_features(self, *, masks: bool) -> list[dict[str, Any]] | None:
        """See `Export.hub_features`: what the files say themselves, for readers of the card alone."""
        features: list[dict[str, Any]] = []
        for column in SCHEMA:
            if column.type == IMAGE:
                features.append({"name": column.name, "dtype": "image"})
            elif pa.types.is_struct(column.type):
                members = [{"name": member.name, "dtype": str(member.type)} for member in column.type]
                features.append({"name": column.name, "struct": members})
            else:
                features.append({"name": column.name, "dtype": str(column.type)})
        return features

    def describe(self, assembly: Assembly, *, masks: bool) -> DataSetParts:
        """See `Export.describe`. A picture is the member `bytes` of its column."""
        name, files = "pictures", "parquet-files"
        pictures = {"image": "", **({"mask": "PNG of class indices 0..18"} if masks else {})}
        fields = [
            *(
                typed_field(
                    name,
                    column,
                    "sc:ImageObject",
                    meaning,
                    source(files, is_set=True, transform={"jsonPath": "bytes"}, column=column),
                )
                for column, meaning in pictures.items()
            ),
            *row_fields(name, files, FIELDS, is_set=True),
            *attribute_fields(name, files, is_set=True, column="attributes"),
        ]
        return DataSetParts(
            [file_set(files, ["data/train-*.parquet"])], [record_set(name, "a row a picture", fields, "sample_id")]
        )

    def usage(self) -> str:
        """See `Export.usage`."""
        return (
            "`data/train-00000-of-000NN.parquet`: pictures and masks (class indices 0..18) are `Image` columns; "
            "`label` is the "
            "number of `identity_id`; `attributes` holds CelebA's 40 by name: -1, 1, or 0 where unknown. Pages have "
            "checksums, which `datasets`, pandas, Polars and DuckDB do not look at by default.\n\n"
            '```python\nfrom datasets import load_dataset\n\nload_dataset("path/of/this/folder", split="train")\n```'
        )
