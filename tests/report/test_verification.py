"""The ROC of an evaluation: its table, and how a report draws it."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from raygen.evaluation.aggregate import MetricRows, write_metrics
from raygen.evaluation.config import VerificationConfig
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.verification import ROC_HEAD, histogram, roc_lines, verification_metrics
from raygen.report.build import build_report
from raygen.report.plots import COLOURS, RocCurve, roc_plot
from raygen.store.filesystem import FileStore


def test_far_is_logarithmic_and_ends_where_it_was_told_to() -> None:
    far, tar = [1, 0.1, 0.01, 0.001, 0.0001, 0], [1, 0.9, 0.8, 0.5, 0.2, 0]
    curve = RocCurve("these <images>", far, tar, [("EER 0.1", 0.1, 0.9)])
    root = ET.fromstring(roc_plot([curve], 0.002, name="roc"))
    lines = [path for path in root.iter("path") if path.get("stroke") == COLOURS[0] and path.get("clip-path")]
    numbers = [float(x) for x in re.findall(r"[\d.]+", lines[0].get("d"))]
    across, up = numbers[::2], numbers[1::2]
    ticks = {text.text: float(text.get("x")) for text in root.iter("text") if text.get("text-anchor") == "middle"}
    assert {"0.001", "0.01", "0.1", "1"} <= set(ticks)
    assert "0.0001" not in ticks
    assert across == pytest.approx([ticks["1"], ticks["0.1"], ticks["0.01"], ticks["0.001"]], abs=0.1)
    assert ticks["1"] - ticks["0.1"] == pytest.approx(ticks["0.1"] - ticks["0.01"], abs=0.1)
    assert up == sorted(up), "TAR falls with FAR"
    (mark,) = [group for group in root.iter("g") if group.find("title") is not None]
    assert mark.findtext("title") == "these <images>: EER 0.1"
    use = mark.find(".//use")
    assert (float(use.get("x")), float(use.get("y"))) == pytest.approx((across[1], up[1]), abs=0.1)
    assert {"EER 0.1", "chance", "these <images>"} <= {text.text for text in root.iter("text")}
    assert roc_plot([], 0.1, name="roc") == ""


def test_a_report_draws_what_an_evaluation_wrote(tmp_path: Path) -> None:
    rows, shown, lines = MetricRows("r" * 16, None), {}, [ROC_HEAD]
    for where, spread in (("all", 0.6), ("reference", 0.4)):
        random = np.random.default_rng(4)
        who = np.repeat(np.arange(20), 5)
        vectors = random.normal(size=(20, 8))[who] + spread * random.normal(size=(100, 8))
        ids = tuple(f"p{person:02d}-{i:03d}" for i, person in enumerate(who))
        scored = ScoreMatrix(ids, vectors.astype(np.float32))
        people = {one: one[:3] for one in ids}
        config = VerificationConfig(far=(0.01,))
        found = verification_metrics(config, where, "identity:x", scored, people, {"network": "x"}, rows)
        shown[where] = histogram(found)
        lines += roc_lines(where, found)
    far, tar = (np.array([float(line.split(",")[i]) for line in lines[1:2002]]) for i in (2, 3))
    assert (far[0], tar[0], far[-1], tar[-1]) == (1, 1, 0, 0)
    assert (np.diff(far) <= 0).all()
    assert (np.diff(tar) <= 0).all()
    storage = FileStore(f"{tmp_path}/metrics")
    write_metrics(storage, rows.table().to_pylist())
    storage.put("verification.json", json.dumps(shown).encode())
    without = Path(build_report(str(tmp_path))).read_text()
    assert 'class="roc"' not in without
    storage.put("roc.csv", "\n".join([*lines, ""]).encode())
    page = Path(build_report(str(tmp_path))).read_text()
    figure = page.split('<figure class="roc">')[1].split("</figure>")[0]
    eer = next(row["value"] for row in rows.rows if row["metric"] == "eer:x" and row["slice"] == "all")
    assert f">EER {eer:.3g}</text>" in figure
    assert ">TAR at FAR 0.01 " in figure
    assert figure.count("<title>") == 4
    assert "style=" not in figure
