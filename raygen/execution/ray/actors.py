"""A runner that maps shards over an actor pool of Ray Data.

One block holds one shard number, and an actor returns one small summary of it, so pictures never enter the object
store. Where no shard finishes for too long, the run ends with a list of the shards in flight.
"""

import faulthandler
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict

import pyarrow as pa
import ray

from raygen.core.config import Resources
from raygen.core.errors import InfrastructureError
from raygen.execution.ray.capacity import Capacity
from raygen.execution.ray.session import HARMLESS, StderrFilter, connected, enter
from raygen.execution.worker import ShardItem, ShardSummary, ShardTask, ShardWorker
from raygen.store.parquet import Slice
from raygen.store.run_store import Shard

__all__ = ["ray_runner"]


#: Lower limit, in seconds, of the stall timeout that is derived from the duration of the finished shards.
LEAST_STALL_S = 300.0
#: Seconds between two looks at the nodes of the cluster.
LOOK_S = 2.0


class _Actor:
    """A `ShardWorker` as Ray Data calls it: a block with one shard in, a block with one summary out."""

    def __init__(self, task: ShardTask, folder: str) -> None:
        enter(folder)
        self.worker = ShardWorker(task)

    def __call__(self, block: pa.Table) -> pa.Table:
        summaries = []
        for text in block["item"].to_pylist():
            run, index, slices = json.loads(text)
            item = ShardItem(run, Shard(index, tuple(Slice(*values) for values in slices)))
            summaries.append(json.dumps(asdict(self.worker(item))))
        return pa.table({"summary": summaries})


def ray_runner(items: Sequence[ShardItem], task: ShardTask, resources: Resources) -> Iterator[ShardSummary | str]:
    """Work on `items` with `resources.workers` actors; yields summaries as shards finish, and what it waits for.

    The first actor that finds room begins; the others wait for nodes. Raises `InfrastructureError` where the cluster is
    too small and cannot grow, where it has no room for any actor for `resources.wait_s`, where no shard finishes for
    `resources.stall_timeout_s`, and where Ray ends the run.
    """
    with StderrFilter(HARMLESS) as stderr, ExitStack() as at_end, connected(resources):
        capacity = Capacity(resources, 1)
        others = set(threading.enumerate())
        results: queue.Queue[ShardSummary | BaseException | None] = queue.Queue()
        stopped = threading.Event()
        feeder = threading.Thread(target=_feed, args=(items, task, resources, results, stopped), daemon=True)
        feeder.start()
        try:
            yield from _collect(items, capacity, results)
        except BaseException:
            stopped.set()
            stderr.silence()
            _end_pass(others)
            at_end.callback(feeder.join, 5)
            raise


def _end_pass(others: set[threading.Thread]) -> None:
    """End the executor of Ray Data in a thread that is not among `others`.

    It would go on to wait for its actors, and such a thread ends the process with exit code 1 when Ray has shut down.
    """
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in set(threading.enumerate()) - others:
        if isinstance(thread, StreamingExecutor):
            with suppress(Exception):
                thread.shutdown(force=True)


def _collect(
    items: Sequence[ShardItem], capacity: Capacity, results: "queue.Queue[ShardSummary | BaseException | None]"
) -> Iterator[ShardSummary | str]:
    """The summaries in `results` until the None at its end, and what the cluster lacks; see `ray_runner` for errors."""
    in_flight = {(item.run, item.shard.index) for item in items}
    seconds: list[float] = []
    looked = quiet_since = time.monotonic()
    if remark := capacity.look():
        yield remark
    while True:
        limit = capacity.resources.stall_timeout_s
        if len(seconds) >= 8:
            limit = min(limit, max(LEAST_STALL_S, 5 * sorted(seconds)[int(0.95 * len(seconds))]))
        try:
            result: ShardSummary | BaseException | str | None = results.get(timeout=min(limit, LOOK_S))
        except queue.Empty:
            result = ""
        now = time.monotonic()
        if now - looked >= LOOK_S:
            looked, remark = now, capacity.look()
            if capacity.there == 0:
                quiet_since = now  # nobody could have finished a shard
            yield remark
        if result is None:
            return
        if isinstance(result, BaseException):
            message = f"Ray ended the run: {type(result).__name__}: {str(result)[:800]}"
            raise InfrastructureError(message) from result
        if isinstance(result, ShardSummary):
            quiet_since = now
            seconds.append(result.seconds)
            in_flight.discard((result.run, result.shard))
            yield result
        elif now - quiet_since >= limit:
            stall = f"no shard finished for {limit:.0f} s"
            sys.stderr.write(f"{time.ctime()}: {stall}; {len(in_flight)} shards in flight; driver stacks:\n")
            faulthandler.dump_traceback(all_threads=True)
            shards = [shard for _, shard in sorted(in_flight)][:20]
            raise InfrastructureError(f"{stall}; in flight: {shards}")


def _feed(
    items: Sequence[ShardItem],
    task: ShardTask,
    resources: Resources,
    results: "queue.Queue[ShardSummary | BaseException | None]",
    stopped: threading.Event,
) -> None:
    """Map the shards over actors, one block each; puts summaries and then None, or the error, into `results`."""
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # not at import: importing ray.data sets the level
        blocks = [
            {"item": json.dumps([item.run, item.shard.index, [list(piece) for piece in item.shard.inputs]])}
            for item in items
        ]
        demand = {"num_cpus": resources.cpus, **({"num_gpus": resources.gpus} if resources.gpus else {})}
        # Those without room wait, and are what an autoscaler starts nodes for.
        actors = ray.data.ActorPoolStrategy(
            size=min(resources.workers, len(items)),
            max_tasks_in_flight_per_actor=2,
            max_concurrent_calls_per_actor=2,  # `ShardWorker` gives the device to one of them at a time
            enable_true_multi_threading=True,
        )
        summaries = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
            _Actor,
            batch_size=1,
            batch_format="pyarrow",
            compute=actors,
            fn_constructor_kwargs={"task": task, "folder": os.getcwd()},
            **demand,
        )
        for row in summaries.iter_rows():
            if stopped.is_set():
                return
            results.put(ShardSummary(**json.loads(row["summary"])))
        results.put(None)
    except BaseException as error:  # raised by `ray_runner`, in the thread of its caller
        results.put(error)
