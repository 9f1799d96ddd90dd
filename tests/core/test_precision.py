"""Float32 is whole float32 in every process that computes, and no thread changes that for another."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pyarrow as pa
import pytest
import torch

from raygen.commands.registry import make
from raygen.core.errors import ConfigError
from raygen.core.precision import arithmetic, full_precision, set_deterministic_precision, tf32
from raygen.evaluation.config import ScoreConfig
from raygen.evaluation.scoring import Scorer
from raygen.extractors.base import load_features
from raygen.extractors.config import BundledNetworkConfig
from raygen.models.autoencoder import FirstStage
from raygen.models.checkpoint import build
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.sampler import SamplerConfig
from raygen.sampling.config import SampleConfig
from raygen.sampling.worker import SampleWorker
from raygen.store.schemas import CONDITIONS
from raygen.training.config.loop import TrainConfig
from raygen.training.config.losses import AutoencoderObjectiveConfig
from raygen.training.losses import AutoencoderObjective
from raygen.training.trainer import Trainer

WAIT = 60


def flags() -> tuple[bool, bool, str]:
    matmul = torch.backends.cuda.matmul.allow_tf32
    return torch.backends.cudnn.allow_tf32, matmul, torch.get_float32_matmul_precision()


WHOLE = (False, False, "highest")


@pytest.fixture(autouse=True)
def as_torch_has_it() -> Iterator[None]:
    """Every test begins with all of TF32 allowed, so that whoever does not decide is found out."""
    before = flags()
    allow()
    yield
    torch.set_float32_matmul_precision(before[2])
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before[:2]


def allow() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True


def worker(observe: Callable[..., pa.Table] | None = None) -> SampleWorker:
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8)))
    model = build(LDMConfig(modalities=(), channels=(32,), attention=(False,)), stage, seed=1).eval()
    config = SampleConfig(checkpoint="x", sampler=SamplerConfig(steps=3), batch=2)
    return SampleWorker(config, model=model, observe=observe)


def rows(*names: str) -> pa.Table:
    made = [{"sample_id": name, "plan": "p", "seed": 0} for name in names]
    return pa.Table.from_pylist(made, CONDITIONS)


def test_all_of_tf32_is_off_and_stays_off() -> None:
    assert tf32() == "on"
    set_deterministic_precision()
    assert flags() == WHOLE
    assert tf32() == "off"
    allow()
    with full_precision():
        assert flags() == WHOLE
    assert flags() == WHOLE  # what it found is not given back


def test_inside_there_is_no_autocast_and_outside_it_goes_on() -> None:
    ones = torch.ones(2, 2)

    def fail() -> None:
        with full_precision():
            assert (ones @ ones).dtype == torch.float32
            raise RuntimeError

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError):
            fail()
        assert (ones @ ones).dtype == torch.bfloat16


def test_blocks_of_two_threads_that_overlap_leave_each_other_alone() -> None:
    first_in, second_in, first_out = Event(), Event(), Event()
    seen: list[tuple[bool, bool, str]] = []

    def first() -> None:
        with full_precision():
            first_in.set()
            assert second_in.wait(WAIT)
        first_out.set()

    def second() -> None:
        assert first_in.wait(WAIT)
        with full_precision():
            second_in.set()
            assert first_out.wait(WAIT)
            seen.append(flags())

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(first), threads.submit(second)]:
            future.result(WAIT)
    assert seen == [WHOLE]
    assert flags() == WHOLE


def test_autocast_of_one_thread_is_not_touched_by_another_that_scores() -> None:
    inside, done = Event(), Event()

    def score() -> None:
        with full_precision():
            inside.set()
            assert done.wait(WAIT)

    with ThreadPoolExecutor(1) as threads, torch.autocast("cpu", dtype=torch.bfloat16):
        future = threads.submit(score)
        assert inside.wait(WAIT)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        done.set()
        future.result(WAIT)


def test_whoever_computes_decides_before_any_work() -> None:
    worker()
    assert flags() == WHOLE
    allow()
    Scorer(ScoreConfig(), run_id="")
    assert flags() == WHOLE
    allow()
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8)))
    Trainer(AutoencoderObjective(stage, AutoencoderObjectiveConfig()), TrainConfig(steps=1))
    assert flags() == WHOLE  # or a variant trained after one that was scored would be trained otherwise


def test_features_are_whole_in_any_thread_whatever_was_set_since() -> None:
    features = load_features(BundledNetworkConfig(), torch.device("cpu"))
    seen = []
    features.net.register_forward_pre_hook(lambda *_: seen.append(flags()))  # type: ignore[attr-defined]
    features.net.features = lambda x: (seen.append(flags()), x.flatten(1)[:, :4])[1]  # type: ignore[attr-defined]
    images = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(features.features, images) for _ in range(4)]:
            future.result(WAIT)
    assert set(seen) == {WHOLE}


def test_pictures_are_made_alike_while_others_are_scored_and_alone() -> None:
    """What each convolution finds, with a thread that scores from the first step on, and without one."""
    seen: list[tuple[bool, bool, str]] = []
    began, ended = Event(), Event()

    def score() -> None:
        with full_precision():
            began.set()
            assert ended.wait(WAIT)

    def watch(*_: object) -> None:
        seen.append(flags())
        if len(seen) == 2:
            ended.set()  # it ends while the picture is being made

    made = worker()
    for part in made.model.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_pre_hook(watch)
    allow()  # a library that is loaded later may do this
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(score)
        assert began.wait(WAIT)
        beside = made(rows("a", "b"))["samples"]
        future.result(WAIT)
    assert len(seen) >= 3
    assert set(seen) == {WHOLE}
    allow()
    seen.clear()
    alone = made(rows("a", "b"))["samples"]
    assert set(seen) == {WHOLE}
    assert beside["image_sha256"] == alone["image_sha256"]
    assert None not in alone["image_sha256"].to_pylist()


def test_what_pictures_are_made_with_is_said() -> None:
    made = worker()
    assert made.environment()["precision"] == "float32"
    assert made.environment()["tf32"] == "off"


def test_pictures_may_still_be_made_in_bfloat16() -> None:
    made = worker()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = made(rows("a", "b"))["samples"]
    assert half["error"].null_count == 2
    whole = made(rows("a", "b"))["samples"]
    assert half["image_sha256"] != whole["image_sha256"]


# --- TF32 -----------------------------------------------------------------------------------------------------

TF32 = (True, True, "high")


def test_tf32_is_on_inside_its_block_and_not_in_one_within() -> None:
    with arithmetic("tf32"):
        assert flags() == TF32
        assert tf32() == "on"
        with full_precision():
            assert flags() == WHOLE
            with arithmetic("tf32"):
                assert flags() == TF32
            assert flags() == WHOLE
        assert flags() == TF32
        set_deterministic_precision()
        assert flags() == TF32  # it is for what follows the block
    assert flags() == WHOLE
    with arithmetic("bfloat16"):
        assert flags() == WHOLE


def test_a_thread_that_scores_waits_for_tf32_to_end() -> None:
    """And neither changes the numbers of the other, nor do two threads that are each in both wait for ever."""
    inside, order = Event(), []

    def score() -> None:
        assert inside.wait(WAIT)
        with full_precision():
            order.append(("scored", flags()))
            with arithmetic("tf32"):
                order.append(("inner", flags()))

    with ThreadPoolExecutor(2) as threads:
        with arithmetic("tf32"):
            futures = [threads.submit(score) for _ in range(2)]
            inside.set()
            assert not futures[0].done()
            order.append(("sampled", flags()))
        for future in futures:
            future.result(WAIT)
    assert order[0] == ("sampled", TF32)
    assert {(name, found) for name, found in order} == {("sampled", TF32), ("scored", WHOLE), ("inner", TF32)}
    assert len(order) == 5
    assert flags() == WHOLE


def test_tf32_is_refused_where_there_is_no_gpu(tmp_path: Path) -> None:
    config = SampleConfig(checkpoint="x", precision="tf32", device="cpu")
    with pytest.raises(ConfigError, match="tf32 is arithmetic of NVIDIA GPUs, and this process computes on a CPU"):
        SampleWorker(config, model=worker().model)
    objective = AutoencoderObjective(worker().model.first_stage, AutoencoderObjectiveConfig())
    with pytest.raises(ConfigError, match="tf32"):
        Trainer(objective, TrainConfig(steps=1, precision="tf32"))
    job = {"kind": "encode", "faces": "x", "checkpoint": "bundled", "out": str(tmp_path / "out"), "precision": "tf32"}
    with pytest.raises(ConfigError, match=r"precision: tf32 .*resources\.gpus is 0"):
        make(job)
    assert not list(tmp_path.iterdir())
