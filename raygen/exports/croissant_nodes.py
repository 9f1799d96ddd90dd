"""Parts of a Croissant file (MLCommons Croissant 1.1): files, sets of files, fields, and sources of their values.

Each function returns a JSON-LD node; ids are unique in the document. Paths are relative to the data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from raygen.core.face_labels import ATTRIBUTES

__all__ = [
    "MEDIA_TYPES",
    "DataSetParts",
    "attribute_fields",
    "file_object",
    "file_set",
    "record_set",
    "row_fields",
    "source",
    "typed_field",
]

Node = dict[str, Any]

#: Media types by the extension of a file.
MEDIA_TYPES: Final[Mapping[str, str]] = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "csv": "text/csv",
    "json": "application/json",
    "tar": "application/x-tar",
    "parquet": "application/x-parquet",
}
OTHER: Final = "application/octet-stream"
#: Types of the columns of a row that are not text.
_TYPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("label", "variant", "attempt", "seed", "steps"), "sc:Integer"),
    "is_synthetic": "sc:Boolean",
}
#: Meanings of columns, where the name does not say them.
_MEANINGS: Final[Mapping[str, str]] = {
    "sample_id": "name of the row",
    "identity_id": "name of the person; none recorded where it is empty",
    "label": "number of identity_id, in the order of the names",
    "variant": "number of the picture among those of its person",
    "is_synthetic": "whether a model or a program made the picture",
    "digital_source_type": "IPTC digital source type of the picture",
    "text": "caption",
    "seed": "seed of the plan of the row",
    "checkpoint": "SHA-256 of the model",
    "guidance": "weights of guidance, as JSON",
    "image_sha256": "SHA-256 of the picture that the run stored, before it was exported",
}


@dataclass(frozen=True)
class DataSetParts:
    """What a Croissant file says of an export: nodes of its files, and record sets where rows can be described."""

    distribution: Sequence[Node]
    record_sets: Sequence[Node] = field(default_factory=tuple)


def file_object(path: str, size: int, sha256: str) -> Node:
    """A file of `size` bytes; its id is its path."""
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "contentSize": f"{size} B",
        "encodingFormat": MEDIA_TYPES.get(path.rpartition(".")[2], OTHER),
        "sha256": sha256,
    }


def file_set(name: str, includes: Sequence[str], *, inside: Sequence[str] = ()) -> Node:
    """The files that match any of the patterns; `inside`: ids of archives that hold them."""
    archives: Node = {"containedIn": [{"@id": path} for path in inside]} if inside else {}
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        **archives,
        "encodingFormat": MEDIA_TYPES.get(includes[0].rpartition(".")[2], OTHER),
        "includes": list(includes) if len(includes) > 1 else includes[0],
    }


def source(of: str, *, is_set: bool, transform: Node | None = None, **extract: str) -> Node:
    """Where values come from: `of`, the id of a file or set; `extract`: `column` or `fileProperty`."""
    change: Node = {} if transform is None else {"transform": transform}
    return {"fileSet" if is_set else "fileObject": {"@id": of}, "extract": extract, **change}


def typed_field(record: str, name: str, kind: str, meaning: str, values: Node | None = None, **more: Any) -> Node:
    """A field of a record set. `kind`: `sc:Text` and the like; `values`: see `source`."""
    said: Node = {"description": meaning} if meaning else {}
    origin: Node = {} if values is None else {"source": values}
    return {"@type": "cr:Field", "@id": f"{record}/{name}", "name": name, **said, "dataType": kind, **origin, **more}


def row_fields(record: str, of: str, names: Sequence[str], *, is_set: bool) -> list[Node]:
    """Fields of the columns `names` of a table."""
    return [
        typed_field(
            record, name, _TYPES.get(name, "sc:Text"), _MEANINGS.get(name, ""), source(of, is_set=is_set, column=name)
        )
        for name in names
    ]


def attribute_fields(record: str, of: str, *, is_set: bool, column: str | None = None) -> list[Node]:
    """The 40 attributes: a column each, or members of the struct `column`."""
    if column is None:
        return [
            typed_field(record, name, "sc:Integer", "-1, 1, or none", source(of, is_set=is_set, column=name))
            for name in ATTRIBUTES
        ]
    members = [
        typed_field(
            f"{record}/{column}",
            name,
            "sc:Integer",
            "",
            source(of, is_set=is_set, transform={"jsonPath": f"'{name}'"}, column=column),
        )
        for name in ATTRIBUTES
    ]
    return [
        {
            "@type": "cr:Field",
            "@id": f"{record}/{column}",
            "name": column,
            "description": "CelebA's attributes: -1, 1, or 0 where unknown",
            "subField": members,
        }
    ]


def record_set(name: str, meaning: str, fields: Sequence[Node], key: str | None = None) -> Node:
    """A record set; `key`: name of the field whose values are unique."""
    unique: Node = {} if key is None else {"key": {"@id": f"{name}/{key}"}}
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": meaning, **unique, "field": list(fields)}
