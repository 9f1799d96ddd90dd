"""`raygen parse`: faces without masks become faces with masks, with the confidence of the parser."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raygen import load_dataset
from raygen.commands.registry import make
from raygen.core.assets import resolve
from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import CLASS_INDEX
from raygen.core.landmarks import from_mask
from raygen.datasets.procedural.draw import draw
from raygen.exports.licences import network_rows
from raygen.extractors.bundled import BundledParser, load_bundled
from raygen.extractors.config import PackageParserConfig
from raygen.extractors.packages import find_extractor
from raygen.store.images import decode_image, decode_mask
from raygen.store.run_store import RunStore
from tests.drawn import quiet
from tests.extractors.packages import install, install_example

EXAMPLE = {"kind": "package", "name": "example-parser"}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ingest run of six pictures without masks, of two people."""
    root = tmp_path_factory.mktemp("photographs")
    for i in range(6):
        (root / f"pictures/person{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(3, i, 0, 64).pixels).save(root / f"pictures/person{i % 2}/{i}.png")
    data = {"kind": "folder", "root": str(root / "pictures"), "identity": "folder"}
    make({"kind": "ingest", "data": data, "out": str(root / "faces")}).run(quiet)
    return root / "faces"


def parse(faces: Path, out: Path, **settings: object) -> dict[str, object]:
    """The facts of a parse job."""
    return make({"kind": "parse", "faces": str(faces), "batch": 4, **settings, "out": str(out)}).run(quiet).facts


def rows_of(run: Path) -> list[dict]:
    return load_dataset(str(run)).to_pylist()


def test_faces_without_masks_get_masks_that_everything_else_reads(faces: Path, tmp_path: Path) -> None:
    facts = parse(faces, tmp_path / "parsed", landmarks={"kind": "mask"})
    assert facts["masks"] == "6 by a parser"
    before, after = rows_of(faces), rows_of(tmp_path / "parsed")
    changed = {"mask", "mask_confidence", "landmarks"}
    for old, new in zip(before, after, strict=True):
        assert old["mask"] is None
        assert {key: value for key, value in new.items() if key not in changed} == {
            key: value for key, value in old.items() if key not in changed
        }
        mask = decode_mask(new["mask"]["bytes"])
        true = draw(3, int(new["face_id"][-1]), 0, 64).mask
        assert (mask == true).mean() > 0.85
        assert np.allclose(new["landmarks"]["points"], from_mask(mask), atol=1e-6)
    values = {row["mask_confidence"]: row["face_id"] for row in after}
    lowest = f"{min(values):.3f} at least ({values[min(values)]})"
    assert facts["confidence"] == f"{np.mean(list(values)):.3f} on average, {lowest}"
    rows = {"kind": "plan", "faces": f"{tmp_path}/parsed", "planning": {"kind": "from_faces"}}
    make({**rows, "out": f"{tmp_path}/rows"}).run(quiet)
    assert all(row["mask"] is not None for row in load_dataset(f"{tmp_path}/rows").to_pylist())
    form = {"kind": "folder", "size": 48, "align": "arcface"}
    export = {"kind": "export", "faces": f"{tmp_path}/parsed", "format": form, "out": f"{tmp_path}/export"}
    assert make(export).run(quiet).facts["left out"] == "none"


def test_confidence_is_the_mean_of_the_largest_softmax(faces: Path, tmp_path: Path) -> None:
    parse(faces, tmp_path / "parsed")
    network = load_bundled(Path(resolve("bundled", "parser")), BundledParser)
    for row in rows_of(tmp_path / "parsed"):
        pixels = torch.from_numpy(decode_image(row["image"]["bytes"]).copy()).movedim(-1, 0)[None].float() / 127.5 - 1
        with torch.inference_mode():
            odds = network(pixels)[0].double().exp().numpy()
        wanted = (odds.max(axis=0) / odds.sum(axis=0)).mean()
        assert row["mask_confidence"] == pytest.approx(wanted, abs=1e-5)


def test_masks_are_kept_replaced_or_left_out(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_example(tmp_path / "site", monkeypatch)
    parse(faces, tmp_path / "first")
    facts = parse(tmp_path / "first", tmp_path / "kept", parser=EXAMPLE)
    first, kept = rows_of(tmp_path / "first"), rows_of(tmp_path / "kept")
    assert first == kept, "their masks and confidences as well"
    assert facts["masks"] == "6 by a parser"
    facts = parse(tmp_path / "first", tmp_path / "higher", min_confidence=1)
    assert facts["masks"] == "6 by a parser", (
        "a limit that is set later takes no mask away, and none is counted as gone"
    )
    parse(tmp_path / "first", tmp_path / "replaced", parser=EXAMPLE, replace=True)
    replaced = rows_of(tmp_path / "replaced")
    for row in replaced:
        assert set(np.unique(decode_mask(row["mask"]["bytes"]))) <= {CLASS_INDEX["skin"], CLASS_INDEX["hair"]}
    values = sorted(row["mask_confidence"] for row in replaced)
    limit = float(np.mean(values[2:4]))
    facts = parse(faces, tmp_path / "few", parser=EXAMPLE, min_confidence=limit)
    assert facts["masks"] == f"3 by a parser, 3 left out below {limit:g}"
    few = rows_of(tmp_path / "few")
    assert sorted(row["mask_confidence"] for row in few) == values
    assert all((row["mask"] is None) == (row["mask_confidence"] < limit) for row in few)


def test_pictures_that_are_not_square_are_failed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_example(tmp_path / "site", monkeypatch)
    (tmp_path / "pictures").mkdir()
    for name, shape in {"a": (16, 16, 3), "b": (16, 20, 3), "c": (24, 24, 3)}.items():
        Image.fromarray(np.full(shape, 90, np.uint8)).save(tmp_path / f"pictures/{name}.png")
    data = {"kind": "folder", "root": f"{tmp_path}/pictures"}
    make({"kind": "ingest", "data": data, "out": f"{tmp_path}/faces"}).run(quiet)
    parse(tmp_path / "faces", tmp_path / "parsed", parser=EXAMPLE, max_error_fraction=0.5)
    shapes = {row["face_id"]: decode_mask(row["mask"]["bytes"]).shape for row in rows_of(tmp_path / "parsed")}
    assert shapes == {"a": (16, 16), "c": (24, 24)}
    failed = [row for table in RunStore(f"{tmp_path}/parsed").tables("quarantine") for row in table.to_pylist()]
    assert [(row["id"], row["error"]) for row in failed] == [
        ("b", "size: picture is 20x16, not square; ingest it with data.size and data.crop")
    ]


def test_a_parser_that_gives_nan_makes_no_masks(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best class of NaN is some class: such a mask looks like any other."""
    (tmp_path / "nan_parser.py").write_text(
        "from raygen_example import Parser\n"
        "class Broken(Parser):\n"
        "    def load(self, device):\n"
        "        network = super().load(device)\n"
        "        return lambda pixels: network(pixels) * float('nan')\n"
    )
    install_example(tmp_path / "site", monkeypatch)
    install(tmp_path, monkeypatch, "broken", "1", {"nan-parser": "nan_parser:Broken"})
    broken = {"kind": "package", "name": "nan-parser"}
    parse(faces, tmp_path / "parsed", parser=broken, max_error_fraction=1)
    failed = [row for table in RunStore(f"{tmp_path}/parsed").tables("quarantine") for row in table.to_pylist()]
    assert [row["error"] for row in failed] == ["parser: nan-parser gave values that are no finite numbers"] * 6


def test_workers_refuse_another_network_than_the_one_that_was_planned(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each machine has its own files and packages: another one's masks would be in a run with the name of the first."""
    install_example(tmp_path / "site", monkeypatch)
    file = tmp_path / "points.onnx"
    file.write_bytes(b"the file of the driver")
    job = {"kind": "parse", "faces": str(faces), "out": f"{tmp_path}/out"}
    build = make({**job, "parser": EXAMPLE}).prepare(write=False).build
    marks = make({**job, "landmarks": {"kind": "onnx", "weights": str(file)}}).prepare(write=False).build
    monkeypatch.setattr(find_extractor(PackageParserConfig(name="example-parser")).extractor, "sha256", "ab" * 32)
    with pytest.raises(ConfigError, match=r"'example-parser' of raygen-example 1.2: sha256 is abab\w*, not \w{64}"):
        build()
    file.write_bytes(b"another one")
    with pytest.raises(InputError, match=r"points.onnx: sha256 is \w{64}, not \w{64}"):
        marks()


def test_settings_are_checked_before_anything_is_written(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_example(tmp_path / "site", monkeypatch)
    weights = tmp_path / "parser.onnx"
    weights.write_bytes(b"not read yet")
    onnx = {"kind": "onnx", "labels": "celebamask"}
    for settings, text in (
        ({"parser": {"kind": "bisenet", "weights": "none.pth"}}, r"parser.weights: none.pth: no such file"),
        ({"parser": {**onnx, "weights": str(weights), "sha256": "ab" * 32}}, r"parser: .*: sha256 is \w{64}, not abab"),
        ({"landmarks": {"kind": "onnx", "weights": "points.onnx"}}, r"landmarks.weights: points.onnx: no such file"),
        ({"parser": {"kind": "package", "name": "example-embedder"}}, "is of kind embedder, and parser is needed here"),
        ({"landmarks": {"kind": "package", "name": "absent"}}, "landmarker 'absent': no installed package"),
    ):
        with pytest.raises((ConfigError, InputError), match=text) as error:
            parse(faces, tmp_path / "out", **settings)
        assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()
    make({"kind": "parse", "faces": str(faces), "parser": EXAMPLE, "out": f"{tmp_path}/out"}).estimate()
    assert not (tmp_path / "out").exists()


def test_the_network_names_the_run_and_the_data_set_goes_with_it(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_example(tmp_path / "site", monkeypatch)

    def plan(**settings: object):
        job = make({"kind": "parse", "faces": str(faces), **settings, "out": f"{tmp_path}/out"})
        return job.prepare(write=False).plan

    made = plan(parser=EXAMPLE)
    digest = find_extractor(PackageParserConfig(name="example-parser")).extractor.sha256
    assert made.settings["parser"] == {"kind": "package", "name": "example-parser", "sha256": digest}
    assert made.settings["data"]["kind"] == "folder"
    others = [plan(), plan(parser=EXAMPLE, replace=True), plan(parser=EXAMPLE, landmarks={"kind": "mask"})]
    assert len({made.run_id, *(other.run_id for other in others)}) == 4
    assert plan(parser=EXAMPLE, resources={"threads": 2}).run_id == made.run_id


def test_exports_say_who_made_the_masks_and_drawn_faces_stay_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of the data set go with the faces: pictures of a program are marked as such."""
    install_example(tmp_path / "site", monkeypatch)
    data = {"kind": "procedural", "identities": 2, "pictures": 1, "size": 32, "seed": 3}
    make({"kind": "ingest", "data": data, "out": f"{tmp_path}/faces"}).run(quiet)
    parse(tmp_path / "faces", tmp_path / "parsed", parser=EXAMPLE, replace=True)
    form = {"kind": "folder", "masks": True}
    export = {"kind": "export", "faces": f"{tmp_path}/parsed", "format": form, "out": f"{tmp_path}/export"}
    make(export).run(quiet)
    card = (tmp_path / "export/dataset/README.md").read_text()
    digest = find_extractor(PackageParserConfig(name="example-parser")).extractor.sha256
    assert f"| example-parser `{digest[:12]}` | made the masks | unknown: the job names none" in card
    assert "were made by a parser" in card
    assert "These are drawings." in card
    named = {**export, "card": {"licences": {digest[:10]: "CC0-1.0"}}, "out": f"{tmp_path}/named"}
    make(named).run(quiet)
    assert "| made the masks | CC0-1.0 |" in (tmp_path / "named/dataset/README.md").read_text()
    # A number that a package's network measured has its licence in the protocol; one that the job names is preferred.
    scores = [{"protocol": json.dumps({"network": "x", "sha256": "ab" * 32, "licence": "MIT"})}]
    assert network_rows({}, scores, {}) == ["| x | measured them | MIT |"]
    assert network_rows({}, scores, {"abab": "CC0-1.0"}) == ["| x | measured them | CC0-1.0 |"]
