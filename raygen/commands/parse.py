"""`raygen parse`: FACES without masks -> FACES with masks, so that photographs condition models and can be edited.

out/attempt-00/data/faces/     FACES
"""

import math
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field

from raygen.commands.base import PreparedRun, ProgressCallback, Result, ShardedJob
from raygen.commands.inputs import open_inputs, plan_run, record_landmarks, with_landmarks
from raygen.core.location import Location
from raygen.execution.worker import Worker
from raygen.extractors.config import BundledNetworkConfig, LandmarksConfig, ParserConfig
from raygen.extractors.digests import checked_content, pinned
from raygen.sampling.config import LANDMARKS, ParseConfig
from raygen.store.run_store import RunStore, open_input

__all__ = ["JOB", "ParseJob"]


class ParseJob(ShardedJob):
    """FACES -> FACES with masks by a face parser, and its confidence."""

    kind: Literal["parse"] = "parse"
    faces: Location = Field(..., description="folder of an ingest run, whose pictures are parsed")
    parser: ParserConfig = Field(
        default_factory=BundledNetworkConfig,
        description="face parser that makes the masks, chosen by its `kind`; the bundled one is for drawn faces",
    )
    replace: bool = Field(False, description="also parse faces that have a mask, and replace it; false keeps it")
    min_confidence: float = Field(
        0.0,
        ge=0,
        le=1,
        description="faces that are parsed with a lower confidence are stored without a mask",
    )
    landmarks: LandmarksConfig | None = Field(None, description=LANDMARKS)
    batch: int = Field(16, ge=1, le=4096, description="pictures that are parsed at once")

    def prepare(self, *, write: bool) -> PreparedRun:
        """Plan the shards of faces. Networks enter the run id by content, not by path."""
        source = open_input(self.faces)[0].plan().settings
        settings: dict[str, Any] = {
            "parser": checked_content("parser", self.parser, "parser"),
            "replace": self.replace,
            "min_confidence": self.min_confidence,
            # Where the pictures come from decides how they are marked, compared and shown.
            **({"data": source["data"]} if "data" in source else {}),
        }
        parser = pinned(self.parser, settings["parser"])
        landmarks = record_landmarks(self.landmarks, settings)
        inputs = open_inputs(self.faces, "faces")
        plan = plan_run("parse", settings, inputs, batch=self.batch, shard_rows=self.shard_rows)
        config = ParseConfig(parser=parser, replace=self.replace, min_confidence=self.min_confidence)
        build = partial(parse_worker, config, landmarks, self.resources.threads)
        return PreparedRun(RunStore(self.out), plan, self.max_error_fraction, build=build)

    def run(self, report: ProgressCallback) -> Result:
        """Parse every shard that is not committed yet."""
        result = super().run(report)
        return Result(result.out, {**confidence_facts(RunStore(self.out), self.min_confidence), **result.facts})


def confidence_facts(store: RunStore, least: float) -> dict[str, str]:
    """How many faces have a mask of a parser, of this run or an earlier one, and how confident it was."""
    masks = low = 0
    total, lowest = 0.0, (math.inf, "")
    for table in store.tables("faces", ["face_id", "mask_confidence", "mask.path"]):
        parsed = table.filter(table["mask_confidence"].is_valid())
        values = parsed["mask_confidence"].to_numpy()
        if len(values):
            low += parsed["mask"].null_count
            masks, total = masks + len(values) - parsed["mask"].null_count, total + float(values.sum(dtype=np.float64))
            least_here = int(values.argmin())
            lowest = min(lowest, (float(values[least_here]), parsed["face_id"][least_here].as_py()))
    if not masks + low:
        return {"masks": "none parsed: the faces have masks already, and `replace: true` makes others"}
    return {
        "masks": f"{masks:,} by a parser" + (f", {low:,} left out below {least:g}" if low else ""),
        "confidence": f"{total / (masks + low):.3f} on average, {lowest[0]:.3f} at least ({lowest[1]})",
    }


def parse_worker(config: ParseConfig, landmarks: LandmarksConfig | None, threads: int) -> Worker:
    """The worker of a parse run, made in the process that parses: the driver of a cluster needs no torch."""
    from raygen.sampling.parse import ParseWorker

    return with_landmarks(partial(ParseWorker, config, threads=threads), landmarks, threads)


JOB = ParseJob
