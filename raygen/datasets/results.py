"""Result pictures of another method on the rows of a plan, found by their file names, as SAMPLES.

pattern: "{source}_fake.png"                     each row names its file
pattern: "(?P<source>\\d+)_sample(?P<variant>\\d+)\\.png"     each file names its row
"""

import json
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from raygen.core.config import nearest
from raygen.core.errors import ConfigError, InputError
from raygen.core.hashing import digest
from raygen.core.location import Location
from raygen.datasets.files import Files, system_file
from raygen.datasets.pictures import PictureFiles, is_picture
from raygen.store.lookup import StoredRows
from raygen.store.run_store import open_input
from raygen.store.schemas import CONDITIONS, SAMPLES

__all__ = ["FIELDS", "MethodResults"]


#: What a pattern may name: columns of CONDITIONS, `source_id` for `source`, and the number of the row from 0 on.
FIELDS: Final[Mapping[str, str]] = {
    "sample_id": "sample_id",
    "source": "source",
    "source_id": "source",
    "identity_id": "identity_id",
    "variant": "variant",
    "group_id": "group_id",
    "edit_id": "edit_id",
    "row": "row",
}
#: The end of a pattern that fits pictures of any format.
ANY_FORMAT: Final = ".*"
#: Names of files and rows in a note.
NAMED: Final = 3

Row = Mapping[str, Any]


class MethodResults(PictureFiles):
    """Pictures that another method made for the rows of a plan. They are stored as SAMPLES, without a seed."""

    kind: Literal["results"] = "results"
    method: str = Field(
        ..., min_length=1, max_length=64, description="name of the method that made the pictures, such as SEAN"
    )
    conditions: Location = Field(
        ..., description="folder of the plan run with the rows that the pictures were made for"
    )
    pattern: str = Field(
        ...,
        min_length=1,
        description="file name of a row's picture, such as '{source}_fake.png', '{identity_id}/{variant:03d}.*' or "
        f"'{{row:06d}}.png'; names: {', '.join(FIELDS)}; or a regular expression with these names as groups, such as "
        "'(?P<source>\\d+)_.*\\.png'. With a slash it is compared with the path below `root`",
    )

    @property
    def is_regex(self) -> bool:
        """Whether `pattern` is a regular expression: it has a named group."""
        return "(?P<" in self.pattern

    @model_validator(mode="after")
    def _pattern_is_readable(self) -> Self:
        used = self._fields()
        if unknown := sorted(used - set(FIELDS)):
            raise ValueError(f"pattern: {unknown[0]!r} is none of {', '.join(FIELDS)}{nearest(unknown[0], FIELDS)}")
        if not used:
            raise ValueError("pattern: names no row; write for example '{source}_fake.png'")
        if not (self.is_regex or self.pattern.endswith(ANY_FORMAT) or is_picture(self.pattern)):
            raise ValueError(f"pattern: {self.pattern!r} does not end like a picture; write '.png', or '.*' for all")
        return self

    def _fields(self) -> set[str]:
        """The names in the pattern; `ValueError` where it cannot be read."""
        if self.is_regex:
            try:
                return set(re.compile(self.pattern).groupindex)
            except re.error as error:
                raise ValueError(f"pattern: no regular expression: {error}") from None
        try:
            parts = list(string.Formatter().parse(self.pattern))
        except ValueError as error:
            raise ValueError(f"pattern: {error}") from None
        for _, name, spec, conversion in parts:
            if conversion or (spec and not re.fullmatch(r"0?\d*d", spec)):
                raise ValueError(f"pattern: {{{name}:{spec}}}: only a number of digits such as {{{name}:06d}} is read")
        return {name for _, name, _, _ in parts if name is not None}

    def listing(self) -> pa.Table:
        """face_id and sample_id (equal), image (null for a row without a picture); in the order of the conditions."""
        files = Files(self.root, self.max_file_bytes)
        names = [name for name in files.names() if is_picture(name) and not system_file(name)]
        rows = self._rows()
        found = self._by_regex(rows, names) if self.is_regex else self._by_template(rows, names)
        ids = [str(row["sample_id"]) for row in rows]
        if not found:
            raise ConfigError(self._nothing(rows, names))
        used = set(found.values())
        unmatched = {
            "rows_without_picture": [name for name in ids if name not in found],
            "pictures_without_row": [name for name in names if name not in used],
        }
        # `raygen verify` looks for the ids of SAMPLES, the other readers of listings for those of faces.
        listed = [{"face_id": i, "sample_id": i, "image": files.address(found[i]) if i in found else None} for i in ids]
        table = self.listing_table(files, listed, _LISTING, f"{self.method}: {_note(len(found), len(ids), unmatched)}")
        lists = {"unmatched": json.dumps(unmatched, indent=1)} if any(unmatched.values()) else {}
        return table.replace_schema_metadata({**(table.schema.metadata or {}), **lists})

    def _rows(self) -> list[dict[str, Any]]:
        columns = sorted({"sample_id", *(FIELDS[name] for name in self._fields())} - {"row"})
        store, _ = open_input(self.conditions)
        if not store.has("conditions"):
            raise ConfigError(f"{self.conditions}: is the result of `raygen {store.plan().kind}` and has no CONDITIONS")
        rows = [row for table in store.tables("conditions", columns) for row in table.to_pylist()]
        return [{**row, "row": number} for number, row in enumerate(rows[: self.limit])]

    def _by_template(self, rows: Sequence[Row], names: Iterable[str]) -> dict[str, str]:
        """sample_id -> file name, where each row says the name of its file."""
        files: dict[str, list[str]] = {}
        for name in names:
            files.setdefault(self._compared(name), []).append(name)
        owners: dict[str, str] = {}
        for row in rows:
            wanted = self.file_of(row)
            if (other := owners.setdefault(wanted, row["sample_id"])) != row["sample_id"]:
                raise ConfigError(self._shared(other, row["sample_id"], wanted))
        found = {}
        for wanted, owner in owners.items():
            if len(same := files.get(wanted, [])) > 1:
                raise ConfigError(f"{self.root}: row {owner} fits {same[0]!r} and {same[1]!r}; {_NARROW}")
            if same:
                found[owner] = same[0]
        return found

    def _by_regex(self, rows: Sequence[Row], names: Iterable[str]) -> dict[str, str]:
        """sample_id -> file name, where each file says its row. Zeros before a number do not count."""
        expression = re.compile(self.pattern)
        fields = tuple(expression.groupindex)
        keys: dict[tuple[str, ...], str] = {}
        for row in rows:
            key = tuple(_plain(row[FIELDS[name]]) for name in fields)
            if (other := keys.setdefault(key, row["sample_id"])) != row["sample_id"]:
                raise ConfigError(self._shared(other, row["sample_id"], ", ".join(key)))
        found: dict[str, str] = {}
        for name in names:
            match = expression.fullmatch(name if "/" in self.pattern else PurePosixPath(name).name)
            owner = match and keys.get(tuple(_plain(match[field]) for field in fields))
            if owner and found.setdefault(owner, name) != name:
                raise ConfigError(f"{self.root}: row {owner} fits {found[owner]!r} and {name!r}; {_NARROW}")
        return found

    def _compared(self, name: str) -> str:
        """What of a file name is compared with the pattern."""
        name = unicodedata.normalize("NFC", name if "/" in self.pattern else PurePosixPath(name).name)
        return str(PurePosixPath(name).with_suffix("")) if self.pattern.endswith(ANY_FORMAT) else name

    def file_of(self, row: Row) -> str:
        """The file name that a template gives a row, without `.*`; `ConfigError` where the row has no such value."""
        text = ""
        for literal, name, spec, _ in string.Formatter().parse(self.pattern.removesuffix(ANY_FORMAT)):
            text += literal
            if name is None:
                continue
            value = row[FIELDS[name]]
            if value is None:
                raise ConfigError(f"pattern: row {row['sample_id']} has no {name}; name another column")
            if spec and not re.fullmatch(r"\d+", str(value)):
                raise ConfigError(f"pattern: {{{name}:{spec}}} is for numbers; row {row['sample_id']} has {value!r}")
            text += format(int(value), spec) if spec else str(value)
        return unicodedata.normalize("NFC", text)

    def _shared(self, first: str, second: str, name: str) -> str:
        return f"pattern: rows {first} and {second} both fit {name!r}; add {{variant}} or {{sample_id}} to the pattern"

    def _nothing(self, rows: Sequence[Row], names: Sequence[str]) -> str:
        if not rows or not names:
            return f"{self.root}: holds no pictures" if rows else f"{self.conditions}: has no rows"
        wanted = f"{self.pattern!r}" if self.is_regex else f"{self.file_of(rows[0])!r} for row {rows[0]['sample_id']}"
        hint = (
            "" if self.is_regex else "; {source:06d} writes a number with 6 digits, {source:d} without zeros before it"
        )
        return f"{self.root}: no picture fits a row: the pattern asks for {wanted}, a picture is {names[0]!r}{hint}"

    def inputs(self) -> tuple[str, ...]:
        """The digest of the conditions."""
        return (open_input(self.conditions)[1],)

    def count_masks(self, listing: pa.Table) -> int:
        """How many of the rows have a mask, by the conditions."""
        ids, store = set(listing["face_id"].to_pylist()), open_input(self.conditions)[0]
        tables = store.tables("conditions", ["sample_id", "mask.path"])
        return sum(
            row_id in ids and there
            for table in tables
            if "mask" in table.column_names
            for row_id, there in zip(table["sample_id"].to_pylist(), table["mask"].is_valid().to_pylist(), strict=True)
        )

    def row(self, listed: Row) -> Row:
        """The picture of a row; `InputError` (`no_picture`) where there is none."""
        if listed["image"] is None:
            raise InputError(f"{self.root} has no picture that fits this row", reason="no_picture")
        return self.fitted(listed["image"], None)

    def worker(self, run_id: str) -> Callable[[], "ResultsWorker"]:
        """Makes SAMPLES in place of FACES."""
        return partial(ResultsWorker, self, run_id)


class ResultsWorker:
    """Listing rows -> SAMPLES: the condition row, the picture and the name of the method; no seed and no checkpoint."""

    def __init__(self, data: MethodResults, run_id: str) -> None:
        self.data, self.run_id = data, run_id
        self.conditions = StoredRows(data.conditions, CONDITIONS.names, table="conditions")

    def start(self, rows: pa.Table) -> Callable[[], dict[str, pa.Table]]:
        """No device work: the returned call does all."""
        return lambda: {"samples": pa.Table.from_pylist(list(self._samples(rows)), SAMPLES)}

    def _samples(self, rows: pa.Table) -> Iterator[dict[str, Any]]:
        pictures = self.data.load(rows).select(["face_id", "image", "error"]).to_pylist()
        conditions = self.conditions(row["face_id"] for row in pictures)
        for row in pictures:
            image = None if row["error"] else row["image"]
            yield {
                **conditions[row["face_id"]],
                "seed": None,
                "attempt": 0,
                "image": image,
                "error": row["error"],
                "run_id": self.run_id,
                "method": self.data.method,
                "image_sha256": image and digest(image["bytes"]),
            }


_LISTING: Final = pa.schema([(name, pa.string()) for name in ("face_id", "sample_id", "image")])
_NARROW: Final = "write the folder into the pattern, or remove one"


def _plain(value: object) -> str:
    """A value as text; zeros before a number do not count."""
    text = str(value)
    return text.lstrip("0") or "0" if text.isdecimal() else text


def _note(found: int, rows: int, unmatched: Mapping[str, Sequence[str]]) -> str:
    """Counts of rows and pictures that found each other and of those that did not, with a few names of these."""
    parts = [f"pictures of {found:,} of {rows:,} rows"]
    for key, names in unmatched.items():
        if names:
            more = ", ..." if len(names) > NAMED else ""
            parts.append(f"{len(names):,} {key.replace('_', ' ')} ({', '.join(names[:NAMED])}{more})")
    return "; ".join(parts)
