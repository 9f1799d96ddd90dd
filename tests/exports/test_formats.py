"""Every format read back by somebody else's reader: PIL, csv, tarfile, pyarrow, and RecordIO by its specification."""

import csv
import io
import json
import struct
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raygen.core.errors import ConfigError
from raygen.core.face_labels import ATTRIBUTES
from raygen.exports.recordio import MAGIC, framed
from raygen.store.images import encode_image, picture
from tests.exports.export_runs import export, opened, pixels, sample, store_faces, store_rows, tree

MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """13 rows of 3 people in 3 shards; row 4 failed."""
    rows = [sample(i) for i in range(13)]
    rows[4] |= {"image": None, "error": "nonfinite: as asked", "image_sha256": None}
    return store_rows(tmp_path_factory.mktemp("run") / "samples", rows)


GOOD = [i for i in range(13) if i != 4]


def test_a_folder_has_a_folder_an_identity(run, tmp_path):
    result = export(run, tmp_path / "out", "folder")
    found = tree(tmp_path / "out/dataset")
    paths = [f"p{i % 3}/{i // 3:03d}.png" for i in GOOD]
    expected = {
        *(f"images/{p}" for p in paths),
        *(f"masks/{p}" for p in paths),
        "labels.csv",
        "README.md",
        "croissant.json",
    }
    assert set(found) == expected | {"SHA256SUMS"}
    for i, path in zip(GOOD, paths, strict=True):
        assert np.array_equal(np.asarray(opened(found[f"images/{path}"])), pixels(i))
        mask = opened(found[f"masks/{path}"])
        assert mask.mode == "L"
        assert set(np.asarray(mask).ravel()) == {i % 19}
    lines = list(csv.DictReader(io.StringIO(found["labels.csv"].decode())))
    assert [line["path"] for line in lines] == [f"images/{p}" for p in paths]
    assert [line["label"] for line in lines] == [str(i % 3) for i in GOOD]
    assert lines[3]["text"] == f"Face, {GOOD[3]}"  # a comma inside
    assert [lines[0][name] for name in ATTRIBUTES] == ["1", "-1"] * 20
    assert {line["is_synthetic"] for line in lines} == {"True"}
    assert result.facts["left out"] == "1 failed before"
    assert Path(str(result.facts["data card"])).read_text().startswith("---\n")
    assert result.facts["pictures"] == "12 of 3 identities"


def test_rows_without_identities_lie_flat_and_recordio_refuses_them(tmp_path):
    run = store_rows(tmp_path / "run", [sample(i, None) for i in range(6)])
    export(run, tmp_path / "out", "folder", form={"codec": "webp", "masks": False})
    names = {f"images/s{i:03d}.webp" for i in range(6)}
    found = tree(tmp_path / "out/dataset")
    assert set(found) == names | {"labels.csv", "README.md", "croissant.json", "SHA256SUMS"}
    assert np.array_equal(np.asarray(opened(found["images/s002.webp"])), pixels(2))
    with pytest.raises(ConfigError, match="have no identity_id, and this format labels pictures with it"):
        export(run, tmp_path / "rec", "recordio")
    assert not (tmp_path / "rec").exists()


@pytest.mark.parametrize("codec", ["png", "jpeg", "webp"])
def test_pictures_say_that_a_model_made_them_and_how(run, tmp_path, codec):
    export(run, tmp_path / "out", "folder", form={"codec": codec})
    name = next(n for n in tree(tmp_path / "out/dataset/images") if n.startswith("p1/002"))
    image = opened((tmp_path / "out/dataset/images" / name).read_bytes())
    packet = image.info["XML:com.adobe.xmp"].encode() if codec == "png" else image.info["xmp"]
    description = ET.fromstring(packet.decode().split("?>", 1)[1].rsplit("<?", 1)[0])[0][0]
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType") == MODEL
    said = json.loads(description.get("{urn:raygen:recipe:1}recipe"))
    assert said == {
        "generator": "raygen",
        "sample_id": "s007",
        "plan": "t",
        "run_id": "r",
        "attempt": 0,
        "seed": 5,
        "noise_seed": 7,
        "checkpoint": "c" * 64,
        "sampler": "ddim",
        "steps": 10,
        "guidance": {"joint": 1.5},
    }
    if codec == "png":
        assert json.loads(image.info["raygen"]) == said


def test_marks_can_be_left_out_and_photographs_have_none(run, tmp_path):
    export(run, tmp_path / "bare", "folder", provenance=False)
    faces = [{"face_id": f"f{i}", "split": "train", "image": picture(encode_image(pixels(i)))} for i in range(3)]
    url = store_faces(tmp_path / "faces", faces)
    export(None, tmp_path / "photographs", "folder", faces=url)
    export(None, tmp_path / "table", "huggingface", faces=url)
    for folder in ("bare", "photographs"):
        pictures = tree(tmp_path / folder / "dataset/images")
        assert pictures
        assert all(b"trainedAlgorithmicMedia" not in p and b"raygen" not in p for p in pictures.values())
    rows = pq.read_table(next((tmp_path / "table/dataset/data").iterdir())).to_pylist()
    assert {(row["is_synthetic"], row["digital_source_type"]) for row in rows} == {(False, None)}
    card = (tmp_path / "photographs/dataset/README.md").read_text()
    assert "- synthetic" not in card
    assert "may show real people" in card


def test_a_tar_keeps_the_members_of_a_sample_together(run, tmp_path):
    export(run, tmp_path / "out", "webdataset")
    folder, seen = tmp_path / "out/dataset", []
    for path in sorted(folder.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members = [(m.name.split(".", 1), tar.extractfile(m).read(), m) for m in tar]
        keys = [name[0] for name, _, _ in members]
        runs = [key for key, before in zip(keys, [None, *keys], strict=False) if key != before]
        assert len(runs) == len(set(keys))  # no key comes back after another one
        assert all(m.mtime == 0 and m.uid == 0 and m.isfile() for _, _, m in members)
        for key in runs:
            parts = {name[1]: data for name, data, _ in members if name[0] == key}
            number = int(key[1:])
            assert np.array_equal(np.asarray(opened(parts["png"])), pixels(number))
            assert (parts["cls"], parts["txt"]) == (str(number % 3).encode(), f"Face, {number}".encode())
            assert set(np.asarray(opened(parts["mask.png"])).ravel()) == {number % 19}
            assert json.loads(parts["json"])["attributes"] == dict(zip(ATTRIBUTES, [1, -1] * 20, strict=True))
            seen.append(number)
    assert seen == GOOD
    assert len(list(folder.glob("*.tar"))) == 3


def test_dots_in_ids_and_long_ids_keep_their_keys_in_a_tar(tmp_path):
    run = store_rows(tmp_path / "run", [sample(0, sample_id="a.b.c"), sample(1, sample_id="x" * 128)])
    export(run, tmp_path / "out", "webdataset")
    with tarfile.open(tmp_path / "out/dataset/train-000000.tar") as tar:
        assert {name.split(".", 1)[0] for name in tar.getnames()} == {"a_b_c", "x" * 128}
    offsets = [r for t in _exported(tmp_path / "out") for r in t.to_pylist()]
    data = (tmp_path / "out/dataset/train-000000.tar").read_bytes()
    for number, row in enumerate(offsets):
        part = data[row["offset"] : row["offset"] + row["bytes"]]
        assert np.array_equal(np.asarray(opened(part)), pixels(number))


def _exported(out: Path):
    from raygen.store.run_store import RunStore

    return RunStore(str(out)).tables("exported")


def test_parquet_is_shown_as_pictures(run, tmp_path):
    export(run, tmp_path / "out", "huggingface")
    files = sorted((tmp_path / "out/dataset/data").iterdir())
    assert [f.name for f in files] == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    features = json.loads(pq.read_schema(files[0]).metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "mask": {"_type": "Image"}}
    rows = [row for f in files for row in pq.read_table(f, page_checksum_verification=True).to_pylist()]
    assert [row["sample_id"] for row in rows] == [f"s{i:03d}" for i in GOOD]
    for i, row in zip(GOOD, rows, strict=True):
        assert np.array_equal(np.asarray(opened(row["image"]["bytes"])), pixels(i))
        assert (row["label"], row["is_synthetic"], row["digital_source_type"]) == (i % 3, True, MODEL)
        assert json.loads(row["guidance"]) == {"joint": 1.5}
    card = (tmp_path / "out/dataset/README.md").read_text()
    assert "path: data/train-*.parquet" in card


def test_a_table_of_labels_alone(run, tmp_path):
    export(run, tmp_path / "out", "csv")
    assert set(tree(tmp_path / "out/dataset")) == {"labels.csv", "README.md", "croissant.json", "SHA256SUMS"}
    with (tmp_path / "out/dataset/labels.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["sample_id"] for line in lines] == [f"s{i:03d}" for i in GOOD]


@pytest.mark.parametrize(("people", "codec"), [(3, "png"), (None, "png"), (3, "jpeg"), (3, "webp")])
def test_the_table_of_labels_names_the_pictures_of_a_folder(tmp_path, people, codec):
    run = store_rows(tmp_path / "run", [sample(i, people) for i in range(8)])
    for kind in ("csv", "folder"):
        export(run, tmp_path / kind, kind, form={"codec": codec})
    alone, beside = (tmp_path / kind / "dataset/labels.csv" for kind in ("csv", "folder"))
    assert alone.read_text() == beside.read_text()
    with alone.open(newline="") as file:
        assert all((beside.parent / line["path"]).is_file() for line in csv.DictReader(file))


# --- RecordIO -------------------------------------------------------------------------------------------------


def records(data: bytes) -> dict[int, bytes]:
    """Offset -> payload, after dmlc's recordio.h alone: lengths, padding, parts that belong together."""
    found, at = {}, 0
    while at < len(data):
        start, payload = at, b""
        while True:
            magic, word = struct.unpack_from("<II", data, at)
            assert magic == 0xCED7230A
            part, length = word >> 29, word & ((1 << 29) - 1)
            payload += data[at + 8 : at + 8 + length]
            end = at + 8 + length
            at = (end + 3) // 4 * 4
            assert data[end:at] == bytes(at - end)
            if part in (0, 3):
                break
            payload += struct.pack("<I", 0xCED7230A)
        found[start] = payload
    return found


def unpacked(payload: bytes) -> tuple[int, list[float], int, bytes]:
    """Flag, labels, id and picture."""
    flag, label, key, second = struct.unpack_from("<IfQQ", payload)
    assert second == 0
    labels = list(struct.unpack_from(f"<{flag}f", payload, 24)) if flag else [label]
    return flag, labels, key, payload[24 + 4 * flag :]


@pytest.mark.parametrize("codec", ["jpeg", "png"])
def test_recordio_is_what_insightface_reads(run, tmp_path, codec):
    export(run, tmp_path / "out", "recordio", form={"codec": codec, "size": 16})
    folder = tmp_path / "out/dataset"
    names = {"train.rec", "train.idx", "train.lst", "property", "README.md", "croissant.json", "SHA256SUMS"}
    assert {p.name for p in folder.iterdir()} == names
    assert (folder / "property").read_text() == "3,16,16"
    by_offset = records((folder / "train.rec").read_bytes())
    index = {int(k): int(v) for k, v in (line.split("\t") for line in (folder / "train.idx").read_text().splitlines())}
    assert list(index.values()) == list(by_offset)
    assert list(index) == list(range(1 + 12 + 3))
    flag, head, key, rest = unpacked(by_offset[index[0]])
    assert (flag, head, key, rest) == (2, [13.0, 16.0], 0, b"")
    ordered = sorted(GOOD, key=lambda i: (i % 3, i))  # by identity, though each is in every shard
    lines = (folder / "train.lst").read_text().splitlines()
    for key, i in enumerate(ordered, 1):
        flag, labels, number, data = unpacked(by_offset[index[key]])
        assert (flag, labels, number) == (0, [float(i % 3)], key)
        assert lines[key - 1] == f"{key}\t{i % 3}.000000\tp{i % 3}/{i // 3:03d}.{'jpg' if codec == 'jpeg' else 'png'}"
        image = opened(data)
        assert image.format == codec.upper()
        if codec == "png":
            assert np.array_equal(np.asarray(image), pixels(i))
        else:
            assert np.abs(np.asarray(image).astype(int) - pixels(i)).mean() < 12  # noise is the hardest there is
    ranges = [unpacked(by_offset[index[13 + person]])[:2] for person in range(3)]
    assert ranges == [(2, [1.0, 6.0]), (2, [6.0, 9.0]), (2, [9.0, 13.0])]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"abc",
        b"abcd",
        MAGIC,
        MAGIC * 3,
        b"abcd" + MAGIC,
        b"abc" + MAGIC + b"x",
        MAGIC + b"abcde",
        b"abcd" + MAGIC + MAGIC + b"ab",
        b"\x0a" + MAGIC + b"abc" + MAGIC,
        MAGIC[:3],
        b"abcd" + MAGIC[:3],
    ],
)
def test_a_payload_that_holds_the_magic_word_comes_back(payload):
    data = framed(payload)
    assert records(data) == {0: payload}
    aligned = [i for i in range(0, len(payload) - 3, 4) if payload[i : i + 4] == MAGIC]
    words = [i for i in range(0, len(data) - 3, 4) if data[i : i + 4] == MAGIC]
    assert len(words) == 1 + len(aligned)  # a reader that looks for the word finds the beginnings of parts only


def test_the_parts_of_a_record_have_the_marks_of_the_first_writer():
    """Bytes as dmlc-core's writer lays them out: first 1, middle 2, last 3, the word itself left out."""
    data = framed(b"abcd" + MAGIC + MAGIC + b"ab")
    parts = [(1, b"abcd"), (2, b""), (3, b"ab\0\0")]
    lengths = [4, 0, 2]
    expected = b"".join(
        MAGIC + struct.pack("<I", mark << 29 | n) + body for (mark, body), n in zip(parts, lengths, strict=True)
    )
    assert data == expected


def test_random_payloads_come_back_from_one_stream():
    random = np.random.default_rng(0)
    words = [MAGIC, b"\0\0\0\0", b"a", b"bc"]
    payloads = [b"".join(words[i] for i in random.integers(0, 4, random.integers(0, 12))) for _ in range(2000)]
    assert list(records(b"".join(map(framed, payloads))).values()) == payloads
