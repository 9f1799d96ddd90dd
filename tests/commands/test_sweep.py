"""A sweep: the same rows and noise for every cell, one pass, one table; and what a prepared reference refuses."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from raygen.commands import sweep
from raygen.commands.base import PreparedRun, Throughput
from raygen.commands.registry import make
from raygen.commands.verify import verify
from raygen.core.assets import resolve
from raygen.core.errors import ConfigError
from raygen.evaluation.comparison import Curve, Point, best_steps, curves
from raygen.report.build import build_report
from raygen.report.plots import axis_range
from raygen.report.sweep import sweep_plot
from raygen.store.parquet import from_parquet
from raygen.store.run_store import RunStore
from tests.drawn import drawn, quiet


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces, their conditions, and nothing else."""
    return drawn(tmp_path_factory.mktemp("sweep"), 12)


def document(root: Path, out: str, **what: object) -> dict:
    return {
        "kind": "sweep",
        "conditions": f"{root}/rows",
        "reference": f"{root}/faces",
        "steps": [1, 2],
        "samplers": [{"name": "ddim"}, {"name": "unipc", "steps": [2]}],
        "score": {"classifier": None},
        "compare": {"knn": None},
        "timing": {"pictures": 2, "rounds": 2},
        "generate": {"batch": 4, "shard_rows": 8, "seed": 5},
        **what,
        "out": f"{root}/{out}",
    }


@pytest.fixture(scope="module")
def swept(world: Path) -> Path:
    job = make(document(world, "swept"))
    facts = job.run(quiet).facts
    assert any("within 5%" in str(value) for value in facts.values())
    return world / "swept"


def test_a_cell_is_the_run_that_generate_would_have_made(world: Path, swept: Path) -> None:
    """Cells share a model in memory; not a byte of theirs may show it."""
    for name, steps, sampler in (("ddim-0002", 2, "ddim"), ("unipc-0002", 2, "unipc")):
        assert verify(RunStore(f"{swept}/cells/{name}")).ok
        alone = {
            "kind": "generate",
            "out": f"{world}/alone-{name}",
            "conditions": f"{world}/rows",
            "checkpoint": "bundled",
            "batch": 4,
            "shard_rows": 8,
            "seed": 5,
            "sampler": {"name": sampler, "steps": steps},
            "guidance": 1.0,
            "score": {"classifier": None},
        }
        make(alone).run(quiet)
        one, other = RunStore(f"{swept}/cells/{name}"), RunStore(f"{world}/alone-{name}")
        assert one.plan().run_id == other.plan().run_id
        assert one.manifest()["set_digest"] == other.manifest()["set_digest"]


def test_a_dry_run_probes_the_fewest_steps_of_each_line(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[int] = []

    def timed(work: PreparedRun) -> Throughput:
        probed.append(work.plan.settings["sampler"]["steps"])
        return Throughput(0.5 if probed[-1] == 4 else 0.25, 100, 3)

    monkeypatch.setattr(sweep, "time_one_batch", timed)
    what = {
        "steps": [20, 4, 8],
        "guidance": [1.0, 2.0],
        "samplers": [{"name": "ddim"}, {"name": "unipc", "steps": [2]}],
    }
    found = make(document(world, "dry", **what)).estimate()
    assert sorted(probed) == [2, 2, 4, 4], "one cell a sampler and weight"
    assert (found.rows, found.bytes) == (8 * 12, 8 * 12 * 100)
    ddim, unipc = 12 * 0.5 * (4 + 8 + 20) / 4, 12 * 0.25
    assert found.seconds == pytest.approx(2 * (ddim + unipc))
    assert any("8 cells" in note for note in found.notes)
    assert any("fewest steps of each of 4 lines" in note for note in found.notes)
    assert any("scaled by their steps" in note for note in found.notes)
    assert not (world / "dry").exists()


def test_one_row_a_cell_and_metric(swept: Path) -> None:
    rows = from_parquet((swept / "metrics/metrics.parquet").read_bytes()).to_pylist()
    whole = [row for row in rows if row["slice"] == "all"]
    cells = {json.loads(row["protocol"])["cell"]["name"] for row in whole}
    assert cells == {"ddim-0001", "ddim-0002", "unipc-0002"}
    names = [(json.loads(row["protocol"])["cell"]["name"], row["metric"]) for row in whole]
    assert len(set(names)) == len(names)
    distances = {c: r for (c, m), r in zip(names, whole, strict=True) if m == "fd:raygen-parser"}
    assert len({row["value"] for row in distances.values()}) == 3
    assert {row["n"] for row in distances.values()} == {12}
    protocol = json.loads(distances["ddim-0001"]["protocol"])
    assert protocol["low_n"] is True
    assert (protocol["reference"]["size"], protocol["n_reference"]) == ([64, 64], 12)
    assert {m for _, m in names} >= {"kid:raygen-parser"}
    whole_reference = [row for row in rows if row["slice"] == "reference"]
    assert len({row["metric"] for row in whole_reference}) == len(whole_reference) > 0
    seconds = {c: r for (c, m), r in zip(names, whole, strict=True) if m == "seconds_per_picture"}
    assert all(0 < row["ci_low"] <= row["value"] <= row["ci_high"] for row in seconds.values())
    table = (swept / "metrics/table.md").read_text()
    assert table.count("\n| ") == 3
    assert "no more rows than a feature has values" in table.splitlines()[-1]


def test_the_report_draws_it_and_shows_the_same_rows_in_every_cell(swept: Path) -> None:
    page = Path(build_report(str(swept), f"{swept}/page.html")).read_text()
    assert "Quality over steps" in page
    drawn = page.count('<svg class="plot"')
    assert drawn == 6, "Fréchet distance, KID and mIoU, over steps and seconds"
    assert page.count("under ddim-0001") == page.count("under unipc-0002") == 8
    assert "of the reference itself" in page
    assert 'id="metrics"' not in page, "no cell's numbers are those of the whole"


def test_the_same_command_again_does_nothing_twice(world: Path, swept: Path) -> None:
    commits = sorted(swept.rglob("commits/*.json"))
    before = [(path, path.stat().st_mtime_ns) for path in commits]
    (swept / "cells/unipc-0002/attempt-00/commits/shard-00001.json").unlink()
    for name in ("_SUCCESS", "MANIFEST.json"):
        (swept / f"cells/unipc-0002/attempt-00/{name}").unlink()
    table = (swept / "metrics/table.md").read_text()
    make(document(world, "swept")).run(quiet)
    changed = {path for path, when in before if path.stat().st_mtime_ns != when}
    assert changed == {swept / "cells/unipc-0002/attempt-00/commits/shard-00001.json"}
    assert (swept / "metrics/table.md").read_text() == table


def killed(job: dict, folder: Path, shards: int) -> dict[Path, int]:
    """Run `job` in another process until so many shards are committed in `folder`, kill it; commits and their times."""
    code = f"from raygen.commands.registry import make; make({job!r}).run(lambda _: None)"
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, cwd=root)
    try:
        deadline = time.monotonic() + 300
        while len(list(folder.glob("*/attempt-00/commits/shard-*.json"))) < shards and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/attempt-00/commits/shard-*.json")}


def test_a_killed_evaluation_repeats_at_most_the_unfinished_shard(world: Path, swept: Path) -> None:
    what = {"reference": f"{world}/faces", "shard_rows": 1, "batch": 1}
    what |= {"samples": f"{swept}/cells/ddim-0002", "score": {"classifier": None, "face_features": True}}
    job = evaluate(world, "cut", **what)
    before = killed(job, world / "cut/scores", shards=3)
    assert 3 <= len(before) < 24, "it was killed on the way"
    facts = make(job).run(quiet).facts
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert len(list((world / "cut/scores").glob("*/attempt-00/starts/shard-*"))) <= 25
    assert facts == make(evaluate(world, "uncut", **what)).run(quiet).facts


def test_a_killed_sweep_repeats_at_most_the_unfinished_shard(world: Path, swept: Path) -> None:
    job, cells = document(world, "killed", timing=None), world / "killed/cells"
    before = killed(job, cells, shards=2)
    assert 2 <= len(before) < 6, "it was killed on the way"
    make(job).run(quiet)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    for name in ("ddim-0001", "ddim-0002", "unipc-0002"):
        assert (
            len({RunStore(f"{world}/{out}/cells/{name}").manifest()["set_digest"] for out in ("swept", "killed")}) == 1
        )
    tries = list(cells.glob("*/attempt-00/starts/shard-*"))
    assert len(tries) <= 7, "six shards, and one that was being worked on"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_actors_make_the_same_cells(world: Path, swept: Path) -> None:
    other = document(world, "on-ray", timing=None)
    make({**other, "resources": {"runner": "ray", "workers": 2}}).run(quiet)
    for name in ("ddim-0001", "ddim-0002", "unipc-0002"):
        digests = {RunStore(f"{world}/{out}/cells/{name}").manifest()["set_digest"] for out in ("swept", "on-ray")}
        assert len(digests) == 1, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generate": {"sampler": {"name": "ddim"}}}, "sampler are set by the sweep"),
        ({"generate": {"bach": 3}}, "did you mean 'batch'"),
        ({"samplers": [{"name": "ddim"}, {"name": "ddim"}]}, "ddim is there twice"),
        ({"samplers": [{"name": "unipc", "eta": 1}]}, "eta is an option of ddim"),
        ({"steps": [0]}, "steps"),
        ({"steps": [2, 2]}, "two cells of the sweep are the same"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_runs(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(document(tmp_path, "out", **change))


# --- a reference that was scored once -----------------------------------------------------------------------


def evaluate(root: Path, out: str, **what: object) -> dict:
    return {"kind": "evaluate", "score": {"classifier": None}, **what, "out": f"{root}/{out}"}


def test_a_prepared_reference_gives_the_same_numbers_and_is_not_scored_again(world: Path, swept: Path) -> None:
    samples = f"{swept}/cells/ddim-0002"
    make(evaluate(world, "prepared", reference=f"{world}/faces")).run(quiet)
    ceiling = json.loads((world / "prepared/metrics/metrics.json").read_text())
    assert {row["slice"].partition("/")[0] for row in ceiling} == {"reference"}
    one = make(evaluate(world, "direct", samples=samples, reference=f"{world}/faces")).run(quiet).facts
    other = make(evaluate(world, "reused", samples=samples, reference=f"{world}/prepared")).run(quiet).facts
    assert one == other
    assert "fd:raygen-parser [all]" in one
    assert not (world / "reused/scores").exists()


def test_what_does_not_fit_a_reference_is_refused_by_name(world: Path, swept: Path) -> None:
    samples = f"{swept}/cells/ddim-0002"
    make(evaluate(world, "prepared", reference=f"{world}/faces")).run(quiet)
    wrong = evaluate(world, "wrong", samples=samples, reference=f"{world}/prepared")
    wrong["score"] = {"classifier": None, "features": None}
    with pytest.raises(ConfigError, match=r"prepared was scored with features .*small.*asks for null"):
        make(wrong).run(quiet)
    other = document(world, "other-network", reference=f"{world}/prepared", score={"features": None})
    with pytest.raises(ConfigError, match=r"prepared was scored with features .*small.*asks for null"):
        make(other).run(quiet)
    assert not (world / "other-network/cells").exists()
    data = {"kind": "procedural", "identities": 2, "pictures": 1, "size": 32, "seed": 3}
    make({"kind": "ingest", "data": data, "out": f"{world}/small"}).run(quiet)
    with pytest.raises(ConfigError, match=r"pictures of 64 x 64 px, the reference .*small of 32 x 32 px"):
        make(evaluate(world, "sizes", samples=samples, reference=f"{world}/small")).run(quiet)
    copied = evaluate(
        world, "copied", samples=samples, reference=f"{world}/faces", memorization={"faces": f"{world}/small"}
    )
    with pytest.raises(ConfigError, match=r"small has pictures of 32 x 32 px, the reference .*faces of 64 x 64 px"):
        make(copied).run(quiet)
    sized = make(document(world, "other-size", reference=f"{world}/small", steps=[1]))
    for call in (sized.estimate, lambda: sized.run(quiet)):
        with pytest.raises(ConfigError, match=r"small has pictures of 32 x 32 px, the model .* makes 64 x 64 px"):
            call()
    assert not (world / "other-size").exists(), "nothing is scored or generated before it is known to be comparable"
    with pytest.raises(ConfigError, match="name `samples`, or a `reference`"):
        make(evaluate(world, "nothing"))
    what = {"samples": samples, "reference": f"{world}/prepared", "round_trip": "bundled"}
    with pytest.raises(ConfigError, match="round_trip: needs the pictures"):
        make(evaluate(world, "trip", **what)).run(quiet)


def test_a_network_is_its_weights_and_not_its_place(world: Path, swept: Path, tmp_path: Path) -> None:
    """Another file at the same place is refused where scores of the first are kept; the same file elsewhere is not."""
    samples, mine = f"{swept}/cells/ddim-0002", tmp_path / "mine"
    shutil.copytree(resolve("bundled", "parser"), mine)
    shutil.copytree(mine, tmp_path / "moved")

    def job(out: str, folder: Path, **what: object) -> dict:
        network = {"kind": "small", "folder": str(folder)}
        made = evaluate(tmp_path, out, samples=samples, **what)
        made["score"] = {"classifier": None, "parser": network, "features": network}
        return made

    prepared = job("prepared", mine, reference=f"{world}/faces")
    del prepared["samples"]
    make(prepared).run(quiet)
    first = make(job("here", mine, reference=f"{tmp_path}/prepared")).run(quiet).facts
    assert make(job("there", tmp_path / "moved", reference=f"{tmp_path}/prepared")).run(quiet).facts == first

    weights = mine / "model.safetensors"
    changed = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"prepared was scored with parser .*sha256.*asks for .*sha256"):
        make(job("here", mine, reference=f"{tmp_path}/prepared")).run(quiet)
    with pytest.raises(ConfigError, match=r"holds another run .*different: score\.features\.sha256"):
        make(prepared).run(quiet)


# --- lines --------------------------------------------------------------------------------------------------


def row(line: str, steps: int, value: float, metric: str = "fd:x", **cell: object) -> dict:
    named = {"name": f"{line}-{steps}", "line": line, "steps": steps, "guidance": "1", "checkpoint": "b", **cell}
    return {
        "metric": metric,
        "slice": "all",
        "value": value,
        "n": 2000,
        "ci_low": None,
        "ci_high": None,
        "protocol": json.dumps({"cell": named}),
    }


def test_lines_are_by_sampler_and_points_by_steps() -> None:
    rows = [row("ddim", 50, 1.0), row("ddim", 5, 2.0), row("unipc", 5, 1.2), row("ddim", 5, 0.1, "seconds_per_picture")]
    found = curves([*rows, {"metric": "fd:x", "slice": "all", "protocol": "{}"}], "fd:x")
    assert [(c.name, [p.steps for p in c.points]) for c in found] == [("ddim", [5, 50]), ("unipc", [5])]
    assert [p.seconds for p in found[0].points] == [0.1, None]
    guided = curves([*rows, row("ddim", 5, 3.0, guidance="2")], "fd:x")
    assert [c.name for c in guided] == ["ddim, guidance 1", "ddim, guidance 2", "unipc, guidance 1"]


def test_enough_steps_are_the_fewest_near_the_best() -> None:
    def line(*values: float) -> Curve:
        return Curve("x", tuple(Point(10 * (i + 1), v, None, None, None, 9) for i, v in enumerate(values)))

    assert best_steps(line(2.0, 1.04, 1.0, 1.3), "fd:x") == (20, 1.0)
    assert best_steps(line(0.5, 0.69, 0.7, 0.71), "miou:x") == (20, 0.71)
    assert best_steps(line(3.0), "fid@clean") == (10, 3.0)


def test_a_plot_has_every_point_where_it_belongs() -> None:
    import xml.etree.ElementTree as ElementTree

    rows = [row("ddim", s, v) for s, v in ((5, 3.0), (50, 1.0), (500, 0.9))] + [row("a<b", 5, 2.0)]
    drawn = ElementTree.fromstring(sweep_plot(curves(rows, "fd:x"), "fd:x", standalone=True))
    svg = "{http://www.w3.org/2000/svg}"
    marks = {group.findtext(f"{svg}title"): group.find(f".//{svg}use") for group in drawn.iter(f"{svg}g")}
    points = {title: (float(use.get("x")), float(use.get("y"))) for title, use in marks.items() if title}
    assert len(points) == 4
    x, y = zip(*(points[title] for title in sorted(points, key=len) if title.startswith("ddim")), strict=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2), "steps are on a logarithmic axis"
    assert y[0] < y[1] < y[2], "less is lower"
    assert "a<b" in [text.text for text in drawn.iter(f"{svg}text")]
    assert sweep_plot(curves(rows, "fd:x"), "fd:x", over="seconds") == ""
    assert sweep_plot([], "fd:x") == ""


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [1e-9, 2e-9], [-3.0, 5.0], [1, 1000], [7.0], [0.111, 0.189], [1e-4, 3e5]]
)
@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_on_the_axis_and_few(values: list[float], log: bool) -> None:
    axis = axis_range(values, log=log)
    assert 1 <= len(axis.ticks) <= 8
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert all(axis.low <= value <= axis.high for value in values)


def test_a_sweep_can_grow_and_keep_what_it_has(world: Path, swept: Path) -> None:
    commits = {path: path.stat().st_mtime_ns for path in swept.rglob("commits/*.json")}
    make(document(world, "swept", steps=[1, 2, 3])).run(quiet)
    assert {path for path, when in commits.items() if path.stat().st_mtime_ns != when} == set()
    assert (swept / "metrics/table.md").read_text().count("\n| ") == 4


def test_the_same_noise_with_more_and_fewer_conditions(world: Path) -> None:
    sets = {"none": [], "attributes": ["attributes"], "mask": ["mask"], "both": None}
    what = {"samplers": [{"name": "ddim", "steps": [4]}], "use_conditions": sets, "timing": None}
    make(document(world, "use_conditions", **what)).run(quiet)
    shown = {name: pictures(world / f"use_conditions/cells/ddim-0004-{name}") for name in sets}
    assert all(len({shown[name][i] for name in sets}) == 4 for i in range(12)), "each set gives another picture"
    alone = dict(document(world, "x")["generate"], conditions=f"{world}/rows", checkpoint="bundled")
    job = {"kind": "generate", **alone, "sampler": {"name": "ddim", "steps": 4}, "out": f"{world}/all"}
    make(job).run(quiet)
    assert pictures(world / "all") == shown["both"], "all conditions are what a run without `use_conditions` uses"
    with pytest.raises(ConfigError, match=r"use_conditions: text: the model takes attributes, mask"):
        make(document(world, "wrong", use_conditions={"a": ["text"]})).run(quiet)


def pictures(folder: Path) -> list[bytes]:
    tables = RunStore(str(folder)).tables("samples", ["sample_id", "image"])
    rows = {row["sample_id"]: row["image"]["bytes"] for table in tables for row in table.to_pylist()}
    return [rows[name] for name in sorted(rows)]
