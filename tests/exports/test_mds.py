"""MDS by the description of its format alone; `test_readers` opens it with mosaicml-streaming."""

import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from raygen.commands.verify import verify
from raygen.core.errors import ConfigError
from raygen.core.face_labels import ATTRIBUTES
from raygen.exports import mds
from raygen.store.images import picture
from raygen.store.run_store import RunStore
from tests.exports.export_runs import export, opened, pixels, sample, store_rows


def samples_of(folder: Path) -> list[dict[str, object]]:
    """Every sample of a data set, in the order of the index."""
    found = []
    index = json.loads((folder / "index.json").read_text())
    assert index["version"] == 2
    for shard in index["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert (shard["format"], shard["version"], shard["raw_data"]["bytes"]) == ("mds", 2, len(data))
        (count,) = struct.unpack_from("<I", data)
        offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
        assert (count, offsets[-1]) == (shard["samples"], len(data))
        head = json.loads(data[4 + 4 * (count + 1) : offsets[0]])
        assert head == {key: shard[key] for key in head}
        columns = list(zip(*(head[f"column_{part}"] for part in ("names", "encodings", "sizes")), strict=True))
        assert [name for name, _, _ in columns] == sorted(name for name, _, _ in columns)
        for at, end in pairwise(offsets):
            lengths = iter(struct.unpack_from(f"<{sum(size is None for _, _, size in columns)}I", data, at))
            at += 4 * sum(size is None for _, _, size in columns)
            sample = {}
            for name, encoding, size in columns:
                length = next(lengths) if size is None else size
                value = data[at : at + length]
                at += length
                decode = {"int": lambda v: struct.unpack("<q", v)[0], "str": bytes.decode, "json": json.loads}
                sample[name] = decode.get(encoding, bytes)(value)
            assert at == end
            found.append(sample)
    return found


def test_samples_come_back_with_every_column(tmp_path):
    rows = [sample(i, **({"mask": None, "text": None, "identity_id": None} if i == 2 else {})) for i in range(10)]
    rows[7] |= {"image": picture(b"broken")}
    run = store_rows(tmp_path / "run", rows)
    export(run, tmp_path / "out", "mds", max_error_fraction=0.5)
    found = samples_of(tmp_path / "out/dataset")
    good = [i for i in range(10) if i != 7]
    assert [row["sample_id"] for row in found] == [f"s{i:03d}" for i in good]
    for i, row in zip(good, found, strict=True):
        assert np.array_equal(np.asarray(opened(row["image"])), pixels(i))
        assert row["attributes"] == dict(zip(ATTRIBUTES, [1, -1] * 20, strict=True))
        if i == 2:
            assert (row["mask"], row["text"], row["label"], row["identity_id"]) == (b"", "", -1, "")
        else:
            assert set(np.asarray(opened(row["mask"])).ravel()) == {i % 19}
            assert (row["text"], row["label"], row["is_synthetic"]) == (f"Face, {i}", i % 3, 1)
    places = [row for table in RunStore(str(tmp_path / "out")).tables("exported") for row in table.to_pylist()]
    for i, place in zip(good, places, strict=True):
        data = (tmp_path / "out/dataset" / place["path"]).read_bytes()[place["offset"] :][: place["bytes"]]
        assert np.array_equal(np.asarray(opened(data)), pixels(i))
    assert verify(RunStore(str(tmp_path / "out"))).ok


def test_a_shard_without_rows_has_no_file(tmp_path):
    """mosaicml-streaming 0.13.0 divides by the samples of a shard."""
    rows = [sample(i, **({"image": picture(b"broken")} if 4 <= i < 8 else {})) for i in range(12)]
    export(store_rows(tmp_path / "run", rows), tmp_path / "out", "mds", max_error_fraction=0.5, form={"masks": False})
    assert [p.name for p in sorted((tmp_path / "out/dataset").glob("*.mds"))] == ["shard.00000.mds", "shard.00002.mds"]
    found = samples_of(tmp_path / "out/dataset")
    assert [row["sample_id"] for row in found] == [f"s{i:03d}" for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert "mask" not in found[0]


def test_pictures_that_the_library_cannot_decode_are_bytes(tmp_path):
    export(store_rows(tmp_path / "run", [sample(0)]), tmp_path / "out", "mds", form={"codec": "webp"})
    (shard,) = json.loads((tmp_path / "out/dataset/index.json").read_text())["shards"]
    assert dict(zip(shard["column_names"], shard["column_encodings"], strict=True))["image"] == "bytes"
    assert "the bytes of a WebP file" in (tmp_path / "out/dataset/README.md").read_text()


def test_a_shard_whose_offsets_do_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mds, "MAX_BYTES", 6000)
    run = store_rows(tmp_path / "run", [sample(i) for i in range(4)])
    with pytest.raises(ConfigError, match=r"a shard of 4 rows has .* set a smaller `shard_rows`"):
        export(run, tmp_path / "out", "mds")
    export(run, tmp_path / "small", "mds", shard_rows=1)
    assert len(samples_of(tmp_path / "small/dataset")) == 4
