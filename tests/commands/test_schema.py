"""The schema and the template of every command, and the table of commands."""

import json
from pathlib import Path

import pytest
import yaml

from raygen.commands.registry import COMMANDS, Command, job_type, load, make
from raygen.commands.schema import job_schema, job_template, schema_text
from raygen.core.errors import ConfigError

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_schema_in_the_repository_is_that_of_the_code(name: str) -> None:
    stored = (JOBS / "schemas" / f"{name}.json").read_text(encoding="utf-8")
    assert stored == schema_text(name), f"raygen schema {name} > jobs/schemas/{name}.json"
    assert job_schema(name)["required"][0] == "kind"


JOB_FILES = sorted(set(JOBS.rglob("*.yaml")) - set(JOBS.glob("kubernetes/*")))  # those are for Kubernetes itself


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda p: str(p.relative_to(JOBS)))
def test_every_job_names_its_schema(path: Path) -> None:
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    schema = (path.parent / first.removeprefix(prefix)).resolve()
    assert schema == (JOBS / "schemas" / f"{yaml.safe_load(rest)['kind']}.json").resolve()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_template_has_every_setting_and_says_what_is_left_to_fill_in(name: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(job_template(name), encoding="utf-8")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert document["kind"] == name
    text = path.read_text(encoding="utf-8")
    assert all(f"{key}:" in text for key in job_type(name).model_fields)
    with pytest.raises(ConfigError, match=r"out: still \?\?\?; fill in a value"):
        load(str(path))


def test_a_template_with_its_blanks_filled_in_is_the_default_job(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(job_template("generate"), encoding="utf-8")
    filled = load(str(path), ["conditions=rows", "checkpoint=bundled", "out=pictures"])
    assert filled == make({"kind": "generate", "conditions": "rows", "checkpoint": "bundled", "out": "pictures"})


def test_a_template_shows_the_chosen_kind() -> None:
    first = yaml.safe_load(job_template("export"))["format"]
    chosen = yaml.safe_load(job_template("export", {"format": "webdataset"}))["format"]
    assert (first["kind"], chosen["kind"]) == ("folder", "webdataset")
    assert yaml.safe_load(job_template("generate", {"mixing": "constant"}))["mixing"] == {
        "kind": "constant",
        "weights": {},
    }
    parser = yaml.safe_load(job_template("parse", {"parser": "bisenet"}))["parser"]
    assert parser["kind"] == "bisenet", "one class has the kinds parsenet and bisenet"
    with pytest.raises(ConfigError, match=r"format: must be one of folder, .*did you mean 'webdataset'"):
        job_template("export", {"format": "webdatset"})
    with pytest.raises(
        ConfigError, match=r"fromat: not a setting with kinds of `raygen export`; did you mean 'format'"
    ):
        job_template("export", {"fromat": "csv"})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_is_described_and_lines_are_short(name: str) -> None:
    schema = job_schema(name)
    for config in (schema, *schema.get("$defs", {}).values()):
        for key, field in config.get("properties", {}).items():
            assert key == "kind" or field.get("description"), f"{config.get('title')}.{key}"
    comments = [line for line in job_template(name).splitlines() if line.lstrip().startswith("# ")]
    assert max(map(len, comments)) <= 120


def test_a_kind_that_is_not_known_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"must be one of ingest, .*did you mean 'generate'"):
        make({"kind": "generat", "out": "x"})


def test_a_command_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in `raygen.commands` and an entry in the table: read, run, described, allowed in an ablation."""
    from raygen import commands

    (tmp_path / "count.py").write_text(
        "from typing import Literal\n"
        "from raygen.commands.base import Estimate, Job, Result\n"
        "class CountJob(Job):\n"
        "    kind: Literal['count'] = 'count'\n"
        "    to: int = 3\n"
        "    def run(self, report):\n"
        "        return Result(self.out, {'counted': list(range(self.to))})\n"
        "    def estimate(self):\n"
        "        return Estimate(self.to, 0, 0, 0, 0.0)\n"
        "JOB = CountJob\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    monkeypatch.setitem(COMMANDS, "count", Command("nothing", "numbers", "count."))  # type: ignore[arg-type]
    assert make({"kind": "count", "to": 4, "out": "x"}).run(lambda _: None).facts == {"counted": [0, 1, 2, 3]}
    assert json.loads(schema_text("count"))["properties"]["to"]["default"] == 3
    assert "to: 3" in job_template("count")
    ablation = {
        "kind": "ablation",
        "stages": {"numbers": {"kind": "count"}},
        "variants": {"few": ["numbers.to=1"], "many": ["numbers.to=9"]},
        "out": "x",
    }
    assert make(ablation).kind == "ablation"  # type: ignore[attr-defined]
