"""An export of people: who has how many pictures, who is left out, what its card says of the chain that made them."""

import json

import pytest

from raygen.core.errors import ConfigError
from raygen.exports import recordio
from raygen.exports.row_scan import GATES_FILE
from raygen.store.run_store import RunStore
from raygen.store.sealed import to_text
from tests.exports.export_runs import FORMATS, export, opened, sample, store_rows, tree

LEAK = {"kind": "leak", "faces": "/home/somebody/faces", "split": "train", "max": None, "max_false_rate": 1e-6}
SENTENCE = "A leak gate compared every image with real faces of split `train` and refused a few."
GATES = [
    {"description": "Images with a mean IoU below 0.5 were refused.", "refuses_real_people": False},
    {"description": SENTENCE, "refuses_real_people": True},
]
CHOSEN = {
    "gates": [{"kind": "identity", "min": 0.3, "max_other_similarity": 0.9, "max_duplicate_similarity": None}, LEAK],
    "limits": [{}, {"max": 0.53125}],
    "max_retries": 2,
    "on_exhausted": "leave_out",
    "judged_by": ["raygen-identity"],
    "attempts": {"0": "abc"},
    "generate": {"seed": 9, "guidance": 2.5, "batch": 64, "precision": "float32"},
    "planning": {"kind": "identities", "identities": 3, "pictures": 4, "seed": 7, "balance": ["Male"]},
}


def gated(run: str) -> str:
    """The run with descriptions of its gates, as a selection writes them."""
    RunStore(run).storage.put(GATES_FILE, to_text({"gates": GATES}))
    return run


def card_of(folder) -> str:
    return (folder / "dataset/README.md").read_text()


def test_the_card_says_how_a_selection_was_planned_made_and_gated(tmp_path):
    run = gated(store_rows(tmp_path / "run", [sample(i) for i in range(10)], what=CHOSEN))
    export(run, tmp_path / "out", "folder")
    card = card_of(tmp_path / "out")
    for line in ("| noise_seed | `9` |", "| guidance | `2.5` |", "| batch | `64` |", '| precision | `"float32"` |'):
        assert line in card
    assert '| planned as | `{"balance":["Male"],"identities":3,"kind":"identities","pictures":4,"seed":7}` |' in card
    assert all(card.count(f"| gate | {gate['description']} |") == 1 for gate in GATES)
    assert card.count(SENTENCE) == 2, "once among the settings, once among the limits"
    assert card.count("Images with a mean IoU below 0.5 were refused.") == 1
    assert "No gate refused such faces" not in card
    assert "the best one may be here" not in card
    assert "somebody/faces" not in card
    image = next(data for name, data in tree(tmp_path / "out/dataset").items() if name.startswith("images"))
    said = json.loads(opened(image).info["raygen"])
    assert (said["seed"], said["noise_seed"]) == (5, 9)


def test_without_a_gate_the_card_claims_none(tmp_path):
    run = store_rows(tmp_path / "run", [sample(i) for i in range(6)])
    export(run, tmp_path / "out", "csv")
    assert "No gate refused such faces. An evaluation with `memorization` would measure it" in card_of(tmp_path / "out")
    best = {**CHOSEN, "on_exhausted": "best"}
    export(gated(store_rows(tmp_path / "best", [sample(i) for i in range(6)], what=best)), tmp_path / "two", "csv")
    assert "the best image that no such gate refused may be included" in card_of(tmp_path / "two")


def test_people_with_few_pictures_are_counted_and_left_out(tmp_path):
    """p0 has 4 pictures, p1 and p2 3; p1 loses two."""
    run = store_rows(tmp_path / "run", [sample(i) for i in range(10)], refused=("s001", "s004"), what=CHOSEN)
    export(run, tmp_path / "all", "csv")
    assert "| pictures of an identity: fewest, median, most | 1, 3, 4 |" in card_of(tmp_path / "all")
    assert "| identities with fewer than the 4 that were planned | 2 |" in card_of(tmp_path / "all")
    for kind in FORMATS:
        result = export(run, tmp_path / kind, kind, min_pictures=3)
        assert result.facts["left out"] == "2 not selected, 1 of identities with too few pictures"
        assert result.facts["pictures"] == "7 of 2 identities"
        card = card_of(tmp_path / kind)
        assert "| rows left out because their identity has too few pictures | 1 |" in card
        assert "min_pictures: 3" in card
    names = list(tree(tmp_path / "folder/dataset/images"))
    assert {name.split("/")[0] for name in names} == {"p0", "p2"}
    labels = (tmp_path / "csv/dataset/labels.csv").read_text().splitlines()[1:]
    assert {tuple(line.split(",")[2:4]) for line in labels} == {("p0", "0"), ("p2", "1")}, "labels have no gaps"
    with pytest.raises(ConfigError, match=r"no row to export \(0 failed, 2 unselected, 0 other splits, 8 too few\)"):
        export(run, tmp_path / "none", "csv", min_pictures=5)


def test_too_many_pictures_for_recordio_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(recordio, "MAX_KEY", 14)
    run = store_rows(tmp_path / "run", [sample(i) for i in range(10)])
    with pytest.raises(ConfigError, match="10 pictures of 3 identities are more than float32 labels can number"):
        export(run, tmp_path / "out", "recordio")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(recordio, "MAX_KEY", 15)
    export(run, tmp_path / "out", "recordio")
    assert "hands all of them to its decoder" in card_of(tmp_path / "out")
