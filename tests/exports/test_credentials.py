"""Content credentials of exported pictures: read by the library that viewers use, signed once, and without a trace of
the key."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raygen.commands import base
from raygen.commands.registry import make
from raygen.commands.verify import verify
from raygen.core.config import parse
from raygen.core.errors import ConfigError, IntegrityError
from raygen.core.location import redact
from raygen.execution.worker import ShardWorker
from raygen.exports.credentials import C2PAConfig, key_warning, read_credentials
from raygen.exports.worker import ExportWorker
from raygen.store.filesystem import FileStore
from raygen.store.images import encode_image, picture
from raygen.store.run_store import RunStore
from tests.commandline import main
from tests.exports.export_runs import export, opened, pixels, sample, store_faces, store_rows, tree
from tests.exports.signers import signer, time_stamps
from tests.fakes import Shelf

c2pa = pytest.importorskip("c2pa", reason="needs the extra c2pa")
MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return store_rows(tmp_path_factory.mktemp("run") / "samples", [sample(i) for i in range(10)])


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return signer(tmp_path_factory.mktemp("keys"))


def credential(data: bytes, codec: str = "png") -> tuple[str, dict[str, object], list[str]]:
    """Whether the signature of a file holds, its manifest, and what is wrong, by c2pa-python."""
    with c2pa.Reader(MEDIA[codec], io.BytesIO(data)) as reader:
        failed = reader.get_validation_results()["activeManifest"].get("failure", [])
        return reader.get_validation_state(), reader.get_active_manifest(), [entry["code"] for entry in failed]


@pytest.mark.parametrize("codec", ["png", "jpeg", "webp"])
def test_a_signed_picture_says_that_a_model_made_it_and_keeps_all_else(run, keys, tmp_path, codec):
    export(run, tmp_path / "plain", "folder", form={"codec": codec})
    export(run, tmp_path / "out", "folder", form={"codec": codec}, provenance={"c2pa": keys})
    plain, signed = tree(tmp_path / "plain/dataset/images"), tree(tmp_path / "out/dataset/images")
    assert set(plain) == set(signed)
    for name, data in signed.items():
        state, manifest, failed = credential(data, codec)
        assert (state, failed) == ("Valid", ["signingCredential.untrusted"]), "its authority is in no list of trust"
        (actions,) = (entry["data"]["actions"] for entry in manifest["assertions"] if "actions" in entry["label"])
        assert [(action["action"], action["digitalSourceType"]) for action in actions] == [("c2pa.created", MODEL)]
        assert manifest["claim_generator_info"][0]["name"] == "raygen"
        assert manifest["title"] in {f"s{i:03d}" for i in range(10)}
        before, after = opened(plain[name]), opened(data)
        assert np.array_equal(np.asarray(before), np.asarray(after))
        for key in ("xmp", "XML:com.adobe.xmp", "raygen"):
            assert before.info.get(key) == after.info.get(key), "the marks of an unsigned picture are there"
        assert len(data) < len(plain[name]) + 6_000, "c2pa-python 0.38.1 adds a thumbnail of 1,024 px by default"
    wrong = bytearray(signed["p0/000." + ("jpg" if codec == "jpeg" else codec)])
    wrong[100 if codec == "webp" else -40] ^= 1  # among the pixels: a WebP file ends with its manifest
    assert "assertion.dataHash.mismatch" in credential(bytes(wrong), codec)[2]


def test_the_credential_of_another_methods_picture_does_not_say_that_raygen_made_it(keys, tmp_path):
    rows = [{**sample(i), "method": "SEAN", "checkpoint": None, "sampler": None, "seed": None} for i in range(2)]
    export(store_rows(tmp_path / "samples", rows), tmp_path / "out", "folder", provenance={"c2pa": keys})
    for data in tree(tmp_path / "out/dataset/images").values():
        state, manifest, _ = credential(data)
        (actions,) = (entry["data"]["actions"] for entry in manifest["assertions"] if "actions" in entry["label"])
        assert (state, actions[0]["softwareAgent"]["name"]) == ("Valid", "SEAN")
        assert manifest["claim_generator_info"][0]["name"] == "raygen"  # which wrote the credential


def test_every_format_holds_signed_pictures(run, keys, tmp_path):
    for kind in ("webdataset", "huggingface", "recordio"):
        form = {"size": 16, "codec": "png"} if kind == "recordio" else {}
        export(run, tmp_path / kind, kind, form=form, provenance={"c2pa": keys})
        assert verify(RunStore(str(tmp_path / kind))).ok
        assert not (tmp_path / kind / "attempt-00/pieces").exists()
    with tarfile.open(tmp_path / "webdataset/dataset/train-000000.tar") as tar:
        files = [tar.extractfile(member).read() for member in tar if member.name.endswith("0.png")]
    rows = pq.read_table(next((tmp_path / "huggingface/dataset/data").iterdir())).to_pylist()
    records = (tmp_path / "recordio/dataset/train.rec").read_bytes()
    assert records.count(b"c2pa.claim.v2") >= 10
    assert [credential(data)[0] for data in (files[0], rows[0]["image"]["bytes"])] == ["Valid", "Valid"]


@pytest.mark.parametrize("kind", ["es384", "ps256", "ed25519"])
def test_keys_of_every_kind_sign(tmp_path, kind):
    credentials = read_credentials(parse(C2PAConfig, signer(tmp_path, kind)))
    assert len(credentials.sha256) == 64


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which stamps here, is not installed")
def test_signatures_can_have_a_time_stamp(run, keys, tmp_path):
    with time_stamps(tmp_path / "authority") as address:
        export(run, tmp_path / "out", "folder", provenance={"c2pa": {**keys, "time_stamps": address}})
        data = next(iter(tree(tmp_path / "out/dataset/images").values()))
    with c2pa.Reader("image/png", io.BytesIO(data)) as reader:
        found = [entry["code"] for entry in reader.get_validation_results()["activeManifest"]["success"]]
        assert reader.get_validation_state() == "Valid"
        assert "timeStamp.validated" in found
        assert reader.get_active_manifest()["signature_info"]["time"].startswith("20")
    assert RunStore(str(tmp_path / "out")).plan().settings["provenance"]["c2pa"]["time_stamps"] == address
    with pytest.raises(ConfigError, match=r"time_stamps: must be an address that begins with http"):
        export(run, tmp_path / "no", "folder", provenance={"c2pa": {**keys, "time_stamps": "s3://bucket/x"}})
    with pytest.raises(ConfigError, match="certificate, key and time_stamps cannot sign"):  # the authority is gone
        export(run, tmp_path / "no", "folder", provenance={"c2pa": {**keys, "time_stamps": address}})
    assert not (tmp_path / "no").exists()


# --- exactly once ---


class Died(BaseException):
    """The end of a process, in the middle of a call."""


def test_an_export_that_ends_in_a_shard_goes_on_with_its_signatures(run, keys, tmp_path, monkeypatch):
    """Some files of the second shard are there, its commit is not."""
    write, calls = ExportWorker._write, []

    def dies(self, packed, piece):
        write(self, packed, piece)
        calls.append(packed)
        if len(calls) == 2:
            raise Died

    monkeypatch.setattr(ExportWorker, "_write", dies)
    with pytest.raises(Died):
        export(run, tmp_path / "out", "folder", provenance={"c2pa": keys})
    before = tree(tmp_path / "out/dataset/images")
    assert len(before) >= 8
    monkeypatch.undo()
    export(run, tmp_path / "out", "folder", provenance={"c2pa": keys})
    after = tree(tmp_path / "out/dataset/images")
    assert len(after) == 10
    assert {name: after[name] for name in before} == before
    assert verify(RunStore(str(tmp_path / "out"))).ok


def test_two_attempts_of_a_shard_make_the_same_bytes_though_signatures_differ(run, keys, tmp_path, monkeypatch):
    """Two workers do every shard, and both have begun before either commits."""
    statuses = []

    def twice(items, task, resources):
        for item in items:
            attempts = [ShardWorker(task).start(item) for _ in range(2)]
            ended = [attempt() if callable(attempt) else attempt for attempt in attempts]
            statuses.append([(summary.status, summary.divergent) for summary in ended])
            yield ended[0]

    monkeypatch.setattr(base, "runner_of", lambda _: twice)
    for kind in ("folder", "webdataset"):
        export(run, tmp_path / kind, kind, provenance={"c2pa": keys})
        checked = verify(RunStore(str(tmp_path / kind)))
        assert checked.ok, checked.problems
    assert len(statuses) == 6
    assert {status for pair in statuses for status in pair} == {("committed", False)}
    monkeypatch.undo()
    export(run, tmp_path / "again", "folder", provenance={"c2pa": keys})
    first, second = (tree(tmp_path / name / "dataset") for name in ("folder", "again"))
    differ = {name for name in first if first[name] != second[name]}
    assert {name for name in first if name.startswith("images/")} <= differ, "salts and signatures are random"
    assert first["labels.csv"] == second["labels.csv"]


def test_an_attempt_that_comes_when_all_is_done_changes_no_file(run, keys, tmp_path):
    """Its signatures are others, and the names of the files are taken."""
    job = {
        "kind": "export",
        "samples": run,
        "format": {"kind": "folder"},
        "shard_rows": 4,
        "provenance": {"c2pa": keys},
        "out": str(tmp_path / "out"),
    }
    work = make(job).prepare(write=True)
    worker, rows = work.build(), work.plan.shards[0].read()
    late = worker.start(rows)
    make(job).run(lambda _: None)
    before = tree(tmp_path / "out/dataset")
    with pytest.raises(IntegrityError, match="is there with other bytes"):
        late()
    assert tree(tmp_path / "out/dataset") == before
    make(job).run(lambda _: None)
    assert verify(RunStore(str(tmp_path / "out"))).ok


def test_signed_exports_go_to_buckets(run, keys):
    Shelf.register()
    url = "shelf://exports/signed"
    form = {"samples": run, "format": {"kind": "webdataset"}, "provenance": {"c2pa": keys}}
    make({"kind": "export", **form, "out": url}).run(lambda _: None)
    assert verify(RunStore(url)).ok


def test_files_are_created_once_and_said_where_they_differ(tmp_path):
    for url in (str(tmp_path), "shelf://once"):
        Shelf.register()
        store = FileStore(url)
        store.put_all_once({"a/1": b"x", "a/2": b"y"}, "staging")
        store.put_all_once({"a/1": b"x", "a/3": b"z"}, "staging")
        with pytest.raises(IntegrityError, match="'a/2' is there with other bytes"):
            store.put_all_once({"a/2": b"other", "a/4": b"w"}, "staging")
        assert [store.get(f"a/{i}") for i in (1, 2, 3, 4)] == [b"x", b"y", b"z", b"w"]


# --- the key ---


def texts_of(folder: Path):
    for path in sorted(folder.rglob("*")):
        yield str(path)
        if path.is_file():
            yield path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            yield f"{file.schema_arrow.metadata} {file.read().to_pylist()}"


@pytest.mark.parametrize("place", ["file", "variable"])
def test_neither_the_key_nor_its_place_is_written_or_said(run, keys, tmp_path, capfd, monkeypatch, place):
    pem = Path(keys["key"]).read_text()
    named = keys["key"]
    if place == "variable":
        monkeypatch.setenv("THE_KEY_OF_THIS_TEST", pem)
        named = "env:THE_KEY_OF_THIS_TEST"
    job = {
        "kind": "export",
        "samples": run,
        "format": {"kind": "huggingface"},
        "provenance": {"c2pa": {"certificate": keys["certificate"], "key": named}},
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    Path(keys["key"]).chmod(0o644)
    code, said = main(capfd, "export", str(tmp_path / "job.yaml"))
    assert code == 0, said
    assert ("chmod 600 it" in " ".join(said.split())) == (place == "file")
    main(capfd, "report", str(tmp_path / "out"))
    body = "".join(pem.splitlines()[1:-1])
    for text in (said, *texts_of(tmp_path / "out")):
        assert body[:40] not in text
        assert named not in text
        assert "PRIVATE KEY" not in text
    settings = RunStore(str(tmp_path / "out")).plan().settings
    sha256 = read_credentials(parse(C2PAConfig, keys)).sha256
    assert settings["provenance"] == {"c2pa": {"certificate_sha256": sha256}}
    card = (tmp_path / "out/dataset/README.md").read_text()
    assert f"the certificate with SHA-256 `{sha256}`" in card
    assert "key: key.pem" in card


def test_what_cannot_sign_ends_with_2_before_anything_is_written(run, keys, tmp_path, capfd, monkeypatch):
    other, ended = signer(tmp_path / "other"), signer(tmp_path / "ended", days=-1)
    monkeypatch.setenv("NOT_A_KEY", "hush0canary")
    pem = Path(keys["key"]).read_text()
    wrong = {
        "key: is not the key of the certificate": {**keys, "key": other["key"]},
        "key: the file that it names cannot be read here (No such file": {**keys, "key": "hush0canary"},
        "key: holds no private key in PEM form": {**keys, "key": "env:NOT_A_KEY"},
        "key: the environment variable that it names is not set here": {**keys, "key": "env:HUSH0CANARY"},
        "key: must not carry a private key": {**keys, "key": pem},
        "key: is a private key itself": {**keys, "key": "".join(pem.splitlines()[1:-1])},
        "key: must be the path of a PEM file, or env:NAME": {**keys, "key": [pem]},
        "certificate: cannot be read": {**keys, "certificate": str(tmp_path / "nothing.pem")},
        "holds no certificate in PEM form": {**keys, "certificate": keys["key"]},
        "cannot sign": ended,
    }
    for said, config in wrong.items():
        job = {"kind": "export", "samples": run, "format": {"kind": "folder"}, "out": str(tmp_path / "out")}
        (tmp_path / "job.yaml").write_text(json.dumps({**job, "provenance": {"c2pa": config}}))
        for words in ([], ["--dry-run"]):
            code, text = main(capfd, "export", str(tmp_path / "job.yaml"), *words)
            assert code == 2, (said, text)
            flat = " ".join(text.split())
            assert said.partition(": ")[2] in flat or said in flat, text
            assert "hush0canary" not in text.lower() or words, "a dry run prints the job as it was written"
            assert "".join(pem.splitlines()[1:3])[:30] not in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("first", ["certificate", "key"])
def test_a_file_with_certificate_and_key_sends_no_key_to_workers(run, keys, tmp_path, first):
    """Many web servers take such a file, so people have one. It counts for the certificates alone."""
    parts = [Path(keys[name]).read_bytes() for name in ("certificate", "key")]
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(parts if first == "certificate" else reversed(parts)))
    provenance = {"c2pa": {"certificate": str(both), "key": keys["key"]}}
    job = {"kind": "export", "samples": run, "format": {"kind": "folder"}, "provenance": provenance, "out": "nowhere"}
    sent = pickle.dumps(make(job).prepare(write=False).build)
    assert b"BEGIN CERTIFICATE" in sent
    assert b"PRIVATE" not in sent
    credentials = read_credentials(parse(C2PAConfig, provenance["c2pa"]))
    Path(keys["key"]).chmod(0o640)
    assert key_warning(parse(C2PAConfig, keys)) == "", "the group of a service is often that of its secrets"
    assert keys["key"] not in repr(credentials)
    assert credentials.sha256 == read_credentials(parse(C2PAConfig, keys)).sha256


def test_photographs_and_tables_have_nothing_to_sign(run, keys, tmp_path):
    with pytest.raises(ConfigError, match="format csv holds no pictures to sign"):
        export(run, tmp_path / "out", "csv", provenance={"c2pa": keys})
    url = store_faces(
        tmp_path / "faces", [{"face_id": "f", "split": "train", "image": picture(encode_image(pixels(0)))}]
    )
    with pytest.raises(ConfigError, match="holds photographs, or pictures of unknown origin"):
        export(None, tmp_path / "out", "folder", faces=url, provenance={"c2pa": keys})
    assert not (tmp_path / "out").exists()


def test_a_private_key_in_any_text_is_hidden(keys):
    pem = Path(keys["key"]).read_text()
    for text in (f"see {pem} there", repr(pem), pem[: len(pem) // 2], json.dumps({"a": pem})):
        assert "PRIVATE" not in redact(text)
        assert "".join(pem.splitlines()[1])[:20] not in redact(text)
    assert redact(f"see {pem} there").split() == ["see", "***", "there"]


def test_workers_are_sent_the_name_of_the_variable_and_not_the_key(run, keys, monkeypatch):
    """They read it where they run: what a job sends may be in logs of Ray and on its dashboard."""
    pem = Path(keys["key"]).read_text()
    monkeypatch.setenv("THE_KEY_OF_THIS_TEST", pem)
    named = {**keys, "key": "env:THE_KEY_OF_THIS_TEST"}
    job = {"samples": run, "format": {"kind": "folder"}, "provenance": {"c2pa": named}}
    sent = pickle.dumps(make({"kind": "export", **job, "out": "nowhere"}).prepare(write=False).build)
    assert b"env:THE_KEY_OF_THIS_TEST" in sent
    assert not [line for line in pem.splitlines() if line.encode() in sent]
