"""The stores of a run folder as far as they got: what a report reads of them.

Knows which folders a run may hold and what commits and run records say. Reads no pictures.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raygen.report.timeline import Span, without_pauses
from raygen.store.filesystem import FileStore
from raygen.store.parquet import Slice
from raygen.store.run_store import Commit, Plan, RunStore

__all__ = ["STAGES", "Stage", "stages_of"]


#: Folders of a run, in the order in which they are made; the table each holds, and what its rows are called.
STAGES: Final = (
    ("faces", "faces", "Faces"),
    ("conditions", "conditions", "Conditions"),
    ("samples", "samples", "Generated pictures"),
    ("selected", "samples", "Selected pictures"),
    ("scores/samples", "scores", "Scores of the generated"),
    ("scores/reference", "scores", "Scores of the reference"),
    ("scores/roundtrip", "scores", "Scores of the round trip"),
)


@dataclass(frozen=True)
class Stage:
    """One store of the run folder as far as it got."""

    folder: str
    table: str
    title: str
    store: RunStore
    plan: Plan
    commits: Sequence[Commit]
    record: Mapping[str, Any]
    digest: str | None

    @property
    def rows(self) -> int:
        """Committed rows of the stage's own table, rows with an error among them."""
        return sum(commit.rows(self.table) for commit in self.commits)

    @property
    def reasons(self) -> Counter[str]:
        """Rows that failed, by reason."""
        total: Counter[str] = Counter()
        for commit in self.commits:
            total.update(commit.quarantined)
        return total

    @property
    def bad(self) -> int:
        """Number of rows that failed."""
        return sum(self.reasons.values())

    @property
    def made(self) -> int:
        """Rows that did not fail: SAMPLES keeps a failed row, the other tables do not."""
        return self.rows - self.bad if self.table == "samples" else self.rows

    @property
    def missing(self) -> int:
        """Planned shards that are not committed."""
        return len(self.plan.shards) - len(self.commits)

    @property
    def bytes(self) -> int:
        """Size of the committed files."""
        return sum(int(entry["bytes"]) for commit in self.commits for entry in commit.files)

    def slices(self, table: str) -> list[Slice]:
        """Committed files of `table`."""
        entries = [entry for commit in self.commits for entry in commit.files if entry["table"] == table]
        return [Slice(self.store.storage.address(e["path"]), 0, int(e["rows"])) for e in entries if e["rows"]]

    @property
    def spans(self) -> list[Span]:
        """When each shard was worked on, in order of start."""
        return sorted(_span(commit, self.table) for commit in self.commits)

    @property
    def seconds(self) -> float:
        """Wall time: of the command where it did all of it, else of the hours in which something ran.

        0 for a selection: bringing rows together is not making them.
        """
        if self.plan.kind == "select":
            return 0.0
        if self.record.get("seconds") and not self.record.get("resumed_shards"):
            return float(self.record["seconds"])
        moved, _ = without_pauses(self.spans, 0.0)
        return max((span.end for span in moved), default=0.0) - min((span.start for span in moved), default=0.0)


def _span(commit: Commit, table: str) -> Span:
    worked = float(commit.timings.get("work_s", 0.0))
    start = float(commit.timings.get("started", commit.created - worked))
    end = max(commit.created, start)
    return Span(start, end, commit.rows(table), commit.shard, str(commit.environment.get("worker", "")))


def stages_of(root: str) -> Iterator[Stage]:
    """The stores of a run folder (path or URL), each in its newest attempt."""
    for folder, table, title in STAGES:
        url = f"{root.rstrip('/')}/{folder}"
        attempts = [n for n in FileStore(url).names("") if n.startswith("attempt-") and n[8:].isdigit()]
        for name in sorted(attempts, key=lambda n: int(n[8:]), reverse=True)[:1]:
            store = RunStore(url, int(name[8:]))
            if store.storage.exists("plan.json"):
                manifest = _json(store.storage, "MANIFEST.json")
                made = "faces" if folder == "selected" and store.has("faces") else table
                yield Stage(
                    folder,
                    made,
                    title,
                    store,
                    store.plan(),
                    list(store.commits()),
                    _json(store.storage, "run.json"),
                    manifest.get("set_digest"),
                )


def _json(storage: FileStore, name: str) -> dict[str, Any]:
    try:
        value = json.loads(storage.get(name))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
