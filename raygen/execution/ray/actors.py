"""Shards to actor pools through Ray Data.

Knows how shard numbers become blocks and how a pool of `ShardWorker`s gives one small summary a shard; pictures
never enter the object store. Does not know what a worker does. A stalled pipeline ends the run with a list of
what was in flight.
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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from raygen.core.config import Resources
from raygen.core.errors import InfrastructureError
from raygen.execution.ray.session import connected
from raygen.execution.worker import ShardItem, ShardSummary, ShardTask, ShardWorker
from raygen.store.parquet import Slice
from raygen.store.run_store import Shard

__all__ = ["ray_runner"]


#: Ray says this as an error of every actor pool of Ray Data: the pool keeps the arguments itself.
HARMLESS = b"issues/53727"
#: A stall is also five times the 95th percentile of the shards so far, but never less than this many seconds.
LEAST_STALL_S = 300.0


class _Actor:
    """A `ShardWorker` as Ray Data calls it: a block of one shard in, a block of one summary out."""

    def __init__(self, task: ShardTask) -> None:
        self.worker = ShardWorker(task)

    def __call__(self, block: pa.Table) -> pa.Table:
        summaries = [self.worker(_to_item(text)) for text in block["item"].to_pylist()]
        return pa.table({"summary": [json.dumps(asdict(summary)) for summary in summaries]})


def _to_text(item: ShardItem) -> str:
    return json.dumps([item.place, item.shard.index, [list(piece) for piece in item.shard.inputs]])


def _to_item(text: str) -> ShardItem:
    place, index, pieces = json.loads(text)
    return ShardItem(place, Shard(index, tuple(Slice(*piece) for piece in pieces)))


def ray_runner(items: Sequence[ShardItem], task: ShardTask, resources: Resources) -> Iterator[ShardSummary]:
    """Work on `items` with `resources.workers` actors; summaries in the order in which shards finish.

    Raises `InfrastructureError` where nothing finishes for `resources.stall_timeout_s`, or Ray gives up.
    """
    with connected(resources):
        _check_resources(resources)
        results: queue.Queue[ShardSummary | BaseException | None] = queue.Queue()
        feeder = threading.Thread(target=_consume, args=(items, task, resources, results), daemon=True)
        feeder.start()
        yield from _watched(results, resources, {(item.place, item.shard.index) for item in items})


def _check_resources(resources: Resources) -> None:
    """One clear sentence instead of a pipeline that waits for CPUs nobody has."""
    have = ray.cluster_resources()
    for name, each in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        if each > have.get(name, 0):
            raise InfrastructureError(
                f"an actor asks for {each:g} {name}, the cluster has {have.get(name, 0):g} in all"
            )
    if resources.cpus * resources.workers > have.get("CPU", 0) - 1:
        raise InfrastructureError(
            f"{resources.workers} actors of {resources.cpus:g} CPU would leave none of {have.get('CPU', 0):g} "
            "for the pipeline; lower resources.workers or resources.cpus"
        )


def _pool(items: Sequence[ShardItem], task: ShardTask, resources: Resources) -> Any:
    """The lazy dataset: one block a shard, one actor call a block."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # here: importing ray.data sets it
    blocks = [{"item": _to_text(item)} for item in items]
    demand: dict[str, Any] = {"num_cpus": resources.cpus}
    if resources.gpus:
        demand["num_gpus"] = resources.gpus
    size = min(resources.workers, len(items))
    return ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
        _Actor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        fn_constructor_kwargs={"task": task},
        **demand,
    )


def _consume(
    items: Sequence[ShardItem],
    task: ShardTask,
    resources: Resources,
    results: "queue.Queue[ShardSummary | BaseException | None]",
) -> None:
    try:
        with ExitStack() as starting:
            starting.enter_context(_stderr_without(HARMLESS))
            for row in _pool(items, task, resources).iter_rows():
                starting.close()  # the pool is there
                results.put(ShardSummary(**json.loads(row["summary"])))
        results.put(None)
    except BaseException as error:  # handed to the thread that can raise it
        results.put(error)


@contextmanager
def _stderr_without(text: bytes) -> Iterator[None]:
    """Lines of this process's stderr that hold `text` are dropped; they come from C++ and no logger sees them."""
    read, write = os.pipe()
    true = os.dup(2)

    def forward() -> None:
        with os.fdopen(read, "rb") as lines, os.fdopen(true, "wb", buffering=0, closefd=False) as stderr:
            for line in lines:
                if text not in line:
                    stderr.write(line)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    os.dup2(write, 2)
    os.close(write)
    try:
        yield
    finally:
        os.dup2(true, 2)  # closes the last writer of the pipe, which ends the thread
        thread.join(timeout=5)
        os.close(true)


def _watched(
    results: "queue.Queue[ShardSummary | BaseException | None]", resources: Resources, open_shards: set[tuple[int, int]]
) -> Iterator[ShardSummary]:
    seconds: list[float] = []
    while True:
        limit = resources.stall_timeout_s
        if len(seconds) >= 8:
            limit = min(limit, max(LEAST_STALL_S, 5 * sorted(seconds)[int(0.95 * len(seconds))]))
        try:
            item = results.get(timeout=limit)
        except queue.Empty:
            _dump(open_shards, limit)
            raise InfrastructureError(
                f"no shard finished for {limit:.0f} s; in flight: {[shard for _, shard in sorted(open_shards)][:20]}"
            ) from None
        if item is None:
            return
        if isinstance(item, BaseException):
            raise InfrastructureError(f"Ray ended the run: {type(item).__name__}: {str(item)[:800]}") from item
        seconds.append(item.seconds)
        open_shards.discard((item.place, item.shard))
        yield item


def _dump(open_shards: set[tuple[int, int]], limit: float) -> None:
    sys.stderr.write(f"{time.ctime()}: nothing for {limit:.0f} s; {len(open_shards)} shards open; driver stacks:\n")
    faulthandler.dump_traceback(all_threads=True)
