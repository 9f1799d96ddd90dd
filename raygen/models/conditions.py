"""Rows -> tensors: decoded conditions with a presence flag a modality, condition dropout, and null conditions.

A bad row becomes an error string and a null slot.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raygen.core.errors import InputError
from raygen.core.face_labels import ATTRIBUTES, CLASSES, attribute_list
from raygen.core.types import AnyArray, Float32Array, UInt8Array
from raygen.models.config.conditions import STYLE_COLUMNS, ConditionDropout
from raygen.store.images import decode_image, decode_mask, fit_image, fit_mask
from raygen.store.lookup import RowLookup
from raygen.store.schemas import reason_of

__all__ = ["Conditions", "Shapes", "Tokenize", "drop", "style_of", "to_device"]

#: Those that are pictures.
PICTURES: Final = ("mask", "hint")
#: Texts -> token ids int64 [n, length].
Tokenize = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model's conditions (side of masks, length of texts), its tokenizer, and the faces of references."""

    mask_size: int = 0
    text_length: int = 0
    tokenize: Tokenize | None = None
    references: RowLookup | None = None


@dataclass(frozen=True)
class Conditions:
    """Conditions of `n` pictures. A slot whose `present[m]` is False holds zeros and is not conditioned on m.

    `mask`: class indices uint8 [n, H, W]; `attributes`: float [n, 40] of -1, 0 (unknown), 1; `text`: token ids int64
    [n, L]; `hint`: a picture of where things are (a pose, edges), uint8 [n, H, W, 3]; `style`: two references, uint8
    [n, 2, 4, H, W] (red, green, blue, class), and `style_weights`, how much of each class is taken from each, float
    [n, 2, 19]. A modality that the model does not take is None and not in `present`. `present`: bool [n] a modality.
    """

    n: int
    mask: Tensor | None = None
    attributes: Tensor | None = None
    text: Tensor | None = None
    hint: Tensor | None = None
    style: Tensor | None = None
    style_weights: Tensor | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def null(cls, n: int, modalities: Iterable[str], shapes: Shapes = Shapes(), device: Any = "cpu") -> "Conditions":
        """`n` slots without conditions."""
        names, side = tuple(modalities), shapes.mask_size
        return cls(
            n=n,
            mask=torch.zeros(n, side, side, dtype=torch.uint8, device=device) if "mask" in names else None,
            attributes=torch.zeros(n, len(ATTRIBUTES), device=device) if "attributes" in names else None,
            text=torch.zeros(n, shapes.text_length, dtype=torch.int64, device=device) if "text" in names else None,
            hint=torch.zeros(n, side, side, 3, dtype=torch.uint8, device=device) if "hint" in names else None,
            style=torch.zeros(n, 2, 4, side, side, dtype=torch.uint8, device=device) if "style" in names else None,
            style_weights=torch.zeros(n, 2, len(CLASSES), device=device) if "style" in names else None,
            present={name: torch.zeros(n, dtype=torch.bool, device=device) for name in names},
        )

    @classmethod
    def from_rows(
        cls,
        rows: pa.Table,
        modalities: Collection[str],
        *,
        required: Collection[str] = (),
        shapes: Shapes = Shapes(),
    ) -> "tuple[Conditions, list[str | None]]":
        """Conditions of CONDITIONS or FACES rows, and an error (or None) for each row.

        Masks are brought to `shapes.mask_size` (square, nearest neighbour). A row gets an error and an all-null slot
        where a picture cannot be decoded, a label is above 18, sizes do not fit, an attribute is not -1, 0 or 1, a
        text is not text, or a required condition is missing; a condition that is only absent stays null.
        """
        n = rows.num_rows
        errors: list[str | None] = [None] * n
        columns = set(modalities) - {"style"}
        values = {name: _read_column(rows, name, name in required, shapes, errors) for name in columns}
        result = cls.null(n, modalities, shapes)
        for name, items in values.items():
            column = result.values()[name]
            for i, item in enumerate(items):
                if item is not None and errors[i] is None:
                    column[i] = torch.as_tensor(item)
                    result.present[name][i] = True
        if result.style is not None and result.style_weights is not None:
            for i, row in enumerate(rows.select([c for c in STYLE_COLUMNS if c in rows.column_names]).to_pylist()):
                try:
                    mask = values["mask"][i] if "mask" in values else None
                    references = style_of(row, shapes, mask) if errors[i] is None else None
                except InputError as error:
                    errors[i] = reason_of(error)
                    for tensor in (*result.present.values(), *result.values().values()):
                        tensor[i] = 0
                    continue
                if references is not None:
                    result.style[i], result.style_weights[i] = map(torch.as_tensor, references)
                    result.present["style"][i] = True
        return result, errors

    def values(self) -> dict[str, Tensor]:
        """The tensors of all modalities that the model takes, by name."""
        pairs = {
            "mask": self.mask,
            "attributes": self.attributes,
            "text": self.text,
            "hint": self.hint,
            "style": self.style,
            "style_weights": self.style_weights,
        }
        return {name: value for name, value in pairs.items() if value is not None}

    @property
    def modalities(self) -> frozenset[str]:
        """The modalities that the model takes."""
        return frozenset(self.present)

    def keep(self, names: Collection[str]) -> "Conditions":
        """The same slots conditioned on `names` alone."""
        present = {m: flag if m in names else torch.zeros_like(flag) for m, flag in self.present.items()}
        return replace(self, present=present)

    def to(self, device: Any) -> "Conditions":
        """The same conditions on `device`."""
        return self._map(lambda x: to_device(x, device))

    def take(self, index: Tensor | slice) -> "Conditions":
        """The slots of `index`, in its order."""
        taken = self._map(lambda x: x[index])
        n = len(range(*index.indices(self.n))) if isinstance(index, slice) else len(index)
        return replace(taken, n=n)

    def pad(self, n: int) -> "Conditions":
        """`n` slots: these, then null ones. `ValueError` if there are more already."""
        if n < self.n:
            raise ValueError(f"{self.n} slots do not fit into {n}")
        more = n - self.n
        padded = self._map(lambda x: torch.cat([x, x.new_zeros((more, *x.shape[1:]))])) if more else self
        return replace(padded, n=n)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        changed: Mapping[str, Any] = {name: change(value) for name, value in self.values().items()}
        return replace(self, present={name: change(flag) for name, flag in self.present.items()}, **changed)


# --- reading rows -------------------------------------------------------------------------------------------


def _read_column(
    rows: pa.Table, name: str, required: bool, shapes: Shapes, errors: list[str | None]
) -> list[AnyArray | Tensor | None]:
    """One array (or None) a row; the first error of a row is written into `errors`."""
    column = rows.column(name).to_pylist() if name in rows.column_names else [None] * rows.num_rows
    result: list[AnyArray | Tensor | None] = [None] * rows.num_rows
    for i, value in enumerate(column):
        try:
            if value is not None and not (name in PICTURES and value["bytes"] is None):
                result[i] = _read_value(name, value, shapes)
            elif required:
                raise InputError(f"the model needs {name!r}", reason="missing")
        except InputError as error:
            errors[i] = errors[i] or reason_of(error)
    return result


def _read_value(name: str, value: Any, shapes: Shapes) -> AnyArray | Tensor:
    """One condition of one row as an array of the model's size."""
    if name == "mask":
        return fit_mask(decode_mask(value["bytes"]), shapes.mask_size)
    if name == "hint":
        return fit_image(decode_image(value["bytes"]), shapes.mask_size).copy()
    if name == "attributes":
        for attribute, item in value.items():
            if item not in (-1, 0, 1):
                raise InputError(f"{attribute} is {item}, not -1, 0 or 1", reason="attributes")
        return np.asarray(attribute_list(value), dtype=np.float32)
    if not isinstance(value, str):
        raise InputError(f"the text is a {type(value).__name__}", reason="text")
    if shapes.tokenize is None:
        raise TypeError("texts need a tokenizer")
    return shapes.tokenize([value])[0]


def style_of(
    row: Mapping[str, Any], shapes: Shapes, mask: AnyArray | Tensor | None = None
) -> tuple[UInt8Array, Float32Array] | None:
    """The references of a row uint8 [2, 4, S, S] and the weight of each class float32 [2, 19]; None without references.

    All classes are those of `style_reference_a` except the `style_parts`, which are (1 - mix) of a and mix of b.
    Without `style_parts` all classes are mixed; without `style_mix` it is 1. A class that a reference lacks has weight
    0. `InputError`: `style` for a reference without mask, of another content than planned, a part above 18, or named
    parts that neither `mask`, the row's own, nor a reference has; and those of decoding pictures and masks.
    """
    names = [None if row.get(c) is None else row[c]["face_id"] for c in ("style_reference_a", "style_reference_b")]
    if names == [None, None]:
        return None
    if shapes.references is None:
        raise InputError("the row takes its style from a face, and there is no folder of faces", reason="style")
    parts = list(row.get("style_parts") or range(len(CLASSES)))
    if wrong := [part for part in parts if part >= len(CLASSES)]:
        raise InputError(f"part {wrong[0]} is above {len(CLASSES) - 1}", reason="style")
    mix = 1.0 if row.get("style_mix") is None else float(row["style_mix"])
    mixes = row.get("style_reference_b") is not None or row.get("style_parts") or row.get("style_mix") is not None
    share = np.zeros(len(CLASSES), dtype=np.float32)
    share[parts] = mix if mixes else 0.0
    weights = np.stack([1 - share, share])
    references = np.zeros((2, 4, shapes.mask_size, shapes.mask_size), dtype=np.uint8)
    for i, name in enumerate(names):
        if name is None:
            weights[i] = 0
            continue
        references[i] = _reference(shapes, name, row[("style_reference_a", "style_reference_b")[i]].get("sha256"))
        weights[i] *= np.isin(np.arange(len(CLASSES)), references[i, 3])
    masks = [
        np.asarray(labels) for labels in (mask, *references[[n is not None for n in names], 3]) if labels is not None
    ]
    if row.get("style_parts") and not any(np.isin(labels, parts).any() for labels in masks):
        listed = ", ".join(CLASSES[part] for part in parts)
        raise InputError(f"neither the mask nor a reference has {listed}", reason="style")
    return references, weights


def _reference(shapes: Shapes, name: str, sha256: str | None) -> UInt8Array:
    """A face's picture and mask [4, S, S]."""
    assert shapes.references is not None
    face = shapes.references([name])[name]
    image, mask = ((face.get(c) or {}).get("bytes") for c in ("image", "mask"))
    if mask is None:
        raise InputError(f"reference {name!r} has no mask", reason="style")
    if sha256 is not None and hashlib.sha256(image or b"").hexdigest() != sha256:
        raise InputError(f"reference {name!r} is another picture than the one planned", reason="style")
    pixels, labels = decode_image(image), decode_mask(mask)
    if pixels.shape[:2] != labels.shape:
        sizes = f"{labels.shape[1]}x{labels.shape[0]}, its picture {pixels.shape[1]}x{pixels.shape[0]}"
        raise InputError(f"the mask of reference {name!r} is {sizes}", reason="style")
    fitted = fit_image(pixels, shapes.mask_size)
    return np.concatenate([fitted.transpose(2, 0, 1), fit_mask(labels, shapes.mask_size)[None]])


# --- condition dropout --------------------------------------------------------------------------------------


def drop(conditions: Conditions, probabilities: ConditionDropout, uniform: Tensor) -> Conditions:
    """Hide conditions of each slot by its number in [0, 1): `uniform` float [n].

    [0, null) hides all; then one interval a modality, in alphabetic order, leaves only that one.
    """
    present = {name: flag & (uniform >= probabilities.null) for name, flag in conditions.present.items()}
    low = probabilities.null
    for name in sorted(probabilities.only):
        high = low + probabilities.only[name]
        alone = (uniform >= low) & (uniform < high)
        present = {m: flag if m == name else flag & ~alone for m, flag in present.items()}
        low = high
    return replace(conditions, present=present)


def to_device(x: Tensor, device: Any) -> Tensor:
    """`x` on `device`. A copy to a GPU is from pinned memory, so that this thread does not wait for it.

    torch keeps pinned memory until the copies out of it have ended.
    """
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
