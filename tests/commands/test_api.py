"""The public names of `raygen`: run a job, read tables, score pictures; nothing heavy is imported early."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import raygen
from raygen import ConfigError, evaluate, load_dataset, run, verify
from raygen.store.schemas import texts_by_name

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("api")
    data = {"kind": "procedural", "identities": 6, "pictures": 2, "size": 64, "seed": 5}
    result = run({"kind": "ingest", "data": data, "out": "unused"}, f"out={root}/faces", "shard_rows=64")
    assert result.facts["rows"] == {"faces": 12}
    return root / "faces"


def test_every_public_name_is_there_and_documented() -> None:
    assert sorted(raygen.__all__) == dir(raygen)
    for name in raygen.__all__:
        assert getattr(raygen, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        raygen.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_importing_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, raygen; raygen.load_dataset; raygen.run; print({'torch', 'ray', 'diffusers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_table_in_three_forms(faces: Path) -> None:
    table = load_dataset(faces)
    assert table.num_rows == 12
    assert {"face_id", "image", "mask", "attributes"} <= set(table.column_names)
    frame = load_dataset(faces, columns=["face_id", "split"], format="pandas")
    assert list(frame.columns) == ["face_id", "split"]
    data = load_dataset(faces, "faces", format="datasets")
    assert data[3]["face_id"] == table["face_id"][3].as_py()
    assert data[3]["image"].size == (64, 64), "a picture column decodes to a picture"
    texts = {pair["key"]: pair["value"] for pair in data[3]["texts"]}
    assert texts == texts_by_name(table["texts"][3].as_py()), "as the run has them"


def test_what_is_not_there_is_named(faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of faces"):
        load_dataset(faces, "pictures")
    with pytest.raises(ConfigError, match="raygen ingest` has no table samples"):
        load_dataset(faces, "samples")
    with pytest.raises(ConfigError, match=r"no metrics\.parquet here"):
        load_dataset(faces, "metrics")
    with pytest.raises(ConfigError):
        load_dataset(tmp_path)
    with pytest.raises(ConfigError, match=r"columns: .* has no 'atributes'; did you mean 'attributes'\?"):
        load_dataset(faces, columns=["face_id", "atributes"])
    with pytest.raises(ConfigError, match=r"format: must be one of arrow, pandas, datasets \(got 'polars'\)"):
        load_dataset(faces, format="polars")  # type: ignore[call-overload]


def test_the_home_folder_is_known_everywhere(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(faces.parent))
    assert load_dataset("~/faces", columns=["face_id"]).num_rows == 12
    assert verify("~/faces", decode=False).ok
    assert verify(Path("~/faces"), decode=False).rows == {"faces": 12}
    with pytest.raises(ConfigError, match=r"nothing/attempt-00 holds no run"):
        verify("~/nothing")
    with pytest.raises(ConfigError, match=f"{faces.parent}/nothing.yaml: cannot be read"):
        run("~/nothing.yaml")


def test_a_folder_of_pictures_is_scored(faces: Path, tmp_path: Path) -> None:
    """The pictures of a run, as files: near to that run, and farther when they are damaged."""
    images = load_dataset(faces, format="datasets")
    (tmp_path / "same").mkdir()
    (tmp_path / "noise").mkdir()
    random = np.random.default_rng(0)
    for i, row in enumerate(images):
        row["image"].save(tmp_path / "same" / f"{i:02d}.png")
        noisy = np.asarray(row["image"]) + random.normal(0, 60, (64, 64, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "noise" / f"{i:02d}.png")
    settings = {"score": {"parser": None, "classifier": None}, "batch": 4}
    same = evaluate(tmp_path / "same", faces, **settings)
    noise = evaluate(tmp_path / "noise", tmp_path / "same", out=tmp_path / "scored", **settings)
    assert same["fd:raygen-parser"] == pytest.approx(0, abs=1e-4)
    assert noise["fd:raygen-parser"] > 100 * abs(same["fd:raygen-parser"]) + 0.01
    kept = load_dataset(tmp_path / "scored", "metrics", format="pandas")
    assert kept.loc[kept["metric"] == "fd:raygen-parser", "n"].tolist()[0] == 12


@pytest.fixture(scope="module")
def quickstart(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/quickstart as the quickstart leaves it, of twelve pictures, and the jobs of the repository."""
    root = tmp_path_factory.mktemp("examples")
    (root / "jobs").symlink_to(ROOT / "jobs")
    (root / "runs/quickstart").mkdir(parents=True)
    (root / "runs/quickstart/faces").symlink_to(faces)
    out = root / "runs/quickstart"
    run({"kind": "plan", "faces": str(faces), "planning": {"kind": "from_faces"}, "out": f"{out}/conditions"})
    job = {"kind": "generate", "conditions": f"{out}/conditions", "checkpoint": "bundled", "out": f"{out}/samples"}
    run(job, "sampler.steps=2", "batch=4")
    run({"kind": "evaluate", "samples": f"{out}/samples", "reference": str(faces), "out": str(out)}, "batch=4")
    return root


@pytest.mark.parametrize("page", ["README.md", "docs/reference/api.md"])
def test_the_examples_run(page: str, quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of the page, one after the other, in a folder with a quickstart."""
    monkeypatch.chdir(quickstart)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
    assert Image.open("face.png").size == (64, 64)
