"""The commit protocol on Azure: an emulator whose blob endpoint is in RAYGEN_AZURE_ENDPOINT; skipped without it.

adlfs keeps listings, does not list its own writes and ignores `refresh=True` (2026.8): a run that was killed looked
unfinished for ever until listings were no longer kept.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from raygen.commands.verify import verify
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore
from tests.fakes import plan_of
from tests.store.test_run_store import DRIVER, elsewhere

#: The account that every emulator has, and its published key.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module")
def azure():
    """The URL of a new folder in the emulator, as the environment of adlfs."""
    endpoint = os.environ.get("RAYGEN_AZURE_ENDPOINT")
    if not endpoint:
        pytest.skip("RAYGEN_AZURE_ENDPOINT is not set")
    pytest.importorskip("adlfs")
    from azure.core.exceptions import ResourceExistsError
    from azure.storage.blob import BlobServiceClient

    parts = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint}/{ACCOUNT};"
    os.environ["AZURE_STORAGE_CONNECTION_STRING"] = f"DefaultEndpointsProtocol=http;{parts}"
    with suppress(ResourceExistsError):
        BlobServiceClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"]).create_container(
            "faces"
        )
    yield f"abfs://faces/run{time.time_ns():x}"
    del os.environ["AZURE_STORAGE_CONNECTION_STRING"]


def driver(folder, url):
    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", DRIVER, str(folder), url]
    return subprocess.Popen(words, cwd=root, env=dict(os.environ), stderr=subprocess.PIPE)


def ended(process):
    return process.communicate(timeout=300)[1].decode()[-2000:], process.returncode


def test_what_another_process_wrote_is_listed_at_once(azure):
    store = FileStore(f"{azure}/shared")
    store.put("commits/a", b"1")
    assert store.names("commits") == ["a"]
    write = "import sys; from raygen.store.filesystem import FileStore; FileStore(sys.argv[1]).put(sys.argv[2], b'2')"
    elsewhere(write, store.url, "commits/b")
    assert store.names("commits") == ["a", "b"]
    assert store.creates_once()
    assert not store.put_once("commits/b", b"3")
    assert store.unfinished_uploads() == []


def test_two_drivers_end_well(azure, tmp_path):
    plan_of(tmp_path, rows=40, shard_rows=4, batch=4)
    drivers = [driver(tmp_path, f"{azure}/twins") for _ in range(2)]
    assert [ended(process) for process in drivers] == [("", 0), ("", 0)]
    assert verify(RunStore(f"{azure}/twins")).ok


def test_a_killed_driver_is_continued(azure, tmp_path):
    plan_of(tmp_path, rows=40, shard_rows=4, batch=4)
    url = f"{azure}/killed"
    first, store = driver(tmp_path, url), RunStore(url)
    while len(store.committed()) < 3 and first.poll() is None:
        time.sleep(0.05)
    first.kill()
    first.communicate()
    assert ended(driver(tmp_path, url)) == ("", 0)
    found = verify(store)
    assert found.ok, found.problems
    assert found.rows["samples"] == 40
