"""The chains of the papers, as the guide lists them: each line starts on a small data set in the true layout."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raygen.commands.registry import load
from raygen.core.config import Resources
from raygen.execution.executor import execute, local_runner
from raygen.models.operations import hours_of
from raygen.sampling.operations import Counted, count_encoding, count_sampling
from raygen.store.images import encode_image, picture_column
from raygen.store.run_store import Plan, RunStore, make_shards, open_input
from raygen.store.schemas import SAMPLES, cast
from raygen.training.operations import training_operations
from tests.papers import raw_data, stable_diffusion, without_weights

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/papers.md").read_text()
BLOCK = re.compile(r"^```text\n(raygen .*?)^```", re.M | re.S)
CHAINS = {
    title: [line for block in BLOCK.findall(body) for line in block.splitlines()]
    for title, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S)
    if BLOCK.search(body)
}
#: The job that has the shape of an imported checkpoint.
SHAPES = {"vq_f4": "vq_f4_256", "scadm": "scadm_256", "celebahq": "celebahq_256", "codiff": "codiff_256"}
#: Without the networks of an evaluation, whose weights are not here.
NO_NETWORKS = [
    "score={parser: null, features: null, classifier: null}",
    "pairwise=null",
    "round_trip=null",
    "compare=null",
]


class Pictures:
    """CONDITIONS -> SAMPLES of one colour: what a generation would have written."""

    def start(self, rows: pa.Table) -> Any:
        data = [encode_image(np.full((256, 256, 3), 90, np.uint8))] * rows.num_rows
        columns = {
            name: rows[name] for name in ("sample_id", "source", "mask", "group_id") if name in rows.column_names
        }
        columns |= {"attempt": pa.array([0] * rows.num_rows, pa.int32()), "run_id": ["r"] * rows.num_rows}
        table = cast(pa.table({**columns, "image": picture_column(data)}), SAMPLES)
        return lambda: {"samples": table}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("papers")
    raw_data(root)
    (root / "jobs").symlink_to(ROOT / "jobs")
    return root


def made(chain: list[str]) -> Iterator[tuple[str, list[str], Any]]:
    """Command, words and job of each line; None for the job of an import or a comparison."""
    for line in chain:
        _, command, *words = shlex.split(line)
        yield command, words, None if command in ("import", "compare") else load(words[0], words[1:], command)


def folders(value: object) -> Iterator[str]:
    """Every folder of a run in the settings of a job."""
    if isinstance(value, str):
        yield from [value] if value.startswith("runs/") else []
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from folders(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from folders(item)


@pytest.mark.parametrize("title", CHAINS)
def test_each_job_reads_what_an_earlier_one_wrote(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    written = {"runs/imported/scadm", "runs/imported/celebahq"} if title == "SCA-DM" else set()
    for command, words, job in made(CHAINS[title]):
        if job is None:
            read = [word.partition("=")[2] for word in words] if command == "compare" else []
        else:
            read = list(folders(job.settings()))
        assert set(read) <= written, f"{command} {words}: {set(read) - written} is written by no earlier line"
        out = words[2] if command == "import" else None if job is None else job.out
        written |= {out, str(out).removesuffix("/samples")} if out else set()


def test_every_job_of_the_papers_is_in_a_chain() -> None:
    used = {word for chain in CHAINS.values() for line in chain for word in line.split() if word.startswith("jobs/")}
    editing = {"edits", "edit_imagic_256", "edit_collaborative_256"}  # judged by people: there is no table
    names = {f"jobs/papers/{path.name}" for path in (ROOT / "jobs/papers").glob("*.yaml") if path.stem not in editing}
    assert names <= used, names - used


@pytest.mark.parametrize("title", CHAINS)
def test_each_line_starts(title: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ingest and plan run; the others are dry runs, on checkpoints without weights. Nothing is counted here."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("raygen.training.operations.training_operations", lambda recipe: 1e15)
    monkeypatch.setattr("raygen.commands.train.TrainJob._frozen", lambda job: 10**9)
    monkeypatch.setattr("raygen.sampling.operations.count_sampling", lambda config: Counted(10**9, 1e12))
    monkeypatch.setattr("raygen.sampling.operations.count_encoding", lambda checkpoint, flips: Counted(10**9, 1e12))
    for command, words, job in made(CHAINS[title]):
        if command == "import":
            shape = load(f"jobs/papers/{SHAPES[Path(words[2]).name]}.yaml")
            if not (place / words[2] / "raygen.json").exists():
                without_weights(shape, place / words[2])
        elif command in ("ingest", "plan"):
            job = load(words[0], [*words[1:], "resources={runner: local}", *few(job)], command)
            if not (place / job.out / "attempt-00/_SUCCESS").exists():
                job.run(lambda _: None)
            assert open_input(job.out)[0].plan().rows > 0
        elif command == "train" and job.model.kind == "classifier":
            assert not list(job.missing_inputs())
        elif command == "train":
            notes = job.estimate().notes
            assert any("H100" in note for note in notes), notes
            assert not [n for n in notes if n.startswith("missing") and "latents" not in n], notes
            without_weights(job, place / job.out)
        elif command in ("encode", "generate"):
            # Another chain may have put pictures where this one puts its own.
            estimate = job.model_copy(update={"out": f"{place}/dry"}).estimate()
            assert estimate.rows > 0
            assert any("H100" in note for note in estimate.notes)
        if command == "generate":
            pictures(job)
        if command == "evaluate":
            job = load(words[0], [*words[1:], *NO_NETWORKS, "resources={runner: local}"], command)
            assert job.estimate().rows > 0


#: Pictures of each plan or data set; the raw data is not here to be counted.
ROWS = {
    "runs/unconditional/conditions": 50_000,
    "runs/papers/conditions": 3_000,
    "runs/papers/conditions_512": 3_000,
    "runs/papers/styles_reconstruction": 2_000,
    "runs/papers/styles_noise": 20_000,
    "runs/papers/masks_sca": 2_000,
    "runs/papers/masks_sca_10": 20_000,
    "runs/papers/attributes_val": 5_000,
    "runs/papers/captions_coco": 1_565,
    "runs/papers/faces_ffhq_128": 70_000,
    "runs/papers/faces_codiff_256": 30_000,
    "runs/papers/faces_codiff_512": 30_000,
    "runs/papers/faces_sca_256": 30_000,
    "runs/papers/faces_taming_256": 30_000,
}


def hours_of_chains(folder: Path) -> dict[str, float]:
    """Hours of each job by its file, on stand-ins in `folder`, which is the working folder."""
    hours: dict[str, float] = {}
    for chain in CHAINS.values():
        for command, words, job in made(chain):
            name = Path(words[0]).stem
            if command == "import" and not (folder / words[2] / "raygen.json").exists():
                without_weights(load(f"jobs/papers/{SHAPES[Path(words[2]).name]}.yaml"), folder / words[2])
            elif command == "train" and job.model.kind != "classifier":
                hours[name] = hours_of(training_operations(job))
                without_weights(job, folder / job.out)
            elif command == "encode":
                counted = count_encoding(job.checkpoint, flips=job.horizontal_flips)
                hours[name] = hours_of(counted.operations * ROWS[job.faces])
            elif command == "generate":
                hours[name] = hours_of(count_sampling(job.sampling("")).operations * ROWS[job.conditions])
    return hours


@pytest.mark.nightly
@pytest.mark.skipif("RAYGEN_NIGHTLY" not in os.environ, reason="counts for a minute; RAYGEN_NIGHTLY is not set")
def test_the_hours_of_the_guide_are_those_that_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    stable_diffusion(tmp_path / "weights/stable-diffusion-v1-5")
    monkeypatch.chdir(tmp_path)
    written = {
        name: float(text.replace(",", "")) for name, text in re.findall(r"^\| `(\w+)` \| ([\d.,]+) \|", GUIDE, re.M)
    }
    counted = hours_of_chains(tmp_path)
    assert written == {name: pytest.approx(float(f"{value:.2g}")) for name, value in counted.items()}


def few(job: Any) -> list[str]:
    """Fewer rows where a plan has many."""
    return ["planning.count=3"] if getattr(getattr(job, "planning", None), "count", 0) else []


def pictures(job: Any) -> None:
    """SAMPLES in the `out` of a generate job."""
    rows, _ = open_input(job.conditions)
    plan = Plan("generate", "r", {}, 64, make_shards(rows.slices("conditions"), 64))
    store = RunStore(job.out)
    if not store.storage.exists("_SUCCESS"):
        execute(store, plan, Pictures, Resources(), local_runner, max_error_fraction=0.0)
