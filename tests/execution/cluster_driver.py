"""Drivers of tests on clusters of several nodes: `python -m tests.execution.cluster_driver NAME FOLDER PORT`.

Each is a process of its own, because a process connects to one Ray at a time. Everything listens on 127.0.0.1.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from raygen.core.config import Resources
from raygen.core.errors import InfrastructureError
from raygen.execution.executor import Progress, execute
from raygen.execution.ray.actors import ray_runner
from raygen.store.run_store import RunStore
from tests.fakes import Fake, build, plan_of

#: What Ray's fake provider, which starts nodes as processes of this machine, wants of a configuration.
CONFIG = {
    "cluster_name": "fake",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "head_node_type": "ray.head.default",
    **{name: {} for name in ("docker", "auth", "file_mounts")},
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
    **{name: [] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
    **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
}
HEAD = {"node_ip_address": "127.0.0.1", "num_cpus": 0, "include_dashboard": False}
NODE = {"node_ip_address": "127.0.0.1", "num_cpus": 2, "num_gpus": 1}


def work(folder: Path, name: str, seconds: float, report: Callable[[Progress], None], **resources: Any) -> str:
    """Run 12 shards; the set digest."""
    plan = plan_of(folder / name, rows=48, shard_rows=4, batch=4)
    settings = Resources(runner="ray", **resources)
    fake = partial(build, Fake(seconds=seconds))
    store = RunStore(str(folder / name / "out"))
    outcome = execute(store, plan, fake, settings, ray_runner, max_error_fraction=0, report=report)
    assert outcome.manifest["rows"] == {"samples": 48}
    return str(outcome.manifest["set_digest"])


def nodes_of(folder: Path, name: str) -> set[str]:
    """The processes that committed shards."""
    return {str(commit.environment["worker"]) for commit in RunStore(str(folder / name / "out")).commits()}


def from_nothing(folder: Path, port: int) -> dict[str, Any]:
    """A head without CPUs and an autoscaler: no worker is there at the start."""
    worker = {"resources": {"CPU": 2, "GPU": 1, "object_store_memory": 100_000_000}, "node_config": {}}
    provider = {
        "type": "fake_multinode",
        "gcs_address": f"127.0.0.1:{port}",
        **dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True),
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    types = {"gpu": {**worker, "min_workers": 0, "max_workers": 2}, "ray.head.default": head}
    path = folder / "autoscaling.json"
    path.write_text(json.dumps({**CONFIG, "provider": provider, "available_node_types": types}))
    cluster = Cluster()
    own = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    os.environ.update(own)
    cluster.add_node(**HEAD, gcs_server_port=port, autoscaling_config=str(path), env_vars=own)
    del os.environ["RAY_OVERRIDE_NODE_ID_FOR_TESTING"]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    remarks: list[str] = []

    def report(progress: Progress) -> None:
        remarks.append(progress.waiting)

    digest = work(folder, "a", 0.3, report, workers=2, gpus=1)
    try:  # no node type has two GPUs
        work(folder, "b", 0.0, report, workers=1, gpus=2, wait_s=3)
        refused = ""
    except InfrastructureError as error:
        refused = str(error)
    waiting = [thread.name for thread in threading.enumerate() if isinstance(thread, StreamingExecutor)]
    ray.shutdown()
    for node in cluster.list_all_nodes():
        cluster.remove_node(node)
    return {"digest": digest, "remarks": list(dict.fromkeys(remarks)), "refused": refused, "waiting": waiting}


def nodes_come_and_go(folder: Path, port: int) -> dict[str, Any]:
    """A cluster without autoscaler: a second node joins at work, and the first is killed."""
    cluster = Cluster()
    cluster.add_node(**HEAD, gcs_server_port=port)
    first = cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    remarks: list[str] = []
    done: list[int] = []
    late = threading.Event()

    def report(progress: Progress) -> None:
        remarks.append(progress.waiting)
        if progress.done_shards >= 1 and not done:  # Ray's signal handlers want the main thread
            done.append(1)
            cluster.add_node(**NODE)
        if len(nodes_of(folder, "a")) == 2 and not late.is_set():
            late.set()
            cluster.remove_node(first, allow_graceful=False)

    # Beside other tests a second actor needs ten seconds to start, and has to find work.
    digest = work(folder, "a", 1.5, report, workers=2, gpus=1)
    starts = len(list((folder / "a/out/attempt-00/starts").iterdir()))
    try:
        work(folder, "b", 0.0, report, workers=1, gpus=2)
        refused = ""
    except InfrastructureError as error:
        refused = str(error)
    result = {"digest": digest, "late": late.is_set(), "starts": starts, "refused": refused}
    result["remarks"] = list(dict.fromkeys(remarks))
    ray.shutdown()
    cluster.shutdown()
    return result


@dataclass
class Step:
    """What a rank reports."""

    step: int


def ranks(folder: str, rank: int, world: int) -> Iterator[Step]:
    """Eight steps in step with each other, as by gradients; rank 0 keeps the last one, and all go on from it."""
    import torch.distributed as dist

    state, trace = Path(folder) / "state", Path(folder) / f"trace-{rank}"
    begin = int(state.read_text()) + 1 if state.exists() else 0
    for step in range(begin, 8):
        with trace.open("a") as file:
            file.write(f"{step} ")
        time.sleep(0.3)
        dist.barrier()
        if rank == 0:
            state.write_text(str(step))
        yield Step(step)


def training(folder: Path, port: int) -> dict[str, Any]:
    """Two ranks on two nodes; one node is killed at work and another one joins."""
    from raygen.execution.ray.train import run_ranks

    cluster = Cluster()
    cluster.add_node(**HEAD, gcs_server_port=port)
    cluster.add_node(**NODE)
    second = cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    cluster_step: list[str] = []
    waits: list[str] = []
    resources = Resources(runner="ray", workers=2, cpus=2)

    def replace_node() -> None:
        while not (folder / "state").exists() or int((folder / "state").read_text() or 0) < 3:
            time.sleep(0.05)
        cluster_step.append((folder / "state").read_text())
        cluster.remove_node(second, allow_graceful=False)
        time.sleep(4)
        cluster.add_node(**NODE)

    failed: list[BaseException] = []

    def train() -> None:
        try:
            run_ranks(partial(ranks, str(folder)), resources, str(folder), waits.append)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    replace_node()
    thread.join()
    ray.shutdown()
    cluster.shutdown()
    traces = [[int(step) for step in (folder / f"trace-{rank}").read_text().split()] for rank in (0, 1)]
    remarks = list(dict.fromkeys(waits))
    return {"traces": traces, "waits": remarks, "failed": [str(error) for error in failed]}


if __name__ == "__main__":
    scenario = {"from_nothing": from_nothing, "nodes_come_and_go": nodes_come_and_go, "training": training}
    folder = Path(sys.argv[2])
    (folder / "result.json").write_text(json.dumps(scenario[sys.argv[1]](folder, int(sys.argv[3]))))
