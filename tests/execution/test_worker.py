"""The loop over shards: batches, bad rows, tries, exit codes; with the plain runner."""

import json
import threading
from functools import partial
from pathlib import Path

import pytest

from raygen.commands.ablation import busy_seconds
from raygen.commands.verify import verify
from raygen.core.config import Resources
from raygen.core.errors import (
    ConfigError,
    InfrastructureError,
    InputError,
    IntegrityError,
    StorageError,
    TooManyBadRows,
)
from raygen.execution.executor import PlannedRun, Progress, execute, execute_all, local_runner
from raygen.execution.worker import RunTarget, ShardItem, ShardTask, ShardWorker
from raygen.store.run_store import RunStore
from raygen.store.schemas import SAMPLES
from tests.fakes import Fake, build, build_refused, plan_of

GOOD = Fake()


def run(folder: Path, plan, fake=GOOD, *, max_error_fraction=0.0, tries=3, report=lambda _: None):
    resources = Resources(max_attempts=tries)
    store = RunStore(str(folder))
    return execute(
        store, plan, partial(build, fake), resources, local_runner, max_error_fraction=max_error_fraction, report=report
    )


def record(folder: Path) -> dict:
    return json.loads((folder / "attempt-00/run.json").read_text())


def test_bad_rows_are_rows_and_are_in_quarantine(tmp_path):
    plan = plan_of(tmp_path, rows=100, shard_rows=30)
    outcome = run(tmp_path / "out", plan, Fake(kind="max_error_fraction"), max_error_fraction=0.2)
    assert outcome.manifest["rows"] == {"samples": 100, "quarantine": 10}
    assert outcome.manifest["quarantined"] == {"bad": 10}
    store = RunStore(str(tmp_path / "out"))
    rows = [r for t in store.tables("samples", ["sample_id", "error"]) for r in t.to_pylist()]
    assert [r["sample_id"] for r in rows] == [f"r{i:06d}" for i in range(100)]
    assert [r["sample_id"] for r in rows if r["error"]] == [f"r{i:06d}" for i in range(7, 100, 10)]
    assert verify(store).ok


def test_too_many_bad_rows_end_with_3_and_without_success(tmp_path):
    plan = plan_of(tmp_path, rows=100, shard_rows=30)
    with pytest.raises(TooManyBadRows, match="10 of 100 rows failed"):
        run(tmp_path / "out", plan, Fake(kind="max_error_fraction"), max_error_fraction=0.05)
    assert record(tmp_path / "out")["exit_code"] == 3
    assert not (tmp_path / "out/attempt-00/_SUCCESS").exists()
    assert len(list((tmp_path / "out/attempt-00/commits").iterdir())) == 4  # what was made is kept


def test_a_full_disk_ends_the_run_at_once_with_4(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    plan = plan_of(tmp_path)
    with pytest.raises(StorageError, match="shard 2: No space left on device"):
        run(tmp_path / "out", plan, Fake(kind="full", at="r000040", trouble=str(flag)))
    assert record(tmp_path / "out")["exit_code"] == 4
    starts = [path.name for path in (tmp_path / "out/attempt-00/starts").iterdir()]
    assert sorted(name[:11] for name in starts) == ["shard-00000", "shard-00001", "shard-00002"], "one start each"
    flag.unlink()
    assert run(tmp_path / "out", plan).manifest == run(tmp_path / "clean", plan).manifest


def test_a_damaged_input_is_an_input_error(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    with pytest.raises(InputError, match="parquet: the input is damaged"):
        run(tmp_path / "out", plan_of(tmp_path), Fake(kind="damaged", at="r000040", trouble=str(flag)))
    assert record(tmp_path / "out")["exit_code"] == 2


def test_refused_settings_end_with_2_and_leave_the_folder_free(tmp_path):
    store, plan = RunStore(str(tmp_path / "out")), plan_of(tmp_path, name="refused")
    with pytest.raises(ConfigError, match=r"^no such text$"):
        execute(store, plan, partial(build_refused, "no such text"), Resources(), local_runner, max_error_fraction=0)
    assert not (tmp_path / "out").exists(), "the worker is built before anything is written"
    mended = plan_of(tmp_path, name="mended")
    assert run(tmp_path / "out", mended).manifest == run(tmp_path / "clean", mended).manifest
    with pytest.raises(ConfigError, match="holds another run"):
        run(tmp_path / "out", plan)


def test_a_finished_run_is_left_as_it_is(tmp_path):
    plan = plan_of(tmp_path)
    run(tmp_path / "out", plan)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert run(tmp_path / "out", plan).progress.new_rows == 0
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_run_without_rows_is_an_input_error(tmp_path):
    store, plan = RunStore(str(tmp_path / "out")), plan_of(tmp_path)
    planned = PlannedRun(store, plan, 0, without_rows="nothing fits")
    with pytest.raises(InputError, match=r"empty: .*no rows: nothing fits"):
        execute_all([planned], partial(build, Empty()), Resources(), local_runner)
    assert not store.is_complete()


class Empty:
    """A worker whose filter lets nothing through."""

    def start(self, rows):
        return lambda: {"samples": SAMPLES.empty_table()}


def test_a_failed_try_is_tried_again(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    plan = plan_of(tmp_path)
    outcome = run(tmp_path / "out", plan, Fake(kind="raise_once", at="r000040", trouble=str(flag)))
    assert outcome.progress.failed_tries == 1
    assert outcome.manifest == run(tmp_path / "clean", plan).manifest


def test_a_defect_ends_with_4_after_its_tries_and_the_rest_is_done(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    plan = plan_of(tmp_path)
    with pytest.raises(InfrastructureError, match="1 of 6 shards are not committed: shard 2: RuntimeError: a defect"):
        run(tmp_path / "out", plan, Fake(kind="raise", at="r000040", trouble=str(flag)))
    assert record(tmp_path / "out")["exit_code"] == 4
    assert len(RunStore(str(tmp_path / "out")).committed()) == 5
    flag.unlink()  # mended: the same command goes on where it stopped
    outcome = run(tmp_path / "out", plan)
    assert outcome.progress.resumed_shards == 5
    assert outcome.manifest["set_digest"] == run(tmp_path / "clean", plan).manifest["set_digest"]


def test_an_interrupt_is_recorded_as_130(tmp_path):
    def interrupt(progress: Progress) -> None:
        if progress.done_shards == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", plan_of(tmp_path), report=interrupt)
    assert record(tmp_path / "out")["exit_code"] == 130


def test_the_cut_into_shards_and_batches_does_not_change_the_rows(tmp_path):
    digests = set()
    for i, (shard_rows, batch) in enumerate(((16, 8), (7, 3), (96, 32), (1, 1))):
        plan = plan_of(tmp_path / str(i), rows=40, shard_rows=shard_rows, batch=batch)
        digests.add(run(tmp_path / str(i) / "out", plan).manifest["set_digest"])
    assert len(digests) == 1


def test_a_divergent_second_try_is_reported(tmp_path):
    plan = plan_of(tmp_path)
    store = RunStore(str(tmp_path / "out"))
    run(tmp_path / "out", plan)
    commit = tmp_path / "out/attempt-00/commits/shard-00001.json"
    kept = commit.read_bytes()

    class Twin(Fake):
        def start(self, rows):
            commit.write_bytes(kept)  # another driver commits while this one works
            return super().start(rows)

    commit.unlink()
    with pytest.raises(IntegrityError, match=r"shards \[1\] gave other rows"):
        execute(store, plan, partial(build, Twin(seed=1)), Resources(), local_runner, max_error_fraction=0)
    assert record(tmp_path / "out")["exit_code"] == 5
    assert commit.read_bytes() == kept  # the first commit stands


def test_progress_counts_rows_and_the_first_commit(tmp_path):
    seen: list[tuple[int, int]] = []
    plan = plan_of(tmp_path, rows=40)
    outcome = run(tmp_path / "out", plan, report=lambda p: seen.append((p.done_shards, p.done_rows)))
    assert seen == [(0, 0), (1, 16), (2, 32), (3, 40)]
    assert outcome.progress.first_commit_s is not None


def test_a_worker_leaves_a_committed_shard_alone(tmp_path):
    plan = plan_of(tmp_path)
    run(tmp_path / "out", plan)
    target = RunTarget(str(tmp_path / "out"), 0, 8, 6)
    task = ShardTask((target,), "x", 3, 60.0, partial(build, Fake(kind="raise", at="r000000")))
    assert ShardWorker(task)(ShardItem(0, plan.shards[0])).status == "present"


class Meeting:
    """A worker whose first shard is finished only after the second one was started, where `together`."""

    def __init__(self, together: bool) -> None:
        self.together, self.began, self.open = together, threading.Event(), []

    def start(self, rows):
        first = not self.open
        self.open.append(rows["sample_id"][0].as_py())
        if not first:
            self.began.set()
        return partial(self.finish, first, GOOD.start(rows))

    def finish(self, first, finish):
        if first:
            assert self.began.wait(20 if self.together else 0.3) == self.together
        return finish()


def meet(tmp_path, together, tries=3, begun=()):
    """Two shards of one batch through `local_runner`; `begun`: those that a process died with in this launch."""
    plan = plan_of(tmp_path, rows=16, shard_rows=8)
    store = RunStore(str(tmp_path / "out"))
    store.create(plan)
    for shard in begun:
        assert store.begin(shard, "launch", 1) == 1
    worker = Meeting(together)
    task = ShardTask((RunTarget(store.url, 0, 8, 2),), "launch", tries, 60, lambda: worker)
    items = [ShardItem(0, shard) for shard in plan.shards]
    return worker, list(local_runner(items, task, Resources()))


def test_a_shard_is_committed_while_the_next_one_has_the_device(tmp_path):
    worker, summaries = meet(tmp_path, together=True)
    assert worker.open == ["r000000", "r000008"]
    assert [(s.shard, s.status, s.error) for s in summaries] == [(0, "committed", ""), (1, "committed", "")]
    first, second = sorted(RunStore(str(tmp_path / "out")).commits(), key=lambda commit: commit.shard)
    assert second.timings["started"] < first.timings["started"] + first.timings["work_s"]
    together = max(c.timings["started"] + c.timings["work_s"] for c in (first, second)) - first.timings["started"]
    assert busy_seconds([second, first]) == pytest.approx(together, abs=1e-3)


@pytest.mark.parametrize(("tries", "begun"), [(1, ()), (3, (0,)), (3, (1,)), (3, (0, 1))])
def test_a_second_attempt_and_an_only_attempt_are_alone(tmp_path, tries, begun):
    _, summaries = meet(tmp_path, together=False, tries=tries, begun=begun)
    assert [(s.shard, s.status) for s in summaries] == [(0, "committed"), (1, "committed")]
    assert [s.error for s in summaries] == ["attempt 2" if shard in begun else "" for shard in (0, 1)]


def test_an_interrupted_run_keeps_the_shard_that_was_being_committed(tmp_path):
    plan, store = plan_of(tmp_path, rows=16, shard_rows=8), RunStore(str(tmp_path / "out"))
    store.create(plan)

    class Interrupted(Fake):
        def start(self, rows):
            if rows["sample_id"][0].as_py() == "r000008":
                raise KeyboardInterrupt
            return super().start(rows)

    task = ShardTask((RunTarget(store.url, 0, 8, 2),), "launch", 3, 60, Interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(local_runner([ShardItem(0, shard) for shard in plan.shards], task, Resources()))
    assert list(store.committed()) == [0]
