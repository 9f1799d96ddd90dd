"""MDS shards for mosaicml-streaming, without that library: `shard.00000.mds` … and `index.json`.

Version 2 of the format (streaming/base/format/mds of mosaicml-streaming 0.13). A shard is little endian: the number of
samples n, n + 1 offsets from the beginning of the file (all uint32), the configuration of the columns as JSON, the
samples. A sample is a uint32 size of each column without a fixed size, then the values, columns in the order of their
names. The library itself pins old versions of numpy and huggingface_hub, and is needed only to read.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, Literal

from pydantic import Field

from raygen.core.errors import ConfigError
from raygen.core.face_labels import ATTRIBUTES, attribute_list
from raygen.exports.base import Assembly, Export, ExportRow, PackedShard, RecordLocation
from raygen.exports.columns import FIELDS, INTEGERS, row_columns

__all__ = ["MDSExport"]


INDEX: Final = "index.json"
SUFFIX: Final = ".mds"
#: Offsets in a shard are uint32.
MAX_BYTES: Final = (1 << 32) - 1
#: Encodings that are not text, by column. The library decodes `png` and `jpeg` to PIL pictures.
ENCODINGS: Final[Mapping[str, str]] = {
    **dict.fromkeys(INTEGERS, "int"),
    "is_synthetic": "int",
    "attributes": "json",
    "mask": "bytes",
}
#: Bytes of values by encoding, where that is fixed.
SIZES: Final[Mapping[str, int]] = {"int": 8}


class MDSExport(Export):
    """A shard file a shard of the export, and one index of them."""

    kind: Literal["mds"] = "mds"
    masks: bool = Field(True, description="also write the masks, as PNG files of class indices")

    @property
    def columns(self) -> dict[str, str]:
        """Encodings by column, in the order of the names."""
        names = ["image", *FIELDS, "attributes", *(["mask"] if self.masks else [])]
        # The library has no encoding for WebP.
        image = "bytes" if self.codec == "webp" else self.codec
        return {name: {"image": image, **ENCODINGS}.get(name, "str") for name in sorted(names)}

    @property
    def configuration(self) -> dict[str, Any]:
        """The columns as a shard and the index have them."""
        columns = self.columns
        return {
            "column_encodings": list(columns.values()),
            "column_names": list(columns),
            "column_sizes": [SIZES.get(encoding) for encoding in columns.values()],
            "compression": None,
            "format": "mds",
            "hashes": ["sha256"],
            "size_limit": None,
        }

    def pack(self, part: int, parts: int, rows: Sequence[ExportRow]) -> PackedShard:
        """One shard file; none where the shard has no rows."""
        if not rows:
            return PackedShard([])
        head = json.dumps(self.configuration, sort_keys=True).encode()
        samples, places = zip(*(self._sample(row) for row in rows), strict=True)
        begin = 4 + 4 * (len(rows) + 1) + len(head)
        offsets = list(accumulate(map(len, samples), initial=begin))
        if offsets[-1] > MAX_BYTES:
            raise ConfigError(
                f"format mds: a shard of {len(rows):,} rows has {offsets[-1]:,} bytes, and offsets in it end at "
                f"{MAX_BYTES:,}; set a smaller `shard_rows`"
            )
        path = f"shard.{part:05d}{SUFFIX}"
        locations = [
            RecordLocation(path, offset + place, len(row.image))
            for row, offset, place in zip(rows, offsets, places, strict=False)
        ]
        data = struct.pack(f"<{len(offsets) + 1}I", len(rows), *offsets) + head + b"".join(samples)
        return PackedShard(locations, {path: data})

    def _sample(self, row: ExportRow) -> tuple[bytes, int]:
        """A sample, and the offset of the picture in it. A missing value is -1, an empty text or no bytes."""
        columns, place = row_columns(row), 0
        sizes: list[int] = []
        values: list[bytes] = []
        attributes = dict(zip(ATTRIBUTES, attribute_list(row.row.get("attributes")), strict=True))
        columns |= {"attributes": json.dumps(attributes), "image": row.image, "mask": row.mask or b""}
        for name, encoding in self.columns.items():
            value = columns[name]
            if encoding == "int":
                data = struct.pack("<q", -1 if value is None else int(value))
            else:
                data = value if isinstance(value, bytes) else str("" if value is None else value).encode()
                sizes.append(len(data))
            if name == "image":
                place = sum(map(len, values))
            values.append(data)
        return struct.pack(f"<{len(sizes)}I", *sizes) + b"".join(values), 4 * len(sizes) + place

    def assemble(self, assembly: Assembly) -> None:
        """`index.json`, from the committed shards."""
        rows: dict[str, int] = {}
        for table in assembly.tables():
            for path in table["path"].to_pylist():
                rows[path] = rows.get(path, 0) + 1
        shards = [
            {
                **self.configuration,
                "raw_data": {"basename": path, "bytes": size, "hashes": {"sha256": sha256}},
                "samples": rows[path],
                "version": 2,
                "zip_data": None,
            }
            for path, size, sha256 in assembly.files()
        ]
        with assembly.building(INDEX) as file:
            file.write(json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode())

    def usage(self) -> str:
        """See `Export.usage`."""
        picture = f"a PIL picture of {self.codec.upper()}" if self.codec != "webp" else "the bytes of a WebP file"
        mask = (
            "`mask` the bytes of a PNG file of class indices 0..18, none where there is no mask; " if self.masks else ""
        )
        return (
            f"`index.json` and `shard.00000.mds` …: MDS, for mosaicml-streaming. `image` is {picture}; {mask}"
            "`attributes` a dictionary of CelebA's 40 (-1, 1, or 0 where unknown); `label` is the number of "
            "`identity_id`. A missing number is -1, a missing text empty. The index has the sha256 of each shard.\n\n"
            "```python\nfrom streaming import StreamingDataset\n\n"
            'for sample in StreamingDataset(local="path/of/this/folder", batch_size=1):\n'
            '    sample["image"], sample["label"]\n```\n\n'
            "From another place, `remote` names this folder or its URL and `local` an empty folder. With "
            '`validate_hash="sha256"` shards are compared with the index when they are copied, and only then; where '
            "one differs, mosaicml-streaming 0.13 logs it and ends the iteration without an exception, so count the "
            "samples. "
            "Without `shuffle=True` samples come in the order of the files. Where the number of samples is no multiple "
            "of the number of ranks, mosaicml-streaming 0.13 repeats some."
        )
