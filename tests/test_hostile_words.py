"""Hostile words in jobs, on the command line and in checkpoints: exit code 2 and one sentence, nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import raygen
from raygen.core.errors import InputError, RaygenError
from raygen.models import checkpoint_folder
from raygen.models.checkpoint_files import read_diffusers
from tests.commandline import main

NO_PLACES = [
    "a\0b",
    "\x1b[31m",
    "\udcff",
    "",
    "  ",
    "::",
    "::::",
    "simplecache::",
    "zip://",
    "zip://::",
    "zip://x::nothing",
    "zip://x::text",
    "tar://x::text",
    "reference://",
    "reference://x",
    "memory://x",
    "data:,x",
    "s3://",
    "s3:///",
    "s3:///key",
    "http://",
    "http:///x",
    "http://[bad",
    "file://",
    "ftp://",
    "nothing://x",
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a job, a text that is no archive, and an empty run."""
    monkeypatch.chdir(tmp_path)
    data = {"kind": "procedural", "identities": 2, "pictures": 1, "size": 64}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"kind": "ingest", "data": data, "out": "out"}))
    (tmp_path / "plan.yaml").write_text("kind: plan\nplanning: {kind: from_faces}\nfaces: x\nout: out\n")
    (tmp_path / "text").write_text("no archive")
    (tmp_path / "run").mkdir()
    return tmp_path


COMMANDS = {
    "verify": ["verify", "{}"],
    "report": ["report", "{}"],
    "report --out": ["report", "run", "--out={}"],
    "report --faces": ["report", "run", "--faces={}"],
    "import": ["import", "auto", "{}", "{}"],
    "import --inspect": ["import", "--inspect", "{}"],
    "job": ["ingest", "{}"],
    "out": ["ingest", "job.yaml", "out={}"],
    "faces": ["plan", "plan.yaml", "faces={}"],
    "study-results": ["study-results", "{}", "run"],
    "answers": ["study-results", "run/key.json", "{}"],
    "init": ["init", "{}"],
    "schema": ["schema", "{}"],
    "quickstart": ["quickstart", "--out={}"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_cannot_be_is_a_sentence_and_2(place, capfd, name):
    before = sorted(path.name for path in place.iterdir())
    for word in NO_PLACES:
        value = json.dumps(word) if name in ("out", "faces") else word  # as YAML, with escapes
        code, said = main(capfd, *(part.format(value) for part in COMMANDS[name]))
        assert code == 2, (word, code, said)
        assert "Traceback" not in said
        assert said.strip()
        assert not {"\0", "\x1b", "\udcff"} & set(said)
    assert sorted(path.name for path in place.iterdir()) == before


def test_doctor_calls_such_a_place_bad(place, capfd):
    for word in NO_PLACES:
        code, said = main(capfd, "doctor", f"--folder={word}")
        assert code in (2, 4), word
        assert "Traceback" not in said


@pytest.mark.parametrize("word", ["x" * 5000, "/dev/null/x"])
def test_a_name_that_the_disk_refuses_is_a_sentence_and_2(place, capfd, word):
    for words in (["verify", word], ["report", word], ["ingest", "job.yaml", f"out={word}"]):
        code, said = main(capfd, *words)
        assert (code, "Traceback" in said) == (2, False), said


def test_a_server_that_is_away_is_a_sentence_and_4(place, capfd, monkeypatch):
    monkeypatch.setattr("raygen.store.storage_errors.RETRIES", 1)
    code, said = main(capfd, "verify", "http://127.0.0.1:1/run")
    assert (code, said.count("\n")) == (4, 1)
    assert said.startswith("InfrastructureError: ")


@pytest.mark.parametrize("word", ["9" * 5000, "0x" + "f" * 5000, "-" + "9" * 400, ".nan", "[" * 500, "{a: 1, a: 2}"])
def test_a_number_without_end_is_a_sentence_and_2(place, capfd, word):
    for key in ("batch", "max_error_fraction", "data.seed", "out", "resources.workers"):
        code, said = main(capfd, "ingest", "job.yaml", f"{key}={word}")
        assert (code, "Traceback" in said) == (2, False), (key, said)
    assert not (place / "out").exists()


# --- checkpoints ---

BUNDLED = Path(raygen.__file__).parent / "assets" / "model"
DOCUMENTS = ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "", "null", "[]", "NaN", '"\\ud800"', "{}"]
VALUES = [None, 5, "x", [], {}, [[[]]], "\ud800", "a\0b", int("9" * 401)]


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(BUNDLED, tmp_path / "model"))


@pytest.mark.parametrize("name", ["raygen.json", "model_index.json"])
def test_hostile_documents_of_a_checkpoint_are_errors_of_ours(folder, name):
    path = folder / name
    whole = json.loads(path.read_text())
    texts = list(DOCUMENTS)
    for key, value in ((key, value) for key in whole for value in VALUES):
        texts.append(json.dumps({**whole, key: value}))
    for key, value in ((key, value) for key in whole.get("model", {}) for value in VALUES):
        texts.append(json.dumps({**whole, "model": {**whole["model"], key: value}}))
    codes = []
    for text in texts:
        path.write_text(text)
        if name == "model_index.json":
            (folder / "raygen.json").unlink(missing_ok=True)
        for call in (checkpoint_folder.modalities, checkpoint_folder.first_stage_config, checkpoint_folder.digest):
            try:
                call(folder)
            except RaygenError as error:
                codes.append(error.exit_code)
    assert len(codes) > len(DOCUMENTS)
    assert set(codes) == {2}


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_block_out_channels": []},
        {"encoder_block_out_channels": [-1, 8]},
        {"decoder_conv_act_fn": ["x"]},
        {"decoder_conv_act_fn": 5},
        {"decoder_act_fns": {}},
        {"latent_channels": "x"},
        {"latent_channels": -1},
        {"_class_name": None},
    ],
)
def test_a_part_with_hostile_settings_is_an_error_of_ours(folder, changes):
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=r"^checkpoint: "):
        read_diffusers(folder / "vae")
