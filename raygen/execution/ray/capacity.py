"""How many workers a cluster has room for now, whether it grows by itself, and how long a job waits for it.

The workers that find no room are the demand: Ray's autoscaler starts nodes for actors and ranks that wait. The demand
ends with the process that made it, also after SIGKILL. `ray.autoscaler.sdk.request_resources` would stay in force after
that and keep the nodes running, and each pass of Ray Data overwrites it (both in Ray 2.60).
"""

import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray._private import ray_constants
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get, internal_kv_get_gcs_client

from raygen.core.config import Resources
from raygen.core.errors import InfrastructureError

__all__ = ["Capacity", "room", "scales"]


#: Seconds in which the monitor of a cluster that was just started writes its first status.
FIRST_STATUS_S = 8.0
#: How the read-only monitor of a cluster without autoscaler names the type of a node: this, and the id of the node.
UNMANAGED = "node_"


class Capacity:
    """Watches whether a cluster has room for the workers of a job."""

    def __init__(self, resources: Resources, needed: int) -> None:
        """`needed`: workers without which the job cannot go on: all ranks of a training, else 1.

        `InfrastructureError` where there is room for fewer, and nothing adds nodes to this cluster.
        """
        self.resources, self.needed = resources, needed
        self.enough = time.monotonic()  # when there was room for `needed` workers
        self.there = room(resources)
        if self.there >= needed or scales():
            return
        raise InfrastructureError(
            f"the cluster has room for {self.there} of {_workers(resources, needed)}, and nothing adds nodes to it: "
            f"{_nodes()}. Lower resources.workers, resources.cpus or resources.gpus, or add nodes"
        )

    def look(self) -> str:
        """What the job waits for; empty where all workers have room.

        `InfrastructureError` after `resources.wait_s` without room for the workers that are needed.
        """
        resources, now = self.resources, time.monotonic()
        self.there = room(resources)
        wanted = _workers(resources, resources.workers)
        if self.there >= self.needed:
            self.enough = now
            missing = resources.workers - self.there
            return f"room for {self.there} of {wanted}, the others start as nodes join" if missing > 0 else ""
        if now - self.enough > resources.wait_s:
            least = "all of them are" if self.needed > 1 else "one is"
            raise InfrastructureError(
                f"waited {resources.wait_s:g} s for {wanted}: {self.there} there, {resources.workers - self.there} "
                f"missing, {least} needed. The cluster has {_nodes()}. Look at `ray status` for why no node comes "
                "(limits of node types, quota, a node type without GPUs), or raise resources.wait_s"
            )
        return f"waiting for {wanted}: {self.there} there, asked for {resources.workers - self.there}"


def room(resources: Resources) -> int:
    """Workers that the nodes of the cluster can hold, at most `resources.workers`; what other jobs use counts."""
    fits = sum(_fits(node["Resources"], resources) for node in ray.nodes() if node["Alive"])
    return min(resources.workers, fits)


def _fits(node: Mapping[str, float], resources: Resources) -> int:
    """Workers that a node can hold. A GPU can be shared, but a fraction never spans two GPUs."""
    limits = [resources.workers]
    if resources.cpus:
        limits.append(int(node.get("CPU", 0) / resources.cpus + 1e-6))
    if resources.gpus >= 1:
        limits.append(int(node.get("GPU", 0) / resources.gpus + 1e-6))
    elif resources.gpus:
        limits.append(int(node.get("GPU", 0)) * int(1 / resources.gpus + 1e-6))
    return min(limits)


def scales() -> bool:
    """Whether an autoscaler can add nodes to this cluster.

    Every Ray has a monitor. Without an autoscaler it only mirrors the nodes, each as a type of its own that is named
    after the node; an autoscaler knows the types of its configuration, that of the head node at least.
    """
    node = ray._private.worker._global_node
    if node is not None and node.is_head():
        return False  # started by this process, alone
    types = _node_types_v2() if is_autoscaler_v2(fetch_from_server=True) else _node_types_v1()
    return any(not name.startswith(UNMANAGED) for name in types)


def _node_types_v1() -> set[str]:
    deadline = time.monotonic() + FIRST_STATUS_S
    while time.monotonic() < deadline:
        status = _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
        report: dict[str, Any] = json.loads(status).get("autoscaler_report") or {} if status else {}
        if types := {*report.get("active_nodes", {}), *(report.get("pending_launches") or {})}:
            return types
        time.sleep(0.5)
    return set()


def _node_types_v2() -> set[str]:
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(internal_kv_get_gcs_client().address)
    nodes = [*status.active_nodes, *status.idle_nodes, *status.pending_nodes, *status.pending_launches]
    return {node.ray_node_type_name for node in nodes if node.ray_node_type_name}


def _workers(resources: Resources, count: int) -> str:
    """`8 x 1 GPU`, `8 x 2 CPU`."""
    each = f"{resources.gpus:g} GPU" if resources.gpus else f"{resources.cpus:g} CPU"
    return f"{count} x {each}" + (f" and {resources.cpus:g} CPU" if resources.gpus and resources.cpus != 1 else "")


def _nodes() -> str:
    """`1 node with 0 CPU and 0 GPU; 2 nodes with 16 CPU and 1 GPU`."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kinds = Counter((each.get("CPU", 0), each.get("GPU", 0)) for each in alive)
    return "; ".join(
        f"{number} node{'s' if number > 1 else ''} with {cpus:g} CPU and {gpus:g} GPU"
        for (cpus, gpus), number in sorted(kinds.items())
    )
