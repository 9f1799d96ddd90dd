"""What needs no network is done without the libraries of networks: errors of a job, help, schemas, stored runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

#: A process that runs command lines one after the other. Each answers with exit code, CPU seconds, heavy modules that
#: are there afterwards, and its output.
CHILD = """
import contextlib, io, json, sys, time

from raygen import cli

HEAVY = ("torch", "torchvision", "diffusers", "transformers", "scipy", "lpips", "ray")
answers = []
for words in json.load(sys.stdin):
    sys.argv, text, began = ["raygen", *words], io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    there = [name for name in HEAVY if name in sys.modules]
    answers.append((code, time.process_time() - began, there, text.getvalue()))
json.dump((answers, time.process_time()), sys.stdout)
"""
#: A job of every command whose inputs are missing; `faces` and `rows` are runs that the test makes.
JOBS: dict[str, dict[str, Any]] = {
    "ingest": {"data": {"kind": "folder", "root": "nothing", "size": 16}},
    "parse": {"faces": "nothing"},
    "plan": {"planning": {"kind": "from_faces"}, "faces": "nothing"},
    "encode": {"faces": "faces", "checkpoint": "nothing"},
    "train": {
        "model": {"kind": "ldm", "modalities": ["mask"]},
        "faces": "faces",
        "first_stage": "nothing",
        "training": {"steps": 1},
    },
    "generate": {"conditions": "rows", "checkpoint": "nothing"},
    "edit": {"conditions": "rows", "faces": "nothing", "checkpoint": "bundled"},
    "evaluate": {"samples": "nothing", "reference": "faces"},
    "select": {
        "generate": {"conditions": "nothing", "checkpoint": "bundled", "score": {}},
        "gates": [{"kind": "score", "metric": "miou", "min": 0.5}],
    },
    "sweep": {"conditions": "rows", "reference": "nothing", "samplers": [{"name": "ddim"}]},
    "ablation": {
        "stages": {"scores": {"kind": "evaluate", "samples": "nothing", "reference": "faces"}},
        "variants": {"a": []},
    },
    "study": {"methods": {"a": "nothing", "b": "faces"}, "question": "Which?"},
    "export": {"samples": "nothing", "format": {"kind": "csv"}},
}
#: A setting of each of these jobs, and a value that it cannot have.
WRONG = {
    "ingest": "data.size=none",
    "parse": "min_confidence=2",
    "plan": "planning.kind=circle",
    "encode": "batch=0",
    "train": "model.attention=[true]",
    "generate": "sampler.steps=0",
    "edit": "imagic.tuning_lr=-1",
    "evaluate": "score.features.kind=nose",
    "select": "gates.0=1",
    "sweep": "samplers=[]",
    "ablation": "variants={}",
    "study": "layout=circle",
    "export": "format.kind=papyrus",
}


def run(folder: Path, *commands: list[str]) -> tuple[list[tuple[int, float, list[str], str]], float]:
    """The answers of command lines in one new process, and the CPU seconds of the process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=True,
    )
    answers, seconds = json.loads(done.stdout)
    return [tuple(answer) for answer in answers], seconds


#: What the errors below need, and what is done to tables only.
TABLES = (
    ["ingest", "ingest.yaml", "data.root=pictures", "out=faces"],
    ["plan", "plan.yaml", "faces=faces", "--dry-run"],
    ["plan", "plan.yaml", "faces=faces", "out=rows"],
    ["verify", "faces"],
    ["export", "export.yaml", "samples=null", "faces=faces"],
    ["report", "."],
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, float, list[str], str]]]:
    """A folder with pictures, a job of every command and the results of `TABLES`; and the answers of these."""
    root = tmp_path_factory.mktemp("light")
    (root / "pictures").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{i}.png")
    for kind, settings in JOBS.items():
        (root / f"{kind}.yaml").write_text(json.dumps({"kind": kind, **settings, "out": f"out/{kind}"}))
    return root, run(root, *TABLES)[0]


def test_runs_of_tables_are_made_checked_shown_and_exported_without_networks(made) -> None:
    for words, (code, _, heavy, text) in zip(TABLES, made[1], strict=True):
        assert (code, heavy) == (0, []), f"{words}: {text}"


def test_errors_of_a_job_are_told_before_a_library_of_networks_is_imported(made) -> None:
    commands = [["--help"], ["import", "--help"], ["import", "auto", "nothing.ckpt", "out/import"]]
    for kind in JOBS:
        commands += [["schema", kind], ["init", kind], [kind, "--help"], [kind, f"{kind}.yaml", "colour=red"]]
        commands += [[kind, f"{kind}.yaml", WRONG[kind]], [kind, f"{kind}.yaml"]]
    answers, seconds = run(made[0], *commands)
    for words, (code, _, heavy, text) in zip(commands, answers, strict=True):
        assert heavy == [], f"{words}: imports {heavy}"
        if words[0] in ("schema", "init") or "--help" in words:
            assert code == 0, f"{words}: {text}"
            continue
        assert code == 2, f"{words}: {text}"
        if words[2:] == ["colour=red"]:
            assert "colour: unknown key" in text, words
        elif not words[2:]:
            assert "nothing" in text, f"{words}: {text}"
    assert seconds < 6, "CPU seconds of the whole process; torch and diffusers alone take more"


def test_a_quickstart_plans_and_compares_without_networks() -> None:
    """Its actors import them; importing them in the driver as well would take it seconds."""
    code = """
import sys
import raygen.commands.quickstart, raygen.evaluation.aggregate, raygen.evaluation.slices
from raygen.commands.generate import GenerateJob
from raygen.evaluation.config import ScoreConfig
from raygen.evaluation.protocols import protocols_of
protocols, features = protocols_of(ScoreConfig())
print(sorted(protocols), features.metric, [name for name in ("torch", "diffusers") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "['raygen-attributes', 'raygen-parser'] fd:raygen-parser []"
