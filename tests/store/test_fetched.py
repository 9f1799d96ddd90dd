"""Checkpoints at URLs: copied once to a machine, whole or not at all, and the same models as those of local folders."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
import torch

from raygen.commands.registry import make
from raygen.core.errors import ConfigError, InfrastructureError, InputError, StorageError
from raygen.extractors.base import load_parser
from raygen.extractors.config import BundledNetworkConfig, BundledParserConfig
from raygen.extractors.digests import network_digest
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.sampling.pipeline import FacePipeline
from raygen.store import fetched
from raygen.store.fetched import cache_folder, local_folder
from raygen.store.filesystem import FileStore
from tests.store.test_run_store import s3

__all__ = ["s3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of a few hundred parameters, with what a training keeps beside it."""
    torch.manual_seed(0)
    stage = FirstStage(
        AutoencoderConfig(image_size=32, patch=2, channels=(4, 4), latent_channels=2, mid_attention=False)
    )
    config = LDMConfig(modalities=(), channels=(4, 8), attention=(False, False), head_dim=4)
    root = tmp_path_factory.mktemp("local") / "model"
    checkpoint.save(checkpoint.build(config, stage, seed=0), root)
    (root / "training").mkdir()
    (root / "training" / "history.jsonl").write_text("{}\n")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, of which this process remembers nothing."""
    monkeypatch.setenv("RAYGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetched, "_compared", set())
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def url(s3, folder, request) -> str:
    """The model in a bucket, under a name of this test."""
    place = f"{s3}/{request.node.name}/model"
    fs, path = fsspec.core.url_to_fs(place)
    fs.put(f"{folder}/", f"{path}/", recursive=True)
    return place


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    """Names of the files that are downloaded."""
    names: list[str] = []
    original = FileStore.download
    monkeypatch.setattr(
        FileStore, "download", lambda store, name, path: (names.append(name), original(store, name, path))
    )
    return names


def entries(cache: Path) -> list[str]:
    """What is in the cache, but for locks."""
    return [path.name for path in cache.glob("*") if not path.name.startswith(".lock-")]


def test_a_checkpoint_at_a_url_is_the_same_model_and_is_copied_once(folder, url, cache, downloads):
    assert checkpoint_folder.digest(url) == checkpoint_folder.digest(folder)
    expected, found = checkpoint.load(folder).state_dict(), checkpoint.load(url).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert "raygen.json" in downloads
    assert len(downloads) == len(set(downloads))
    assert not any(name.startswith("training") for name in downloads)
    assert FacePipeline.from_pretrained(url).config["_name_or_path"] == local_folder(url)
    assert len(entries(cache)) == 1


def test_the_identity_of_a_run_is_that_of_the_local_folder(folder, url, tmp_path):
    faces = str(tmp_path / "faces")
    data = {"kind": "procedural", "identities": 2, "pictures": 1, "size": 32}
    make({"kind": "ingest", "data": data, "out": faces}).run(lambda _: None)
    jobs = [
        make({"kind": "encode", "faces": faces, "checkpoint": place, "out": str(tmp_path / "latents")})
        for place in (str(folder), url, f"file://{folder}")
    ]
    assert len({job.prepare(write=False).plan.run_id for job in jobs}) == 1


def test_another_content_at_the_same_url_is_another_copy(url, cache):
    before = checkpoint_folder.digest(url)
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{path}/notes.json", b"{}")  # files beside the recorded ones count as well
    assert checkpoint_folder.digest(url) != before
    assert len(entries(cache)) == 2


def test_processes_that_ask_at_the_same_time_share_one_download(url, cache, downloads):
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(local_folder, [url] * 4))) == 1
    assert len(downloads) == len(set(downloads))


def test_a_damaged_copy_is_made_again(folder, url, cache, downloads, monkeypatch):
    copy = Path(local_folder(url))
    first = len(downloads)
    weights = next(copy.rglob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    monkeypatch.setattr(fetched, "_compared", set())  # as in the next process
    assert checkpoint_folder.digest(url) == checkpoint_folder.digest(folder)
    assert len(downloads) == 2 * first
    weights.unlink()
    monkeypatch.setattr(fetched, "_compared", set())
    assert checkpoint_folder.digest(url) == checkpoint_folder.digest(folder)
    assert len(entries(cache)) == 1


def test_what_a_killed_process_left_is_not_used_and_removed(folder, url, cache):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    left = cache / f".tmp-{os.uname().nodename}.{child}.{1:x}-1"
    left.mkdir(parents=True)
    (left / "raygen.json").write_bytes(b"half")
    assert checkpoint_folder.digest(url) == checkpoint_folder.digest(folder)
    assert not left.exists()


def test_damage_at_the_url_is_found_and_nothing_is_kept(url, cache):
    fs, path = fsspec.core.url_to_fs(url)
    weights = next(name for name in fs.find(path) if name.endswith(".safetensors"))
    data = bytearray(fs.cat_file(weights))
    data[-1] ^= 1
    fs.pipe_file(weights, bytes(data))
    with pytest.raises(InputError, match=r"safetensors: sha256 differs from the one it was written with"):
        local_folder(url)
    assert entries(cache) == []
    fs.rm_file(weights)
    with pytest.raises(InputError, match=r"safetensors is missing"):
        local_folder(url)


def test_networks_that_score_are_opened_from_urls(s3, tmp_path):
    from raygen.extractors.bundled import BundledParser, save_bundled

    save_bundled(
        BundledParser(BundledParserConfig(image_size=32, channels=(8, 8))),
        tmp_path / "parser",
        weights="float32",
        extra={},
    )
    fs, path = fsspec.core.url_to_fs(f"{s3}/networks/parser")
    fs.put(f"{tmp_path / 'parser'}/", f"{path}/", recursive=True)
    local, remote = (
        BundledNetworkConfig(folder=place) for place in (str(tmp_path / "parser"), f"{s3}/networks/parser")
    )
    assert network_digest(local, "parser") == network_digest(remote, "parser")
    images = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(
        load_parser(local, torch.device("cpu")).parse(images), load_parser(remote, torch.device("cpu")).parse(images)
    )


def test_what_cannot_be_read_is_a_sentence(s3, url, monkeypatch):
    with pytest.raises(ConfigError, match=r"no checkpoint here \(raygen.json is missing\)"):
        local_folder(f"{s3}/nothing")
    with pytest.raises(ConfigError, match="no checkpoint here"):
        local_folder("s3://nowhere/model")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails(*_: object) -> None:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(FileStore, "download", fails)
        with pytest.raises(StorageError, match=r"No space left on device.*set RAYGEN_CACHE"):
            local_folder(url)


def test_missing_credentials_and_a_server_that_is_away_are_told_apart(s3, url, monkeypatch, tmp_path):
    import s3fs

    def once(call):  # what an S3 client raises is not waited for
        return call()

    monkeypatch.setattr("raygen.store.filesystem.retry", once)
    with monkeypatch.context() as patched:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.delenv(name)
        patched.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patched.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(ConfigError, match="credentials"):
            local_folder(url)
    with monkeypatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patched.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(InfrastructureError, match="cannot be read"):
            local_folder(url)
    s3fs.S3FileSystem.clear_instance_cache()


def test_where_copies_are(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("RAYGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "raygen"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "raygen"
