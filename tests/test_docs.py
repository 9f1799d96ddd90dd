"""The documentation: links resolve, commands parse, settings exist with their defaults, and snippets compile."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import typer.main
import yaml

from docs import generate
from raygen.cli import app
from raygen.commands.registry import COMMANDS, job_type, load, make
from raygen.core.config import config_classes, override
from raygen.core.errors import ConfigError

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
CLI = typer.main.get_command(app).commands
#: Settings of a generate job whose scores every gate can read.
SCORED = {"conditions": "rows", "checkpoint": "bundled", "score": {"identity": {}}}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
#: The command whose settings the tables of a page describe.
SETTINGS = {
    "concepts/runs-and-shards.md": "generate",
    "guides/ablation.md": "ablation",
    "guides/cluster.md": "generate",
    "guides/collaborative.md": "generate",
    "guides/edit.md": "edit",
    "guides/evaluate.md": "evaluate",
    "guides/export.md": "export",
    "guides/generate.md": "generate",
    "guides/identities.md": "plan",
    "guides/ingest.md": "ingest",
    "guides/parse.md": "parse",
    "guides/select.md": "select",
    "guides/styles.md": "generate",
    "guides/sweep.md": "sweep",
    "guides/train.md": "train",
    "guides/verify-identities.md": "evaluate",
}
OPTIONS = {"quickstart.md": "quickstart", "guides/import-checkpoints.md": "import"}


def name_of(page):
    return str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT))


def page_of(name):
    return (ROOT if name in ("README.md", "CONTRIBUTING.md") else DOCS) / name


def blocks(page, language):
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def slugs(page):
    """Anchors of the headings of a page, as MkDocs and GitHub make them."""
    text = FENCE.sub("", generate.fill(page.read_text()))
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def commands(page):
    """Words of every `raygen …` line in the code blocks and in the inline code of a page."""
    text = page.read_text()
    code = "\n".join(body for kind, body in FENCE.findall(text) if kind in ("", "text", "bash", "sh"))
    lines = re.sub(r"\\\n\s*", " ", code).split("\n")
    lines += re.findall(r"`(raygen [^`\n]+)`", FENCE.sub("", text))
    for line in lines:
        for part in re.split(r" && |; ", line):
            if part.strip().startswith(("raygen ", "jobs/submit.sh ")):
                words = shlex.split(part.strip(), comments=True)
                yield words[: words.index(">")] if ">" in words else words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_and_anchors_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in slugs(file), target


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r": ([\w/-]+\.md)$", text, re.M)
    assert sorted(listed) == sorted(name_of(page) for page in PAGES if page.is_relative_to(DOCS))


@pytest.mark.parametrize("name", list(map(name_of, PAGES)))
def test_commands_exist_and_their_jobs_take_the_overrides(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page_of(name)):
        name = words[1]
        assert name in CLI, " ".join(words)
        if len(words) == 2:
            continue  # the name of a command in a sentence
        CLI[name].make_context(name, list(words[2:]))
        if words[2].startswith("jobs/"):
            assert (ROOT / words[2]).is_file(), words[2]
            load(words[2], [word for word in words[3:] if not word.startswith("-")], name)


@pytest.mark.parametrize("name", list(map(name_of, PAGES)))
def test_python_compiles_and_what_it_imports_exists(name):
    for text in blocks(page_of(name), "python"):
        for node in ast.walk(ast.parse(text, name)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("raygen"):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], node.module
        if name.startswith("extend/"):  # definitions
            exec(compile(text, name, "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("name", list(map(name_of, PAGES)))
def test_yaml_is_a_job_or_part_of_one(name):
    for text in blocks(page_of(name), "yaml"):
        document = override(yaml.safe_load(text), [])  # as `load` does, so that a key `null` is a word
        if "gates" in document and "kind" not in document:
            document = {"kind": "select", "generate": SCORED, "out": "runs/x", **document}
        make(document)


def field_of(model, path):
    """The field that a dotted key names, through unions and nested models; None where there is none."""
    models, field = [model], None
    for part in path.split("."):
        field = next((m.model_fields[part] for m in models if part in m.model_fields), None)
        if field is None:
            return None
        models = config_classes(field.annotation)
    return field


def rows(page, heading):
    """Cells of the tables of a page whose first column is `heading`."""
    for table in re.findall(r"(?:^\|.*\|\n)+", page.read_text() + "\n", re.M):
        lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
        if lines[0][0].strip("| ") == heading:
            yield from lines[2:]


def says(cell, field):
    """Whether the cell of a default fits the field; only numbers, words in code and `required` are checked."""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if cell == "required":
        return field.is_required()
    if re.fullmatch(r"[\d.]+(e-?\d+)?", cell):
        value = default[0] if isinstance(default, tuple) else default
        return float(cell) == value
    if cell in ("true", "false"):
        return default is (cell == "true")
    if re.fullmatch(r"`\w+`", cell) and cell != "`null`":
        return cell.strip("`") in (default, getattr(default, "kind", None))
    return cell != "none" or default in (None, (), {})


@pytest.mark.parametrize("page", SETTINGS)
def test_settings_exist_and_have_the_defaults_that_a_guide_says(page):
    job = job_type(SETTINGS[page])
    checked = 0
    for cells in rows(DOCS / page, "setting"):
        for key in re.findall(r"`([\w.]+)`", cells[0]):
            field = field_of(job, key)
            assert field is not None, key
            assert says(cells[1], field), (key, cells[1])
            checked += 1
    assert checked


def test_settings_of_gates_exist():
    gates = {
        get_args(gate.model_fields["kind"].annotation)[0]: gate
        for gate in config_classes(job_type("select").model_fields["gates"].annotation)
    }
    name = ""
    for cells in rows(DOCS / "guides" / "select.md", "gate"):
        name = cells[0].strip("| `") or name
        for key in re.findall(r"`(\w+)`", cells[1]):
            assert key in gates[name].model_fields, (name, key)


@pytest.mark.parametrize("page", OPTIONS)
def test_options_exist(page):
    known = {option for parameter in CLI[OPTIONS[page]].params for option in parameter.opts}
    listed = [cells[0].strip("| `") for cells in rows(DOCS / page, "option")]
    assert listed
    assert set(listed) <= known


def test_generated_pages_name_every_command_setting_and_column():
    text = generate.config()
    for name in COMMANDS:
        assert f"\n## {name}\n" in text
        for key in job_type(name).model_fields:
            assert f"| `{key}` |" in text
    assert all(f"## raygen {name}\n" in generate.cli() for name in CLI)
    links = set(re.findall(r"\]\(#(\w+)\)", text))
    assert links <= {title.lower() for title in re.findall(r"^### (\w+)$", text, re.M)}


def test_a_column_without_text_fails(monkeypatch):
    monkeypatch.setattr(generate, "COLUMNS", {**generate.COLUMNS, "files": {"path": "file"}})
    with pytest.raises(ValueError, match="files"):
        generate.tables()


def test_the_site_loads_nothing_from_the_network():
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text
    assert "://" not in text
    tracked = [path for path in DOCS.rglob("*") if path.suffix in (".md", ".css", ".js", ".html", ".svg")]
    for path in tracked:
        assert not re.search(r"<(?:script|link|img|iframe)[^>]*https?://", path.read_text()), path


def test_what_the_checks_look_for_is_seen(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="stepz"):
        load("jobs/generate_quickstart.yaml", ["sampler.stepz=3"], "generate")
    field = field_of(job_type("generate"), "sampler.steps")
    assert says("12", field)
    assert not says("13", field)
    assert not says("required", field)
    assert field_of(job_type("generate"), "sampler.stepz") is None
