"""The table of gates: how one is added, and what each says of itself on a data card."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raygen.commands.select
from raygen.core.config import parse
from raygen.core.errors import ConfigError
from raygen.evaluation.config import ScoreConfig
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.exports.row_scan import GATES_FILE, ExportSource
from raygen.selection import GATES
from raygen.selection.gates import ScorePool
from raygen.store.run_store import open_input
from raygen.store.sealed import open_record
from tests.exports.export_runs import export
from tests.selection.test_retries import document, quiet, tables, world

__all__ = ["world"]  # a fixture

MODULE = '''
from collections.abc import Mapping
from typing import Literal

from raygen.selection.gates import Gate, ScorePool, Verdicts


class EveryOtherGate(Gate):
    """Refuses every other image."""

    kind: Literal["every_other"] = "every_other"
    start: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("segmentation:",)

    def judge(self, fresh: ScorePool, accepted: ScorePool, limits: Mapping[str, float]) -> Verdicts:
        return dict.fromkeys(sorted(fresh.of("segmentation:").ids)[self.start :: 2], "every other one")

    def describe(self, limits: Mapping[str, float]) -> str:
        return "Every other image was refused."
'''


def loaded(name: str, path: Path) -> Any:
    """The module in a file, a second time where it is loaded already."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_gate_is_a_module_and_a_name(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "every_other.py").write_text(MODULE)
    monkeypatch.setitem(GATES, "every_other", loaded("every_other", tmp_path / "every_other.py").EveryOtherGate)
    command = loaded("select_with_another_gate", Path(raygen.commands.select.__file__))
    job = document(world, "every-other", gates=[{"kind": "every_other", "start": 1}], max_retries=0)
    parse(command.SelectJob, job, "job").run(quiet)
    rows = tables(world / "every-other/selected", "selection").to_pylist()
    refused = {row["sample_id"] for row in rows if not row["accepted"]}
    assert refused == set(sorted(row["sample_id"] for row in rows)[1::2])
    assert {row["reason"] for row in rows if not row["accepted"]} == {"every other one"}
    export(str(world / "every-other/selected"), tmp_path / "out", "csv")
    card = (tmp_path / "out/dataset/README.md").read_text()
    assert "| gate | Every other image was refused. |" in card
    assert "No gate refused such faces." in card
    with pytest.raises(ConfigError, match="start"):
        parse(command.SelectJob, {**job, "gates": [{"kind": "every_other", "start": "x"}]}, "job")
    with pytest.raises(ConfigError, match="every_other"):
        parse(raygen.commands.select.SelectJob, job, "job")


def test_a_selection_keeps_what_its_gates_say(world: Path) -> None:
    job = document(world, "said", gates=[{"kind": "score", "metric": "miou", "min": 0.01}], max_retries=0)
    parse(raygen.commands.select.SelectJob, job, "job").run(quiet)
    store, _ = open_input(str(world / "said/selected"))
    sentence = "Images with a mean IoU below 0.01 were refused."
    stored = open_record(store.storage.get(GATES_FILE), GATES_FILE)
    assert stored["gates"] == [{"description": sentence, "refuses_real_people": False}]
    assert ExportSource.open(str(world / "said/selected"), "samples").gates[0]["description"] == sentence
    assert ExportSource.open(str(world / "said/samples"), "samples").gates == [], "no selection, no gates"


@pytest.mark.parametrize(
    ("settings", "limits", "sentence"),
    [
        (
            {"kind": "score", "metric": "attributes", "classes": ["Male"], "reject_fraction": 0.2},
            {"min": 0.5},
            (
                "Images with a share of correct attributes of Male below 0.5, the 0.2 quantile of the first attempt, "
                "were refused."
            ),
        ),
        (
            {"kind": "identity", "min": 0.3, "max_other_similarity": 0.9, "max_duplicate_similarity": 0.95},
            {},
            (
                "Images with a face similarity (cosine) below 0.3 to the other images of their identity, or above 0.9 "
                "to another identity, or above 0.95 to another image of their identity were refused."
            ),
        ),
        (
            {"kind": "identity", "max_false_rate": 0.01, "faces": "/home/somebody/faces", "split": "train"},
            {"max_other_similarity": 0.61234},
            (
                "Images with a face similarity (cosine) above 0.6123 to another identity (a share of 0.01 of images of "
                "real people of split `train` is above it) were refused."
            ),
        ),
        (
            {"kind": "leak", "faces": "/home/somebody/faces", "split": "train", "max_false_rate": 1e-6},
            {"max": 0.53125},
            (
                "A leak gate compared every image with real faces of split `train` and refused those with a cosine "
                "above 0.531, which a share of 1e-06 of pairs of different people reach."
            ),
        ),
        (
            {"kind": "leak", "faces": "/home/somebody/faces", "max": 0.5},
            {"max": 0.5},
            "A leak gate compared every image with real faces and refused those with a cosine above 0.500.",
        ),
    ],
)
def test_what_a_gate_says_of_itself(settings: dict[str, Any], limits: dict[str, float], sentence: str) -> None:
    gate = parse(GATES[settings["kind"]], settings, "gate")
    assert gate.describe(limits) == sentence
    assert gate.refuses_real_people == (settings["kind"] == "leak")
    assert "somebody" not in gate.describe(limits)


def test_a_score_is_that_of_its_scorer_and_of_no_other() -> None:
    """`score:blur` is a whole name: neither `score:blur2`, nor a scorer that is not there, stands for it."""
    other = ScoreMatrix(("a",), np.zeros((1, 1), np.float32))
    pool = ScorePool({"score:blur2": other, "segmentation:p": other})
    assert pool.of("score:blur") is None
    assert pool.of("score:blur2") is other
    assert pool.of("segmentation:") is other
    assert not ScoreConfig(parser=None, features=None, classifier=None).measures("score:blur")
    table = pa.table({"metric": ["score:blur2", "segmentation:p"]})
    (kept,) = raygen.commands.select.scores_of(iter([table]), ["score:blur", "segmentation:"])
    assert kept["metric"].to_pylist() == ["segmentation:p"]
