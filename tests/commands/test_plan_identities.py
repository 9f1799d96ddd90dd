"""`raygen plan` for identities: the command, its files, its sentences, and a model that takes the rows."""

import re
from pathlib import Path

import pytest

from raygen.commands.registry import make
from raygen.core.config import parse
from raygen.core.errors import ConfigError, InputError
from raygen.models import checkpoint
from raygen.planning import Identities
from raygen.store.run_store import open_input
from tests.models.test_scadm import make as tiny_model

Rows = list[dict[str, object]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("identities")
    do("ingest", root / "faces", {"data": {"kind": "procedural", "identities": 16, "pictures": 2, "size": 32}})
    return root


def do(kind: str, out: Path, what: dict[str, object]) -> dict[str, object]:
    return dict(make({"kind": kind, **what, "out": str(out)}).run(lambda _: None).facts)


def conditions(folder: Path) -> Rows:
    store, _ = open_input(str(folder))
    return [row for table in store.tables("conditions") for row in table.to_pylist()]


def test_the_command_makes_the_same_rows_in_any_shards(world: Path, tmp_path: Path) -> None:
    what = {"faces": str(world / "faces"), "planning": {"kind": "identities", "identities": 6, "pictures": 5}}
    facts = do("plan", tmp_path / "one", what)
    assert facts["rows"] == {"conditions": 30}
    assert facts["note"] == "32 faces lend"
    again = do("plan", tmp_path / "many", {**what, "shard_rows": 10})
    assert str(again["shards"]).startswith("3 ")
    rows = conditions(tmp_path / "one")
    assert rows == conditions(tmp_path / "many")
    masks = {str(row["mask"]) for row in rows}
    assert len(masks) > 3
    assert "None" not in masks


@pytest.mark.parametrize(
    "fields",
    [
        {"masks": "own", "keep": {"attributes": []}, "vary": {"styles": [], "attributes": []}},
        {"masks": "own", "vary": {"styles": ["hair"], "attributes": []}},
        {"identity_source": "attributes", "masks": "none"},
    ],
)
def test_the_command_without_a_bank(world: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    planning = {"kind": "identities", "identities": 3, "pictures": 2, **fields}
    do("plan", tmp_path / "c", {"faces": str(world / "faces"), "planning": planning})
    rows = conditions(tmp_path / "c")
    assert len(rows) == 6
    assert all((row["mask"] is None) == (planning["masks"] == "none") for row in rows)


def test_a_dry_run_writes_nothing_and_says_the_cells(world: Path, tmp_path: Path) -> None:
    planning = {"kind": "identities", "identities": 5, "pictures": 2, "balance": ["Male"]}
    what = {"faces": str(world / "faces"), "planning": planning}
    estimate = make({"kind": "plan", **what, "out": str(tmp_path / "o")}).estimate()
    assert estimate.rows == 5
    assert estimate.notes[0] == "2 cells of Male with 2 identities each, and one more in Male"
    assert not (tmp_path / "o").exists()


def test_people_have_names(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    planning = {"kind": "identities", "identities": 2, "pictures": 2, "names": str(file)}
    what = {"faces": str(world / "faces"), "planning": planning}
    file.write_text("Anna\n\nBob\nEve\n")
    do("plan", tmp_path / "a", what)
    made = [row["sample_id"] for row in conditions(tmp_path / "a")]
    assert made == ["Anna-0000", "Anna-0001", "Bob-0000", "Bob-0001"]
    for text, sentence in (
        ("Anna\n", "names: .* has 1 names for 2 people"),
        ("Anna\naNNA\n", "'Anna' and 'aNNA'"),
        ("../x\nb\n", "'../x-0000' is not"),
        ("aux\nb\n", "'aux' is a device"),
    ):
        file.write_text(text)
        with pytest.raises((ConfigError, InputError), match=sentence):
            do("plan", tmp_path / "b", what)
    with pytest.raises(ConfigError, match="nowhere"):
        do("plan", tmp_path / "b", {**what, "planning": {**planning, "names": str(tmp_path / "nowhere")}})


def test_a_model_of_styles_takes_every_row(world: Path, tmp_path: Path) -> None:
    """The rows as they are become pictures: references are found by content, named parts are there."""
    planning = {"kind": "identities", "identities": 3, "pictures": 3}
    do("plan", tmp_path / "c", {"faces": str(world / "faces"), "planning": planning})
    checkpoint.save(tiny_model(), tmp_path / "model")
    facts = do(
        "generate",
        tmp_path / "s",
        {
            "conditions": str(tmp_path / "c"),
            "checkpoint": str(tmp_path / "model"),
            "references": str(world / "faces"),
            "ignore": ["attributes"],
            "sampler": {"name": "ddim", "steps": 2},
            "batch": 4,
        },
    )
    assert facts["quarantined"] == "none"
    store, _ = open_input(str(tmp_path / "s"))
    rows = [row for table in store.tables("samples") for row in table.to_pylist()]
    assert [row["identity_id"] for row in rows] == [f"id-{n:06d}" for n in range(3) for _ in range(3)]
    assert len({row["image_sha256"] for row in rows}) == 9


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"balance": ["Male", "male"]}, "planning: Male is there twice"),
        ({"identities": 0}, "planning.identities: Input should"),
        ({"keep": {"attributes": ["Mail"]}}, "planning.keep.attributes.0:"),
    ],
)
def test_a_problem_of_the_plan_is_not_one_of_its_number_of_identities(fields: dict[str, object], path: str) -> None:
    """pydantic 2's paths name the chosen kind, which is also the name of a setting."""
    planning = {"kind": "identities", "identities": 2, "pictures": 2, **fields}
    with pytest.raises(ConfigError, match=rf"^job: {re.escape(path)}"):
        make({"kind": "plan", "faces": "x", "out": "y", "planning": planning})
    if path.startswith("planning.identities"):
        with pytest.raises(ConfigError, match=r"^job: identities: Input should"):
            parse(Identities, planning)
