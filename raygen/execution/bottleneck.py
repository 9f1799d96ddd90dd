"""What slows the workers of a run down: the times in its commits, and before it those of a batch."""

import platform
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

import pyarrow as pa

from raygen.store.images import Codec, decode_image, encode_image
from raygen.store.run_store import Commit

__all__ = ["WorkerTime", "encoding_text"]


#: Shares of the time in the model: below the first one nothing is computed there, above the second one nothing is lost.
LEAST, ENOUGH = 0.05, 0.95
#: Shards that a worker has to start before its share means anything.
SHARDS: Final = 4
#: The format that is encoded in the least time.
FASTEST: Final = "png_fast"
#: Pictures of a dry run that are encoded once more.
ENCODED: Final = 16


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


def encoding_text(samples: pa.Table | None, seconds: float, codec: Codec | None) -> str:
    """What encoding costs beside the model, measured on SAMPLES that a worker has just made; empty without pictures.

    `seconds`: of a worker, for each row. Encoding is CPU work on every device, so its share of a core says whether it
    can keep up. The quicker format is measured beside it where its package is installed.
    """
    if samples is None or codec is None:
        return ""
    stored = [value["bytes"] for value in samples["image"].to_pylist() if value is not None][:ENCODED]
    if not stored or seconds <= 0:
        return ""
    pixels = [decode_image(data) for data in stored]
    parts, share = [], 0.0
    for name in dict.fromkeys((codec, *((FASTEST,) if find_spec("fpng_py") else ()))):
        encode_image(pixels[0], name)  # the first call pays for imports
        began = time.process_time()
        size = sum(len(encode_image(image, name)) for image in pixels)
        each = max((time.process_time() - began) / len(pixels), 1e-6)
        share = share or each / seconds
        parts.append(f"{name} {1 / each:,.0f} images a second on one core, {size / len(pixels) / 1024:.1f} KiB each")
    text = f"{share:.0%}" if share >= 0.01 else "less than 1%"
    return f"encoding: {'; '.join(parts)}. A worker makes {1 / seconds:,.1f} a second: {codec} takes {text} of a core"
