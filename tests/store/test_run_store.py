"""The commit protocol on a local disk and on an S3 server on loopback."""

import errno
import json
import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from raygen.commands.verify import verify
from raygen.core.config import Resources
from raygen.core.errors import ConfigError, IntegrityError
from raygen.execution.executor import execute, local_runner
from raygen.store.filesystem import FileStore
from raygen.store.parquet import RANGE, Slice, read_slice, to_parquet
from raygen.store.run_store import Plan, RunStore, Shard, make_shards, open_input
from raygen.store.schemas import SCORES
from raygen.store.set_digest import SetDigest
from tests.fakes import Fake, build, plan_of, rewrite

GOOD = Fake()


def run(folder: Path, plan: Plan, fake: Fake = GOOD, **kwargs):
    return execute(
        RunStore(str(folder)), plan, partial(build, fake), Resources(), local_runner, max_error_fraction=0.5, **kwargs
    )


def test_cut_covers_every_row_once_and_in_order():
    pieces = [Slice("a", 0, 10), Slice("b", 5, 7), Slice("c", 0, 1)]
    shards = make_shards(pieces, 4)
    rows = [(p.path, p.start + i) for s in shards for p in s.inputs for i in range(p.rows)]
    assert rows == [("a", i) for i in range(10)] + [("b", 5 + i) for i in range(7)] + [("c", 0)]
    assert [s.rows for s in shards] == [4, 4, 4, 4, 2]
    assert [s.index for s in shards] == list(range(5))


def test_range_slices_need_no_file():
    assert read_slice(Slice(RANGE, 3, 2))["index"].to_pylist() == [3, 4]


def test_slices_read_only_their_rows(tmp_path):
    table = pa.table({"sample_id": [f"s{i}" for i in range(300)]})
    (tmp_path / "t.parquet").write_bytes(to_parquet(table, row_group_rows=64))
    for start, rows in ((0, 300), (63, 2), (64, 64), (200, 100), (299, 1)):
        got = read_slice(Slice(str(tmp_path / "t.parquet"), start, rows))["sample_id"].to_pylist()
        assert got == [f"s{i}" for i in range(start, start + rows)]


def test_set_digest_ignores_order_and_cut_but_not_content():
    a, b, c = SetDigest(), SetDigest(), SetDigest()
    for line in ("x", "y", "z"):
        a.add(line)
    for line in ("z", "x"):
        b.add(line)
    c.add("y")
    assert a.hex() == b.merge(c).hex() == c.merge(b).hex()
    c.add("y")
    assert a.hex() != b.merge(c).hex()  # a row twice is another set


def test_plan_survives_its_file():
    plan = Plan("generate", "id", {"a": 1}, 8, make_shards([Slice("f", 0, 20), Slice("g", 2, 3)], 8))
    assert Plan.from_json(plan.to_json()) == Plan(plan.kind, plan.run_id, plan.settings, plan.batch, list(plan.shards))
    with pytest.raises(IntegrityError):
        Plan.from_json(b'{"kind": "x"}')


@pytest.mark.parametrize("form", [1, 2])
def test_a_run_with_files_of_another_form_is_refused_and_not_continued(tmp_path, form):
    """Format 1 had maps, and attributes by their place; format 2 another digest of rows, which would not verify."""
    plan, folder = plan_of(tmp_path), tmp_path / "out"
    run(folder, plan)
    for path in (folder / "attempt-00/plan.json", folder / "attempt-00/MANIFEST.json"):
        rewrite(path, format=form)
    for use in (lambda: open_input(str(folder)), lambda: run(folder, plan)):
        with pytest.raises(
            ConfigError, match=f"has files of format {form}, and this raygen reads 3; make the run again"
        ):
            use()


def test_put_once_has_one_winner(tmp_path):
    storage = FileStore(tmp_path)
    assert storage.put_once("a/b", b"1")
    assert not storage.put_once("a/b", b"2")
    assert storage.get("a/b") == b"1"
    assert storage.names("a") == ["b"]
    assert storage.names("nowhere") == []


def test_credentials_in_an_address_are_refused():
    with pytest.raises(ConfigError, match="user or password"):
        FileStore("s3://key:secret@bucket/x")


def test_a_finished_run_is_complete_and_verifies(tmp_path):
    plan = plan_of(tmp_path)
    outcome = run(tmp_path / "out", plan)
    assert outcome.manifest["rows"]["samples"] == 96
    store, digest = open_input(str(tmp_path / "out"))
    assert digest == outcome.manifest["set_digest"]
    found = verify(store)
    assert found.ok, found.problems
    assert found.pictures == 96
    assert found.set_digest == digest
    record = json.loads(store.storage.get("run.json"))
    assert record["exit_code"] == 0
    assert record["new_rows"] == 96


def test_running_again_does_nothing(tmp_path):
    plan = plan_of(tmp_path)
    first = run(tmp_path / "out", plan)
    second = run(tmp_path / "out", plan)
    assert second.progress.resumed_shards == len(plan.shards)
    assert second.progress.new_rows == 0
    assert second.manifest == first.manifest


def test_another_plan_in_the_same_folder_is_refused_and_named(tmp_path):
    run(tmp_path / "out", plan_of(tmp_path))
    other = plan_of(tmp_path, name="other")
    with pytest.raises(ConfigError, match="different: name"):
        run(tmp_path / "out", other)


def test_an_unfinished_run_is_no_input(tmp_path):
    plan = plan_of(tmp_path)
    RunStore(str(tmp_path / "out")).create(plan)
    with pytest.raises(ConfigError, match="no complete run"):
        open_input(str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="no complete run"):
        open_input(str(tmp_path / "nothing"))


def test_files_without_a_commit_do_not_count(tmp_path):
    plan = plan_of(tmp_path)
    run(tmp_path / "out", plan)
    folder = tmp_path / "out/attempt-00/data/samples"
    stray = folder / "shard-00001-of-00006-abcdefabcdef.parquet"
    stray.write_bytes(next(folder.glob("*.parquet")).read_bytes())
    store = RunStore(str(tmp_path / "out"))
    assert sum(t.num_rows for t in store.tables("samples")) == 96
    found = verify(store)
    assert found.ok
    assert found.orphans == [f"data/samples/{stray.name}"]


@pytest.mark.parametrize("resources", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_every_flipped_bit_is_found(tmp_path, resources):
    plan = plan_of(tmp_path, rows=16)
    run(tmp_path / "out", plan)
    path = next((tmp_path / "out/attempt-00/data/samples").glob("*.parquet"))
    data = bytearray(path.read_bytes())
    place = resources * len(data) // 10
    data[place] ^= 1 << (resources % 8)
    path.write_bytes(bytes(data))
    found = verify(RunStore(str(tmp_path / "out")))
    assert any(path.name in problem for problem in found.problems)


def test_missing_and_double_rows_are_found(tmp_path):
    plan = plan_of(tmp_path)
    run(tmp_path / "out", plan)
    root = tmp_path / "out/attempt-00"
    commits = sorted((root / "commits").iterdir())
    rewrite(commits[1], files=json.loads(commits[0].read_bytes())["files"])
    problems = " ".join(verify(RunStore(str(tmp_path / "out"))).problems)
    assert "an id that another row has" in problems
    assert "not the planned ones" in problems
    commits[2].unlink()
    assert "1 shards are not committed: [2]" in " ".join(verify(RunStore(str(tmp_path / "out"))).problems)


def test_a_damaged_commit_is_a_finding(tmp_path):
    run(tmp_path / "out", plan_of(tmp_path))
    (tmp_path / "out/attempt-00/commits/shard-00003.json").write_text("{")
    assert any(
        p.startswith("commits/shard-00003.json is damaged") for p in verify(RunStore(str(tmp_path / "out"))).problems
    )


def test_twins_that_differ_are_a_divergence(tmp_path):
    store = RunStore(str(tmp_path / "out"), create_only=True)
    table = {"scores": SCORES.empty_table()}
    rows = pa.Table.from_pylist(
        [{"sample_id": "a", "attempt": 0, "metric": "m", "run_id": "r", "vector": [1.0]}], SCORES
    )
    arguments = {"timings": {}, "environment": {}, "reasons": {}}
    _, divergent = store.commit(0, 1, table, **arguments)
    assert not divergent
    _, divergent = store.commit(0, 1, table, **arguments)
    assert not divergent
    winner, divergent = store.commit(0, 1, {"scores": rows}, **arguments)
    assert divergent
    assert winner.rows("scores") == 0


def test_without_create_only_writes_the_smallest_name_wins(tmp_path):
    one, two = (RunStore(str(tmp_path / "out"), create_only=False) for _ in "ab")
    arguments = {"timings": {}, "environment": {}, "reasons": {}}
    rows = [
        pa.Table.from_pylist([{"sample_id": i, "attempt": 0, "metric": "m", "run_id": "r", "vector": []}], SCORES)
        for i in ("a", "b")
    ]
    first, divergent = one.commit(0, 1, {"scores": rows[0]}, **arguments)
    assert not divergent
    assert two.commit(0, 1, {"scores": rows[1]}, **arguments) == (first, True), "what counted goes on to count"
    two.committed = dict  # as if both had looked before the other one wrote
    two.commit_of = one.commit_of
    winner, divergent = two.commit(0, 1, {"scores": rows[1]}, **arguments)
    names = one.storage.names("commits")
    assert len(names) == 2
    assert one.committed() == {0: names[0]}
    assert winner == one.commit_of(0)
    assert divergent == (winner == first), "the loser is told"


def test_a_shard_that_never_commits_is_set_aside_after_its_tries(tmp_path):
    store = RunStore(str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"does not see this run; set `out` to a URL"):
        store.begin(7, "launch", 3)  # as on another machine, with a folder of that name of its own
    assert not (tmp_path / "out").exists(), "nothing is silently local"
    store.create(plan_of(tmp_path))
    assert [store.begin(7, "launch", 3) for _ in range(5)] == [1, 2, 3, 0, 0]
    assert store.begin(7, "another", 3) == 1


def test_shards_can_be_pickled():
    import pickle

    shard = Shard(3, (Slice("a", 0, 5),))
    assert pickle.loads(pickle.dumps(shard)) == shard


@pytest.fixture(scope="module")
def s3():
    """A moto server on loopback, as the environment of an s3fs."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    import boto3
    import s3fs

    boto3.client("s3").create_bucket(Bucket="faces")
    s3fs.S3FileSystem.clear_instance_cache()  # a client keeps the address that it found, of a server that has ended
    yield "s3://faces"
    os.environ.clear()
    os.environ.update(before)
    server.stop()


def test_s3_behaves_like_a_disk(s3, tmp_path):
    plan = plan_of(tmp_path, rows=32)
    local = run(tmp_path / "out", plan)
    store = RunStore(f"{s3}/run")
    remote = execute(store, plan, partial(build, Fake()), Resources(), local_runner, max_error_fraction=0)
    assert store.create_only
    assert remote.manifest["set_digest"] == local.manifest["set_digest"]
    assert verify(RunStore(f"{s3}/run")).ok
    everything = b"".join(store.storage.get(n) for n in ("plan.json", "run.json", "MANIFEST.json"))
    assert b"canary-secret" not in everything


def test_a_missing_bucket_is_a_sentence(s3, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        execute(
            RunStore("s3://nowhere/run"),
            plan_of(tmp_path),
            partial(build, Fake()),
            Resources(),
            local_runner,
            max_error_fraction=0,
        )


def elsewhere(code, *words):
    """Run Python code in a process of its own, with the environment of this one."""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, *words], cwd=root, env=dict(os.environ), check=True, timeout=120)


def test_what_another_process_wrote_is_listed_at_once(s3):
    """s3fs keeps listings, and copies the setting that forbids it when the client is made."""
    store = FileStore(f"{s3}/shared")
    store.put("commits/a", b"1")
    assert store.names("commits") == ["a"]
    write = "import sys; from raygen.store.filesystem import FileStore; FileStore(sys.argv[1]).put(sys.argv[2], b'2')"
    elsewhere(write, store.url, "commits/b")
    assert store.names("commits") == ["a", "b"]
    assert sorted(name for name, _ in store.files("")) == ["commits/a", "commits/b"]
    elsewhere(write.replace("put(sys.argv[2], b'2')", "remove(sys.argv[2])"), store.url, "commits/a")
    assert store.names("commits") == ["b"]
    assert not store.exists("commits/a")


DRIVER = """
import sys
from functools import partial
from pathlib import Path
from raygen.core.config import Resources
from raygen.execution.executor import execute, local_runner
from raygen.store.run_store import RunStore
from tests.fakes import Fake, build, plan_of
plan = plan_of(Path(sys.argv[1]), rows=40, shard_rows=4, batch=4)
worker = partial(build, Fake(seconds=0.02))
execute(RunStore(sys.argv[2]), plan, worker, Resources(), local_runner, max_error_fraction=0)
"""


def test_two_drivers_on_one_bucket_end_well(s3, tmp_path):
    root, url = Path(__file__).parents[2], f"{s3}/twins"
    plan_of(tmp_path, rows=40, shard_rows=4, batch=4)
    words = [sys.executable, "-c", DRIVER, str(tmp_path), url]
    drivers = [subprocess.Popen(words, cwd=root, env=dict(os.environ), stderr=subprocess.PIPE) for _ in range(2)]
    ended = [(driver.communicate(timeout=120)[1].decode()[-2000:], driver.returncode) for driver in drivers]
    assert ended == [("", 0), ("", 0)]
    assert RunStore(url).is_complete()
    assert verify(RunStore(url)).ok


class Flaky:
    """A file system whose first calls of `pipe_file` fail."""

    def __init__(self, fs, failures):
        self.fs, self.failures = fs, failures

    def __getattr__(self, name):
        return getattr(self.fs, name)

    def pipe_file(self, *args, **options):
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("503 slow down")
        return self.fs.pipe_file(*args, **options)


def test_a_passing_error_of_the_probe_does_not_change_the_names_of_commits(s3, monkeypatch):
    monkeypatch.setattr("raygen.store.filesystem.time.sleep", lambda _: None)
    store = FileStore(f"{s3}/flaky")
    fs = store._fs
    store._fs = Flaky(fs, 2)
    assert store.creates_once()
    store._fs = Flaky(fs, 1000)
    with pytest.raises(OSError, match="503"):
        store.creates_once()


def test_the_naming_of_commits_is_fixed_with_the_plan(tmp_path):
    plan = plan_of(tmp_path)
    store = RunStore(str(tmp_path / "out"))
    store.create(plan)
    assert store.plan().create_only
    (tmp_path / "out/attempt-00/plan.json").write_bytes(plan._replace(create_only=False).to_json())
    again = RunStore(str(tmp_path / "out"))
    again.create(plan)
    assert not again.create_only, "the plan decides, whatever the storage can do now"
    manifest = run(tmp_path / "out", plan).manifest
    assert all(len(name) == len("shard-00000-0123456789ab.json") for name in again.storage.names("commits"))
    assert manifest["set_digest"] == run(tmp_path / "other", plan).manifest["set_digest"]


@pytest.mark.parametrize("code", ["EPERM", "EOPNOTSUPP", "ENOSYS"])
def test_a_disk_without_hard_links_names_commits_by_content(tmp_path, monkeypatch, code):
    """exFAT, SMB and many FUSE mounts."""

    def link(*_args, **_options):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    plan = plan_of(tmp_path)
    golden = run(tmp_path / "golden", plan).manifest
    monkeypatch.setattr(os, "link", link)
    assert not FileStore(tmp_path).creates_once()
    assert run(tmp_path / "out", plan).manifest["set_digest"] == golden["set_digest"]
    assert verify(RunStore(str(tmp_path / "out"))).ok
    assert not list((tmp_path / "out").rglob(".*")), "nothing is left over"


def test_a_disk_that_cannot_synchronise_folders(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    run(tmp_path / "out", plan_of(tmp_path))
    assert verify(RunStore(str(tmp_path / "out"))).ok


def test_a_file_system_without_write_modes_is_a_sentence(s3):
    """webdav4 0.11 takes no `mode` for `pipe_file`."""

    class Modeless(Flaky):
        def pipe_file(self, path, data):
            raise AssertionError("not reached")

    store = FileStore(f"{s3}/modeless")
    store._fs = Modeless(store._fs, 0)
    for ask in (store.require, store.creates_once):
        with pytest.raises(ConfigError, match="no create-only or overwriting writes"):
            ask()
