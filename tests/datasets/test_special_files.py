"""Pipes, devices, sockets and files without end among the pictures: each is one failed row, and none is opened."""

import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from raygen.core.config import parse
from raygen.core.errors import ConfigError, InputError
from raygen.datasets import CelebAMask, Folder, JSONLines
from raygen.datasets.files import read
from raygen.store.run_store import RunStore

ROOT = Path(__file__).parent.parent.parent
HUGE = 20 * 10**9


def make_special(folder, monkeypatch):
    """One file of each kind that must not be opened; name -> reason."""
    os.mkfifo(folder / "pipe.png")
    os.symlink("/dev/zero", folder / "device.png")
    os.symlink("pipe.png", folder / "link.png")
    with open(folder / "sparse.png", "wb") as file:
        file.truncate(HUGE)
    monkeypatch.chdir(folder)  # a socket's name is at most 107 characters long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    return {"pipe": "special", "device": "special", "link": "special", "sparse": "too_large", "socket": "special"}


def ingest(folder, data):
    """`raygen ingest` in a process of its own, because a mistake here waits for ever; the failed rows by id."""
    job = {"kind": "ingest", "data": data, "batch": 2, "max_error_fraction": 1, "out": str(folder / "out")}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "raygen", "ingest", str(folder / "job.yaml")]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    store = RunStore(str(folder / "out"))
    assert [row for table in store.tables("faces", ["face_id"]) for row in table["face_id"].to_pylist()] == ["good"]
    return {row["id"]: row["error"] for table in store.tables("quarantine") for row in table.to_pylist()}


@pytest.mark.parametrize("changes", ["time", "content"])
def test_special_files_in_a_folder_are_failed_rows(tmp_path, monkeypatch, changes):
    pictures = tmp_path / "in"
    pictures.mkdir()
    Image.new("RGB", (16, 16), "teal").save(pictures / "good.png")
    expected = make_special(pictures, monkeypatch)
    errors = ingest(tmp_path, {"kind": "folder", "root": str(pictures), "changes": changes})
    assert {key: error.partition(":")[0] for key, error in errors.items()} == expected
    assert errors["pipe"] == f"special: {pictures}/pipe.png: is a named pipe, not a regular file"
    assert errors["device"].endswith("is a device, not a regular file")
    assert errors["socket"].endswith("is a socket, not a regular file")
    limit = f"{1 << 30:,}"
    assert errors["sparse"] == (
        f"too_large: {pictures}/sparse.png: has 20,000,000,000 bytes, and `max_file_bytes` is {limit}"
    )


def test_special_files_that_a_line_names_are_failed_rows(tmp_path, monkeypatch):
    pictures = tmp_path / "in"
    pictures.mkdir()
    Image.new("RGB", (16, 16), "teal").save(pictures / "good.png")
    make_special(pictures, monkeypatch)
    Image.new("RGB", (16, 16), "teal").save(pictures / "other.png")
    lines = [
        {"target": "good.png"},
        {"target": f"file://{pictures}/pipe.png"},
        {"target": "/dev/zero"},
        {"target": "other.png", "mask": "pipe.png"},
        {"target": "./other.png", "hint": "sparse.png"},
    ]
    (pictures / "faces.jsonl").write_text("\n".join(map(json.dumps, lines)))
    errors = ingest(tmp_path, {"kind": "jsonl", "root": str(pictures), "file": "faces.jsonl"})
    assert sorted(error.partition(":")[0] for error in errors.values()) == [
        "special",
        "special",
        "special",
        "too_large",
    ]


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_special_text_files_are_refused(tmp_path, monkeypatch, kind):
    make_special(tmp_path, monkeypatch)
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "0.jpg")
    for data in (
        JSONLines(root=str(tmp_path), file=f"{kind}.png"),
        CelebAMask(root=str(tmp_path), attributes=f"{kind}.png"),
    ):
        with pytest.raises(ConfigError, match=rf"{kind}\.png: cannot be read \((special|too_large)"):
            data.listing()


def test_the_limit_is_a_setting_and_exact(tmp_path):
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "a.png")
    size = (tmp_path / "a.png").stat().st_size
    for limit, reason in ((size, None), (size - 1, "too_large")):
        data = parse(Folder, {"root": str(tmp_path), "max_file_bytes": limit})
        error = data.load(data.listing())["error"].to_pylist()[0]
        assert (error and error.partition(":")[0]) == reason
    with pytest.raises(ConfigError, match="max_file_bytes"):
        parse(Folder, {"root": str(tmp_path), "max_file_bytes": 0})


def test_a_member_of_an_archive_is_unpacked_up_to_the_limit(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(5_000_000))
    with pytest.raises(InputError, match="more bytes, and `max_file_bytes` is 1,000") as caught:
        read(f"zip://bomb.png::{tmp_path}/a.zip", 1000)
    assert caught.value.reason == "too_large"


class Shelf(MemoryFileSystem):
    """An object store, which has no bytes from 0 on of an empty object."""

    protocol = ("limited",)
    asked: list[int]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("limited://"))

    def cat_file(self, path, start=None, end=None, **options):
        if not self.size(path):
            raise OSError(22, "The requested range is not satisfiable")
        self.asked.append(end - start)
        return super().cat_file(path, start, end, **options)


def test_of_a_remote_file_no_more_than_the_limit_is_transferred():
    fsspec.register_implementation("limited", Shelf, clobber=True)
    Shelf.asked = []
    Shelf().pipe({"/a/large": bytes(10_000), "/a/fits": bytes(1000), "/a/empty": b""})
    with pytest.raises(InputError, match="too_large"):
        read("limited://a/large", 1000)
    assert read("limited://a/fits", 1000) == bytes(1000)
    assert read("limited://a/empty", 1000) == b""
    assert Shelf.asked == [1001, 1001]
    with pytest.raises(FileNotFoundError):
        read("limited://a/absent", 1000)
