"""A run folder, opened once for all sections of a report: its stores, its METRICS and the files beside them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from raygen.core.documents import load_json
from raygen.core.errors import ConfigError, IntegrityError
from raygen.evaluation.comparison import cell_of, variant_of
from raygen.metrics.noise import NoiseCheck, check_noise
from raygen.report.images import ImageWithMask, image_with_mask
from raygen.report.metric_rows import Number, numbers
from raygen.report.timeline import Span, without_pauses
from raygen.store.filesystem import FileStore
from raygen.store.lookup import evenly, images_of
from raygen.store.parquet import Slice, from_parquet, read_slice
from raygen.store.run_store import Commit, Plan, RunStore, open_input
from raygen.store.set_digest import KEYS

__all__ = ["COMPARISON", "EXAMPLES", "RunFolder", "Stage"]


#: Folders of a run, in the order in which they are made; the table each holds, and what its rows are called.
STAGES: Final = (
    ("faces", "faces", "Faces"),
    ("conditions", "conditions", "Conditions"),
    ("samples", "samples", "Generated images"),
    ("selected", "samples", "Selected images"),
    ("scores/samples", "scores", "Scores of generated images"),
    ("scores/reference", "scores", "Scores of the reference"),
    ("scores/roundtrip", "scores", "Scores of the reconstructed reference"),
)
#: Levels below the root at which a training may lie: the root itself, a stage, a stage of a variant.
TRAINING_DEPTH: Final = 2
#: File in which `raygen compare` keeps its table.
COMPARISON: Final = "comparison.json"
#: Images that stand for the whole set, on the page's head and contact sheet.
EXAMPLES: Final = 72


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
        spans = []
        for commit in self.commits:
            worked = float(commit.timings.get("work_s", 0.0))
            start = float(commit.timings.get("started", commit.created - worked))
            worker = str(commit.environment.get("worker", ""))
            spans.append(Span(start, max(commit.created, start), commit.rows(self.table), commit.shard, worker))
        return sorted(spans)

    @property
    def seconds(self) -> float:
        """Wall time: of the command where it did all of it, else of the hours in which something ran.

        0 for a selection and for pictures of another method, which are only copied.
        """
        if self.plan.kind == "select" or (self.plan.kind == "ingest" and self.table == "samples"):
            return 0.0
        if self.record.get("seconds") and not self.record.get("resumed_shards"):
            return float(self.record["seconds"])
        moved, _ = without_pauses(self.spans, 0.0)
        return max((span.end for span in moved), default=0.0) - min((span.start for span in moved), default=0.0)


@dataclass(frozen=True)
class RunFolder:
    """A run folder as the sections of a report read it.

    `stages` are its stores by folder, `rows` its METRICS rows, `faces` the FACES that its rows refer to, `trainings`
    the folders in it that hold a training, and `command` the command line that makes the run, where it is known.
    """

    url: str
    storage: FileStore
    stages: Mapping[str, Stage]
    rows: Sequence[Mapping[str, Any]]
    faces: Sequence[Slice]
    trainings: Sequence[str]
    command: str | None

    @classmethod
    def open(cls, url: str, *, faces: str | None = None, command: str | None = None) -> "RunFolder":
        """The run folder at `url` (path or URL). `faces` is an ingest run, where its faces lie elsewhere.

        Raises `ConfigError` where `url` holds no run, or `faces` no faces.
        """
        url = url.rstrip("/")
        storage = FileStore(url)
        stages = {stage.folder: stage for stage in _stages(url)}
        files = [name for name in storage.names("metrics") if name.endswith(".parquet")]
        rows = [row for name in files for row in from_parquet(storage.get(f"metrics/{name}")).to_pylist()]
        trainings = list(_trainings(storage, "", TRAINING_DEPTH))
        if not (stages or rows or trainings or storage.exists(COMPARISON)):
            single = storage.exists("attempt-00/plan.json")
            hint = "; it is a single run: give the folder around it" if single else ""
            raise ConfigError(
                f"{url}: none of faces/, conditions/, samples/, scores/, metrics/, training/ is here{hint}"
            )
        own = stages["faces"].slices("faces") if "faces" in stages else []
        pieces = own if faces is None else open_input(faces)[0].slices("faces")
        return cls(url, storage, stages, rows, pieces, trainings, command)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.url.rsplit("/", 1)[-1] or "run"

    @property
    def images(self) -> Stage | None:
        """The images that the run is about: of a selection those that were accepted."""
        return self.stages.get("selected") or self.stages.get("samples")

    @property
    def main(self) -> Stage | None:
        """The stage that the page's head describes."""
        return self.images or self.stages.get("faces") or next(iter(self.stages.values()), None)

    @property
    def generated(self) -> bool:
        """Whether the main stage holds generated images."""
        return self.main is not None and self.main.table == "samples"

    @cached_property
    def numbers(self) -> list[Number]:
        """METRICS of the run as a whole; empty for a sweep, whose rows are of its cells."""
        if any(cell_of(row) is not None for row in self.rows):
            return []
        return numbers(row for row in self.rows if variant_of(row) is None)

    @property
    def data_set(self) -> Mapping[str, Any]:
        """Settings of the data set that the faces come from; empty where they are not known."""
        stage = self.stages.get("faces") or self.stages.get("selected")  # a selection of faces keeps them
        settings = None if stage is None else stage.plan.settings.get("data")
        return settings if isinstance(settings, dict) else {}

    @cached_property
    def first_sample(self) -> Mapping[str, Any]:
        """What the first generated row says of its checkpoint, sampler and conditions; empty without samples."""
        pieces = self.images.slices("samples") if self.images else []
        if not pieces:
            return {}
        columns = ["method", "checkpoint", "sampler", "steps", "guidance", "mask", "attributes", "text"]
        row: dict[str, Any] = read_slice(pieces[0]._replace(rows=1), columns).to_pylist()[0]
        return row

    @cached_property
    def examples(self) -> Sequence[ImageWithMask]:
        """Images and masks of at most `EXAMPLES` rows, evenly spaced through the main stage."""
        if self.main is None:
            return []
        key = KEYS[self.main.table][0]
        return [example for row in self.example_rows if (example := image_with_mask(row, key))]

    @cached_property
    def noise(self) -> NoiseCheck | None:
        """Whether the rows of `examples` are noise; None where there are no images of that size."""
        return check_noise(images_of(self.example_rows))

    @cached_property
    def example_rows(self) -> Sequence[Mapping[str, Any]]:
        """At most `EXAMPLES` rows, evenly spaced through the main stage: key, image, mask, source and landmarks."""
        if self.main is None or self.main.table not in ("samples", "faces"):
            return []
        key = KEYS[self.main.table][0]
        return list(evenly(self.main.slices(self.main.table), EXAMPLES, [key, "image", "mask", "source", "landmarks"]))

    def json(self, name: str) -> Any:
        """The JSON file `name`, seen from the folder; or None; `IntegrityError` where it is damaged."""
        try:
            return load_json(self.storage.get(name)) if self.storage.exists(name) else None
        except ValueError as error:
            raise IntegrityError(f"{self.url}/{name} is damaged; run its command again") from error


def _stages(url: str) -> Iterator[Stage]:
    """The stores of a run folder, each in its newest attempt."""
    for folder, table, title in STAGES:
        place = f"{url}/{folder}"
        attempts = [int(n[8:]) for n in FileStore(place).names("") if n.startswith("attempt-") and n[8:].isdigit()]
        if not attempts:
            continue
        store = RunStore(place, max(attempts))
        if store.storage.exists("plan.json"):
            table = "faces" if folder == "selected" and store.has("faces") else table
            digest = _record(store.storage, "MANIFEST.json").get("set_digest")
            record = _record(store.storage, "run.json")
            yield Stage(folder, table, title, store, store.plan(), list(store.commits()), record, digest)


def _record(storage: FileStore, name: str) -> dict[str, Any]:
    try:
        value = load_json(storage.get(name))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _trainings(storage: FileStore, folder: str, depth: int) -> Iterator[str]:
    """Folders that have a `training/history.jsonl`, in order of name."""
    names = storage.names(folder)
    if "training" in names and storage.exists(f"{folder}/training/history.jsonl".lstrip("/")):
        yield folder
    elif depth:
        for name in sorted(names):
            if "." not in name and not name.startswith(("attempt-", "_")):
                yield from _trainings(storage, f"{folder}/{name}".lstrip("/"), depth - 1)
