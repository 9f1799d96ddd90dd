"""CelebAMask-HQ: pictures, masks (one file a part, or one a picture), attributes, splits, identities.

Layouts: `CelebA-HQ-img/{i}.jpg` with `CelebAMask-HQ-mask-anno/{i // 2000}/{i:05d}_{part}.png`, or with a folder of
index or palette masks `{i}.png`; and one flat folder of `{i}.jpg` and `{i}_mask.png` or `{i}_mask_*.png`.
A picture is named by its CelebA-HQ number, so a subset of the pictures keeps every published split.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import ATTRIBUTES, CLASSES, SplitName, split_of
from raygen.core.types import UInt8Array
from raygen.datasets.folder import Files, PictureFiles, read, read_mask, refuse_collisions
from raygen.store.images import decode_image
from raygen.store.schemas import FACES

__all__ = ["CelebAFiles", "CelebAMask", "attribute_values", "merge_parts", "number_of"]


IMAGE_FOLDERS: Final = ("CelebA-HQ-img", "image", "images", "")
PARTS_FOLDER: Final = "CelebAMask-HQ-mask-anno"
MASK_FOLDERS: Final = (
    "CelebAMaskHQ-mask",
    "CelebAMask-HQ-mask",
    "CelebAMask-HQ-mask-color-palette",
    "mask/CelebAMask-HQ-mask-color-palette",
    "mask",
    "masks",
    "",
)
ATTRIBUTE_FILES: Final = (
    "CelebAMask-HQ-attribute-anno.txt",
    "classification_label/CelebAMask-HQ-attribute-anno.txt",
)
MAPPING_FILES: Final = ("CelebA-HQ-to-CelebA-mapping.txt",)
IDENTITY_FILES: Final = ("identity/identity_CelebA-HQ.txt", "identity_CelebA-HQ.txt")
VALIDATION_FILES: Final = ("celebahqvalidation.txt",)

_IMAGE: Final = re.compile(r"(\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE)
_MASK: Final = re.compile(r"(\d+)(_mask(?:_\w+)?)?\.png", re.IGNORECASE)
_PART: Final = re.compile(rf"(?:\d+/)?(\d+)_({'|'.join(CLASSES[1:])})\.png")

LISTING: Final = pa.schema(
    [
        ("face_id", pa.string()),
        ("split", pa.string()),
        ("image", pa.string()),
        ("mask", pa.string()),
        ("parts", pa.list_(pa.string())),
        ("attributes", pa.string()),
        FACES.field("texts"),
        ("identity_id", pa.string()),
        ("reason", pa.string()),
        ("problem", pa.string()),
    ]
)


def number_of(name: str) -> int | None:
    """The CelebA-HQ number in `12.jpg`, `00012`, `imgHQ00012.npy`; None where there is none."""
    match = re.fullmatch(r"\D*(\d+)(?:\.\w+)?", name)
    return int(match[1]) if match else None


def merge_parts(parts: Mapping[str, UInt8Array]) -> UInt8Array:
    """Pictures [H, W, 3] by part name, not zero where the part is -> class indices [H, W].

    Later parts of the official class order cover earlier ones (CelebAMask-HQ `g_mask.py`). `InputError` (`size`) where
    the sizes differ.
    """
    if len({part.shape for part in parts.values()}) != 1:
        raise InputError("the parts of one mask differ in size", reason="size")
    mask = np.zeros(next(iter(parts.values())).shape[:2], np.uint8)
    for index, name in enumerate(CLASSES):
        if name in parts:
            mask[parts[name].any(axis=2)] = index
    return mask


def attribute_values(text: str) -> list[int]:
    """40 words -> 40 values of -1, 0 or 1; `InputError` (`attributes`) for anything else."""
    words = text.split()
    if len(words) != len(ATTRIBUTES):
        raise InputError(f"{len(words)} values, {len(ATTRIBUTES)} expected", reason="attributes")
    for name, word in zip(ATTRIBUTES, words, strict=True):
        if word not in ("-1", "0", "1"):
            raise InputError(f"{name} is {word[:20]!r}, allowed are -1, 0 and 1", reason="attributes")
    return [int(word) for word in words]


# --- the text files -----------------------------------------------------------------------------------------


def _lines_by_number(source: str, lines: Iterable[tuple[int, str]]) -> dict[int, list[str]]:
    """Lines `12.jpg a b` -> {12: [a, b]}; `ConfigError` for a line without a picture, or a picture listed twice."""
    rows: dict[int, list[str]] = {}
    for line_number, line in lines:
        first, *rest = line.split() or [""]
        number = number_of(first)
        if first and (number is None or number in rows):
            fault = "names no picture" if number is None else f"names picture {number} a second time"
            raise ConfigError(f"{source}, line {line_number}: {fault}")
        if number is not None:
            rows[number] = rest
    return rows


def _rows(source: str, text: str) -> dict[int, list[str]]:
    """See `_lines_by_number`, for a file without a header."""
    return _lines_by_number(source, enumerate(text.splitlines(), start=1))


def _attribute_lines(source: str, text: str) -> dict[int, str]:
    """Picture -> values in the order of `ATTRIBUTES`, as text, so that a bad line fails one row and not the run."""
    lines = text.splitlines()
    header = lines[1].split() if len(lines) > 1 else []
    if sorted(header) != sorted(ATTRIBUTES):
        raise ConfigError(f"{source}, line 2: not the names of the {len(ATTRIBUTES)} attributes")
    order = [header.index(name) for name in ATTRIBUTES]
    rows = _lines_by_number(source, enumerate(lines[2:], start=3))
    return {
        number: " ".join([words[i] for i in order] if len(words) == len(order) else words)
        for number, words in rows.items()
    }


class _Annotations(NamedTuple):
    """The content of the annotation files by CelebA-HQ number; None for a missing file.

    `celeba`: 0-based CelebA numbers, from the mapping file.
    """

    attributes: Mapping[int, str] | None
    identities: Mapping[int, str] | None
    celeba: Mapping[int, int] | None
    validation: frozenset[int] | None
    texts: Mapping[int, Mapping[str, str] | InputError]


# --- the data set -------------------------------------------------------------------------------------------


class CelebAFiles(PictureFiles):
    """The pictures, masks and text files of CelebA-HQ: the base of CelebAMask-HQ and CelebA-Dialog."""

    images: str | None = Field(None, description="folder of the pictures; default: found by its usual names")
    masks: Literal["auto", "parts", "index"] = Field(
        "auto",
        description="parts: one PNG per class and face; index: ready-made class-index masks; "
        "auto: whichever exists, or no masks",
    )
    mask_folder: str | None = Field(
        None, description="folder of the ready-made masks; default: found by its usual names"
    )
    attributes: str | None = Field(None, description="attribute file; default: found by its usual name")
    identities: str | None = Field(None, description="identity file; default: found by its usual name")
    split: SplitName = Field("codiff", description="which published split into train, val and test is used")
    split_file: str | None = Field(
        None, description="file of the split: the validation list for taming, the mapping to CelebA for official"
    )

    def listing(self) -> pa.Table:
        """A row a picture, in the order of the numbers; `reason` and `problem` say why a row cannot be loaded."""
        files = Files(self.root)
        images = self._images(files)
        parts, masks = self._masks(files)
        if not (parts or masks) and self.masks != "auto":
            raise ConfigError(f"{self.root}: holds no masks of the kind {self.masks!r}")
        annotations = self._annotations(files)
        rows: list[dict[str, Any]] = []
        for number in sorted(images)[: self.limit]:
            row: dict[str, Any] = {
                "face_id": f"{number:05d}",
                "image": files.address(images[number]),
                "mask": files.address(PARTS_FOLDER) if number in parts else masks.get(number),
                "parts": parts.get(number),
            }
            try:
                if row["mask"] is None and self.masks != "auto":
                    raise InputError(f"picture {number} has no mask of the kind {self.masks!r}", reason="no_mask")
                rows.append({**row, **self._labels(number, annotations)})
            except InputError as error:
                rows.append({**row, "reason": error.reason, "problem": error.args[0]})
        return pa.Table.from_pylist(rows, LISTING)

    def _images(self, files: Files) -> dict[int, str]:
        """Number -> name of the picture, from the first folder that has any."""
        for folder in IMAGE_FOLDERS if self.images is None else (self.images,):
            images = [(match[1], name) for name in files.names(folder, depth=1) if (match := _IMAGE.fullmatch(name))]
            refuse_collisions((f"{int(number):05d}", name) for number, name in images)
            if images:
                return {int(number): f"{folder}/{name}" if folder else name for number, name in images}
        raise ConfigError(f"{self.root}: holds no pictures named by number ({'/, '.join(IMAGE_FOLDERS[:-1])}/ or flat)")

    def _masks(self, files: Files) -> tuple[dict[int, list[str]], dict[int, str]]:
        """Number -> names of its part files, and number -> address of its single mask; one of them is empty."""
        parts: dict[int, list[str]] = {}
        if self.masks != "index" and self.mask_folder is None:
            for name in files.names(PARTS_FOLDER, depth=2):
                if match := _PART.fullmatch(name):
                    parts.setdefault(int(match[1]), []).append(name)
        if parts or self.masks == "parts":
            return parts, {}
        if self.mask_folder is not None:
            folder_files = Files(files.address(self.mask_folder))
            names = _mask_names(folder_files.names(depth=1), bare=True)
            return {}, {n: folder_files.address(name) for n, name in names.items()}
        for folder in MASK_FOLDERS:
            # In the folder of the pictures a bare number is a picture, so only `_mask` names are masks there.
            if names := _mask_names(files.names(folder, depth=1), bare=bool(folder)):
                return {}, {n: files.address(f"{folder}/{name}" if folder else name) for n, name in names.items()}
        return {}, {}

    def _annotations(self, files: Files) -> _Annotations:
        attributes = files.optional_text(self.attributes, ATTRIBUTE_FILES)
        identities = files.optional_text(self.identities, IDENTITY_FILES)
        celeba = self._split_text(files, "official", MAPPING_FILES)
        validation = self._split_text(files, "taming", VALIDATION_FILES)
        celeba_numbers: dict[int, int] | None = None
        if celeba is not None:
            source, text = celeba
            lines = list(enumerate(text.splitlines(), start=1))[1:]  # without the header
            try:
                celeba_numbers = {number: int(words[0]) for number, words in _lines_by_number(source, lines).items()}
            except (IndexError, ValueError) as error:
                raise ConfigError(f"{source}: a line has no CelebA number ({error})") from error
        return _Annotations(
            None if attributes is None else _attribute_lines(*attributes),
            None if identities is None else {n: words[0] for n, words in _rows(*identities).items() if words},
            celeba_numbers,
            None if validation is None else frozenset(_rows(*validation)),
            self._texts(files),
        )

    def _split_text(self, files: Files, split: SplitName, usual: tuple[str, ...]) -> tuple[str, str] | None:
        """Name and content of the file that `split` needs; None where another split is asked for."""
        if self.split != split:
            return None
        name_and_text = files.optional_text(self.split_file, usual)
        if name_and_text is None:
            raise ConfigError(f"{self.root}: split {split!r} needs {usual[0]} (or `split_file`)")
        return name_and_text

    def _texts(self, files: Files) -> Mapping[int, Mapping[str, str] | InputError]:
        """Captions by number, or the error of the row. CelebAMask-HQ has none."""
        return {}

    def _labels(self, number: int, annotations: _Annotations) -> dict[str, Any]:
        """Split, attributes, identity and texts of a picture; `InputError` where an annotation file lacks it."""
        texts = annotations.texts.get(number)
        if isinstance(texts, InputError):
            raise texts
        celeba = None if annotations.celeba is None else annotations.celeba.get(number)
        if self.split == "official" and celeba is None:
            raise InputError(f"picture {number} is not in the mapping file", reason="split")
        return {
            "split": split_of(self.split, number, celeba_index=celeba, validation=annotations.validation),
            "attributes": _line(number, annotations.attributes, "attributes"),
            "identity_id": _line(number, annotations.identities, "identity"),
            "texts": None if texts is None else list(texts.items()),
        }

    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row."""
        if listed["problem"] is not None:
            raise InputError(listed["problem"], reason=listed["reason"])
        mask: UInt8Array | None = None
        if listed["mask"] is not None and listed["parts"] is None:
            mask = read_mask(listed["mask"])
        elif listed["mask"] is not None:
            names = {name.rsplit("/", 1)[-1].split("_", 1)[1].removesuffix(".png"): name for name in listed["parts"]}
            mask = merge_parts({part: decode_image(read(f"{listed['mask']}/{name}")) for part, name in names.items()})
        return {
            "split": listed["split"],
            "attributes": None if listed["attributes"] is None else attribute_values(listed["attributes"]),
            "texts": listed["texts"],
            "identity_id": listed["identity_id"],
            **self.fitted(listed["image"], mask),
        }


class CelebAMask(CelebAFiles):
    """CelebAMask-HQ: 30,000 faces at 1024 px, masks of 19 classes at 512 px, 40 attributes."""

    kind: Literal["celebamask"] = "celebamask"


def _mask_names(names: Iterable[str], *, bare: bool) -> dict[int, str]:
    """Number -> name of its mask; of several the shortest: `1.png`, `1_mask.png`, `1_mask_256_palette.png`.

    `bare`: whether `1.png` is a mask.
    """
    masks: dict[int, tuple[int, str]] = {}
    for name in names:
        match = _MASK.fullmatch(name)
        if match and (bare or match[2]):
            candidate = (len(match[2] or ""), name)
            masks[int(match[1])] = min(masks.get(int(match[1]), candidate), candidate)
    return {number: name for number, (_, name) in masks.items()}


def _line(number: int, lines: Mapping[int, str] | None, reason: str) -> str | None:
    """The line of a picture; `InputError` where the file has none, because it was cut off then."""
    if lines is None:
        return None
    if number not in lines:
        raise InputError(f"picture {number} has no line in the file", reason=reason)
    return lines[number]
