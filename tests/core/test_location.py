"""What paths and URLs a job may name, and how they are shown."""

import pytest

from raygen.core.config import Config, parse
from raygen.core.errors import ConfigError
from raygen.core.location import LocalInput, LocalLocation, Location, RelativeLocation, redact


class Job(Config):
    faces: Location = "faces"
    out: LocalLocation = "out"


@pytest.mark.parametrize(
    "place",
    [
        "runs/a b",
        "/data/faces",
        "s3://bucket/run",
        "gs://bucket/run",
        "zip://images::s3://bucket/faces.zip",
        "https://host/faces.zip?version=3",
        "bundled",
        "häuser/ß",
    ],
)
def test_ordinary_places_are_kept_as_they_are(place):
    assert parse(Job, {"faces": place}).faces == place


def test_the_home_folder_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    job = parse(Job, {"faces": "~/faces", "out": "~/runs/x"})
    assert (job.faces, job.out) == ("/home/ada/faces", "/home/ada/runs/x")


@pytest.mark.parametrize(
    "place",
    [
        "http://ada:hush@host/faces",
        "s3://key:hush@bucket/faces",
        "simplecache::http://ada:hush@host/faces.zip",
        "zip://a.png::simplecache::https://ada:hush@host/f.zip",
        "https://bucket.s3.amazonaws.com/f.zip?X-Amz-Credential=hush&X-Amz-Signature=hush",
        "https://account.blob.core.windows.net/c/f.zip?sv=2022&sig=hush",
        "https://storage.googleapis.com/b/f.zip?GoogleAccessId=x&Signature=hush",
    ],
)
def test_credentials_are_refused_and_not_repeated(place):
    with pytest.raises(ConfigError, match=r"job.yaml: faces: must not carry a user or password") as caught:
        parse(Job, {"faces": place}, "job.yaml")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "at least 1 character"),
        ("  ", "empty"),
        ("a\x00b", "control characters"),
        ("a\ud800b", "unicode"),
        ("s3:///", "names no bucket"),
        ("s3:/bucket/run", "'s3:/bucket/run' lacks a slash: a URL begins with s3://"),
        ("gs:bucket/run", "lacks a slash"),
        ("zip://images::s3:/bucket/faces.zip", "'s3:/bucket/faces.zip' lacks a slash"),
        ("file:/data/faces", "lacks a slash"),
        ("s3://", "names no bucket"),
        ("memory://faces", "holds no files that other processes can read"),
        ("reference://", "holds no files"),
    ],
)
def test_places_that_cannot_be_used_are_refused(place, message):
    with pytest.raises(ConfigError, match=f"faces: .*{message}"):
        parse(Job, {"faces": place})


def test_a_folder_is_no_url():
    with pytest.raises(ConfigError, match="out: 's3://bucket/run' is a URL; this writes to a local folder only"):
        parse(Job, {"out": "s3://bucket/run"})
    assert parse(Job, {"out": "file:///data/x"}).out == "/data/x"


def test_names_below_a_folder_know_the_home_folder_too(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert parse(RelativeLocation, "~/list.jsonl") == "/home/ada/list.jsonl"
    assert parse(RelativeLocation, "lists/~old") == "lists/~old"


def test_weights_are_read_from_a_local_file():
    with pytest.raises(ConfigError, match=r"'s3://bucket/w\.pth' is a URL; this is read from a local file only"):
        parse(LocalInput, "s3://bucket/w.pth")
    assert parse(LocalInput, "file:///data/w.pth") == "/data/w.pth"


def test_relative_places_are_refused_in_a_submitted_job(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAYGEN_SUBMITTED_FROM", "/home/ada/project")
    with pytest.raises(ConfigError, match=r"out: 'runs/x' is relative.*write /home/ada/project/runs/x or a URL"):
        parse(Job, {"faces": "/data/faces", "out": "runs/x"})
    with pytest.raises(ConfigError, match=r"faces: '../faces' is relative.*write /home/ada/faces or a URL"):
        parse(Job, {"faces": "../faces", "out": "/x"})
    assert parse(Job, {"faces": "s3://bucket/faces", "out": "/x"}).faces == "s3://bucket/faces"
    assert parse(Job, {"faces": "bundled", "out": "/x"}).faces == "bundled"


def test_what_is_shown_has_no_secrets():
    text = "GET https://ada:hush@host/a?sig=hush failed; s3://bucket/b is fine; mail me@host"
    assert redact(text) == "GET https://***@host/a?*** failed; s3://bucket/b is fine; mail me@host"
