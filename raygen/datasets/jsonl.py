"""Pictures that a JSON-lines file lists, with masks, prompts, face boxes and keypoints; a line a picture.

The keys are those of the COCO-person data of "Improving Latent Diffusion with Perceptual Mask-Aware Loss":

    {"target": "a.jpg", "mask": "a.png", "prompts": ["…"], "face_bbox": [[x1, y1, x2, y2]], "keypoints": [[x, y, v]],
     "hint": "a_pose.png"}
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import CLASS_INDEX, Split
from raygen.core.location import RelativeLocation, check_credentials, redact
from raygen.core.types import UInt8Array
from raygen.datasets.annotations import RepeatedKey, parse_json
from raygen.datasets.base import is_outage
from raygen.datasets.files import Files, refuse_collisions, safe_id
from raygen.datasets.pictures import LABELS, PictureFile, PictureFiles, most_pixels, read_mask, read_part
from raygen.store.class_ids import LabelOrder

__all__ = ["JSONLines"]


KEYS: Final = ("target", "mask", "hint", "prompts", "face_bbox", "keypoints")
#: The class of a person mask without parts: not a part of a face, so that the person is not mistaken for one.
PERSON: Final = CLASS_INDEX["cloth"]


class JSONLines(PictureFiles):
    """A line a picture; only `target` is required. Names are relative to `root`."""

    kind: Literal["jsonl"] = "jsonl"
    file: RelativeLocation = Field(..., description="JSON Lines file with a face per line, relative to root")
    masks: Literal["classes", "person"] = Field(
        "classes",
        description="classes: class indices 0 to 18; person: every pixel that is not black is the person, one class",
    )
    labels: LabelOrder = Field("celebamask", description=LABELS)
    split: Split = Field("train", description="split that all pictures belong to")

    @model_validator(mode="after")
    def _labels_have_an_effect(self) -> Self:
        if self.labels != "celebamask" and self.masks == "person":
            raise ValueError("labels: a mask of a person has no class indices; use `masks: classes`")
        return self

    def listing(self) -> pa.Table:
        """face_id, split, image, mask?, hint?, line, values (JSON), problem?; in the order of the file.

        `line` names the file and the line. `problem`: why the names of the line cannot be those of files.
        """
        files = Files(self.root, self.max_file_bytes)
        rows: list[dict[str, Any]] = []
        for number, text in enumerate(files.text(self.file).split("\n"), 1):
            if text.strip():
                rows.append(self._listed(files, f"{self.file}: line {number}", text))
        if not rows:
            raise ConfigError(f"{files.address(self.file)}: no lines")
        refuse_collisions((row["face_id"], row["name"]) for row in rows)
        if len({row["face_id"] for row in rows}) != len(rows):
            raise ConfigError(f"{self.file}: a picture is listed twice")
        if self.labels != "celebamask" and not any(row.get("mask") for row in rows):
            raise ConfigError(f"{self.file}: `labels: {self.labels}` is for masks, and no line has one")
        rows = [{key: row[key] for key in row if key != "name"} for row in rows[: self.limit]]
        return self.listing_table(files, rows, _LISTING)

    def _listed(self, files: Files, location: str, text: str) -> dict[str, Any]:
        """The listing row of one line, with the name of its picture; `ConfigError` for another structure."""
        try:
            line = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"{location} is not JSON: {error}") from error
        if isinstance(line, RepeatedKey):
            raise ConfigError(f"{location}: {line.key[:40]!r} is there twice")
        if not isinstance(line, dict) or not isinstance(line.get("target"), str):
            raise ConfigError(f"{location}: needs `target`, the name of a picture")
        if unknown := sorted(set(line) - set(KEYS)):
            raise ConfigError(f"{location}: unknown keys {unknown}; there are {', '.join(KEYS)}")
        target = line["target"]
        row: dict[str, Any] = {
            "face_id": safe_id(redact(target).rpartition(".")[0] or redact(target)),
            "name": target,
            "split": self.split,
            "line": location,
            "values": json.dumps({key: line[key] for key in KEYS[3:] if key in line}),
        }
        names = {"image": target, **{key: line[key] for key in ("mask", "hint") if line.get(key) is not None}}
        for key, name in names.items():
            if (problem := _name_problem(name)) is not None:
                return {**row, "problem": f"{key} {problem}"}
        return {**row, **{key: files.address(name) for key, name in names.items()}}

    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row; `InputError` (`line`) where a key has an invalid value."""
        try:
            return self._row(listed)
        except InputError as error:
            raise InputError(f"{listed['line']}: {error.args[0]}", reason=error.reason) from error
        except OSError as error:
            if is_outage(error):
                raise
            raise InputError(f"{listed['line']}: {error}", reason=type(error).__name__) from error

    def _row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        if listed["problem"] is not None:
            raise InputError(listed["problem"], reason="line")
        line = json.loads(listed["values"])
        texts = {"overall" if i == 0 else f"prompt-{i}": text for i, text in enumerate(_prompts(line))}
        numbers = {key: _numbers(line, key, width) for key, width in (("face_bbox", 4), ("keypoints", 3))}
        file = self.read(listed["image"])
        crop = _Crop(file.width, file.height, centred=self.crop == "center")
        _refuse_other_units(numbers["face_bbox"], numbers["keypoints"], file)
        boxes = [crop.box(box) for box in numbers["face_bbox"] if any(box)]  # all zeros: no face
        points = [crop.point(point) for point in numbers["keypoints"]]
        return {
            "split": listed["split"],
            **self.fit(file, listed["image"], self._mask(listed["mask"])),
            "texts": list(texts.items()) or None,
            "boxes": boxes or None,
            "keypoints": points or None,
            "hint": None if listed["hint"] is None else self._hint(listed["hint"], file),
        }

    def _hint(self, address: str, target: PictureFile) -> Any:
        """The hint, cropped and resized like the picture; `InputError` (`size`) where its shape differs."""
        hint = self.read(address)
        if abs(hint.width * target.height - target.width * hint.height) >= max(target.height, target.width):
            sides = f"hint {hint.width}x{hint.height} on a picture {target.width}x{target.height}"
            raise InputError(sides, reason="size")
        return self.fit(hint, address, None)["image"]

    def _mask(self, address: str | None) -> UInt8Array | None:
        if address is None:
            return None
        if self.masks == "classes":
            return read_mask(address, self.labels, self.max_file_bytes, most_pixels(self.size))
        return np.where(read_part(address, self.max_file_bytes, most_pixels(self.size)), PERSON, 0).astype(np.uint8)


_COLUMNS: Final = ("face_id", "split", "image", "mask", "hint", "line", "values", "problem")
_LISTING: Final = pa.schema([(n, pa.string()) for n in _COLUMNS])


class _Crop:
    """Coordinates in pixels of the file -> fractions of the sides of the stored picture."""

    def __init__(self, width: int, height: int, *, centred: bool) -> None:
        side = min(width, height)
        self.left, self.top = ((width - side) // 2, (height - side) // 2) if centred else (0, 0)
        self.width, self.height = (side, side) if centred else (width, height)

    def point(self, values: Sequence[float]) -> list[float]:
        """x, y, weight; the weight is 0 where the point was cropped."""
        x, y = (values[0] - self.left) / self.width, (values[1] - self.top) / self.height
        inside = 0 <= x <= 1 and 0 <= y <= 1
        return [x, y, float(values[2] > 0) if inside else 0.0]  # data sets write 0 or -1 for what is not seen

    def box(self, values: Sequence[float]) -> list[float]:
        """Left, top, right, bottom, clipped to the picture; of size 0 where the box was cropped."""
        x1, y1, x2, y2 = values
        sides = [
            (x1 - self.left) / self.width,
            (y1 - self.top) / self.height,
            (x2 - self.left) / self.width,
            (y2 - self.top) / self.height,
        ]
        return [min(max(value, 0.0), 1.0) for value in sides]


def _name_problem(name: object) -> str | None:
    """Why no file can have this name (a null byte, half of a surrogate pair), or why it must not be written down."""
    if not isinstance(name, str) or not name or "\0" in name or any("\ud800" <= letter < "\ue000" for letter in name):
        return f"{name!r} is no file name"
    try:
        check_credentials(name)
    except ValueError as error:
        return str(error)
    return None


def _prompts(line: Mapping[str, Any]) -> list[str]:
    """The texts of a line, none for null; `InputError` (`line`) for anything that is no list of valid texts."""
    prompts = line.get("prompts")
    if prompts is None:
        return []
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
        raise InputError("prompts is no list of texts", reason="line")
    try:
        "".join(prompts).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"prompts is no valid text ({error.reason})", reason="line") from error
    return prompts


def _numbers(line: Mapping[str, Any], key: str, width: int) -> list[list[float]]:
    """Rows of `width` numbers; `InputError` (`line`) for other values, and for a box with its corners exchanged."""
    rows = [] if line.get(key) is None else line[key]
    try:
        numbers = [[float(value) for value in row] for row in rows]
        truths = any(isinstance(value, bool) for row in rows for value in row)
    except (TypeError, ValueError, OverflowError):
        numbers, truths = [[]], False
    if truths or any(len(row) != width or not all(abs(value) < _FLOAT32 for value in row) for row in numbers):
        raise InputError(f"{key} is no list of {width} numbers each", reason="line")
    for row in numbers if width == 4 else ():
        if row[0] > row[2] or row[1] > row[3]:
            raise InputError(f"{key} {row} is no left, top, right, bottom", reason="line")
    return numbers


def _refuse_other_units(boxes: Sequence[Sequence[float]], points: Sequence[Sequence[float]], file: PictureFile) -> None:
    """`InputError` (`line`) for places that are no pixels of the picture: fractions of its sides, or outside of it."""
    given = [box for box in boxes if any(box)]
    for box in given:
        if box[0] >= file.width or box[1] >= file.height or box[2] <= 0 or box[3] <= 0:
            raise InputError(f"face_bbox {list(box)} lies outside of {file.width}x{file.height} pixels", reason="line")
    for key, places in (("face_bbox", given), ("keypoints", [point[:2] for point in points if point[2] > 0])):
        values = [value for place in places for value in place]
        if values and max(values) <= 1 and any(value % 1 for value in values):
            text = f"{key} has fractions of the sides, and pixels are needed; multiply them by width and height"
            raise InputError(text, reason="line")


#: Tables hold coordinates as float32.
_FLOAT32: Final = float(np.finfo(np.float32).max)
