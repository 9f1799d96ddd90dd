"""The main job, whole: with the bundled models, and with models trained from nothing."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raygen.commands import quickstart
from raygen.commands.quickstart import Quickstart, run_quickstart
from raygen.commands.verify import verify
from raygen.core.assets import BUNDLED, resolve
from raygen.models import checkpoint, checkpoint_folder
from raygen.store.run_store import RunStore

PARTS = {"faces": "faces", "conditions": "conditions", "samples": "samples"}


def metrics_of(folder: Path) -> dict[tuple[str, str], float]:
    rows = pq.read_table(folder / "metrics/metrics.parquet").to_pylist()
    return {(row["metric"].split(":")[0], row["slice"]): row["value"] for row in rows}


def test_the_bundle_is_small_and_holds_no_pickle():
    files = [p for folder in BUNDLED.values() for p in Path(folder).rglob("*") if p.is_file()]
    assert 1e6 < sum(p.stat().st_size for p in files) <= 12e6
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    model = checkpoint.load(resolve("bundled"))
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 10e6


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_quickstart_makes_scores_and_reports(tmp_path, capsys):
    out = tmp_path / "run"
    run_quickstart(Quickstart(out=str(out), pictures=128))
    for part, table in PARTS.items():
        store = RunStore(str(out / part))
        assert store.manifest()["rows"][table] == 128
        assert verify(store).ok
    found = metrics_of(out)
    ratio = found["miou", "all"] / found["miou", "roundtrip"]
    assert ratio >= 0.80, "the bundled model does not follow its masks"
    assert found["miou", "reference"] >= found["miou", "roundtrip"] - 0.02
    page = (out / "report.html").read_text()
    assert "make quickstart" not in page  # these were not its settings
    said = capsys.readouterr().out
    assert all(word in said for word in ("report.html", "raygen verify", "samples"))
    # the same command again does nothing twice, and does not say that it made the images
    record = (out / "samples/attempt-00/run.json").read_bytes()
    run_quickstart(Quickstart(out=str(out), pictures=128))
    assert (out / "samples/attempt-00/run.json").read_bytes() == record
    assert json.loads(record)["new_rows"] == 128


@pytest.mark.nightly
@pytest.mark.skipif("RAYGEN_NIGHTLY" not in os.environ, reason="takes two minutes; RAYGEN_NIGHTLY is not set")
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_quickstart_trains_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "BUDGET", dict.fromkeys(quickstart.BUDGET, 2.0))
    monkeypatch.setattr(quickstart, "TRAINING_IDENTITIES", 40)
    out = tmp_path / "run"
    run_quickstart(Quickstart(out=str(out), pictures=64, workers=1, train=True))
    sample = pq.read_table(next((out / "samples/attempt-00/data/samples").iterdir())).slice(0, 1).to_pylist()[0]
    assert sample["error"] is None
    assert checkpoint_folder.digest(out / "models/model").startswith(sample["checkpoint"])
    assert metrics_of(out)["miou", "all"] > 0
    assert (out / "report.html").is_file()
