"""Training data, its seeded order and its keyed noise.

Arrays are in memory or in files, of which rows are read when they are needed. Every position in the stream of epochs
has its own row and random numbers.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from raygen.core.face_labels import flip_mask
from raygen.core.types import AnyArray
from raygen.store.parquet import from_parquet
from raygen.store.sealed import open_record
from raygen.training.row_file import RowFile

__all__ = ["IDS", "RECORD", "WIDTHS", "Rows", "TrainingData", "assembled", "draw", "open_training_data", "order"]


#: Numbers of one box, and of one keypoint.
WIDTHS: Final = {"boxes": 4, "keypoints": 3}
POINT: Final = WIDTHS["keypoints"]
#: In a folder of training data: what the files hold, and the ids of the faces.
RECORD: Final = "data.json"
IDS: Final = "ids.parquet"

Rows = AnyArray | RowFile


@dataclass(frozen=True)
class TrainingData:
    """A data set. Row i trains on face `face[i]`, mirrored beforehand if `flipped[i]`.

    `images` uint8 [F, H, W, 3], or `moments` float16 [N, ...], of which row i has `latent[i]`, or both; conditions a
    face, as in `Conditions`. `left_out`: the first faces that were left out, with reasons, of `left_out_rows`.
    `places`: boxes float32 [F, K, 4] and keypoints [F, K, 3] by name, zeros where a face has fewer.
    `identity` int64 [F]: index of the person, in the order of their names.
    """

    ids: pa.Array
    face: AnyArray
    flipped: AnyArray
    latent: AnyArray | None = None
    images: Rows | None = None
    moments: Rows | None = None
    mask: Rows | None = None
    attributes: Rows | None = None
    text: Rows | None = None
    hint: Rows | None = None
    present: Mapping[str, Rows] = field(default_factory=dict)
    places: Mapping[str, Rows] = field(default_factory=dict)
    identity: Rows | None = None
    identities: int = 0
    left_out: tuple[str, ...] = ()
    left_out_rows: int = 0

    def __len__(self) -> int:
        return len(self.face)

    @cached_property
    def digest(self) -> str:
        """sha256 of the rows and their order."""
        state = hashlib.sha256()
        for start in range(0, len(self), 65_536):
            part = slice(start, start + 65_536)
            names = self.ids.take(pa.array(self.face[part])).to_pylist()
            lines = (f"{name} {int(m)}\n" for name, m in zip(names, self.flipped[part], strict=True))
            state.update("".join(lines).encode())
        return state.hexdigest()

    def batch(self, rows: AnyArray, mirror: AnyArray) -> dict[str, AnyArray]:
        """Arrays of some rows; `mirror` bool [B] mirrors pictures and their masks (moments have flips as rows)."""
        faces = self.face[rows]
        result: dict[str, AnyArray] = {f"present_{name}": flag[faces] for name, flag in self.present.items()}
        if self.moments is not None:
            mirror = self.flipped[rows]
            result["moments"] = self.moments[rows if self.latent is None else self.latent[rows]]
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
            own = values[faces]
            result[name] = np.where(mirror[:, None, None], _mirrored(own), own)
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


def open_training_data(folder: Path) -> TrainingData:
    """What `load_training_data` wrote into `folder`; `IntegrityError` where it is damaged."""
    record = open_record((folder / RECORD).read_bytes(), str(folder / RECORD))
    arrays = {name: RowFile(folder / name, entry) for name, entry in record["arrays"].items()}
    names = from_parquet((folder / IDS).read_bytes())["id"].combine_chunks()
    return assembled(names, arrays, record)


def assembled(names: pa.Array, arrays: Mapping[str, Rows], facts: Mapping[str, Any]) -> TrainingData:
    """Training data of arrays by name; `facts` are the fields that are no arrays."""

    def beginning(prefix: str) -> dict[str, Rows]:
        return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}

    latent = arrays.get("latent")
    return TrainingData(
        ids=names,
        face=arrays["face"][:],
        flipped=arrays["flipped"][:],
        latent=None if latent is None else latent[:],
        **{name: arrays.get(name) for name in ("images", "moments", "mask", "attributes", "text", "hint", "identity")},
        present=beginning("present_"),
        places=beginning("places_"),
        identities=facts["identities"],
        left_out=tuple(facts["left_out"]),
        left_out_rows=facts["left_out_rows"],
    )


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
