"""Records with a check sum, folders with a list of them, and files that are compared when they are opened."""

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from raygen.commands.verify import verify
from raygen.core.errors import IntegrityError
from raygen.core.hashing import canonical, digest
from raygen.store import parquet
from raygen.store.parquet import Slice, read_slice, to_parquet
from raygen.store.run_records import Commit, Plan
from raygen.store.run_store import RunStore, open_input
from raygen.store.sealed import SEAL, check_files, open_record, seal_folder, to_bytes, to_text
from tests.fakes import plan_of, rewrite
from tests.store.test_run_store import run

RECORD = {"text": "Grüße\n", "numbers": [1, 2.5, 1e-05, 1e16], "inside": {"b": None, "a": True}, "pair": (1, 2)}


@pytest.mark.parametrize("write", [to_bytes, to_text])
def test_every_flipped_bit_of_a_record_is_noticed(write: Any) -> None:
    """Also in the exponent of `1e-05`, where JSON reads the same number from `1E-05`."""
    data = write(RECORD)
    assert open_record(data, "r") == json.loads(json.dumps(RECORD))
    assert b"1e-05" in data
    for byte in range(len(data)):
        for bit in range(8):
            flipped = data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]
            with pytest.raises(IntegrityError, match=r"^r (is damaged|has no check sum)"):
                open_record(flipped, "r")


def test_a_record_without_a_check_sum_is_refused() -> None:
    with pytest.raises(IntegrityError, match=r"^r has no check sum"):
        open_record(b'{"a":1}', "r")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"{", b'{"a":' + b"[" * 100_000, b'{"a":NaN,}'])
def test_what_is_no_record_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"^r is damaged"):
        open_record(data, "r")


def test_a_folder_lists_its_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    (tmp_path / ".unfinished").write_bytes(b"c")
    seal_folder(tmp_path, "LIST", {"kind": "x"})
    sums = open_record((tmp_path / "LIST").read_bytes(), "LIST")["files"]
    assert sums == {"in/a": digest(b"a"), "b": digest(b"b")}
    assert check_files(tmp_path, sums) == []
    (tmp_path / "in/a").write_bytes(b"b")
    (tmp_path / "b").unlink()
    problems = check_files(tmp_path, sums)
    assert [problem.partition(":")[0] for problem in problems] == ["b", "in/a"]
    assert check_files(tmp_path, sums, lambda name: name == "b") == problems[:1]


def named(folder: str, data: bytes) -> str:
    return f"{folder}/shard-00000-of-00001-{digest(data)[:12]}.parquet"


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_file_is_compared_with_its_name_once(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed name of a column in the footer: page check sums are right, and the reader would find no such column."""
    folder = str(tmp_path) if where == "disk" else "memory://" + tmp_path.name
    data = to_parquet(pa.table({"label": [1, 2, 3]}))
    path = named(folder, data)
    with fsspec.open(path, "wb") as file:
        file.write(data)
    assert read_slice(Slice(path, 1, 1))["label"].to_pylist() == [2]
    hashed: list[int] = []
    monkeypatch.setattr(parquet.hashlib, "sha256", lambda: hashed.append(1))
    assert read_slice(Slice(path, 2, 1))["label"].to_pylist() == [3]
    assert hashed == []
    monkeypatch.undo()
    parquet._checked.clear()
    with fsspec.open(path, "wb") as file:
        file.write(data.replace(b"label", b"labem"))
    with pytest.raises(IntegrityError, match="sha256 differs from the one in its name"):
        read_slice(Slice(path, 0, 3))
    monkeypatch.setenv("RAYGEN_VERIFY_ON_READ", "off")
    assert read_slice(Slice(path, 0, 3)).column_names == ["labem"]


def test_a_column_of_a_file_on_an_object_store_is_read_alone(tmp_path: Path) -> None:
    """Its pages have check sums; the pictures beside it are not fetched. A read of everything is compared."""
    data = to_parquet(pa.table({"label": [1, 2, 3]}))
    path = named("memory://" + tmp_path.name, data)
    with fsspec.open(path, "wb") as file:
        file.write(data.replace(b"label", b"labem"))
    assert read_slice(Slice(path, 0, 3), ["labem"])["labem"].to_pylist() == [1, 2, 3]
    with pytest.raises(IntegrityError, match="sha256 differs from the one in its name"):
        read_slice(Slice(path, 0, 3))
    local = Path(named(str(tmp_path), data))
    local.write_bytes(data.replace(b"label", b"labem"))
    with pytest.raises(IntegrityError, match="sha256 differs from the one in its name"):
        read_slice(Slice(str(local), 0, 3), ["labem"])


def test_a_file_that_changes_after_it_was_compared_is_compared_again(tmp_path: Path) -> None:
    data = to_parquet(pa.table({"label": [1, 2, 3]}))
    path = Path(named(str(tmp_path), data))
    path.write_bytes(data)
    read_slice(Slice(str(path), 0, 3))
    path.write_bytes(data.replace(b"label", b"labem"))
    os.utime(path, (1, 1))
    with pytest.raises(IntegrityError):
        read_slice(Slice(str(path), 0, 3))


COMMIT = {
    "shard": 0,
    "files": [{"table": "t", "path": "data/t/x", "sha256": "0", "rows": 1, "bytes": 1}],
    "state": "0",
    "quarantined": {},
    "timings": {},
    "environment": {},
    "created": 1.0,
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"more": 1}, "more"),
        ({"shard": "0"}, "shard"),
        ({"files": {}}, "files"),
        ({"files": [1]}, "files"),
        ({"files": [{"table": "t", "path": "x", "sha256": "0", "rows": "1", "bytes": 1}]}, "files"),
        ({"files": [{"table": "t"}]}, "files"),
        ({"state": "xyz"}, "state"),
        ({"state": 5}, "state"),
        ({"quarantined": {"a": "b"}}, "quarantined"),
        ({"timings": None}, "timings"),
    ],
)
def test_a_commit_of_wrong_types_is_damaged(change: dict[str, Any], named: str) -> None:
    assert Commit.from_json(to_bytes(COMMIT), "c").shard == 0
    with pytest.raises(IntegrityError, match=rf"^c is damaged: .*{named}"):
        Commit.from_json(to_bytes({**COMMIT, **change}), "c")
    with pytest.raises(IntegrityError, match="missing fields state"):
        Commit.from_json(to_bytes({k: v for k, v in COMMIT.items() if k != "state"}), "c")


@pytest.mark.parametrize(
    "change",
    [
        {"files": None},
        {"shards": 3},
        {"shards": [[["x", 0, 1]]]},
        {"shards": [[[99, 0, 1]]]},
        {"shards": [[[0, 0]]]},
        {"settings": []},
        {"batch": "2"},
        {"create_only": None},
        {"run_id": 3},
    ],
)
def test_a_plan_of_wrong_types_is_a_finding(tmp_path: Path, change: dict[str, Any]) -> None:
    store = RunStore(str(tmp_path / "out"))
    store.create(plan_of(tmp_path))
    rewrite(tmp_path / "out/attempt-00/plan.json", **change)
    with pytest.raises(IntegrityError, match=r"plan\.json is damaged"):
        Plan.from_json(store.storage.get("plan.json"))
    assert verify(store).problems[0].startswith("plan.json is damaged")


def finished(tmp_path: Path) -> Path:
    run(tmp_path / "out", plan_of(tmp_path))
    return tmp_path / "out/attempt-00"


def test_the_record_of_success_names_plan_manifest_and_commits(tmp_path: Path) -> None:
    """Records that were exchanged by others with right check sums of their own."""
    root = finished(tmp_path)
    store = RunStore(str(tmp_path / "out"))
    assert verify(store).ok

    def said(path: Path, **changes: Any) -> str:
        data = path.read_bytes()
        rewrite(path, **changes)
        problems = verify(store).problems
        path.write_bytes(data)
        return "; ".join(problems)

    settings = json.loads((root / "plan.json").read_bytes())["settings"]
    plan = said(root / "plan.json", settings={**settings, "more": 1})
    assert plan == "plan.json: sha256 differs from the one in _SUCCESS"
    manifest = said(root / "MANIFEST.json", bytes=1)
    assert manifest == "MANIFEST.json: sha256 differs from the one in _SUCCESS"
    commit = said(root / "commits/shard-00000.json", created=1.0)
    assert commit == "commits: they are not those that _SUCCESS names"
    old = {k: v for k, v in json.loads((root / "_SUCCESS").read_bytes()).items() if not k.endswith("_sha256")}
    (root / "_SUCCESS").write_bytes(to_bytes(old))
    assert SEAL in json.loads((root / "_SUCCESS").read_bytes())
    problems = verify(store).problems
    assert "plan.json: sha256 differs from the one in _SUCCESS" in problems
    assert "commits: they are not those that _SUCCESS names" in problems


def test_records_without_check_sums_are_neither_read_nor_continued(tmp_path: Path) -> None:
    root = finished(tmp_path)
    for path in [*root.glob("*.json"), root / "_SUCCESS", *root.glob("commits/*")]:
        record = json.loads(path.read_bytes())
        path.write_bytes(canonical({key: value for key, value in record.items() if not key.endswith("_sha256")}))
    with pytest.raises(IntegrityError, match=r"MANIFEST.json has no check sum"):
        open_input(str(tmp_path / "out"))
    with pytest.raises(IntegrityError, match=r"plan.json has no check sum"):
        run(tmp_path / "out", plan_of(tmp_path))
    assert verify(RunStore(str(tmp_path / "out"))).problems[0].startswith("plan.json has no check sum")


def test_files_that_are_no_commits_are_not_taken_for_some(tmp_path: Path) -> None:
    root = finished(tmp_path)
    (root / "commits/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    store = RunStore(str(tmp_path / "out"))
    assert len(store.committed()) == len(store.plan().shards)
    found = verify(store)
    assert found.ok
    assert found.orphans == ["commits/.DS_Store"]


def test_a_damaged_input_ends_a_run_with_5(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    source = Path(plan.shards[0].inputs[0].path)
    data = source.read_bytes()
    path = Path(named(str(tmp_path), data))
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    shards = [
        shard.__class__(shard.index, tuple(piece._replace(path=str(path)) for piece in shard.inputs))
        for shard in plan.shards
    ]
    with pytest.raises(IntegrityError, match=path.name) as ended:
        run(tmp_path / "out", plan._replace(shards=shards))
    assert ended.value.exit_code == 5
