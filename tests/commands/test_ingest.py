"""`raygen ingest` of files: failed rows are named, a dry run tries them too, and changed files are noticed."""

import os
import shutil

import fsspec
import numpy as np
import pytest
from PIL import Image

from raygen.commands.registry import make
from raygen.core.errors import ConfigError, TooManyBadRows
from raygen.store.images import decode_image
from raygen.store.run_store import open_input
from tests.store.test_run_store import s3

__all__ = ["s3"]


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)


def job(tmp_path, out="faces", max_error_fraction=0.01, **data):
    settings = {"kind": "folder", "root": str(tmp_path / "in"), **data}
    return make(
        {"kind": "ingest", "data": settings, "max_error_fraction": max_error_fraction, "batch": 2, "shard_rows": 2}
        | {"out": str(tmp_path / out)}
    )


def run(*args, **kwargs):
    return job(*args, **kwargs).run(lambda _: None)


def faces(tmp_path, out="faces"):
    store, _ = open_input(str(tmp_path / out))
    return [row for table in store.tables("faces") for row in table.to_pylist()]


# --- failed rows ---


def test_too_many_bad_rows_name_a_row_its_file_and_the_way_out(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / f"in/{name}.png")
    (tmp_path / "in/b.png").write_bytes(b"")
    with pytest.raises(TooManyBadRows) as caught:
        run(tmp_path)
    assert str(caught.value) == (
        f"1 of 3 rows failed (empty 1), such as b: empty: {tmp_path}/in/b.png: no bytes; at most 1.00% are allowed. "
        "Correct these inputs, or allow more with `max_error_fraction`; every failed row and its reason is in "
        f"{tmp_path}/faces/attempt-00/quarantine"
    )
    assert run(tmp_path, max_error_fraction=0.5).facts["quarantined"] == {"empty": 1}


def test_a_dry_run_tries_rows_as_the_run_does(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / f"in/{name}.png")
    (tmp_path / "in/b.png").write_bytes(b"")
    with pytest.raises(
        TooManyBadRows, match=r"of those tried, 1 of 2 rows failed \(empty 1\), such as b: empty: .*b\.png"
    ):
        job(tmp_path).estimate()
    notes = job(tmp_path, max_error_fraction=0.5).estimate().notes
    assert [note for note in notes if note.startswith("of those tried, 1 of 2 rows failed (empty 1), such as b")]
    (tmp_path / "in/b.png").unlink()
    assert not [note for note in job(tmp_path).estimate().notes if "failed" in note]
    assert not (tmp_path / "faces").exists()


def test_a_flat_folder_with_identities_is_refused_before_anything_is_written(tmp_path):
    save(tmp_path / "in/a.png")
    for call in (job(tmp_path, identity="folder").estimate, lambda: run(tmp_path, identity="folder")):
        with pytest.raises(
            ConfigError, match=r"all 1 pictures lie directly in root \(such as 'a\.png'\); set `identity: none`"
        ):
            call()
    assert not (tmp_path / "faces").exists()


# --- what is said ---


def test_masks_and_files_that_were_left_out_are_always_counted(tmp_path):
    for name in ("in/a.png", "in/b.png"):
        save(tmp_path / name)
    (tmp_path / "in/c.gif").write_bytes(b"x")
    (tmp_path / "masks").mkdir()
    Image.new("L", (12, 12)).save(tmp_path / "masks/a.png")
    masked = {"masks": str(tmp_path / "masks"), "max_error_fraction": 1.0}
    assert run(tmp_path, **masked).facts["note"] == "masks: 1 of 2; left out: 1 .gif"
    assert job(tmp_path, **masked).estimate().notes[:2] == ("masks: 1 of 2", "left out: 1 .gif")
    assert run(tmp_path, "other").facts["note"] == "masks: 0 of 2; left out: 1 .gif"
    drawn = {"kind": "procedural", "identities": 3, "pictures": 1, "size": 32, "val": 0, "test": 0}
    result = make({"kind": "ingest", "data": drawn, "out": str(tmp_path / "drawn")}).run(lambda _: None)
    assert result.facts["note"] == "masks: 3 of 3"


# --- changed files ---


def test_a_picture_that_was_corrected_is_never_mistaken_for_the_old_one(tmp_path):
    for seed, name in enumerate(("a", "b", "c")):
        save(tmp_path / f"in/{name}.png", seed)
    good = (tmp_path / "in/b.png").read_bytes()
    (tmp_path / "in/b.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(TooManyBadRows):
        run(tmp_path)
    (tmp_path / "in/b.png").write_bytes(good)
    for call in (lambda: run(tmp_path), job(tmp_path).estimate):
        with pytest.raises(ConfigError) as caught:
            call()
        assert f"holds a run over other files: 1 changed ({tmp_path}/in/b.png). Choose another `out`" in str(
            caught.value
        )
    run(tmp_path, "again")
    assert [row["face_id"] for row in faces(tmp_path, "again")] == ["a", "b", "c"]
    assert faces(tmp_path, "again")[1]["image"]["bytes"] == good


def test_new_and_removed_files_are_named_and_an_unchanged_folder_goes_on(tmp_path):
    for seed, name in enumerate(("a", "b", "c")):
        save(tmp_path / f"in/{name}.png", seed)
    first = run(tmp_path)
    shutil.rmtree(tmp_path / "faces/attempt-00/data")
    commits = sorted((tmp_path / "faces/attempt-00/commits").iterdir())
    commits[1].unlink()  # as if the run had been stopped before its last shard
    again = run(tmp_path)
    assert (again.facts["run_id"], again.facts["set_digest"]) == (first.facts["run_id"], first.facts["set_digest"])
    assert again.facts["shards"] == "2 (1 were already committed)"
    (tmp_path / "in/b.png").rename(tmp_path / "in/d.png")
    with pytest.raises(ConfigError, match=r"1 new \(.*/d\.png\); 1 gone \(.*/b\.png\)"):
        run(tmp_path)


def test_a_changed_mask_or_label_is_named(tmp_path):
    root = tmp_path / "in"
    save(root / "CelebA-HQ-img/0.jpg")
    parts = root / "CelebAMask-HQ-mask-anno/0"
    parts.mkdir(parents=True)
    for name in ("skin", "nose"):
        Image.new("L", (12, 12), 255).save(parts / f"00000_{name}.png")
    (parts / "00000_nose.png").write_bytes((parts / "00000_skin.png").read_bytes())
    (root / "identity_CelebA-HQ.txt").write_text("0.jpg 7\n")
    celeba = {"kind": "celebamask", "max_error_fraction": 1.0}
    run(tmp_path, **celeba)
    (root / "identity_CelebA-HQ.txt").write_text("0.jpg 8\n")
    with pytest.raises(ConfigError, match=r"1 changed \(labels of 00000\)"):
        run(tmp_path, **celeba)
    Image.new("L", (12, 12), 0).save(parts / "00000_nose.png")
    with pytest.raises(ConfigError, match=r"1 changed \(.*/00000_nose\.png\)"):
        run(tmp_path, **celeba)


def test_with_content_a_copy_with_other_times_is_the_same_run(tmp_path):
    save(tmp_path / "in/a.png")
    first = run(tmp_path, changes="content")
    os.utime(tmp_path / "in/a.png", ns=(0, 0))
    assert run(tmp_path, changes="content").facts["run_id"] == first.facts["run_id"]
    save(tmp_path / "in/a.png", seed=1)
    with pytest.raises(ConfigError, match=r"1 changed \(.*/a\.png\)"):
        run(tmp_path, changes="content")


def test_other_settings_are_named_as_before(tmp_path):
    save(tmp_path / "in/a.png")
    run(tmp_path)
    with pytest.raises(ConfigError, match=r"different: data\.size"):
        run(tmp_path, size=8)
    assert decode_image(faces(tmp_path)[0]["image"]["bytes"]).shape == (12, 12, 3)


def test_on_an_object_store_the_etag_counts_and_not_the_time(s3, tmp_path):
    storage, inputs = fsspec.filesystem("s3"), f"{s3}/changed-files/in"
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", seed=1)
    first, second = (tmp_path / "a.png").read_bytes(), (tmp_path / "b.png").read_bytes()
    storage.pipe({f"{inputs}/a.png": first, f"{inputs}/b.png": first})
    job = {
        "kind": "ingest",
        "data": {"kind": "folder", "root": inputs},
        "out": str(tmp_path / "faces"),
    }
    run_id = make(job).run(lambda _: None).facts["run_id"]
    storage.pipe_file(f"{inputs}/b.png", first)
    assert make(job).run(lambda _: None).facts["run_id"] == run_id
    storage.pipe_file(f"{inputs}/b.png", second)
    with pytest.raises(ConfigError, match=r"1 changed \(s3://faces/changed-files/in/b\.png\)"):
        make(job).run(lambda _: None)
