"""`raygen parse`: FACES without masks -> FACES with masks, so that photographs condition models and can be edited.

out/attempt-00/data/faces/     FACES
"""

from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field

from raygen.commands.base import PreparedRun, ProgressCallback, Result, ShardedJob, open_inputs, plan_run
from raygen.core.location import Location
from raygen.execution.worker import Worker
from raygen.extractors.config import BundledNetworkConfig, LandmarksConfig, ParserConfig
from raygen.extractors.digests import checked_content
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
        if self.landmarks is not None:
            settings["landmarks"] = checked_content("landmarks", self.landmarks, "landmarker")
        inputs = open_inputs(self.faces, "faces")
        plan = plan_run("parse", settings, inputs, batch=self.batch, shard_rows=self.shard_rows)
        config = ParseConfig(parser=self.parser, replace=self.replace, min_confidence=self.min_confidence)
        build = partial(parse_worker, config, self.landmarks, self.resources.threads)
        return PreparedRun(RunStore(self.out), plan, self.max_error_fraction, build=build)

    def run(self, report: ProgressCallback) -> Result:
        """Parse every shard that is not committed yet."""
        result = super().run(report)
        return Result(result.out, {**confidence_facts(RunStore(self.out), self.min_confidence), **result.facts})


def confidence_facts(store: RunStore, least: float) -> dict[str, str]:
    """How many faces were parsed, and how confident the parser was."""
    ids, values = [], []
    for table in store.tables("faces", ["face_id", "mask_confidence"]):
        parsed = table.filter(table["mask_confidence"].is_valid())
        ids += parsed["face_id"].to_pylist()
        values += parsed["mask_confidence"].to_pylist()
    if not values:
        return {"masks": "all faces have one already; `replace` makes others"}
    low = sum(value < least for value in values)
    lowest = int(np.argmin(values))
    return {
        "masks": f"{len(values) - low:,} parsed" + (f", {low:,} left out below {least:g}" if low else ""),
        "confidence": f"{np.mean(values):.3f} on average, {values[lowest]:.3f} at least ({ids[lowest]})",
    }


def parse_worker(config: ParseConfig, landmarks: LandmarksConfig | None, threads: int) -> Worker:
    """The worker of a parse run, made in the process that parses: the driver of a cluster needs no torch."""
    from raygen.sampling.landmarked import LandmarkedWorker
    from raygen.sampling.parse import ParseWorker

    build = partial(ParseWorker, config, threads=threads)
    return build() if landmarks is None else LandmarkedWorker(build, landmarks, threads)


JOB = ParseJob
