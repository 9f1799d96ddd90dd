"""What object stores answer beside success, and what they keep of uploads that nothing has finished."""

import errno
import io
import platform
import subprocess
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import boto3
import fsspec
import pytest
import s3fs
from botocore.exceptions import ClientError, HTTPClientError

from raygen.commands.registry import make
from raygen.commands.verify import verify
from raygen.core.errors import ConfigError, InfrastructureError
from raygen.store import uploads
from raygen.store.filesystem import FileStore
from raygen.store.parquet import Slice, read_slice
from raygen.store.run_store import RunStore
from tests.fakes import Shelf
from tests.store.test_run_store import s3

__all__ = ["s3"]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("raygen.store.filesystem.time.sleep", lambda _: None)


class Answers:
    """A file system whose first writes meet errors before or after they are done."""

    def __init__(self, fs, *errors, done=False):
        self.fs, self.errors, self.done = fs, list(errors), done

    def __getattr__(self, name):
        return getattr(self.fs, name)

    def pipe_file(self, *args, **options):
        error = self.errors.pop(0) if self.errors else None
        if error is None or self.done:
            self.fs.pipe_file(*args, **options)
        if error is not None:
            raise error


def answered(kind, code):
    """An error of s3fs, whose cause is what the server answered."""
    error = kind(code)
    error.__cause__ = ClientError({"Error": {"Code": code}}, "PutObject")
    return error


def test_a_create_only_write_whose_answer_was_lost_is_ours(s3):
    store = FileStore(f"{s3}/lost")
    store._fs = Answers(store._fs, OSError("connection reset"), done=True)
    assert store.put_once("starts/a", b"mine")
    assert not store.put_once("starts/a", b"of another driver")
    store.exists = lambda name: False  # as if both had looked before the other one wrote
    assert not store.put_once("starts/a", b"of another driver")
    assert store.get("starts/a") == b"mine"


@pytest.mark.parametrize("code", ["PreconditionFailed", "412"])
def test_servers_that_do_not_say_which_condition_failed(s3, code):
    """s3fs 2026.9 makes a FileExistsError only where the answer has <Condition>If-None-Match</Condition>."""
    store = FileStore(f"{s3}/terse{code}")
    fs = store._fs
    store._fs = Answers(fs, None, answered(OSError, code))
    assert store.creates_once()
    fs.pipe_file(store.path("commit"), b"1")
    store.exists = lambda name: False
    store._fs = Answers(fs, answered(OSError, code))
    assert not store.put_once("commit", b"2")


def test_a_finished_upload_in_parts_whose_answer_was_lost_is_no_missing_bucket(s3):
    store = FileStore(f"{s3}/parts")
    store._fs = Answers(store._fs, answered(FileNotFoundError, "NoSuchUpload"), done=True)
    store.put("large", b"1")
    assert store.get("large") == b"1"


def test_an_error_of_a_client_is_a_sentence_of_the_storage(s3):
    """Exceptions of botocore are no OSErrors."""
    store = FileStore(f"{s3}/away")
    store._fs = Answers(store._fs, *[HTTPClientError(error="gone")] * 4)
    with pytest.raises(InfrastructureError, match="cannot be written"):
        store.put("a", b"1")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "SlowDown"),
        HTTPClientError(error="SlowDown"),
        fsspec.exceptions.FSTimeoutError("SlowDown"),
        ConnectionResetError("SlowDown"),
    ],
)
def test_rows_on_a_store_that_fails_are_not_damaged(monkeypatch, error, late):
    """When the file is opened, and when its bytes are read."""

    class Broken(io.BytesIO):
        def read(self, *_args):
            raise error

    class Busy:
        def open(self, *_args):
            if late:
                return Broken(bytes(1000))
            raise error

    monkeypatch.setattr("raygen.store.parquet.file_system", lambda path: (Busy(), path))
    with pytest.raises(InfrastructureError, match="SlowDown"):
        read_slice(Slice("s3://faces/rows.parquet", 0, 1), ["face_id"])


def test_large_files_are_sent_in_parts(s3, monkeypatch):
    """s3fs 2026.9 sends 100 MiB and more in parts of 50 MiB, and a killed process leaves them in the bucket."""
    sent = []

    async def call(_fs, method, *_args, **_options):
        sent.append(method)
        return {"UploadId": "1", "ETag": "1"}

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    store = FileStore(f"{s3}/large")
    for size, method in ((99, "put_object"), (100, "complete_multipart_upload")):
        store.put("shard", bytes(size << 20))
        assert sent[-1] == method


def test_old_unfinished_uploads_below_out_are_counted_and_removed(s3, monkeypatch):
    client, out = boto3.client("s3"), f"{s3}/unfinished"
    data = {"kind": "procedural", "identities": 1, "pictures": 2, "size": 32}
    job = make({"kind": "ingest", "data": data, "batch": 2, "out": out})
    job.start(lambda _: None)
    keys = ("unfinished/attempt-00/data/faces/old", "unfinished2/old", "other")
    for key in keys:
        client.create_multipart_upload(Bucket="faces", Key=key)
    store, listed, age = RunStore(out), uploads.unfinished, 80_000.0

    def aged(fs, root):
        """moto 5.2 says that every upload began in 2010."""
        return [upload._replace(age_s=age) for upload in listed(fs, root)]

    monkeypatch.setattr(uploads, "unfinished", aged)
    job.start(lambda _: None)
    assert verify(store).orphans == [], "a young one may be the upload of another driver"
    assert len(client.list_multipart_uploads(Bucket="faces")["Uploads"]) == 3
    age = 90_000.0
    assert verify(store).orphans == ["../attempt-00/data/faces/old (an unfinished upload)"]
    job.start(lambda _: None)
    left = client.list_multipart_uploads(Bucket="faces")["Uploads"]
    assert sorted(upload["Key"] for upload in left) == sorted(keys[1:])
    assert verify(store).orphans == []


class Pages:
    """An S3 client that lists one upload a page, and whose clock is a year behind."""

    def __init__(self):
        self.now = datetime.now(UTC) - timedelta(days=365)
        self.asked = []

    def abort_mpu(self):
        raise AssertionError("not reached")

    def call_s3(self, method, Bucket, Prefix, **marks):
        self.asked.append((method, Bucket, Prefix, marks))
        number = len(self.asked)
        page = {
            "Uploads": [{"Key": f"run/{number}", "UploadId": "u", "Initiated": self.now - timedelta(hours=number)}],
            "ResponseMetadata": {"HTTPHeaders": {"date": format_datetime(self.now, usegmt=True)}},
        }
        return page | ({"IsTruncated": True, "NextKeyMarker": "k", "NextUploadIdMarker": "i"} if number < 3 else {})


def test_uploads_are_listed_page_by_page_and_aged_by_the_clock_of_the_server():
    fs = Pages()
    found = uploads.unfinished(fs, "faces/run")
    assert [(upload.name, round(upload.age_s / 3600)) for upload in found] == [("1", 1), ("2", 2), ("3", 3)]
    assert fs.asked[0] == ("list_multipart_uploads", "faces", "run/", {})
    assert fs.asked[2][3] == {"KeyMarker": "k", "UploadIdMarker": "i"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSYS, "not implemented"), NotImplementedError()])
def test_a_server_that_cannot_list_uploads_has_none(s3, error):
    store = FileStore(f"{s3}/plain")
    asked = []

    class Plain(Pages):
        def call_s3(self, *_args, **_options):
            asked.append(1)
            raise error

    store._fs = Plain()
    assert store.unfinished_uploads() == []
    assert len(asked) == 1, "asking again would give the same answer, after seconds"


def test_a_file_in_the_path_is_told(tmp_path):
    store = FileStore(str(tmp_path))
    store.put("f", b"1")
    with pytest.raises(ConfigError, match="f/x"):
        store.put("f/x", b"2")


def test_probes_of_killed_processes_are_found_in_the_runs_of_a_selection(s3):
    """A killed selection left one beside its further attempts, where the next command did not look."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    probe = f".probe-{platform.node()}.{gone.pid}.{time.time_ns():x}-1"
    store = FileStore(f"{s3}/chosen")
    left = ["", "attempt-00/", "cells/ddim-1.5/attempt-00/", "rerolls/", "rerolls/attempt-01/", "scores/a/attempt-00/"]
    for folder in (*left, "dataset/"):
        store.put(f"{folder}{probe}", b"1")
    store.put("rerolls/attempt-01/commits/shard-00000.json", b"{}")
    assert store.leftovers() == sorted(f"{folder}{probe}" for folder in left)
    assert store.remove_leftovers() == len(left)
    assert store.leftovers() == []


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("Forbidden"),  # wrong keys, a wrong signature, no rights: status 403
        answered(OSError, "InvalidToken"),
        answered(OSError, "AuthorizationHeaderMalformed"),  # a bucket of another region
    ],
)
def test_wrong_credentials_are_told_at_once_with_the_url(error):
    """They ended with exit code 4, `PermissionError: Forbidden`, or after four tries; s3fs 2026.9.0 gives some codes no
    class (`s3fs.errors.ERROR_CODE_TO_EXCEPTION`)."""
    asked = []

    def refuse(*args, **options):
        asked.append(args)
        raise error

    Shelf.register()
    store = FileStore("shelf://rights/run")
    for call in (lambda: store.get("plan.json"), lambda: store.exists("plan.json"), lambda: store.names("")):
        store._fs = type("Refusing", (), {"cat_file": refuse, "exists": refuse, "ls": refuse})()
        with pytest.raises(ConfigError, match=r"^shelf://rights/run: not allowed to be read .*check the credentials$"):
            call()
    assert len(asked) == 3


def test_a_file_of_an_input_that_must_not_be_read_is_told_at_once(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"")

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("raygen.store.parquet._read_rows", refuse)
    with pytest.raises(
        ConfigError, match=r"rows.parquet: not allowed to be read \(Permission denied\); check the rights"
    ):
        read_slice(Slice(str(path), 0, 1))
