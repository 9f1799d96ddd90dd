"""What may not stand side by side is refused by name: other references, networks, sizes, protocols, unequal n."""

import importlib.util
import json
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from raygen.commands.registry import make
from raygen.core.errors import ConfigError, InputError
from raygen.evaluation.comparison import CELL, check_counts, check_names, check_protocols, grid, side_by_side
from raygen.report.build import build_report
from raygen.store.parquet import from_parquet, to_parquet
from raygen.store.schemas import METRICS

FD = "fd:raygen-parser"
SHA, OTHER = "a1" * 32, "b2" * 32


def row(metric: str = FD, n: int = 10, *, slice_: str = "all", reference: str | None = SHA, **said: Any) -> dict:
    size = said.pop("picture", [64, 64])
    protocol = {"network": "raygen-parser", "sha256": SHA, "reference": {"made": {}, "size": size}, **said}
    return {
        "run_id": "r",
        "metric": metric,
        "slice": slice_,
        "value": 0.5,
        "n": n,
        "ci_low": None,
        "ci_high": None,
        "reference": reference,
        "protocol": json.dumps(protocol),
        "created": datetime(2026, 11, 21, tzinfo=UTC),
    }


# --- two numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (row(reference=OTHER), "reference a1a1a1a1a1a1 and b2b2b2b2b2b2"),
        (row(reference=None), "reference a1a1a1a1a1a1 and unknown"),
        (row(sha256=OTHER), "sha256 a1a1a1a1a1a1 and b2b2b2b2b2b2"),
        (row(picture=[32, 32]), r"picture size \[64, 64\] and \[32, 32\]"),
        (row(input="64 px bilinear antialias"), "input unknown and 64 px bilinear antialias"),
        (row(n_reference=9), "n_reference unknown and 9"),
    ],
)
def test_what_differs_is_named_with_both(other: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{FD}: plain and gated are not comparable: .*{words}"):
        check_protocols(FD, {"plain": row(), "same": row(), "gated": other})


def test_what_came_out_and_what_varies_may_differ() -> None:
    other = row(variant="b", stage="scores", clipped=True, low_n=True, interval="none", classes=18, steps=50, dtype="x")
    check_protocols(FD, {"a": row(variant="a"), "b": other})


def test_a_judge_that_is_judged_may_be_another() -> None:
    check_protocols(
        "eer:x", {"a": row("eer:x", slice_="reference"), "b": row("eer:x", slice_="reference", sha256=OTHER)}
    )
    with pytest.raises(ConfigError, match="sha256"):
        check_protocols("eer:x", {"a": row("eer:x"), "b": row("eer:x", sha256=OTHER)})


@pytest.mark.parametrize("metric", ["fd:x", "fid@clean", "kid@clean", "rfd:x", "fid_infinity@clean", "recall:x"])
def test_distances_of_unequal_n_are_refused(metric: str) -> None:
    with pytest.raises(InputError, match=f"{metric}: a has n 1,000 and b n 999") as found:
        check_counts(metric, {"a": row(metric, 1000), "b": row(metric, 999)})
    assert found.value.reason == "n"
    check_counts(metric, {"a": row(metric, 1000), "b": row(metric, 1000)})


def test_means_of_unequal_n_may_stand() -> None:
    check_counts("miou:x", {"a": row("miou:x", 10), "b": row("miou:x", 9)})


@pytest.mark.parametrize(("one", "other"), [("fid@clean", "fid@tf"), ("fid@clean", "fd:x"), ("kid:x", "kid:y")])
def test_other_protocols_of_one_kind_are_named(one: str, other: str) -> None:
    with pytest.raises(ConfigError, match=f"a and b are not comparable: protocol {one} and {other}"):
        check_names({"a": [row(one)], "b": [row(other)]})
    check_names({"a": [row(one)], "b": [row(other), row(one)]})


def test_other_names_that_are_no_protocols_may_stand() -> None:
    check_names({"a": [row("influence:mask"), row("eer:x")], "b": [row("influence:text"), row("eer:y")]})


def test_samples_count_before_the_reference() -> None:
    rows = [row("eer:x", slice_=where, variant="a", n=n) for where, n in (("all", 3), ("reference", 4))]
    assert side_by_side(rows)["eer:x"]["a"]["n"] == side_by_side(rows[::-1])["eer:x"]["a"]["n"] == 3


# --- in the report ------------------------------------------------------------------------------------------


def test_the_report_says_how_many_rows(tmp_path: Path) -> None:
    rows = [
        row(metric, n, variant=variant)
        for variant, more in (("a", 0), ("b", 1))
        for metric, n in ((FD, 1234), ("miou:x", 77 + more))
    ]
    assert grid(rows).n_of(FD) == 1234
    assert grid(rows).n_of("miou:x") is None
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/metrics.parquet").write_bytes(to_parquet(pa.Table.from_pylist(rows, METRICS)))
    text = Path(build_report(str(tmp_path))).read_text(encoding="utf-8")
    assert [text.count(f"<small>n {n}</small>") for n in ("1,234", "77", "78")] == [1, 1, 1]


# --- in an ablation -----------------------------------------------------------------------------------------


def document(out: Path, variants: dict[str, list[str]]) -> dict:
    """One model, and variants that differ in rows and judges alone."""
    faces = {"kind": "procedural", "identities": 6, "pictures": 2, "size": 32, "seed": 1}
    stage = {"kind": "autoencoder", "image_size": 32, "patch": 2, "channels": [8, 8], "mid_attention": False}
    model = {"kind": "ldm", "channels": [8], "attention": [False], "head_dim": 8, "modalities": []}
    train = {"faces": "{shared}/faces", "training": {"steps": 1, "batch": 4, "warmup": 0, "ema": 0}}
    score = {"parser": None, "features": {"kind": "small"}, "classifier": None}

    def plan(count: int, prefix: str) -> dict:
        return {"kind": "plan", "planning": {"kind": "unconditional", "count": count, "prefix": prefix}}

    shared = {
        "faces": {"kind": "ingest", "data": faces},
        "others": {"kind": "ingest", "data": {**faces, "seed": 2}},
        "first": {"kind": "train", **train, "model": stage},
        "model": {"kind": "train", **train, "model": model, "first_stage": "{shared}/first"},
        "six": plan(6, "s"),
        "eight": plan(8, "s"),
        "seven": plan(7, "t"),
    }
    what = {"conditions": "{shared}/six", "checkpoint": "{shared}/model", "batch": 4, "sampler": {"steps": 1}}
    judged = {"samples": "{variant}/samples", "reference": "{shared}/faces", "score": score}
    stages = {"samples": {"kind": "generate", **what}, "scores": {"kind": "evaluate", **judged}}
    return {"kind": "ablation", "shared": shared, "stages": stages, "variants": variants, "out": str(out)}


def run(out: Path, **variants: list[str]) -> dict[tuple[str, str], dict]:
    make(document(out, variants)).run(lambda _: None)
    found = from_parquet((out / "metrics/metrics.parquet").read_bytes()).to_pylist()
    return {(json.loads(r["protocol"])["variant"], r["metric"]): r for r in found if r["slice"] == "all"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("footing")


def test_unequal_numbers_are_compared_over_the_rows_that_all_have(out: Path) -> None:
    found = run(out, plain=[], more=['samples.conditions="{shared}/eight"'])
    assert found["plain", FD]["n"] == found["more", FD]["n"] == 6
    assert found["plain", FD]["value"] == found["more", FD]["value"]  # the same six pictures
    assert json.loads(found["more", FD]["protocol"])["rows"] == "those that all variants have"
    own = from_parquet((out / "more/metrics/metrics.parquet").read_bytes()).to_pylist()
    (alone,) = (r for r in own if (r["metric"], r["slice"]) == (FD, "all"))
    assert alone["n"] == 8  # what the evaluation wrote stays
    assert alone["value"] != found["more", FD]["value"]
    table = (out / "metrics/table.md").read_text()
    names, *_, counts = ([cell.strip() for cell in line.split("|")] for line in table.splitlines())
    assert counts[1] == "*n*"
    assert counts[names.index(FD)] == "6"
    assert "(n 6)" in table  # of seconds a picture, each variant has its own
    assert "(n 8)" in table


def test_distances_over_rows_of_which_none_is_common_are_refused(out: Path) -> None:
    with pytest.raises(InputError, match=f"{FD}: plain has n 6 and other n 7"):
        run(out, plain=[], other=['samples.conditions="{shared}/seven"'])


def test_another_reference_is_refused_before_the_next_variant_begins(out: Path) -> None:
    with pytest.raises(ConfigError, match=f"{FD}: plain and moved are not comparable: reference .* and "):
        run(out, plain=[], moved=['scores.reference="{shared}/others"'], later=[])
    assert not (out / "later").exists()


# --- between sweeps -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "steps_vs_fid.py"
    config = importlib.util.spec_from_file_location("steps_vs_fid", path)
    assert config is not None
    assert config.loader is not None
    module = importlib.util.module_from_spec(config)
    config.loader.exec_module(module)
    return module


def sweep(root: Path, name: str, **said: Any) -> str:
    cell = {"name": "ddim-0010", "line": "ddim", "steps": 10, "guidance": "1", "conditions": "all", "checkpoint": "m"}
    folder = root / name / "metrics"
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist([row(**{"cell": cell, **said})], METRICS)
    (folder / "metrics.parquet").write_bytes(to_parquet(table))
    return str(root / name)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"reference": OTHER}, "reference a1a1a1a1a1a1 and b2b2b2b2b2b2"),
        ({"sha256": OTHER}, "sha256 a1a1a1a1a1a1 and b2b2b2b2b2b2"),
        ({"n": 9}, r"cells of \[9, 10\] pictures"),
    ],
)
def test_sweeps_that_were_measured_otherwise_are_not_drawn_together(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict, words: str
) -> None:
    assert CELL == "cell"
    folders = [sweep(tmp_path, "one"), sweep(tmp_path, "two", **said)]  # cells of one name: the folder tells them apart
    monkeypatch.setattr("sys.argv", ["steps_vs_fid.py", *folders, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=words):
        script.main()
    assert not list(tmp_path.glob("*.svg"))


def test_sweeps_that_were_measured_alike_are_drawn_together(script: ModuleType, tmp_path: Path) -> None:
    rows = list(script.rows_of([sweep(tmp_path, "one"), sweep(tmp_path, "two")]))
    assert script.check(rows) == [10]
