"""Training data in memory, its seeded order and its keyed noise.

FACES and LATENTS tables become arrays. Every position in the stream of epochs has its own row and random numbers.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from raygen.core.errors import InputError
from raygen.core.face_labels import flip_mask
from raygen.core.types import AnyArray
from raygen.models.conditions import Conditions, Shapes, Tokenize
from raygen.store.images import images_from_rows
from raygen.store.schemas import texts_by_name

__all__ = ["TrainingData", "draw", "load_training_data", "order", "texts_of"]


#: Numbers of one box, and of one keypoint.
WIDTHS: Final = {"boxes": 4, "keypoints": 3}
POINT: Final = WIDTHS["keypoints"]


@dataclass(frozen=True)
class TrainingData:
    """A data set in memory. Row i trains on face `face[i]`, mirrored beforehand if `flipped[i]`.

    `images` uint8 [F, H, W, 3], or `moments` float16 [N, ...], or both; conditions a face, as in `Conditions`.
    `places`: boxes float32 [F, K, 4] and keypoints [F, K, 3] by name, zeros where a face has fewer.
    `identity` int64 [F]: index of the person, in the order of their names.
    """

    ids: tuple[str, ...]
    face: AnyArray
    flipped: AnyArray
    images: AnyArray | None = None
    moments: AnyArray | None = None
    mask: AnyArray | None = None
    attributes: AnyArray | None = None
    text: AnyArray | None = None
    hint: AnyArray | None = None
    present: Mapping[str, AnyArray] = field(default_factory=dict)
    places: Mapping[str, AnyArray] = field(default_factory=dict)
    identity: AnyArray | None = None
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.face)

    @property
    def digest(self) -> str:
        """sha256 of the rows and their order."""
        lines = (f"{self.ids[f]} {int(m)}\n" for f, m in zip(self.face, self.flipped, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def batch(self, rows: AnyArray, mirror: AnyArray) -> dict[str, AnyArray]:
        """Arrays of some rows; `mirror` bool [B] mirrors pictures and their masks (moments have flips as rows)."""
        faces = self.face[rows]
        result: dict[str, AnyArray] = {f"present_{name}": flag[faces] for name, flag in self.present.items()}
        if self.moments is not None:
            mirror = self.flipped[rows]
            result["moments"] = self.moments[rows]
        if self.images is not None:
            images = self.images[faces]
            result["images"] = np.where(mirror[:, None, None, None], images[:, :, ::-1], images)
        if self.mask is not None:
            mask = self.mask[faces]
            result["mask"] = np.where(mirror[:, None, None], flip_mask(mask), mask)
        if self.hint is not None:
            hint = self.hint[faces]
            result["hint"] = np.where(mirror[:, None, None, None], hint[:, :, ::-1], hint)
        for name, values in (("attributes", self.attributes), ("text", self.text), ("identity", self.identity)):
            if values is not None:
                result[name] = values[faces]
        for name, values in self.places.items():
            result[name] = np.where(mirror[:, None, None], _mirrored(values[faces]), values[faces])
        return result


def _mirrored(places: AnyArray) -> AnyArray:
    """Boxes [B, K, 4] or keypoints [B, K, 3] of mirrored pictures; rows of zeros stay zeros."""
    used = places.any(axis=2, keepdims=True)
    if places.shape[2] == POINT:
        flipped = np.stack([1 - places[..., 0], places[..., 1], places[..., 2]], axis=2)
    else:
        flipped = np.stack([1 - places[..., 2], places[..., 1], 1 - places[..., 0], places[..., 3]], axis=2)
    result: AnyArray = np.where(used, flipped, 0).astype(np.float32)
    return result


def load_training_data(
    faces: Iterable[pa.Table],
    *,
    size: int,
    modalities: Iterable[str] = (),
    latents: Iterable[pa.Table] | None = None,
    autoencoder: str | None = None,
    split: str | None = None,
    tokenize: Tokenize | None = None,
    caption: str = "overall",
    pictures: bool = False,
    places: Iterable[str] = (),
    people: bool = False,
    mirrored: bool = True,
) -> TrainingData:
    """FACES tables (and LATENTS, joined by `face_id`) -> arrays; pictures and masks at `size`.

    Pictures are read where there are no latents, or with `pictures`. `places`: the columns of boxes and keypoints to
    read. `people`: `identity_id` is read; a face without it is left out. `mirrored`: of latents, whether those of
    mirrored pictures are read. Of a face's texts the one named `caption` is
    used, as ids of `tokenize`; a face without it has no text. Bad faces are left out and listed. `InputError`: no rows,
    duplicate ids, or latents of another first stage than `autoencoder` (its sha256).
    """
    names = tuple(sorted(set(modalities) - {"style"}))  # a face's own style is its picture
    shapes = Shapes(size, 0 if tokenize is None else int(tokenize([""]).shape[1]), tokenize)
    ids: list[str] = []
    left_out: list[str] = []
    images: list[AnyArray] = []
    conditions: list[Conditions] = []
    identities: list[str] = []
    places_by_name: dict[str, list[list[list[float]]]] = {name: [] for name in places}
    for table in faces:
        rows = table if split is None else table.filter(pc.equal(table["split"], split))
        if "text" in names:
            rows = rows.append_column("text", texts_of(rows, caption))
        decoded, errors = Conditions.from_rows(rows, names, shapes=shapes)
        if latents is None or pictures:
            pixels, image_errors = images_from_rows(rows, size)
            errors = [a or b for a, b in zip(errors, image_errors, strict=True)]
        if people:
            persons = rows["identity_id"].to_pylist()
            errors = [
                e or (None if p else "identity: identity_id is missing") for e, p in zip(errors, persons, strict=True)
            ]
        good = [i for i, error in enumerate(errors) if error is None]
        identities += [persons[i] for i in good] if people else []
        face_ids = rows["face_id"].to_pylist()
        left_out += [f"{face_ids[i]}: {error}" for i, error in enumerate(errors) if error is not None]
        ids += [face_ids[i] for i in good]
        conditions.append(decoded.take(torch.tensor(good, dtype=torch.int64)))
        for name, listed in places_by_name.items():
            values = rows[name].to_pylist() if name in rows.column_names else [None] * rows.num_rows
            listed += [values[i] or [] for i in good]
        if latents is None or pictures:
            images.append(pixels[good])
    if not ids:
        raise InputError(f"no face to train on ({len(left_out)} left out)", reason="empty")
    if len(set(ids)) != len(ids):
        raise InputError("face ids are not unique", reason="duplicate")
    latent_rows = _latent_rows(latents, ids, autoencoder, mirrored) if latents is not None else None
    return TrainingData(
        ids=tuple(ids),
        face=np.arange(len(ids)) if latent_rows is None else latent_rows[0],
        flipped=np.zeros(len(ids), dtype=bool) if latent_rows is None else latent_rows[1],
        images=np.concatenate(images) if images else None,
        moments=None if latent_rows is None else latent_rows[2],
        mask=_joined([c.mask for c in conditions]),
        attributes=_joined([c.attributes for c in conditions], np.int8),
        text=_joined([c.text for c in conditions], np.int32),
        hint=_joined([c.hint for c in conditions]),
        present={name: np.concatenate([c.present[name].numpy() for c in conditions]) for name in names},
        identity=np.unique(identities, return_inverse=True)[1].astype(np.int64) if people else None,
        places={name: _padded(listed, WIDTHS[name]) for name, listed in places_by_name.items()},
        left_out=tuple(left_out),
    )


def _padded(listed: list[list[list[float]]], width: int) -> AnyArray:
    most = max(1, *(len(rows) for rows in listed))
    result = np.zeros((len(listed), most, width), dtype=np.float32)
    for i, rows in enumerate(listed):
        result[i, : len(rows)] = rows or np.zeros((0, width))
    return result


def texts_of(faces: pa.Table, caption: str) -> pa.Array:
    """The text of that name of every face, null where it has none."""
    return pa.array([texts_by_name(texts).get(caption) for texts in faces["texts"].to_pylist()], pa.string())


def _joined(parts: list[Tensor | None], dtype: Any = np.uint8) -> AnyArray | None:
    return None if parts[0] is None else np.concatenate([p.numpy().astype(dtype) for p in parts if p is not None])


def _latent_rows(
    tables: Iterable[pa.Table], ids: list[str], autoencoder: str | None, mirrored: bool
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Face index, whether mirrored, and moments of the LATENTS rows of known faces, in a fixed order."""
    position = {name: i for i, name in enumerate(ids)}
    face: list[int] = []
    flipped: list[bool] = []
    moments: list[AnyArray] = []
    for table in tables:
        others = set(table["autoencoder"].unique().to_pylist()) - {autoencoder}
        if autoencoder is not None and others:
            raise InputError(f"latents come from another first stage: {sorted(others)}", reason="autoencoder")
        for row in range(table.num_rows):
            index = position.get(table["face_id"][row].as_py())
            flip = table["transform"][row].as_py() == "flip"
            if index is not None and (mirrored or not flip):
                face.append(index)
                flipped.append(flip)
                values = table["moments"][row].values.to_numpy(zero_copy_only=False)
                moments.append(values.reshape(table["shape"][row].as_py()))
    if not face:
        raise InputError("no latents of these faces", reason="empty")
    by_face = np.lexsort((np.array(flipped), np.array(face)))
    return np.array(face)[by_face], np.array(flipped)[by_face], np.stack(moments)[by_face]


# --- order and noise ----------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> AnyArray:
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=1 << 192)).permutation(n)


def order(seed: int, n: int, positions: Iterable[int]) -> AnyArray:
    """The row at each position of the endless stream of epochs, each its own permutation of `n` rows."""
    return np.array([_permutation(seed, p // n, n)[p % n] for p in positions], dtype=np.int64)


def draw(seed: int, positions: Iterable[int], shape: tuple[int, ...], timesteps: int) -> dict[str, AnyArray]:
    """`t`, `dropout`, `mirror`, `noise` and `posterior` of stream positions, each keyed by its own."""
    uniforms: list[AnyArray] = []
    normals: list[AnyArray] = []
    for position in positions:
        random = np.random.Generator(np.random.Philox(key=np.array([seed, position], dtype=np.uint64)))
        uniforms.append(random.random(3))
        normals.append(random.standard_normal((2, *shape), dtype=np.float32))
    uniform, normal = np.stack(uniforms), np.stack(normals)
    return {
        "t": (uniform[:, 0] * timesteps).astype(np.int64),
        "dropout": uniform[:, 1].astype(np.float32),
        "mirror": uniform[:, 2] < 0.5,
        "noise": normal[:, 0],
        "posterior": normal[:, 1],
    }
