"""CelebAMask-HQ: pictures, masks (one file a part, or one a picture), attributes, splits, identities.

Layouts: `CelebA-HQ-img/{i}.jpg` with `CelebAMask-HQ-mask-anno/{i // 2000}/{i:05d}_{part}.png`, or with a folder of
index or palette masks `{i}.png`; and one flat folder of `{i}.jpg` and `{i}_mask.png` or `{i}_mask_*.png`.
A picture is named by its CelebA-HQ number, so a subset of the pictures keeps every published split.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import CLASSES, SplitName, split_of
from raygen.core.location import RelativeLocation
from raygen.core.types import BoolArray, UInt8Array
from raygen.datasets.annotations import (
    CELEBA_HQ,
    attribute_lines,
    attribute_note,
    attribute_values,
    lines_by_number,
    number_of,
    refuse_celeba_numbers,
)
from raygen.datasets.files import Files, base_name, join, left_out, refuse_collisions
from raygen.datasets.pictures import LABELS, PictureFiles, is_picture, most_pixels, read_mask, read_part
from raygen.store.class_ids import LabelOrder
from raygen.store.schemas import FACES

__all__ = ["CelebAFiles", "CelebAMask", "merge_parts"]


IMAGE_FOLDERS: Final = ("CelebA-HQ-img", "image", "images", "")
PARTS_FOLDER: Final = "CelebAMask-HQ-mask-anno"
MASK_FOLDERS: Final = (
    "CelebAMaskHQ-mask",
    "CelebAMask-HQ-mask",
    "CelebAMask-HQ-mask-color-palette",
    "mask/CelebAMask-HQ-mask-color-palette",
    "CelebAMask-HQ-mask-color",
    "mask/CelebAMask-HQ-mask-color",
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

_IMAGE: Final = re.compile(r"([0-9]+)\.(?:jpe?g|jpe|jfif|png|webp)", re.IGNORECASE)
_MASK: Final = re.compile(r"([0-9]+)(_mask(?:_\w+)?)?\.(?:png|jpe?g|webp|bmp|tiff?|pgm)", re.IGNORECASE)
_PART: Final = re.compile(r"(?:[0-9]+/)?([0-9]+)_(\w+)\.(?:png|jpe?g|webp|bmp|tiff?|pgm)", re.IGNORECASE)
#: Parts that can reach every corner of a picture. Another one that does is a mask of all that is not the part.
_LARGE: Final = frozenset({"skin", "hair", "hat", "neck", "cloth"})

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


def merge_parts(parts: Mapping[str, BoolArray]) -> UInt8Array:
    """Masks bool [H, W] by part name -> class indices [H, W].

    Later parts of the official class order cover earlier ones (CelebAMask-HQ `g_mask.py`). `InputError`: `size` where
    the sizes differ, `part` where a small part covers all corners.
    """
    if len({part.shape for part in parts.values()}) != 1:
        raise InputError("the parts of one mask differ in size", reason="size")
    mask = np.zeros(next(iter(parts.values())).shape, np.uint8)
    for index, name in enumerate(CLASSES):
        if name not in parts:
            continue
        part = parts[name]
        if name not in _LARGE and part.size > 4 and part[[0, 0, -1, -1], [0, -1, 0, -1]].all():
            raise InputError(f"the part {name} covers all corners, so it seems to be inverted", reason="part")
        mask[part] = index
    return mask


class _Annotations(NamedTuple):
    """The content of the annotation files by CelebA-HQ number; None for a missing file.

    `celeba`: 0-based CelebA numbers, from the mapping file.
    """

    attributes: Mapping[int, str] | None
    identities: Mapping[int, str] | None
    celeba: Mapping[int, int] | None
    validation: frozenset[int] | None
    texts: Mapping[int, Mapping[str, str] | InputError]


def _rows(source: str, text: str) -> dict[int, list[str]]:
    """See `lines_by_number`, for a file without a header; `ConfigError` where it has no lines."""
    rows = lines_by_number(source, enumerate(text.splitlines(), start=1))
    if not rows:
        raise ConfigError(f"{source}: has no lines")
    return rows


# --- the data set -------------------------------------------------------------------------------------------


class CelebAFiles(PictureFiles):
    """The pictures, masks and text files of CelebA-HQ: the base of CelebAMask-HQ and CelebA-Dialog."""

    images: RelativeLocation | None = Field(
        None, description="folder of the pictures; default: found by its usual names"
    )
    masks: Literal["auto", "parts", "index"] = Field(
        "auto",
        description="parts: one PNG per class and face; index: ready-made class-index masks; "
        "auto: whichever exists, or no masks",
    )
    mask_folder: RelativeLocation | None = Field(
        None, description="folder of the ready-made masks; default: found by its usual names"
    )
    labels: LabelOrder = Field("celebamask", description=LABELS)
    attributes: RelativeLocation | None = Field(None, description="attribute file; default: found by its usual name")
    identities: RelativeLocation | None = Field(None, description="identity file; default: found by its usual name")
    split: SplitName = Field("codiff", description="which published split into train, val and test is used")
    split_file: RelativeLocation | None = Field(
        None, description="file of the split: the validation list for taming, the mapping to CelebA for official"
    )

    def listing(self) -> pa.Table:
        """A row a picture, in the order of the numbers; `reason` and `problem` say why a row cannot be loaded."""
        files = Files(self.root, self.max_file_bytes)
        images, others = self._images(files)
        parts, masks, unread = self._masks(files)
        if not (parts or masks) and self.masks != "auto":
            raise ConfigError(f"{self.root}: holds no masks of the kind {self.masks!r}")
        if self.labels != "celebamask" and not masks:
            raise ConfigError(f"{self.root}: `labels: {self.labels}` is for masks of class indices, and there are none")
        annotations = self._annotations(files)
        for source in ("attributes", "identities", "texts"):
            refuse_celeba_numbers(f"{self.root}: {source}", getattr(annotations, source) or (), images)
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
        notes = (others, unread, *self._remarks(rows, images, annotations, files))
        return self.listing_table(files, rows, LISTING, "; ".join(filter(None, notes)))

    def _remarks(
        self, rows: Sequence[Mapping[str, Any]], images: Mapping[int, str], annotations: _Annotations, files: Files
    ) -> Iterator[str]:
        """What the user should know of labels that are no errors."""
        if annotations.texts and (without := sum(not row.get("texts") for row in rows)):
            yield f"texts: {len(rows) - without:,} of {len(rows):,}"
        if above := sum(number >= CELEBA_HQ for number in images):
            yield f"{above:,} pictures have numbers that CelebA-HQ has not: split {self.split!r} says nothing of them"
        if annotations.attributes is not None:
            yield attribute_note(annotations.attributes)
        elif tables := [n for n in files.names(depth=1) if re.search(r"attr.*\.(txt|csv|tsv)$", n, re.IGNORECASE)]:
            yield f"no attributes: {', '.join(tables[:3])} has not the usual name; `attributes` names the file"

    def _images(self, files: Files) -> tuple[dict[int, str], str]:
        """Number -> name of the picture, from the first folder that has any; and a note on its other files."""
        for folder in IMAGE_FOLDERS if self.images is None else (self.images,):
            names = files.names(folder, depth=1)
            images = [(match[1], name) for name in names if (match := _IMAGE.fullmatch(name))]
            refuse_collisions((f"{int(number):05d}", name) for number, name in images)
            if images:
                rest = [name for name in names if not _IMAGE.fullmatch(name)]
                # One flat folder has the masks and text files too.
                others = left_out(n for n in rest if folder or (is_picture(n) and "_mask" not in n.lower()))
                return {int(number): f"{folder}/{name}" if folder else name for number, name in images}, others
        folders = f"in {self.images}/" if self.images else f"in {'/, '.join(IMAGE_FOLDERS[:-1])}/ or flat"
        raise ConfigError(f"{self.root}: holds no pictures named by number {folders}{files.examples()}")

    def _masks(self, files: Files) -> tuple[dict[int, list[str]], dict[int, str], str]:
        """Number -> names of its part files, and number -> address of its single mask, of which one is empty.

        And a note on parts that are of no class.
        """
        parts: dict[int, list[str]] = {}
        unknown: Counter[str] = Counter()
        if self.masks != "index" and self.mask_folder is None:
            for name in files.names(PARTS_FOLDER, depth=2):
                if (match := _PART.fullmatch(name)) and match[2].lower() in CLASSES[1:]:
                    parts.setdefault(int(match[1]), []).append(name)
                elif match:
                    unknown[match[2]] += 1
        if parts or self.masks == "parts":
            names_of_some = ", ".join(f"{n:,} {part}" for part, n in unknown.most_common(8))
            return parts, {}, f"parts of no class, not read: {names_of_some}" if unknown else ""
        if self.mask_folder is not None:
            folder_files = Files(files.address(self.mask_folder))
            names = _mask_names(folder_files.names(depth=1), bare=True)
            return {}, {n: folder_files.address(name) for n, name in names.items()}, ""
        for folder in MASK_FOLDERS:
            # In the folder of the pictures a bare number is a picture, so only `_mask` names are masks there.
            if names := _mask_names(files.names(folder, depth=1), bare=bool(folder)):
                return {}, {n: files.address(f"{folder}/{name}" if folder else name) for n, name in names.items()}, ""
        return {}, {}, ""

    def _annotations(self, files: Files) -> _Annotations:
        attributes = files.optional_text(self.attributes, ATTRIBUTE_FILES)
        identities = files.optional_text(self.identities, IDENTITY_FILES)
        celeba = self._split_text(files, "official", MAPPING_FILES)
        validation = self._split_text(files, "taming", VALIDATION_FILES)
        celeba_numbers: dict[int, int] | None = None
        if celeba is not None:
            source, text = celeba
            lines = list(enumerate(text.splitlines(), start=1))
            if lines and number_of(re.split(r"[\s,;]", lines[0][1].strip())[0]) is None:
                lines = lines[1:]  # without the header
            try:
                celeba_numbers = {number: int(words[0]) for number, words in lines_by_number(source, lines).items()}
            except (IndexError, ValueError) as error:
                raise ConfigError(f"{source}: a line has no CelebA number ({error})") from error
        return _Annotations(
            None if attributes is None else attribute_lines(*attributes),
            None if identities is None else {n: " ".join(words) for n, words in _rows(*identities).items() if words},
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
        identity = _line(number, annotations.identities, "identity")
        if identity is not None and " " in identity:
            raise InputError(f"picture {number} has the identity {identity[:60]!r}, not one word", reason="identity")
        return {
            "split": split_of(self.split, number, celeba_index=celeba, validation=annotations.validation),
            "attributes": _line(number, annotations.attributes, "attributes"),
            "identity_id": identity,
            "texts": None if texts is None else list(texts.items()),
        }

    def row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The FACES row of one listing row."""
        if listed["problem"] is not None:
            raise InputError(listed["problem"], reason=listed["reason"])
        mask: UInt8Array | None = None
        if listed["mask"] is not None and listed["parts"] is None:
            mask = read_mask(listed["mask"], self.labels, self.max_file_bytes, most_pixels(self.size))
        elif listed["mask"] is not None:
            parts: dict[str, BoolArray] = {}
            for address in (join(listed["mask"], name) for name in listed["parts"]):
                match = _PART.fullmatch(base_name(address))
                assert match is not None
                if (part := match[2].lower()) in parts:
                    raise InputError(f"{address}: a second file of the part {part}", reason="part")
                parts[part] = read_part(address, self.max_file_bytes, most_pixels(self.size))
            mask = merge_parts(parts)
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

    PNG is taken before other endings. `bare`: whether `1.png` is a mask. `ConfigError` where two masks are as good.
    """
    masks: dict[int, tuple[int, bool, str]] = {}
    for name in names:
        match = _MASK.fullmatch(name)
        if match and (bare or match[2]):
            candidate = (len(match[2] or ""), not name.lower().endswith(".png"), name)
            best = masks.get(int(match[1]), candidate)
            if best[:2] == candidate[:2] and best != candidate:
                raise ConfigError(f"{best[2]!r} and {name!r} would both be the mask of picture {match[1]}; remove one")
            masks[int(match[1])] = min(best, candidate)
    return {number: name for number, (*_, name) in masks.items()}


def _line(number: int, lines: Mapping[int, str] | None, reason: str) -> str | None:
    """The line of a picture; `InputError` where the file has none, because it was cut off then."""
    if lines is None:
        return None
    if number not in lines:
        raise InputError(f"picture {number} has no line in the file", reason=reason)
    return lines[number]
