"""What the workers of a run waited for, from the times in its commits."""

import platform
from collections.abc import Mapping
from typing import Any, Final

from raygen.store.run_store import Commit

__all__ = ["WorkerTime"]


#: Shares of the time in the model: below the first one nothing is computed there, above the second one nothing is lost.
LEAST, ENOUGH = 0.05, 0.95
#: Shards that a worker has to start before its share means anything.
SHARDS: Final = 4


class WorkerTime:
    """The share of the workers' time that was spent in `Worker.start`, the model's part of a batch.

    A worker is watched from the start of its first shard to the start of its last one, so that neither its own start
    nor the end of the run count. Shards of a CUDA device are left out: there `start` only queues the work, and the time
    in it says nothing.
    """

    def __init__(self) -> None:
        self._started: dict[str, list[tuple[float, float]]] = {}

    def add(self, commit: Commit) -> None:
        """Count one shard."""
        started, device_s = (commit.timings.get(name) for name in ("started", "device_s"))
        if started is not None and device_s is not None and commit.environment.get("device") == platform.machine():
            self._started.setdefault(commit.environment.get("worker", ""), []).append((started, device_s))

    def share(self) -> float | None:
        """The share; None where no worker has started `SHARDS` shards, or the run is not about a model."""
        busy = watched = 0.0
        for shards in self._started.values():
            shards.sort()
            if len(shards) >= SHARDS:
                busy += sum(device_s for _, device_s in shards[:-1])
                watched += shards[-1][0] - shards[0][0]
        share = min(busy / watched, 1.0) if watched > 0 else 0.0
        return share if share >= LEAST else None

    def sentence(self, settings: Mapping[str, Any]) -> str:
        """What the workers of a run with these settings waited for; empty where that is not known."""
        share = self.share()
        if share is None:
            return ""
        text = f"{share:.0%} of the workers' time was in the model"
        if share > ENOUGH:
            return f"{text}: a faster codec would not help"
        slow = settings.get("codec") in ("webp", "png")
        faster = "; `codec: png_fast` is encoded ten times faster" if slow else ""
        return f"{text}, the rest in what follows it (scores, encoding, commits){faster}"
