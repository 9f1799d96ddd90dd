"""Pictures that a JSON-lines file lists, with masks, prompts, face boxes and keypoints; a line a picture.

The keys are those of the COCO-person data of "Improving Latent Diffusion with Perceptual Mask-Aware Loss":

    {"target": "a.jpg", "mask": "a.png", "prompts": ["…"], "face_bbox": [[x1, y1, x2, y2]], "keypoints": [[x, y, v]],
     "hint": "a_pose.png"}
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import CLASS_INDEX, Split
from raygen.core.types import UInt8Array
from raygen.datasets.folder import Files, PictureFiles, read_mask, read_picture, refuse_collisions, safe_id

__all__ = ["JSONLines"]


KEYS: Final = ("target", "mask", "hint", "prompts", "face_bbox", "keypoints")
#: The class of a person mask without parts: not a part of a face, so that the person is not mistaken for one.
PERSON: Final = CLASS_INDEX["cloth"]


class JSONLines(PictureFiles):
    """A line a picture; only `target` is required. Names are relative to `root`."""

    kind: Literal["jsonl"] = "jsonl"
    file: str = Field(..., min_length=1, description="JSON Lines file with a face per line, relative to root")
    masks: Literal["classes", "person"] = Field(
        "classes",
        description="classes: class indices 0 to 18; person: every pixel that is not black is the person, one class",
    )
    split: Split = Field("train", description="split that all pictures belong to")

    def listing(self) -> pa.Table:
        """face_id, split, image, mask?, hint?, line (JSON of the rest); in the order of the file."""
        files = Files(self.root)
        rows: list[dict[str, Any]] = []
        for number, text in enumerate(files.text(self.file).split("\n"), 1):
            if not text.strip():
                continue
            location = f"{self.file}: line {number}"
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ConfigError(f"{location} is not JSON: {error}") from error
            if not isinstance(line, dict) or not isinstance(line.get("target"), str):
                raise ConfigError(f"{location}: needs `target`, the name of a picture")
            if unknown := sorted(set(line) - set(KEYS)):
                raise ConfigError(f"{location}: unknown keys {unknown}; there are {', '.join(KEYS)}")
            mask_and_hint: dict[str, object] = {key: line.get(key) for key in KEYS[1:3]}
            rows.append(
                {
                    "face_id": safe_id(line["target"].rpartition(".")[0] or line["target"]),
                    "split": self.split,
                    "image": files.address(line["target"]),
                    **{k: None if name is None else files.address(str(name)) for k, name in mask_and_hint.items()},
                    "line": json.dumps({key: line[key] for key in KEYS[3:] if key in line}),
                }
            )
        if not rows:
            raise ConfigError(f"{files.address(self.file)}: no lines")
        refuse_collisions((row["face_id"], row["image"]) for row in rows)
        if len({row["face_id"] for row in rows}) != len(rows):
            raise ConfigError(f"{self.file}: a picture is listed twice")
        return pa.Table.from_pylist(rows[: self.limit], _LISTING)

    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row; `InputError` (`line`) where a key has an invalid value."""
        line = json.loads(listed["line"])
        fitted = self.fitted(listed["image"], self._mask(listed["mask"]))
        numbers = {key: _numbers(line, key, width) for key, width in (("face_bbox", 4), ("keypoints", 3))}
        boxes: list[list[float]] = []
        points: list[list[float]] = []
        if any(numbers.values()):
            height, width = read_picture(listed["image"])[0].shape[:2]
            crop = _Crop(width, height, centred=self.crop == "center")
            boxes = [crop.box(box) for box in numbers["face_bbox"] if any(box)]  # all zeros: no face
            points = [crop.point(point) for point in numbers["keypoints"]]
        prompts = line.get("prompts", [])
        if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts):
            raise InputError("prompts is no list of texts", reason="line")
        texts = {"overall" if i == 0 else f"prompt-{i}": text for i, text in enumerate(prompts)}
        return {
            "split": listed["split"],
            **fitted,
            "texts": list(texts.items()) or None,
            "boxes": boxes or None,
            "keypoints": points or None,
            "hint": None if listed["hint"] is None else self._hint(listed["hint"], listed["image"]),
        }

    def _hint(self, address: str, target: str) -> Any:
        """The hint, cropped and resized like the picture; `InputError` (`size`) where its shape differs."""
        (height, width), (own_height, own_width) = (read_picture(a)[0].shape[:2] for a in (address, target))
        if abs(width * own_height - own_width * height) >= max(own_height, own_width):
            raise InputError(f"hint {width}x{height} on a picture {own_width}x{own_height}", reason="size")
        return self.fitted(address, None)["image"]

    def _mask(self, address: str | None) -> UInt8Array | None:
        if address is None:
            return None
        if self.masks == "classes":
            return read_mask(address)
        pixels, _ = read_picture(address)
        return np.where(pixels.any(axis=-1), PERSON, 0).astype(np.uint8)


_LISTING: Final = pa.schema([(n, pa.string()) for n in ("face_id", "split", "image", "mask", "hint", "line")])


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
        return [x, y, float(bool(values[2])) if inside else 0.0]

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


def _numbers(line: Mapping[str, Any], key: str, width: int) -> list[list[float]]:
    """Rows of `width` numbers; `InputError` (`line`) otherwise."""
    rows = line.get(key) or []
    try:
        numbers = [[float(value) for value in row] for row in rows]
    except (TypeError, ValueError):
        numbers = [[]]
    if any(len(row) != width or not np.isfinite(row).all() for row in numbers):
        raise InputError(f"{key} is no list of {width} numbers each", reason="line")
    return numbers
