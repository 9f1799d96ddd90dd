"""Drawn faces as a data set: identities, pictures and splits. An identity belongs to one split only."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from raygen.core.face_labels import Split
from raygen.datasets.base import DataSet, load_rows
from raygen.store.images import encode_image, encode_mask, picture

__all__ = ["ProceduralDataSet"]


_LISTING: Final = pa.schema(
    [("face_id", pa.string()), ("identity", pa.int32()), ("variant", pa.int32()), ("split", pa.string())]
)


class ProceduralDataSet(DataSet):
    """`identities` people x `pictures` each, drawn from `seed` alone."""

    kind: Literal["procedural"] = "procedural"
    identities: int = Field(100, ge=1, le=1_000_000, description="number of people to draw")
    pictures: int = Field(4, ge=1, le=1_000, description="pictures per person")
    size: int = Field(64, ge=32, le=512, description="side of the square pictures in pixels")
    seed: int = Field(0, ge=0, lt=1 << 63, description="seed of the drawn faces")
    val: float = Field(0.05, ge=0, lt=1, description="fraction of the people in the split val, rounded up")
    test: float = Field(0.1, ge=0, lt=1, description="fraction of the people in the split test, rounded up")

    @model_validator(mode="after")
    def _leaves_some_to_train(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError("val and test together leave no identity for training")
        return self

    def parts(self) -> list[Split]:
        """The split of each identity. The shares are exact; which identities they are depends on the seed."""
        order = sorted(
            range(self.identities),
            key=lambda i: hashlib.blake2b(f"split:{self.seed}:{i}".encode(), digest_size=8).digest(),
        )
        tests = min(math.ceil(self.test * self.identities), self.identities - 1)
        vals = min(math.ceil(self.val * self.identities), self.identities - 1 - tests)
        parts: list[Split] = ["train"] * self.identities
        for place, identity in enumerate(order[: tests + vals]):
            parts[identity] = "test" if place < tests else "val"
        return parts

    def listing(self) -> pa.Table:
        """face_id, identity, variant, split; in the order of identity, then variant."""
        parts = self.parts()
        pairs = [(identity, variant) for identity in range(self.identities) for variant in range(self.pictures)]
        columns = [
            [f"p{identity:06d}-{variant:03d}" for identity, variant in pairs],
            [identity for identity, _ in pairs],
            [variant for _, variant in pairs],
            [parts[identity] for identity, _ in pairs],
        ]
        return pa.table(
            [pa.array(values, field.type) for values, field in zip(columns, _LISTING, strict=True)], schema=_LISTING
        )

    def load(self, listing: pa.Table) -> pa.Table:
        """`FACES_OR_ERROR` rows for `listing`, one each and in its order."""
        return load_rows(listing, self._row)

    def count_masks(self, listing: pa.Table) -> int:
        """Every drawn face has a mask."""
        return len(listing)

    def _row(self, listed: Mapping[str, Any]) -> Mapping[str, Any]:
        # Imported here, so that reading a job does not import the drawing code.
        from raygen.datasets.procedural.draw import draw

        face = draw(self.seed, listed["identity"], listed["variant"], self.size)
        return {
            "split": listed["split"],
            "image": picture(encode_image(face.pixels)),
            "mask": picture(encode_mask(face.mask)),
            "attributes": face.attributes.tolist(),
            "texts": list(face.texts.items()),
            "identity_id": face.identity_id,
        }
