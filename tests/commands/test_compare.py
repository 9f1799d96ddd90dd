"""`raygen compare`: methods side by side, scored by one protocol, and refused where they were not."""

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raygen.commands.compare import compare, write_comparison
from raygen.commands.registry import make
from raygen.core.errors import ConfigError
from raygen.evaluation.aggregate import write_metrics
from raygen.report.build import build_report
from raygen.store.filesystem import FileStore
from raygen.store.images import decode_image
from raygen.store.run_store import open_input
from tests.commandline import main
from tests.drawn import drawn, quiet

PROTOCOL = {"network": "inception", "sha256": "a" * 64, "row_ids": "r1", "n_reference": 100}
ROW = {"run_id": "x", "slice": "all", "reference": "faces", "n": 100, "ci_low": None, "ci_high": None}


def evaluation(root, name, *rows, published=()):
    """A folder with METRICS: each row changes `ROW`, and its `protocol` changes `PROTOCOL`."""
    made = [
        {**ROW, "created": datetime(2026, 1, 1, tzinfo=UTC), **row}
        | {"protocol": json.dumps(PROTOCOL | row.get("protocol", {}))}
        for row in rows
    ]
    folder = FileStore(f"{root}/{name}/metrics")
    write_metrics(folder, made)
    folder.update("published.json", json.dumps(list(published)).encode())
    return f"{root}/{name}"


def test_columns_are_methods_and_rows_metrics(tmp_path):
    miou = {"metric": "miou:bisenet", "ci_low": 0.70, "ci_high": 0.75}
    paper = {"source": "Paper, Table 1", "values": {"fid": 16.85}, "measured": "2,000 test pictures | FID"}
    ours = evaluation(
        tmp_path,
        "ours",
        {"metric": "fid@clean", "value": 20.5},
        miou | {"value": 0.73},
        {"metric": "miou:bisenet", "slice": "reference", "value": 0.8},
        {"metric": "iou:bisenet", "slice": "all/hair", "value": 0.9},
        {"metric": "clip_score:x", "value": 0.3},
        published=[paper],
    )
    sean = evaluation(tmp_path, "b", {"metric": "fid@clean", "value": 31.25}, miou | {"value": 0.74})
    table, found = compare([ours, f"SEAN={sean}"])
    assert table.markdown() == (
        "| metric | n | ours | SEAN |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| miou:bisenet, higher is better | 100 | 0.730 (0.700 to 0.750) | **0.740 (0.700 to 0.750)** |\n"
        "| fid@clean, lower is better | 100 | **20.50** | 31.25 |\n"
        "| clip_score:x, higher is better | 100 | 0.300 |  |\n"
        "\nPublished, not measured here:\n\n"
        "| method | metric | value | source | measured as |\n"
        "|---|---|---:|---|---|\n"
        "| ours | fid | 16.85 | Paper, Table 1 | 2,000 test pictures \\| FID |\n"
    )
    page = Path(write_comparison(table, found, f"{tmp_path}/out"))
    document = json.loads((tmp_path / "out/comparison.json").read_text())
    fid = next(line for line in document["metrics"] if line["metric"] == "fid@clean")
    assert fid["values"]["SEAN"] == {"value": 31.25, "low": None, "high": None}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/comparison.csv").read_text())))
    assert (rows[0]["SEAN low"], rows[1]["ours"], rows[2]["SEAN"]) == ("0.7", "20.5", "")
    assert "16.85" not in (tmp_path / "out/comparison.csv").read_text()
    text = page.read_text()
    assert "Methods side by side" in text
    measured, _, published = text.partition("Published, not measured here")
    assert "<b>20.50</b>" in measured
    assert "16.85" not in measured
    assert "16.85" in published


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"protocol": {"sha256": "b" * 64}},
            "fid@clean: a and b are not comparable: sha256 aaaaaaaaaaaa and bbbbbbbbbbbb",
        ),
        ({"reference": "others"}, "reference faces and others"),
        ({"protocol": {"n_reference": 99}}, "n_reference 100 and 99"),
        ({"metric": "fid@tf1"}, r"fd \[all\]: a and b are not comparable: protocol fid@clean and fid@tf1"),
        ({"n": 98}, "n: a has 100 rows and b 98 .`rows_of` of `raygen evaluate`"),
        ({"protocol": {"row_ids": "r2"}}, "rows: a and b are over other rows, though as many"),
        ({"protocol": {"row_ids": None}}, "rows: b does not say over which rows; evaluate it again"),
    ],
)
def test_what_was_not_measured_alike_is_refused_by_name(tmp_path, row, words):
    one = evaluation(tmp_path, "a", {"metric": "fid@clean", "value": 1.0})
    other = evaluation(tmp_path, "b", {"metric": "fid@clean", "value": 2.0, **row})
    with pytest.raises(ConfigError, match=words):
        compare([one, other])


def test_the_command_exits_with_2_and_writes_nothing(tmp_path, capfd):
    one = evaluation(tmp_path, "a", {"metric": "fid@clean", "value": 1.0})
    other = evaluation(tmp_path, "b", {"metric": "fid@clean", "value": 2.0, "n": 3})
    code, text = main(capfd, "compare", one, f"b={other}", "--out", str(tmp_path / "out"))
    assert code == 2
    assert "n: a has 100 rows and b 3" in text
    assert not (tmp_path / "out").exists()
    swept = evaluation(tmp_path, "c", {"metric": "fid@clean", "value": 1.0, "protocol": {"cell": {"name": "x"}}})
    varied = evaluation(tmp_path, "d", {"metric": "fid@clean", "value": 1.0, "protocol": {"variant": "x"}})
    for words, message in (
        ([one, swept], "has METRICS of several cells or variants"),
        ([one, varied], "has METRICS of several cells or variants"),
        ([one], "at least two evaluations"),
        ([one, one], "two methods are 'a'"),
        ([one, str(tmp_path)], "holds no metrics/metrics.parquet"),
    ):
        code, text = main(capfd, "compare", *words)
        assert (code, message in text.replace("\n", " ")) == (2, True), text


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two methods whose results lie in folders; the second lacks one picture."""
    root = drawn(tmp_path_factory.mktemp("world"), 3)
    rows = [row for part in open_input(f"{root}/faces")[0].tables("faces") for row in part.to_pylist()]
    for method, noise in (("SEAN", 10), ("INADE", 60)):
        for number, row in enumerate(rows[: 3 if method == "SEAN" else 2]):
            pixels = decode_image(row["image"]["bytes"]).astype(int)
            pixels = pixels + np.random.default_rng(number).integers(-noise, noise, pixels.shape)
            path = root / method / f"{row['face_id']}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        data = {"kind": "results", "method": method, "root": f"{root}/{method}", "conditions": f"{root}/rows"}
        job = {"kind": "ingest", "data": data | {"pattern": "{source}.png"}, "out": f"{root}/{method}-run/samples"}
        make(job | {"max_error_fraction": 0.5}).run(quiet)
    return root


def score(world, method, **settings):
    networks = {"parser": None, "features": None, "classifier": None, "reconstruction": True}
    job = {"samples": f"{world}/{method}-run/samples", "reference": f"{world}/faces", "score": networks}
    return make({"kind": "evaluate", **job, **settings, "out": f"{world}/{method}-run"}).run(quiet)


def test_results_of_other_methods_are_scored_by_one_protocol(world):
    score(world, "SEAN")
    score(world, "INADE")
    runs = [f"{world}/SEAN-run", f"{world}/INADE-run"]
    with pytest.raises(ConfigError, match="n: SEAN has 3 rows and INADE 2"):
        compare(runs)
    published = [{"source": "SEAN, Table 2", "values": {"ssim": 0.49}, "measured": "2,000 test pictures"}]
    shared = {"rows_of": [f"{world}/INADE-run/samples"]}
    facts = score(world, "SEAN", **shared, published=published).facts
    assert facts["published ssim"] == "0.49 (SEAN, Table 2; not measured here)"
    table, found = compare(runs)
    lines = {line.name: line for line in table.lines}
    assert (table.methods, lines["ssim"].n, lines["ssim"].best) == (("SEAN", "INADE"), 2, "SEAN")
    assert [entry.value for entry in table.published] == [0.49]
    page = Path(write_comparison(table, found, f"{world}/comparison")).read_text()
    assert page.count('alt="SEAN, row ') == 3
    assert page.count('alt="INADE, row ') == 2
    assert page.count(">none</td>") == 1
    page = Path(build_report(f"{world}/SEAN-run")).read_text()
    assert "SEAN, not made by raygen" in page
    assert "Published: 0.490" in page
    rows = FileStore(f"{world}/SEAN-run/metrics").get("metrics.json").decode()
    assert "0.49," not in rows
    assert all(row["protocol"]["method"] == "SEAN" for row in json.loads(rows) if row["slice"] == "all")


def test_one_split_of_the_reference_is_compared_with(tmp_path):
    for number in (0, 1, 2, 60_000, 60_001):
        path = tmp_path / f"ffhq/{number // 1000 * 1000:05d}/{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    make({"kind": "ingest", "data": {"kind": "ffhq", "root": f"{tmp_path}/ffhq"}, "out": f"{tmp_path}/faces"}).run(
        quiet
    )
    planning = {"kind": "from_faces", "conditions": []}
    make({"kind": "plan", "faces": f"{tmp_path}/faces", "planning": planning, "out": f"{tmp_path}/rows"}).run(quiet)
    data = {"kind": "results", "method": "copy", "root": f"{tmp_path}/ffhq", "conditions": f"{tmp_path}/rows"}
    make({"kind": "ingest", "data": data | {"pattern": "{source}.png"}, "out": f"{tmp_path}/samples"}).run(quiet)
    job = {"kind": "evaluate", "samples": f"{tmp_path}/samples", "reference": f"{tmp_path}/faces"}
    job |= {"score": {"parser": None, "classifier": None}}
    with pytest.raises(ConfigError, match=r"has no faces in test; it has train \(3\), val \(2\)"):
        make(job | {"reference_split": "test", "out": f"{tmp_path}/x"}).run(quiet)
    found = {}
    for split in (None, "train", "val"):
        folder = f"{tmp_path}/{split}"
        make(job | {"reference_split": split, "out": folder}).run(quiet)
        (row,) = json.loads(FileStore(f"{folder}/metrics").get("metrics.json"))
        found[split] = (row["n"], row["protocol"]["n_reference"], row["protocol"]["reference"].get("split"))
    assert found == {None: (5, 5, None), "train": (5, 3, "train"), "val": (5, 2, "val")}
    with pytest.raises(ConfigError, match="reference split train and val"):
        compare([f"{tmp_path}/train", f"b={tmp_path}/val"])


def test_rows_of_needs_shared_rows(world, tmp_path):
    make({"kind": "plan", "planning": {"kind": "unconditional", "count": 1}, "out": f"{tmp_path}/rows"}).run(quiet)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "in/0.png")
    data = {"kind": "results", "method": "x", "root": f"{tmp_path}/in", "conditions": f"{tmp_path}/rows"}
    make({"kind": "ingest", "data": data | {"pattern": "{row}.png"}, "out": f"{tmp_path}/x"}).run(quiet)
    with pytest.raises(ConfigError, match="rows_of: no row has a picture in all of"):
        score(world, "SEAN", rows_of=[f"{tmp_path}/x"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fidd": 3}, "'fidd' is no metric; did you mean"),
        ({"miou": 81.78}, "miou is a share: write 0.8178 for 81.78 %"),
        ({"fid": float("nan")}, "is no number"),
        ({}, "at least 1"),
    ],
)
def test_published_values_that_cannot_be_read(values, message):
    entry = {"source": "a", "measured": "b", "values": values}
    with pytest.raises(ConfigError, match=message):
        make({"kind": "evaluate", "reference": "x", "published": [entry], "out": "y"})
