"""The command line as a user meets it: help, dry runs, exit codes, sentences instead of tracebacks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from raygen import __version__
from raygen.cli import app
from raygen.commands.registry import COMMANDS

ROOT = Path(__file__).parent.parent


def raygen(*words, cwd, **environment):
    """The command in a process of its own; colours and width as in a pipe."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "raygen", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def job(tmp_path):
    """A small job file; keys with dots are set in it."""

    def write(name="job.yaml", **changes):
        document = {
            "kind": "ingest",
            "data": {"kind": "procedural", "identities": 3, "pictures": 2, "size": 32},
            "batch": 2,
            "shard_rows": 4,
            "out": "faces",
        }
        (tmp_path / name).write_text(yaml.safe_dump({**document, **changes}))
        return name

    return write


def test_the_version_is_told(tmp_path):
    assert raygen("--version", cwd=tmp_path).stdout == f"raygen {__version__}\n"
    assert raygen("generate", "-h", cwd=tmp_path).stdout.startswith(
        raygen("generate", "--help", cwd=tmp_path).stdout[:80]
    )
    assert "--install-completion" in raygen("--help", cwd=tmp_path).stdout
    assert (ROOT / "raygen/py.typed").is_file()


def test_help_lists_the_commands_in_groups_and_the_exit_codes(tmp_path):
    shown = raygen("--help", cwd=tmp_path)
    assert shown.returncode == 0
    jobs, tools = shown.stdout.partition("─ Tools ─")[::2]
    assert "─ Jobs" in jobs
    assert all(f"│ {command} " in jobs for command in COMMANDS)
    tool_names = ("init", "schema", "quickstart", "verify", "report", "compare", "import", "doctor")
    assert all(f"│ {command} " in tools for command in tool_names)
    text = " ".join(shown.stdout.split())
    codes = "0 success, 2 error in the configuration or the input, 3 too many rows failed, 4 infrastructure failed"
    assert codes in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_job_command_has_tables_template_and_an_example(command):
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    assert f"Reads {COMMANDS[command].reads}, writes {COMMANDS[command].writes}." in text
    assert f"`raygen init {command}` prints a job file" in text
    assert f"Example: raygen {command} job.yaml" in text


def test_every_option_of_a_tool_is_described():
    for command in typer.main.get_command(app).commands.values():
        assert all(getattr(parameter, "help", None) for parameter in command.params), command.name


def test_init_prints_a_job_file_that_runs(tmp_path):
    shown = raygen("init", "ingest", "data=procedural", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout.replace("identities: ???", "identities: 2").replace("out: ???", "out: faces")
    (tmp_path / "job.yaml").write_text(text)
    assert raygen("ingest", "job.yaml", "data.size=32", "--dry-run", cwd=tmp_path).returncode == 0


def test_a_job_runs_is_repeated_and_is_verified(tmp_path, job):
    first = raygen("ingest", job(), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "2 (0 were already committed)" in first.stdout
    again = raygen("ingest", job(), cwd=tmp_path)
    assert "2 (2 were already committed)" in again.stdout
    digest = json.loads((tmp_path / "faces/attempt-00/MANIFEST.json").read_text())["set_digest"]
    assert digest in first.stdout.split()  # whole, in one line, also in a narrow pipe
    checked = raygen("verify", "faces", cwd=tmp_path)
    assert checked.returncode == 0
    assert "no problems" in checked.stdout


def test_a_dry_run_prints_the_resolved_job_and_writes_nothing(tmp_path, job):
    shown = raygen("ingest", job(), "data.identities=5", "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    resolved = yaml.safe_load(shown.stdout.split("dry run:")[0])
    assert resolved["data"]["identities"] == 5
    assert resolved["max_error_fraction"] == 0.01  # a default nobody wrote
    assert all(word in shown.stdout for word in ("rows", "shards", "bytes", "time"))
    assert sorted(os.listdir(tmp_path)) == ["job.yaml"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ingest", "absent.yaml"], 2, "absent.yaml"),
        (["ingest", "job.yaml", "data.identites=3"], 2, "identities"),
        (["ingest", "job.yaml", "data.size=1000"], 2, "size"),
        (["ingest", "job.yaml", "nonsense"], 2, "a.b=value"),
        (["generate", "job.yaml"], 2, "raygen ingest"),
        (["verify", "nothing"], 2, "plan.json is missing"),
        (["report", "nothing"], 2, "no such folder"),
        (["unknown"], 2, "unknown"),
        (["generat"], 2, "Did you mean 'generate'?"),
        (["init", "ingst"], 2, "did you mean 'ingest'?"),
        (["schema", "ingst"], 2, "did you mean 'ingest'?"),
        (["init", "ingest", "data=foldr"], 2, "did you mean 'folder'?"),
        (["init", "ingest", "folder"], 2, "KEY=KIND"),
        (["ingest", "job.yaml", "out=/proc/nowhere"], 2, "/proc/nowhere: no such bucket or folder"),
    ],
)
def test_mistakes_get_a_sentence_and_their_exit_code(tmp_path, job, words, code, said):
    job()
    ended = raygen(*words, cwd=tmp_path)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout


def test_an_interrupt_says_what_stays(tmp_path, job):
    words = [sys.executable, "-m", "raygen", "ingest", job(), "data.identities=100000", "shard_rows=64"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    running = subprocess.Popen(
        words,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        # Shells start what runs in their background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    commits = tmp_path / "faces/attempt-00/commits"
    deadline = time.time() + 120
    while not (commits.is_dir() and any(commits.iterdir())) and time.time() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    try:
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "run the same command again" in said
    assert "Traceback" not in said


def test_an_interrupt_of_the_start_is_one_sentence(tmp_path):
    code = (
        "import signal, sys, os\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'raygen.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from raygen.__main__ import main\n"
        "main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "KeyboardInterrupt: nothing was begun\n")


def test_too_many_bad_rows_end_with_3_and_the_good_ones_are_kept(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    document = {
        "kind": "ingest",
        "data": {"kind": "folder", "root": "pictures", "size": 32},
        "out": "faces",
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
    ended = raygen("ingest", "job.yaml", cwd=tmp_path)
    assert ended.returncode == 3
    assert "4 of 4 rows failed" in ended.stderr
    record = json.loads((tmp_path / "faces/attempt-00/run.json").read_text())
    assert (record["exit_code"], record["bad_rows"]) == (3, 4)


def test_damage_is_found_with_5(tmp_path, job):
    assert raygen("ingest", job(), cwd=tmp_path).returncode == 0
    file = next((tmp_path / "faces/attempt-00/data/faces").iterdir())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    ended = raygen("verify", "faces", cwd=tmp_path)
    assert ended.returncode == 5
    assert file.name in ended.stdout


def test_another_job_in_the_same_folder_is_refused_by_the_key_that_differs(tmp_path, job):
    assert raygen("ingest", job(), cwd=tmp_path).returncode == 0
    ended = raygen("ingest", job(), "data.seed=9", cwd=tmp_path)
    assert ended.returncode == 2
    assert "data.seed" in ended.stderr


def test_a_missing_bucket_is_a_sentence(tmp_path, job):
    ended = raygen(
        "ingest",
        job(),
        "out=s3://no-such-bucket-here/faces",
        cwd=tmp_path,
        AWS_ACCESS_KEY_ID="x",
        AWS_SECRET_ACCESS_KEY="hush",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_MAX_ATTEMPTS="1",
    )
    assert ended.returncode == 4
    assert "no-such-bucket-here" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "hush" not in ended.stderr + ended.stdout


def test_doctor_checks_and_keeps_secrets(tmp_path):
    shown = raygen("doctor", cwd=tmp_path, AWS_SECRET_ACCESS_KEY="hush", RAY_AUTH_TOKEN="hush")
    assert shown.returncode in (0, 4)
    for name in ("versions", "accelerator", "torchvision", "ray token", "storage", "working folder", "disk"):
        assert f" {name}:" in shown.stdout, name
    assert "hush" not in shown.stdout + shown.stderr


def test_doctor_finds_an_open_dashboard_and_files_that_run_code(tmp_path):
    shown = raygen(
        "doctor",
        cwd=tmp_path,
        RAY_DASHBOARD_HOST="0.0.0.0",
        RAY_AUTH_MODE="disabled",
        RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA="1",
    )
    assert shown.returncode == 4
    assert "anyone who can reach it can run code" in shown.stdout
    assert "lets Parquet files run code" in shown.stdout
