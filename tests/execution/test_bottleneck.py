"""What the workers of a run waited for is said only where its commits tell it."""

import platform
from typing import Any

import pyarrow as pa
import pytest

from raygen.datasets.procedural.draw import draw
from raygen.execution.bottleneck import WorkerTime, encoding_text
from raygen.store.images import encode_image, picture_column
from raygen.store.run_store import Commit


def commits(device_s: float, seconds: float = 10.0, count: int = 6, **environment: Any) -> list[Commit]:
    """Shards that two workers start every `seconds`, after 100 s in which the workers themselves started."""
    made = []
    for worker in ("a:1", "a:2"):
        said = {"device": platform.machine(), "worker": worker, **environment}
        for i in range(count):
            timings = {"started": 100 + i * seconds, "device_s": device_s, "work_s": 3.0, "read_s": 0.1}
            made.append(Commit(len(made), [], "", {}, timings, said, 0.0))
    return made


def sentence(shards: list[Commit], codec: str = "webp") -> str:
    time = WorkerTime()
    for shard in reversed(shards):  # commits come in the order of shards, not of time
        time.add(shard)
    return time.sentence({"codec": codec})


def test_the_share_of_the_model_is_between_the_starts_of_shards():
    assert sentence(commits(7.0)).startswith("70% of the workers' time was in the model, the rest in what follows it")


@pytest.mark.parametrize(("codec", "named"), [("webp", True), ("png", True), ("png_fast", False)])
def test_a_faster_codec_is_named_where_there_is_one(codec: str, named: bool):
    assert ("png_fast" in sentence(commits(7.0), codec)) is named


def test_no_codec_is_recommended_to_a_run_that_waits_for_its_model():
    said = sentence(commits(9.8))
    assert said == "98% of the workers' time was in the model: a faster codec would not help"


@pytest.mark.parametrize(
    "shards",
    [commits(7.0, device="NVIDIA H200"), commits(0.0), commits(7.0, count=3), []],
    ids=["CUDA only queues work in `start`", "nothing is computed", "too few shards", "no shards"],
)
def test_nothing_is_said_where_the_times_do_not_tell(shards: list[Commit]):
    assert sentence(shards) == ""


def test_a_dry_run_says_what_encoding_costs_beside_the_model():
    """As a share of a core at the worker's rate; measured on its own pictures, failed rows left out."""
    data = [encode_image(draw(0, i, 0, 64).pixels) for i in range(3)]
    samples = pa.table({"image": picture_column([*data, None])})
    slow, fast = (encoding_text(samples, seconds, "png") for seconds in (1.0, 1e-4))
    kib = sum(len(encode_image(draw(0, i, 0, 64).pixels, "png")) for i in range(3)) / 3 / 1024
    assert f"{kib:.1f} KiB each; png_fast " in slow
    assert slow.endswith("A worker makes 1.0 a second: png takes less than 1% of a core")
    assert int(fast.rsplit("takes ", 1)[1].split("%")[0]) > 100, "10,000 a second are more than a core encodes as PNG"
    assert encoding_text(samples.slice(3), 1.0, "png") == ""
    assert encoding_text(None, 1.0, "png") == encoding_text(samples, 1.0, None) == ""
