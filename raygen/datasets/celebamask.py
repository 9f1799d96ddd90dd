"""CelebAMask-HQ as people have it: pictures, masks in parts or ready-made, attributes, splits, identities.

Knows the published folder names, the order in which parts are merged, and the text files beside the pictures.
Knows no captions (see celeba_dialog).

Layouts: `CelebA-HQ-img/{i}.jpg` with `CelebAMask-HQ-mask-anno/{i // 2000}/{i:05d}_{part}.png`, or with a folder of
index or palette masks `{i}.png`; and one flat folder of `{i}.jpg` and `{i}_mask.png` or `{i}_mask_*.png`.
A picture is named by its CelebA-HQ number, so a subset of the pictures keeps every published split.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import ATTRIBUTES, CLASSES, Split, SplitName, split_of
from raygen.datasets.folder import Files, PictureFiles, read, read_mask, refuse_collisions
from raygen.store.images import decode_image

__all__ = ["CelebAFiles", "CelebAMask", "attribute_values", "merge_parts", "number_of"]


UInt8Array = npt.NDArray[np.uint8]

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
        ("texts", pa.map_(pa.string(), pa.string())),
        ("identity_id", pa.string()),
        ("reason", pa.string()),
        ("problem", pa.string()),
    ]
)


def number_of(name: str) -> int | None:
    """CelebA-HQ number in `12.jpg`, `00012`, `imgHQ00012.npy`; None where there is none."""
    match = re.fullmatch(r"\D*(\d+)(?:\.\w+)?", name)
    return int(match[1]) if match else None


def merge_parts(parts: Mapping[str, UInt8Array]) -> UInt8Array:
    """Part name -> picture of where it is (non-zero), any of [H, W, 3], to class indices [H, W].

    Parts are laid down in the official class order, each over the earlier ones (CelebAMask-HQ `g_mask.py`).
    `InputError` (`size`) where the parts are not of one size.
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
    """`12.jpg a b` lines -> {12: [a, b]}; `ConfigError` naming the line that names no picture, or one again."""
    found: dict[int, list[str]] = {}
    for line_number, line in lines:
        first, *rest = line.split() or [""]
        number = number_of(first)
        if first and (number is None or number in found):
            fault = "names no picture" if number is None else f"names picture {number} a second time"
            raise ConfigError(f"{source}, line {line_number}: {fault}")
        if number is not None:
            found[number] = rest
    return found


def _attribute_lines(source: str, text: str) -> dict[int, str]:
    """Picture -> its values in the order of `ATTRIBUTES`, still as text: a bad line costs one row, not the run."""
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


def _celeba_numbers(source: str, text: str) -> dict[int, int]:
    """CelebA-HQ number -> 0-based CelebA number, from the mapping file (its first line is a header)."""
    rows = _lines_by_number(source, list(enumerate(text.splitlines(), start=1))[1:])
    try:
        return {number: int(words[0]) for number, words in rows.items()}
    except (IndexError, ValueError) as error:
        raise ConfigError(f"{source}: a line has no CelebA number ({error})") from error


class _Beside(NamedTuple):
    """What the files beside the pictures say, by CelebA-HQ number; None where there is no such file."""

    attributes: Mapping[int, str] | None
    identities: Mapping[int, str] | None
    celeba: Mapping[int, int] | None
    validation: frozenset[int] | None
    texts: Mapping[int, Mapping[str, str] | InputError]


# --- the data set -------------------------------------------------------------------------------------------


class CelebAFiles(PictureFiles):
    """The pictures, masks and text files of CelebA-HQ; what CelebAMask-HQ and CelebA-Dialog share."""

    images: str | None = Field(None, description="folder of the pictures; none looks for the usual names")
    masks: Literal["auto", "parts", "index"] = Field(
        "auto", description="parts: one PNG a class; index: ready-made masks; auto: what is there, or no masks"
    )
    mask_folder: str | None = Field(None, description="folder of the ready-made masks; none looks for the usual names")
    attributes: str | None = Field(None, description="attribute file; none looks for its usual name")
    identities: str | None = Field(None, description="identity file; none looks for its usual name")
    split: SplitName = Field("codiff", description="published split")
    split_file: str | None = Field(None, description="validation list (taming) or mapping file (official)")

    def listing(self) -> pa.Table:
        """One row a picture in order of its number; what is missing for a row is said in it, as its problem."""
        files = Files(self.root)
        images = self._images(files)
        numbers = sorted(images)[: self.limit]
        parts, masks = self._masks(files)
        if not (parts or masks) and self.masks != "auto":
            raise ConfigError(f"{self.root}: holds no masks of the kind {self.masks!r}")
        beside = self._beside(files)
        rows = [
            {
                "face_id": f"{number:05d}",
                "image": files.address(images[number]),
                "mask": files.address(PARTS_FOLDER) if number in parts else masks.get(number),
                "parts": parts.get(number),
                **self._known(number, beside, has_mask=number in parts or number in masks),
            }
            for number in numbers
        ]
        return pa.Table.from_pylist(rows, LISTING)

    def _images(self, files: Files) -> dict[int, str]:
        """Number -> name of the picture, from the first folder that has any."""
        for folder in IMAGE_FOLDERS if self.images is None else (self.images,):
            found = [(match[1], name) for name in files.names(folder, depth=1) if (match := _IMAGE.fullmatch(name))]
            refuse_collisions((f"{int(number):05d}", name) for number, name in found)
            if found:
                return {int(number): f"{folder}/{name}" if folder else name for number, name in found}
        raise ConfigError(f"{self.root}: holds no pictures named by number ({'/, '.join(IMAGE_FOLDERS[:-1])}/ or flat)")

    def _masks(self, files: Files) -> tuple[dict[int, list[str]], dict[int, str]]:
        """Number -> names of its parts, and number -> address of its ready-made mask; one of them is empty."""
        parts: dict[int, list[str]] = {}
        if self.masks != "index" and self.mask_folder is None:
            for name in files.names(PARTS_FOLDER, depth=2):
                if match := _PART.fullmatch(name):
                    parts.setdefault(int(match[1]), []).append(name)
        if parts or self.masks == "parts":
            return parts, {}
        return {}, self._ready_masks(files)

    def _ready_masks(self, files: Files) -> dict[int, str]:
        if self.mask_folder is not None:
            given = Files(files.address(self.mask_folder))
            return {n: given.address(name) for n, name in _mask_names(given.names(depth=1), bare=True).items()}
        for folder in MASK_FOLDERS:
            # Beside the pictures a bare number is a picture, so only `_mask` names are masks there.
            if found := _mask_names(files.names(folder, depth=1), bare=bool(folder)):
                return {n: files.address(f"{folder}/{name}" if folder else name) for n, name in found.items()}
        return {}

    def _beside(self, files: Files) -> _Beside:
        attributes = files.optional_text(self.attributes, ATTRIBUTE_FILES)
        identities = files.optional_text(self.identities, IDENTITY_FILES)
        celeba = self._split_text(files, "official", MAPPING_FILES)
        validation = self._split_text(files, "taming", VALIDATION_FILES)
        return _Beside(
            None if attributes is None else _attribute_lines(*attributes),
            None if identities is None else _identities(*identities),
            None if celeba is None else _celeba_numbers(*celeba),
            None if validation is None else _validation(*validation),
            self._texts(files),
        )

    def _split_text(self, files: Files, split: SplitName, usual: tuple[str, ...]) -> tuple[str, str] | None:
        if self.split != split:
            return None
        found = files.optional_text(self.split_file, usual)
        if found is None:
            raise ConfigError(f"{self.root}: split {split!r} needs {usual[0]} (or `split_file`)")
        return found

    def _texts(self, files: Files) -> Mapping[int, Mapping[str, str] | InputError]:
        """Captions by number: none here."""
        return {}

    def _known(self, number: int, beside: _Beside, *, has_mask: bool) -> dict[str, Any]:
        """Everything but the pictures of one listing row, or why the row cannot be made."""
        try:
            if not has_mask and self.masks != "auto":
                raise InputError(f"picture {number} has no mask of the kind {self.masks!r}", reason="no_mask")
            texts = beside.texts.get(number)
            if isinstance(texts, InputError):
                raise texts
            return {
                "split": self._part(number, beside),
                "attributes": _line(number, beside.attributes, "attributes"),
                "identity_id": _line(number, beside.identities, "identity"),
                "texts": None if texts is None else list(texts.items()),
            }
        except InputError as error:
            return {"reason": error.reason, "problem": error.args[0]}

    def _part(self, number: int, beside: _Beside) -> Split:
        celeba = None if beside.celeba is None else beside.celeba.get(number)
        if self.split == "official" and celeba is None:
            raise InputError(f"picture {number} is not in the mapping file", reason="split")
        return split_of(self.split, number, celeba_index=celeba, validation=beside.validation)

    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row."""
        if listed["problem"] is not None:
            raise InputError(listed["problem"], reason=listed["reason"])
        return {
            "split": listed["split"],
            "attributes": None if listed["attributes"] is None else attribute_values(listed["attributes"]),
            "texts": listed["texts"],
            "identity_id": listed["identity_id"],
            **self.fitted(listed["image"], _mask_of(listed)),
        }


class CelebAMask(CelebAFiles):
    """CelebAMask-HQ: 30,000 faces at 1024 px, masks of 19 classes at 512 px, 40 attributes."""

    kind: Literal["celebamask"] = "celebamask"


def _mask_names(names: Iterable[str], *, bare: bool) -> dict[int, str]:
    """Number -> mask name. Of several the shortest ending counts: `1.png`, `1_mask.png`, `1_mask_256_palette.png`."""
    found: dict[int, tuple[int, str]] = {}
    for name in names:
        match = _MASK.fullmatch(name)
        if match and (bare or match[2]):
            candidate = (len(match[2] or ""), name)
            found[int(match[1])] = min(found.get(int(match[1]), candidate), candidate)
    return {number: name for number, (_, name) in found.items()}


def _identities(source: str, text: str) -> dict[int, str]:
    rows = _lines_by_number(source, enumerate(text.splitlines(), start=1))
    return {number: words[0] for number, words in rows.items() if words}


def _validation(source: str, text: str) -> frozenset[int]:
    return frozenset(_lines_by_number(source, enumerate(text.splitlines(), start=1)))


def _line(number: int, lines: Mapping[int, str] | None, reason: str) -> str | None:
    """What the file says of a picture. A file that is there and skips a picture is cut short, not silent."""
    if lines is None:
        return None
    if number not in lines:
        raise InputError(f"picture {number} has no line in the file", reason=reason)
    return lines[number]


def _mask_of(listed: Mapping[str, Any]) -> UInt8Array | None:
    if listed["mask"] is None or listed["parts"] is None:
        return None if listed["mask"] is None else read_mask(listed["mask"])
    names = {name.rsplit("/", 1)[-1].split("_", 1)[1].removesuffix(".png"): name for name in listed["parts"]}
    return merge_parts({part: decode_image(read(f"{listed['mask']}/{name}")) for part, name in names.items()})
