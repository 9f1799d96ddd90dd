"""The readers on real files: found through RAYGEN_REAL_DATA, skipped by name where it is unset."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raygen.core.face_labels import flip_mask
from raygen.datasets import CelebAMask, Folder
from raygen.store.images import decode_image, decode_mask
from raygen.store.schemas import FACES, cast

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("RAYGEN_REAL_DATA" not in os.environ, reason="RAYGEN_REAL_DATA is not set"),
]


@pytest.fixture
def faces():
    return Path(os.environ["RAYGEN_REAL_DATA"]) / "att-faces"


@pytest.fixture
def celeba():
    return Path(os.environ["RAYGEN_REAL_DATA"]) / "celebamask-hq"


def test_att_faces_are_29_people_with_10_grey_pictures_each(faces):
    dataset = Folder(root=str(faces), identity="folder")
    loaded = dataset.load(dataset.listing())
    assert loaded["error"].null_count == loaded.num_rows == 290
    people = loaded["identity_id"].to_pylist()
    assert {people.count(person) for person in people} == {10}
    assert len(set(people)) == 29
    for row in loaded.slice(0, 20).to_pylist():
        pixels = decode_image(row["image"]["bytes"])
        assert pixels.shape == (112, 92, 3)
        assert (pixels == pixels[..., :1]).all()
    cast(loaded.drop_columns(["error"]), FACES)


def test_att_faces_lose_nothing_on_the_way(faces):
    dataset = Folder(root=str(faces), limit=5)
    listing = dataset.listing()
    for listed, row in zip(listing.to_pylist(), dataset.load(listing).to_pylist(), strict=True):
        original = np.asarray(Image.open(listed["image"]))
        np.testing.assert_array_equal(decode_image(row["image"]["bytes"])[..., 0], original)


def test_att_faces_as_64_pixel_squares(faces):
    dataset = Folder(root=str(faces), identity="folder", size=64, crop="center", limit=3)
    for row in dataset.load(dataset.listing()).to_pylist():
        assert decode_image(row["image"]["bytes"]).shape == (64, 64, 3)


def test_celebamask_samples_keep_their_bytes_and_their_indices(celeba):
    dataset = CelebAMask(root=str(celeba))
    found = dataset.load(dataset.listing()).to_pylist()
    assert [(row["face_id"], row["split"], row["error"]) for row in found] == [
        ("00000", "train", None),
        ("00001", "train", None),
    ]
    for row in found:
        number = int(row["face_id"])
        assert row["image"]["bytes"] == (celeba / f"{number}.jpg").read_bytes()
        original = np.asarray(Image.open(celeba / f"{number}_mask.png"))
        np.testing.assert_array_equal(decode_mask(row["mask"]["bytes"]), original)
        assert row["attributes"] is None


def test_celebamask_samples_at_256(celeba):
    dataset = CelebAMask(root=str(celeba), size=256)
    full = CelebAMask(root=str(celeba))
    listing = dataset.listing()
    for small, large in zip(dataset.load(listing).to_pylist(), full.load(listing).to_pylist(), strict=True):
        assert decode_image(small["image"]["bytes"]).shape == (256, 256, 3)
        mask = decode_mask(small["mask"]["bytes"])
        assert mask.shape == (256, 256)
        assert set(np.unique(mask)) <= set(np.unique(decode_mask(large["mask"]["bytes"])))


def test_the_real_palette_mask_keeps_its_indices_and_a_flip_swaps_sides(celeba):
    path = celeba / "29980_mask_256_palette.png"
    with Image.open(path) as image:
        assert image.mode == "P"
        indices = np.asarray(image)
    mask = decode_mask(path.read_bytes())
    np.testing.assert_array_equal(mask, indices)
    flipped = flip_mask(mask)
    for left, right in ((4, 5), (6, 7)):
        np.testing.assert_array_equal(flipped == left, (mask == right)[:, ::-1])
        assert (mask == left).any()
        assert (mask == right).any()
    np.testing.assert_array_equal(flip_mask(flipped), mask)
