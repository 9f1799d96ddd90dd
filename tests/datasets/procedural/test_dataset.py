"""The plan of the drawn set, and that it hands every row's own numbers to the drawing."""

import sys
import types
from typing import NamedTuple

import numpy as np
import pytest
from pydantic import ValidationError

from raygen.core.config import parse
from raygen.core.errors import ConfigError
from raygen.core.face_labels import ATTRIBUTES
from raygen.datasets import AnyDataSet
from raygen.datasets.base import FACES_OR_ERROR
from raygen.datasets.procedural.dataset import ProceduralDataSet
from raygen.store.images import decode_image, decode_mask


class Face(NamedTuple):
    pixels: np.ndarray
    mask: np.ndarray
    attributes: np.ndarray
    texts: dict[str, str]
    identity_id: str


@pytest.fixture
def drawing(monkeypatch):
    calls = []

    def draw(seed, identity, variant, size):
        calls.append((seed, identity, variant, size))
        return Face(
            np.full((size, size, 3), identity, np.uint8),
            np.full((size, size), variant, np.uint8),
            np.ones(40, np.int8),
            {"overall": f"Face {identity}."},
            f"p{identity:06d}",
        )

    module = types.ModuleType("raygen.datasets.procedural.draw")
    module.draw = draw
    monkeypatch.setitem(sys.modules, "raygen.datasets.procedural.draw", module)
    return calls


def test_listing_is_every_picture_of_every_identity_in_order():
    listing = ProceduralDataSet(identities=3, pictures=2).listing()
    assert listing["face_id"].to_pylist() == [f"p{i:06d}-{v:03d}" for i in range(3) for v in range(2)]
    assert listing["identity"].to_pylist() == [0, 0, 1, 1, 2, 2]
    assert listing["variant"].to_pylist() == [0, 1] * 3


def test_rows_are_drawn_from_their_own_numbers(drawing):
    dataset = ProceduralDataSet(identities=3, pictures=2, size=32, seed=7)
    loaded = dataset.load(dataset.listing().slice(3, 2))
    assert drawing == [(7, 1, 1, 32), (7, 2, 0, 32)]
    assert loaded.schema == FACES_OR_ERROR
    row = loaded.to_pylist()[0]
    assert (row["face_id"], row["identity_id"], row["error"]) == ("p000001-001", "p000001", None)
    assert row["texts"] == [{"key": "overall", "value": "Face 1."}]
    assert row["attributes"] == dict.fromkeys(ATTRIBUTES, 1)
    assert (decode_image(row["image"]["bytes"]) == 1).all()
    assert (decode_mask(row["mask"]["bytes"]) == 1).all()


def test_identities_never_straddle_two_parts_and_shares_are_exact():
    listing = ProceduralDataSet(identities=40, pictures=3, val=0.1, test=0.25).listing().to_pylist()
    parts = {}
    for row in listing:
        assert parts.setdefault(row["identity"], row["split"]) == row["split"]
    assert [list(parts.values()).count(part) for part in ("train", "val", "test")] == [26, 4, 10]


@pytest.mark.parametrize(
    ("identities", "counts"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (1000, (850, 50, 100))]
)
def test_somebody_is_always_left_to_train_on(identities, counts):
    parts = ProceduralDataSet(identities=identities).parts()
    assert tuple(parts.count(part) for part in ("train", "val", "test")) == counts


def test_the_seed_decides_who_is_tested_on():
    first, again, other = (ProceduralDataSet(identities=50, seed=seed).parts() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_shares_that_leave_nobody_are_refused():
    with pytest.raises(ValidationError, match="leave no identity for training"):
        ProceduralDataSet(val=0.5, test=0.5)


def test_the_union_of_data_sets_is_told_apart_by_kind():
    plain = ("celebamask", "celeba_dialog", "ffhq", "folder", "procedural")
    kinds = {
        kind: parse(AnyDataSet, {"kind": kind, **({} if kind == "procedural" else {"root": "x"}), **also}).kind
        for kind, also in (*((k, {}) for k in plain), ("jsonl", {"file": "y.jsonl"}))
    }
    assert all(kind == found for kind, found in kinds.items())
    with pytest.raises(ConfigError, match="celebamask, celeba_dialog, ffhq, folder, jsonl, procedural, results"):
        parse(AnyDataSet, {"kind": "imagenet", "root": "x"})
