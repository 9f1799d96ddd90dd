"""FFHQ: the folders of a thousand, the flat form, the published cut."""

import pytest
from PIL import Image

from raygen.core.errors import ConfigError
from raygen.datasets.ffhq import FFHQ


def tree(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (len(name), 9, 9)).save(path)


@pytest.mark.parametrize("top", ["images1024x1024/", "thumbnails128x128/", "", "own/"])
def test_a_thousand_to_a_folder(tmp_path, top):
    tree(tmp_path, [f"{top}{n - n % 1000:05d}/{n:05d}.png" for n in (69_999, 0, 999, 1_000, 59_999, 60_000)])
    dataset = FFHQ(root=str(tmp_path), images="own" if top == "own/" else None)
    listing = dataset.listing()
    assert listing["face_id"].to_pylist() == ["00000", "00999", "01000", "59999", "60000", "69999"]
    assert listing["split"].to_pylist() == ["train"] * 4 + ["val"] * 2
    loaded = dataset.load(listing)
    assert loaded["error"].null_count == 6
    assert loaded["image"].to_pylist()[0]["path"] == "00000.png"
    for absent in ("mask", "attributes", "texts", "identity_id"):
        assert loaded[absent].null_count == 6


def test_flat_and_without_the_published_cut(tmp_path):
    tree(tmp_path, ["60001.png", "3.jpg"])
    listing = FFHQ(root=str(tmp_path), split="none", limit=2).listing()
    assert list(zip(listing["face_id"].to_pylist(), listing["split"].to_pylist(), strict=True)) == [
        ("00003", "train"),
        ("60001", "train"),
    ]


def test_a_number_twice_is_refused_and_both_are_named(tmp_path):
    tree(tmp_path, ["00000/00001.png", "01000/00001.png"])
    with pytest.raises(ConfigError, match=r"'00000/00001\.png' and '01000/00001\.png'"):
        FFHQ(root=str(tmp_path)).listing()


def test_nothing_there_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="absent"):
        FFHQ(root=str(tmp_path / "absent")).listing()
    tree(tmp_path, ["face.png"])
    with pytest.raises(ConfigError, match=r"named by number .*; found: face\.png$"):
        FFHQ(root=str(tmp_path)).listing()
    tree(tmp_path / "above", ["ffhq/in-the-wild/00000/00000.png"])
    with pytest.raises(ConfigError, match=r"found: ffhq/in-the-wild/00000/00000\.png$"):
        FFHQ(root=str(tmp_path / "above")).listing()


def test_a_bad_file_is_a_row_beside_good_ones(tmp_path):
    tree(tmp_path, ["00000/00000.png", "00000/00001.png"])
    (tmp_path / "00000/00000.png").write_bytes(b"")
    dataset = FFHQ(root=str(tmp_path), size=8)
    assert dataset.load(dataset.listing())["error"].to_pylist() == [
        f"empty: {tmp_path}/00000/00000.png: no bytes",
        None,
    ]


def test_names_of_stylegans_data_set_tool(tmp_path):
    tree(tmp_path, ["00000/img00000000.png", "00060/img00060001.png"])
    for name in ("dataset.json", "00000/00002.tif", "00000/00003.tif", ".DS_Store"):
        (tmp_path / name).write_text("{}")
    listing = FFHQ(root=str(tmp_path)).listing()
    assert listing.schema.metadata == {b"note": b"left out: 2 .tif, 1 .json"}
    assert listing["face_id"].to_pylist() == ["00000", "60001"]
    assert listing["split"].to_pylist() == ["train", "val"]
