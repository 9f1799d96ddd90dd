"""Exports as `datasets` loads them: every picture once, every caption, every type."""

import csv
from pathlib import Path

import datasets
import numpy as np
import pytest

from tests.exports.export_runs import export, pixels, sample, store_rows

BARE = {"text": None, "mask": None, "attributes": None, "identity_id": None, "variant": None, "sampler": None}


def loaded(folder: Path, cache: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve pictures of three people, each with a mask."""
    return store_rows(tmp_path_factory.mktemp("run") / "samples", [sample(i) for i in range(12)])


def test_a_folder_counts_every_face_once(run: str, tmp_path: Path) -> None:
    """`imagefolder` of datasets 5.2.0 takes every picture below the folder, so masks are pictures of the same people.

    The card names the pictures alone.
    """
    export(run, tmp_path / "out", "folder")
    assert len(list((tmp_path / "out/dataset/masks").rglob("*.png"))) == 12
    found = loaded(tmp_path / "out/dataset", tmp_path / "cache")
    assert len(found) == 12, "not 24"
    assert found.features["label"].names == ["p0", "p1", "p2"]
    by_person = [[i for i in range(12) if i % 3 == who] for who in range(3)]
    for row, number in zip(found, [i for who in by_person for i in who], strict=True):
        assert np.array_equal(np.asarray(row["image"]), pixels(number))
        assert row["label"] == number % 3


@pytest.mark.parametrize("whole", [True, False])
def test_captions_and_masks_that_start_late_are_all_there(tmp_path: Path, whole: bool) -> None:
    """`webdataset` of datasets 5.2.0 takes members and types from the first five samples.

    The tars alone keep every caption and number. Masks that start late need the card, which declares them.
    """
    rows = [sample(i, **(BARE if i < 6 else {})) for i in range(12)]
    export(store_rows(tmp_path / "samples", rows), tmp_path / "out", "webdataset")
    folder, cache = tmp_path / "out/dataset", tmp_path / "cache"
    if not whole:
        (folder / "README.md").unlink()
    found = loaded(folder, cache)
    assert [row["txt"] for row in found] == [""] * 6 + [f"Face, {i}" for i in range(6, 12)]
    assert [row["cls"] for row in found] == [-1] * 6 + [i % 3 for i in range(6, 12)]
    assert [row["json"]["variant"] for row in found] == [-1] * 6 + [i // 3 for i in range(6, 12)]
    assert [row["json"]["sampler"] for row in found] == [""] * 6 + ["ddim"] * 6
    assert [row["json"]["attributes"]["Male"] for row in found] == [0] * 6 + [1] * 6
    assert all(np.array_equal(np.asarray(row["png"]), pixels(i)) for i, row in enumerate(found))
    if whole:
        assert [row["mask.png"] is not None for row in found] == [False] * 6 + [True] * 6


def test_rows_in_parquet_have_names(run: str, tmp_path: Path) -> None:
    export(run, tmp_path / "out", "huggingface")
    found = loaded(tmp_path / "out/dataset", tmp_path / "cache")
    assert len(found) == 12
    assert (found[0]["attributes"]["5_o_Clock_Shadow"], found[0]["attributes"]["Arched_Eyebrows"]) == (1, -1)
    assert np.array_equal(np.asarray(found[5]["image"]), pixels(5))


def test_labels_alone_are_rows(run: str, tmp_path: Path) -> None:
    export(run, tmp_path / "out", "csv")
    found = loaded(tmp_path / "out/dataset", tmp_path / "cache")
    with (tmp_path / "out/dataset/labels.csv").open(newline="") as file:
        assert found["path"][:] == [line["path"] for line in csv.DictReader(file)]


def test_records_that_mxnet_cannot_decode_are_warned_of(run: str, tmp_path: Path) -> None:
    """mxnet 1.9.1: `mx.image.imdecode` refuses WebP. nvidia-dali 2.4.0 reads it; both read JPEG and PNG."""
    said = {codec: export(run, tmp_path / codec, "recordio", form={"codec": codec}) for codec in ("webp", "png")}
    said["default"] = export(run, tmp_path / "default", "recordio")
    assert "refuse WebP" in str(said["webp"].facts["warning"])
    assert "warning" not in said["png"].facts
    assert "warning" not in said["default"].facts
    cards = {name: (tmp_path / name / "dataset/README.md").read_text() for name in said}
    assert "refuse WebP" in cards["webp"]
    assert "refuse WebP" not in cards["png"]
    assert "Records hold JPEG of 112 px" in cards["default"]
    for card in cards.values():
        assert "`mx.io.ImageRecordIter` stops with an error at record 0" in card
        assert "Gluon's `ImageRecordDataset` counts them as pictures" in card
