"""An export as a run: killed, repeated, shared by workers, refused; and its card."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from raygen.commands.registry import load, make
from raygen.commands.verify import verify
from raygen.core.errors import ConfigError, InputError, TooManyBadRows
from raygen.core.hashing import canonical
from raygen.exports.licences import BUNDLED_MODEL, licence_of
from raygen.store.filenames import safe_name
from raygen.store.images import picture
from raygen.store.parquet import to_parquet
from raygen.store.run_store import RunStore
from raygen.store.schemas import METRICS, REFUSED
from raygen.store.sealed import to_bytes
from tests.exports.export_runs import FORMATS, export, sample, store_rows, tree
from tests.fakes import Shelf


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return store_rows(tmp_path_factory.mktemp("run") / "samples", [sample(i) for i in range(40)])


KILLED = """
import sys
from raygen.exports import worker
from raygen.exports import finalize as finishing
from raygen.commands.registry import make
import os, signal
slow, at = worker.ExportWorker._export, int(sys.argv[4])
calls = []
def count(self, listing):
    calls.append(1)
    if len(calls) == at:
        write = self._write
        def half(packed, piece):
            write(packed, piece)
            os.kill(os.getpid(), signal.SIGKILL)
        self._write = half
    return slow(self, listing)
worker.ExportWorker._export = count
if at == 99:
    finishing._totals = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if at == 98:
    class Dies(finishing.FileStore):
        def remove_folder(self, name):
            os.kill(os.getpid(), signal.SIGKILL)
    finishing.FileStore = Dies
if at == 97:
    import platform
    platform.node = lambda: "another-machine"
    replace = os.replace
    def dies(source, target):
        if str(target).endswith("README.md"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
    os.replace = dies
what = {"samples": sys.argv[1], "format": {"kind": sys.argv[3]}, "shard_rows": 4}
make({"kind": "export", **what, "out": sys.argv[2]}).run(lambda _: None)
"""


@pytest.mark.parametrize("kind", FORMATS[:-1])  # mds has files a shard and a file of all, as others have
@pytest.mark.parametrize(
    "at", [3, 97, 98, 99], ids=["in a shard", "elsewhere, in the card", "before pieces go", "before the card"]
)
def test_a_killed_export_goes_on_and_ends_in_the_same_bytes(run, tmp_path, kind, at):
    export(run, tmp_path / "golden", kind)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", KILLED, run, str(tmp_path / "out"), kind, str(at)]
    died = subprocess.run(command, env=environment, check=False, timeout=120)
    assert died.returncode == -signal.SIGKILL
    before = len(RunStore(str(tmp_path / "out")).committed())
    assert before in ((1, 2) if at == 3 else (10,))  # the shard before may still be in the thread that commits
    result = export(run, tmp_path / "out", kind)
    assert result.facts["shards"] == f"10 ({before} were already committed)"
    assert tree(tmp_path / "out/dataset") == tree(tmp_path / "golden/dataset")
    assert not (tmp_path / "out/attempt-00/pieces").exists()
    assert not (tmp_path / "out/attempt-00/staging").exists()
    assert verify(RunStore(str(tmp_path / "out"))).ok


def test_a_kill_at_any_time_changes_nothing(run, tmp_path):
    export(run, tmp_path / "golden", "folder")
    command = [sys.executable, "-c", KILLED, run, str(tmp_path / "out"), "folder", "-1"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})
    deadline = time.time() + 60
    while time.time() < deadline and not (tmp_path / "out/dataset/images").exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    export(run, tmp_path / "out", "folder")
    assert tree(tmp_path / "out/dataset") == tree(tmp_path / "golden/dataset")


@pytest.mark.parametrize("kind", FORMATS)
def test_whoever_gets_the_data_set_can_check_every_file_of_it(run, tmp_path, kind):
    export(run, tmp_path / "out", kind)
    folder = tmp_path / "out/dataset"
    said = dict(line.split("  ", 1)[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    found = tree(folder)
    assert said == {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if name != "SHA256SUMS"}
    checked = verify(RunStore(str(tmp_path / "out")))
    assert checked.ok
    assert checked.files == len(found)
    assert "sha256sum --check SHA256SUMS" in found["README.md"].decode()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_data_set_that_was_touched_is_found_out(run, tmp_path, kind):
    """Any file of it: a bit turned, an end cut off, gone, or one too many."""
    export(run, tmp_path / "out", kind)
    folder = tmp_path / "out/dataset"
    for name, data in tree(folder).items():
        path, wrong = folder / name, bytes([data[0] ^ 1]) + data[1:]
        for touched, said in ((wrong, "sha256 differs from the commit"), (data[:-1], f"{len(data):,} committed")):
            path.write_bytes(touched)
            checked = verify(RunStore(str(tmp_path / "out")))
            assert [p for p in checked.problems if p.startswith(f"dataset/{name}: ") and p.endswith(said)]
            assert len(checked.problems) == 1
        path.unlink()
        assert verify(RunStore(str(tmp_path / "out"))).problems == [f"dataset/{name}: missing"]
        path.write_bytes(data)
        if len(tree(folder)) > 20 and name.endswith("003.png"):
            break  # many pictures, one like the other
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images/more.png").write_bytes(b"x")
    assert verify(RunStore(str(tmp_path / "out"))).problems == ["dataset/images/more.png: no export wrote it"]
    shutil.rmtree(folder)
    assert verify(RunStore(str(tmp_path / "out"))).problems == ["dataset: no data set is there"]


def test_a_data_set_that_was_not_put_together_is_no_data_set(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("raygen.exports.folder.FolderExport.assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(run, tmp_path / "out", "folder")
    assert verify(RunStore(str(tmp_path / "out"))).problems == [
        "attempt-00/ASSEMBLED.json is missing: the data set is not put together; the same command goes on"
    ]
    export(run, tmp_path / "out", "folder")
    assert verify(RunStore(str(tmp_path / "out"))).ok


WRONG = [{}, {"rows": 4, "made": []}, {"made": {}}, {"made": {"a": 5}}] + [
    {"made": {"README.md": of}} for of in ([1], ["1", "x"], None)
]


@pytest.mark.parametrize(
    "record",
    [b"", b"{", b"\xff", b"[]", b"null", b"3"]
    + [write(record) for record in WRONG for write in (canonical, to_bytes)],  # as a program could have written it
)
def test_a_damaged_record_is_a_problem_and_no_crash(run, tmp_path, record):
    export(run, tmp_path / "out", "csv")
    (tmp_path / "out/attempt-00/ASSEMBLED.json").write_bytes(record)
    (problem,) = verify(RunStore(str(tmp_path / "out"))).problems
    assert re.match(r"attempt-00/ASSEMBLED\.json (is damaged|has no check sum)", problem)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("kind", ["recordio", "webdataset"])
def test_two_workers_make_the_bytes_that_one_makes(run, tmp_path, kind):
    export(run, tmp_path / "one", kind)
    export(run, tmp_path / "two", kind, resources={"runner": "ray", "workers": 2})
    assert tree(tmp_path / "one/dataset") == tree(tmp_path / "two/dataset")


def test_shards_in_any_order_by_two_workers_make_the_same_bytes(run, tmp_path, monkeypatch):
    from raygen.commands import base
    from raygen.execution.worker import ShardWorker

    def backwards(items, task, resources):
        workers = [ShardWorker(task), ShardWorker(task)]
        for i, item in enumerate(reversed(items)):
            yield workers[i % 2](item)

    for kind in FORMATS:
        export(run, tmp_path / "one" / kind, kind)
        with monkeypatch.context() as patch:
            patch.setattr(base, "runner_of", lambda _: backwards)
            export(run, tmp_path / "two" / kind, kind)
        assert tree(tmp_path / "one" / kind / "dataset") == tree(tmp_path / "two" / kind / "dataset")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "/etc/passwd",
        "..",
        "con",
        "NUL.png",
        "com1",
        "lpt9.x",
        "a.",
        "é",
        "e\u0301",
        "",
        " a",
        "a b",
        "a\0b",
        "-a",
        "a\\b",
        "x" * 129,
        "CON",
        "aux.tar.gz",
    ],
)
def test_ids_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="bad_id"):
        safe_name(name)
    run = store_rows(tmp_path / "run", [sample(0), sample(1, sample_id=name)])
    with pytest.raises(InputError, match="bad_id"):
        export(run, tmp_path / "out", "folder")
    people = store_rows(tmp_path / "people", [sample(0), sample(1, identity_id=name)])
    with pytest.raises(InputError, match="bad_id"):
        export(people, tmp_path / "out", "csv")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_twins_are_refused_in_every_format(tmp_path, kind):
    rows = [sample(0, sample_id="Ab", variant=None), sample(3, sample_id="aB", variant=None)]
    with pytest.raises(InputError, match=r"twin: .*'Ab' and 'aB' would be one file"):
        export(store_rows(tmp_path / "rows", rows), tmp_path / "out", kind)
    people = [sample(0, identity_id="Bob"), sample(1, identity_id="bob")]
    with pytest.raises(InputError, match="identities 'Bob' and 'bob'"):
        export(store_rows(tmp_path / "people", people), tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def test_dots_that_a_tar_cannot_keep_apart_are_refused(tmp_path):
    rows = [sample(0, sample_id="a.b"), sample(1, sample_id="a_b")]
    run = store_rows(tmp_path / "rows", rows)
    with pytest.raises(InputError, match=r"'a\.b' and 'a_b'"):
        export(run, tmp_path / "out", "webdataset")
    export(run, tmp_path / "csv", "csv")


def test_variants_that_repeat_give_way_to_row_ids(tmp_path):
    run = store_rows(tmp_path / "run", [sample(i, variant=0) for i in range(6)])
    export(run, tmp_path / "out", "folder", form={"masks": False})
    assert set(tree(tmp_path / "out/dataset/images")) == {f"p{i % 3}/s{i:03d}.png" for i in range(6)}


def test_nothing_to_export_is_a_sentence(tmp_path):
    rows = [sample(i, image=None, error="nonfinite: all") for i in range(4)]
    run = store_rows(tmp_path / "run", rows)
    for kind in FORMATS:
        with pytest.raises(ConfigError, match=r"no row to export \(4 failed"):
            export(run, tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def test_a_selection_counts_unless_told_otherwise(tmp_path):
    run = store_rows(tmp_path / "run", [sample(i) for i in range(9)], refused=("s001", "s008"))
    result = export(run, tmp_path / "out", "csv")
    assert result.facts["left out"] == "2 not selected"
    text = (tmp_path / "out/dataset/labels.csv").read_text()
    assert "s001" not in text
    assert "s002" in text
    export(run, tmp_path / "all", "csv", selected=False)
    assert "s001" in (tmp_path / "all/dataset/labels.csv").read_text()


def test_what_a_selection_left_out_is_not_called_a_failure(tmp_path):
    rows = [sample(i) for i in range(6)]
    rows[2] |= {"image": None, "error": f"{REFUSED}miou 0.300 < 0.500"}
    rows[4] |= {"image": None, "error": "nonfinite: all"}
    result = export(store_rows(tmp_path / "run", rows), tmp_path / "out", "csv")
    assert result.facts["left out"] == "1 failed before, 1 not selected"
    assert ": 1 file, " in str(result.facts["data set"])


def test_a_picture_that_cannot_be_read_is_counted_and_too_many_end_the_run(tmp_path):
    rows = [sample(i) for i in range(12)]
    rows[5]["image"] = picture(b"not a picture")
    run = store_rows(tmp_path / "run", rows)
    with pytest.raises(TooManyBadRows, match="1 of 12 rows failed"):
        export(run, tmp_path / "out", "recordio")
    assert not (tmp_path / "out/dataset/README.md").exists()
    result = export(run, tmp_path / "more", "recordio", max_error_fraction=0.1)
    assert result.facts["left out"] == "1 could not be exported"
    assert "not_an_image 1" in (tmp_path / "more/dataset/README.md").read_text()


def metrics(folder: Path, run_id: str) -> str:
    row = {
        "run_id": run_id,
        "metric": "miou:parsenet",
        "slice": "all",
        "value": 0.61,
        "n": 500,
        "ci_low": 0.6,
        "ci_high": 0.62,
        "reference": "a" * 64,
        "created": datetime.now(UTC),
        "protocol": json.dumps({"network": "parsenet", "sha256": "b" * 64, "input": "512 px", "low_n": True}),
    }
    (folder / "metrics").mkdir(parents=True)
    (folder / "metrics/metrics.parquet").write_bytes(to_parquet(pa.Table.from_pylist([row], METRICS)))
    return str(folder)


def test_the_card_says_who_made_it_how_good_it_is_and_whose_the_networks_are(run, tmp_path):
    scores = metrics(tmp_path / "scores", RunStore(run).plan().run_id)
    card = {"title": "People: a test", "licence": "cc-by-4.0", "licences": {"cccccc": "our own, Apache-2.0"}}
    export(run, tmp_path / "out", "huggingface", scores=scores, card=card)
    text = (tmp_path / "out/dataset/README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pretty_name"] == "People: a test"
    assert (front["license"], front["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    assert "synthetic" in front["tags"]
    assert "| miou:parsenet | all | 0.61 (0.6, 0.62) | 500 | parsenet, sha256 bbbbbbbbbbbb, 512 px" in text
    assert "| parsenet | measured them | published with CelebAMask-HQ, whose terms allow non-commercial" in text
    assert "| model `cccccccccccc` | made the pictures | our own, Apache-2.0 |" in text
    assert "trainedAlgorithmicMedia" in text
    assert str(tmp_path) not in text  # no path of this machine
    job = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert make(job).format.kind == "huggingface"  # what it prints is a job
    other = metrics(tmp_path / "other", "another")
    with pytest.raises(ConfigError, match="judged run another"):
        export(run, tmp_path / "no", "csv", scores=other)
    with pytest.raises(ConfigError, match="name an evaluation"):
        export(run, tmp_path / "no", "csv", scores=run)


def test_licences_are_known_named_or_unknown():
    from raygen.core.assets import resolve
    from raygen.models import checkpoint_folder

    assert checkpoint_folder.digest(resolve("bundled")) == BUNDLED_MODEL
    assert licence_of(BUNDLED_MODEL, {}).startswith("Apache-2.0")
    assert licence_of("inception-2015:x", {"inception": "mine"}) == "mine"
    assert licence_of("clip:1234", {}).startswith("unknown")


@pytest.mark.parametrize("path", sorted(Path("jobs/export").glob("*.yaml")), ids=lambda p: p.name)
def test_the_jobs_dry_run_on_any_samples_and_write_nothing(path, run, tmp_path):
    document = yaml.safe_load(path.read_text())
    overrides = [f"out={tmp_path / 'out'}", f"samples={run}"]
    overrides += ["scores=null"] if "scores" in document else []
    found = load(str(path), overrides).estimate()
    assert (found.rows, found.done_shards) == (40, 0)
    assert found.bytes > 40 * 100
    assert found.seconds > 0
    assert not (tmp_path / "out").exists()


def test_one_source_is_named(run):
    for what in ({}, {"samples": run, "faces": run}):
        with pytest.raises(ConfigError, match="name either `samples` or `faces`"):
            make({"kind": "export", **what, "format": {"kind": "csv"}, "out": "x"})
    with pytest.raises(ConfigError, match="did you mean 'quality'"):
        make({"kind": "export", "samples": run, "format": {"kind": "csv", "qualty": 3}, "out": "x"})


def test_exports_go_to_buckets_too(run, tmp_path):
    """Through a storage that is no disk: nothing needs a local path."""
    Shelf.register()
    for kind in FORMATS:
        export(run, tmp_path / kind, kind)
        url = f"shelf://exports/{kind}"
        what = {"samples": run, "format": {"kind": kind}, "shard_rows": 4}
        make({"kind": "export", **what, "out": url}).run(lambda _: None)
        fs = Shelf()
        root = f"/exports/{kind}/dataset/"
        found = {name.removeprefix(root): fs.cat_file(name) for name in fs.find(root)}
        assert found == tree(tmp_path / kind / "dataset")
        assert verify(RunStore(url)).files == len(found)
        assert not fs.exists(f"/exports/{kind}/attempt-00/pieces")
