"""What `raygen doctor --upload` says of the folder that travels with a submitted job."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from raygen.commands import doctor

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with code, ignored weights, and what is never uploaded."""
    for name, size in {
        "job.py": 1_000,
        "big.bin": 3_000_000,
        "weights/model.safetensors": 5_000,
        "weights/notes.txt": 10,
        "runs/a/model.ckpt": 9_000_000,
        "node_modules/x.js": 9_000_000,
        ".venv/lib.so": 9_000_000,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / ".gitignore").write_text("/weights/\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@needs_git
def test_ignored_weights_are_named_and_only_what_travels_is_measured(folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    size, weights = doctor.working_folder()
    assert (size.status, weights.status) == ("ok", "note")
    assert size.detail.startswith("3.0 MB in 3 files")  # job.py, big.bin, .gitignore
    assert weights.detail.startswith("weights/model.safetensors: named by .gitignore, so they are not uploaded")
    assert "notes.txt" not in weights.detail


def test_a_folder_above_the_limit_of_the_server_is_refused_with_its_largest_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray 2.60: the client names 512 MiB, the server of `ray job submit` refuses more than 100."""
    assert doctor.WORKING_DIR_LIMIT == 100 * 2**20
    monkeypatch.setattr(doctor, "WORKING_DIR_LIMIT", 2**20)
    (size,) = doctor.working_folder()
    assert size.status == "bad"
    assert re.search(r"Ray's server refuses more than 1 MiB; the largest are \./big\.bin \(3 MB\), ", size.detail)
    assert "node_modules" not in size.detail


def test_submit_leaves_out_what_is_not_measured() -> None:
    """Else the upload is larger than what was said."""
    script = (Path(__file__).parents[2] / "jobs/submit.sh").read_text()
    assert '"excludes": [*sorted(SKIPPED), ' in script
    assert "python -m raygen doctor --upload" in script
