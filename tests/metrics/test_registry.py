"""One record of a metric is all that the report, comparisons, sweeps and aggregation need to know of it."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raygen.commands.sweep import steps_within_5pct
from raygen.core.errors import InputError
from raygen.evaluation.aggregate import aggregate, write_metrics
from raygen.evaluation.comparison import CELL, check_counts, check_names, side_by_side
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.metrics.registry import REGISTRY, Metric, better, family, lookup, order, register
from raygen.report.cards import cards
from raygen.report.metric_rows import numbers
from raygen.report.run_folder import RunFolder
from raygen.report.slices import slices
from raygen.report.sweep import section as sweep_section
from raygen.store.filesystem import FileStore

MODULE = """
from raygen.metrics.registry import Metric, register

SHARPNESS = register(
    Metric(
        "sharpness",
        "Sharpness of faces",
        "contrast at the edges of the face",
        better="higher",
        digits=1,
        min_n=50,
        set_level=True,
        judged_by_network=True,
        in_slices=True,
        plotted=1,
        headline=True,
        per_image=True,
        note="{metric} is only an example.",
    )
)
EYES = register(Metric("eyes_open", "Eyes", "", describes_network=True))
"""


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Any]:
    """A temporary module with the records of two new metrics."""
    known = dict(REGISTRY)
    path = tmp_path / "sharpness.py"
    path.write_text(MODULE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("sharpness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    REGISTRY.clear()
    REGISTRY.update(known)


def row(metric: str, value: float, slice_: str = "all", n: int = 10, **protocol: Any) -> dict[str, Any]:
    return {
        "run_id": "r",
        "metric": metric,
        "slice": slice_,
        "value": value,
        "n": n,
        "ci_low": None,
        "ci_high": None,
        "reference": None,
        "protocol": json.dumps(protocol),
        "created": datetime(2026, 1, 2, tzinfo=UTC),
    }


def test_a_record_says_which_way_is_better_and_where_it_stands(registered: Any) -> None:
    assert better("sharpness@face:net") == "higher"
    assert lookup("sharpness:net") is registered.SHARPNESS
    assert order("miou:net") < order("psnr") < order("sharpness:net") < order("eyes_open") < order("unheard_of")


@pytest.mark.usefixtures("registered")
def test_a_card_of_the_report_follows_the_record() -> None:
    found = numbers([row("unheard_of", 1), row("sharpness:net", 12.345), row("miou:net", 0.5)])
    assert [card.metric for card in cards(found)] == ["miou:net", "sharpness:net", "unheard_of"]
    card = cards(found)[1]
    assert (card.title, card.value, card.better) == ("Sharpness of faces", "12.3", "higher")
    assert card.meaning == "contrast at the edges of the face"
    assert card.warning == "Low n: 10 images, 50 advised"
    assert card.notes[0] == "sharpness:net is only an example."
    assert card.notes[1].startswith("Measured by net,")
    assert slices(numbers([row("sharpness:net", 1, "all/Male: yes"), row("unheard_of", 1, "all/Male: yes")]))[0] == [
        "sharpness:net"
    ]


@pytest.mark.usefixtures("registered")
def test_comparisons_follow_the_record() -> None:
    sets = {"a": row("sharpness:net", 1, n=10), "b": row("sharpness:net", 1, n=11)}
    with pytest.raises(InputError, match="over unequal n"):
        check_counts("sharpness", sets)
    check_counts("eyes", {"a": row("eyes_open:net", 1, n=10), "b": row("eyes_open:net", 1, n=11)})
    with pytest.raises(Exception, match="sharpness:one and sharpness:two"):
        check_names({"a": [row("sharpness:one", 1)], "b": [row("sharpness:two", 1)]})
    check_names({"a": [row("eyes_open:one", 1)], "b": [row("eyes_open:two", 1)]})
    real = [row("sharpness:net", 1, "reference", variant="a"), row("eyes_open:net", 1, "reference", variant="a")]
    assert list(side_by_side(real)) == ["eyes_open:net"]


@pytest.mark.usefixtures("registered")
def test_sweeps_follow_the_record(tmp_path: Path) -> None:
    names = ("miou:net", "eyes_open:net", "sharpness:net")
    rows = [
        row(name, value, **{CELL: {"name": f"ddim-{steps}", "line": "ddim", "steps": steps}})
        for name in names
        for steps, value in ((5, 1.0), (10, 9.9), (20, 10.0))
    ]
    write_metrics(FileStore(f"{tmp_path}/metrics"), rows)
    section = sweep_section(RunFolder.open(str(tmp_path)))
    assert section is not None
    measures = section.variables["measures"]
    assert [measure.metric for measure in measures] == ["sharpness:net", "miou:net"]
    assert measures[0].lines[0].steps == 10
    assert "higher is better" in measures[0].plots[0]
    assert list(steps_within_5pct(rows)) == ["miou:net, ddim", "sharpness:net, ddim"]


@pytest.mark.usefixtures("registered")
def test_a_score_of_single_pictures_becomes_their_mean() -> None:
    vectors = np.array([[1.0], [2.0], [6.0]], np.float32)
    scores = {name: ScoreMatrix(("a", "b", "c"), vectors) for name in ("sharpness:net", "unheard_of:net")}
    protocols = {"net": {"network": "net", "sha256": "ab"}}
    table = aggregate({"all": scores}, run_id="r", reference=None, protocols=protocols, frechet_name="fd:net")
    (found,) = table.to_pylist()
    assert (found["metric"], found["value"], found["n"]) == ("sharpness:net", 3.0, 3)
    assert found["ci_low"] < 3.0 < found["ci_high"]
    assert json.loads(found["protocol"]) == {"network": "net", "sha256": "ab", "interval": "bootstrap over pictures"}


def test_a_name_is_registered_once_and_without_its_network() -> None:
    for name in ("miou", "niqe:net", "niqe@crop"):
        with pytest.raises(ValueError, match="cannot be registered"):
            register(Metric(name, "", ""))
    assert "niqe:net" not in REGISTRY


def test_every_record_is_complete_and_plots_have_places_of_their_own() -> None:
    places = [metric.plotted for metric in REGISTRY.values() if metric.plotted]
    assert sorted(places) == list(range(1, len(places) + 1))
    for name, metric in REGISTRY.items():
        assert name == metric.name == family(name)
        assert metric.title
        assert metric.meaning
        assert not metric.meaning.endswith(".")
        assert metric.headline <= bool(metric.plotted)


def test_an_unknown_name_makes_no_claims() -> None:
    record = lookup("unheard_of@crop:net")
    assert (record.name, record.title, record.better, record.min_n) == ("unheard_of", "unheard of", "", 0)
    assert not any(getattr(record, field.name) for field in fields(Metric) if field.type == "bool")
