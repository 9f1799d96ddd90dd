"""The experiments of SCA-DM as plans: what each row asks for, and pictures that follow it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raygen.commands.registry import load
from raygen.core.errors import ConfigError
from raygen.core.face_labels import CLASS_INDEX
from raygen.models import checkpoint
from raygen.models.config.conditions import MODALITIES
from raygen.planning import Styles
from raygen.report.build import build_report
from raygen.sampling.guidance import build_guidance
from raygen.store.images import decode_image
from raygen.store.run_store import open_input
from tests.models.test_scadm import conditions, make
from tests.sampling.test_imagic import faces


def planned(experiment: str, without: int = 0, **fields: object) -> list[dict[str, object]]:
    given = faces(4)
    mask = given["mask"].to_pylist()
    given = given.set_column(
        3, given.schema.field("mask"), pa.array([*mask[:3], None], given.schema.field("mask").type)
    )
    config = Styles.model_validate({"experiment": experiment, **fields})
    rows: list[dict[str, object]] = config.rows(given).to_pylist()
    assert [row["sample_id"] for row in rows if row["error"]] == ["f3"], "a face without a mask"
    good = [row for row in rows if not row["error"]]
    assert len(good) == (3 - without) * config.factor
    return good


def ids(row: dict[str, object]) -> tuple[object, object]:
    a, b = row["style_reference_a"], row["style_reference_b"]
    return a and a["face_id"], b and b["face_id"]  # type: ignore[index]


def test_every_experiment_is_a_plan() -> None:
    hair = [CLASS_INDEX["hair"]]
    assert [ids(row) for row in planned("reconstruction")] == [("f0", None), ("f1", None), ("f2", None)]
    assert [ids(row) for row in planned("swap")] == [("f1", None), ("f2", None), ("f0", None)]
    part = planned("partial", parts=["skin"])[0]
    assert (ids(part), part["style_parts"], part["style_mix"]) == (("f0", "f1"), [CLASS_INDEX["skin"]], 1.0)
    steps = planned("interpolation", steps=5)[:5]
    assert [row["style_mix"] for row in steps] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert {row["group_id"] for row in steps} == {"f0"}
    noise = planned("noise", per_face=3)[:3]
    assert [(ids(row), row["variant"]) for row in noise] == [((None, None), k) for k in range(3)]
    mixed = planned("mixed", parts=["skin", "hair"])[0]
    assert (ids(mixed), mixed["style_parts"], mixed["style_mix"]) == (("f0", None), [CLASS_INDEX["skin"], *hair], 1.0)


def test_a_face_without_the_parts_is_left_out() -> None:
    """The first drawn face is bald: its hair cannot change, and nobody can have its hair."""
    rows = planned("partial", parts=["hair"], without=1)
    assert [ids(row) for row in rows] == [("f1", "f2"), ("f2", "f1")]


def test_nobody_is_a_partner_of_oneself() -> None:
    """A piece may hold a single face: its swap would be called one and be none."""
    rows = Styles(experiment="swap").rows(faces(1)).to_pylist()
    assert [row["error"] for row in rows] == ["partner: no other face of the same piece has a mask"]
    assert Styles(experiment="reconstruction").rows(faces(1)).to_pylist()[0]["error"] is None


def test_a_plan_of_one_split_needs_no_other_module() -> None:
    code = "from raygen.planning import *; import pyarrow as pa; from raygen.store.schemas import FACES; "
    code += "[k(splits=('train',)).rows(FACES.empty_table()) for k in (Styles, FromFaces)]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_references_are_named_by_their_content() -> None:
    rows, given = planned("swap"), faces(4)
    wanted = [hashlib.sha256(image["bytes"]).hexdigest() for image in given["image"].to_pylist()]
    assert [row["style_reference_a"]["sha256"] for row in rows] == [wanted[1], wanted[2], wanted[0]]  # type: ignore[index]


def test_an_unknown_part_is_a_sentence(tmp_path: Path) -> None:
    document = {"kind": "plan", "out": "x", "faces": "y", "planning": {"kind": "styles", "parts": ["hiar"]}}
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"planning\.parts\.0: 'hiar' is not one of .*did you mean 'hair'"):
        load(str(tmp_path / "job.yaml"))
    with pytest.raises(ValueError, match="needs `parts`"):
        Styles(experiment="partial")


def test_guidance_in_both_spellings() -> None:
    """s = 1.2 of the paper is w = 2.2 of the code; what e0 keeps is said as well."""
    model, given = make(), conditions()
    zt, t = torch.randn(2, *model.latent_shape), torch.tensor([10, 900])
    with torch.no_grad():
        scale = build_guidance(model, given, 2.2, against=("mask",))(model, zt, t)
        extra = build_guidance(model, given, 1.2, parametrization="cfg_minus_one", against=("mask",))(model, zt, t)
        by_name = build_guidance(model, given, {"style": 2.2}, against=("mask",))(model, zt, t)
        e, e0 = (build_guidance(model, c, 1.0)(model, zt, t) for c in (given, given.keep({"mask"})))
    torch.testing.assert_close(extra, e + 1.2 * (e - e0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scale, extra)
    torch.testing.assert_close(by_name, scale)
    assert len(build_guidance(model, given, 0.0, parametrization="cfg_minus_one").weights) == 1
    with pytest.raises(ConfigError, match="has the parametrization cfg"):
        build_guidance(model, given, {"style": 1.0}, parametrization="cfg_minus_one")
    with pytest.raises(ConfigError, match="negative_keeps: text"):
        build_guidance(model, given, 2.0, against=("text",))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("styles")
    checkpoint.save(make(), root / "model")
    run(root, "ingest", "faces", {"data": {"kind": "procedural", "identities": 4, "pictures": 1, "size": 32}})
    return root


def run(root: Path, kind: str, name: str, what: dict[str, object]) -> None:
    (root / "job.yaml").write_text(json.dumps({"kind": kind, **what, "out": str(root / name)}))
    load(str(root / "job.yaml")).run(lambda _: None)


def pictures(root: Path, experiment: str, noise: str = "sample", **fields: object) -> list[np.ndarray]:
    planning = {"kind": "styles", "experiment": experiment, **fields}
    run(root, "plan", f"{experiment}/conditions", {"faces": str(root / "faces"), "planning": planning})
    run(
        root,
        "generate",
        f"{experiment}/samples",
        {
            "conditions": str(root / f"{experiment}/conditions"),
            "checkpoint": str(root / "model"),
            "batch": 4,
            "references": str(root / "faces"),
            "ignore": ["attributes"],
            "sampler": {"name": "ddim", "steps": 3},
            "noise": noise,
            "shard_rows": 4,
        },
    )
    store, _ = open_input(str(root / f"{experiment}/samples"))
    rows = pa.concat_tables(store.tables("samples")).to_pylist()
    assert [row["error"] for row in rows] == [None] * len(rows)
    return [decode_image(row["image"]["bytes"]) for row in rows]


def test_experiments_end_to_end(world: Path) -> None:
    own, swap = pictures(world, "reconstruction"), pictures(world, "swap")
    assert all((a != b).any() for a, b in zip(own, swap, strict=True)), "another style, another picture"
    path = pictures(world, "interpolation", "group", steps=3)
    assert len(path) == 3 * len(own)
    ends, middle = np.stack([path[0], path[2]]).astype(float), path[1].astype(float)
    assert (ends[0] != ends[1]).any(), "same noise, another style"
    near = [np.abs(middle - end).mean() for end in ends]
    assert max(near) < np.abs(ends[0] - ends[1]).mean(), "the middle lies between"
    assert len(pictures(world, "noise", per_face=2)) == 8


def test_the_report_shows_references_mask_and_results(world: Path) -> None:
    pictures(world, "partial", parts=["hair"])
    folder = world / "partial"
    bare = Path(build_report(str(folder))).read_text()
    assert bare.count("Other of p0000") == 0
    page = Path(build_report(str(folder), faces=str(world / "faces"))).read_text()
    assert 'id="styles"' in page
    assert "here for hair alone" in page
    assert page.count("Other of p0000") == page.count("The mask of p0000") == page.count("Result result of p0000") == 4
    assert page.index('id="styles"') < page.index('id="contact-sheet"'), "what the run is about comes first"


def test_the_report_shows_every_step_though_a_shard_ends_between_them(world: Path) -> None:
    pictures(world, "interpolation", "group", steps=3)
    page = Path(build_report(str(world / "interpolation"), faces=str(world / "faces"))).read_text()
    assert [page.count(f"Result {mix} of p0000") for mix in ("0.00", "0.50", "1.00")] == [4, 4, 4]


def test_how_much_of_the_face_comes_back(world: Path) -> None:
    """SSIM to the source, the same whether pictures are scored as they are made or afterwards."""
    what = {
        "conditions": str(world / "reconstruction/conditions"),
        "checkpoint": str(world / "model"),
        "batch": 4,
        "references": str(world / "faces"),
        "ignore": ["attributes"],
        "sampler": {"name": "ddim", "steps": 2},
    }
    score = {"similarity": True, "parser": None, "features": None, "classifier": None}
    for name, inline in (("at_once", {"score": score}), ("after", {})):
        run(world, "generate", f"{name}/samples", {**what, **inline})
        samples, faces = str(world / f"{name}/samples"), str(world / "faces")
        run(world, "evaluate", name, {"samples": samples, "reference": faces, "score": score})
    found = [json.loads((world / f"{name}/metrics/metrics.json").read_text())[0] for name in ("at_once", "after")]
    assert found[0]["metric"] == "ssim"
    assert found[0]["n"] == 4
    assert 0 < found[0]["value"] < 1
    assert found[0]["value"] == pytest.approx(found[1]["value"])
    with pytest.raises(ConfigError, match="similarity: needs `reference`"):
        run(world, "evaluate", "none", {"samples": samples, "score": score})


def test_a_style_needs_its_faces(world: Path) -> None:
    what = {
        "conditions": str(world / "reconstruction/conditions"),
        "checkpoint": str(world / "model"),
        "batch": 4,
        "sampler": {"name": "ddim", "steps": 2},
    }
    with pytest.raises(ConfigError, match="references: the rows take styles from faces"):
        run(world, "generate", "without", what)


def test_the_weight_of_styles_is_kept_with_the_pictures(world: Path) -> None:
    """A struct of Arrow drops a name that it does not have without a word."""
    what = {
        "conditions": str(world / "reconstruction/conditions"),
        "checkpoint": str(world / "model"),
        "batch": 4,
        "references": str(world / "faces"),
        "ignore": ["attributes"],
        "sampler": {"name": "ddim", "steps": 1},
        "guidance": {"style": 1.5, "mask": 2.0},
    }
    run(world, "generate", "weights/samples", what)
    store, _ = open_input(str(world / "weights/samples"))
    row = next(store.tables("samples", ["guidance"])).to_pylist()[0]
    assert {name: weight for name, weight in row["guidance"].items() if weight} == {"style": 1.5, "mask": 2.0}
    assert set(row["guidance"]) == {"joint", "style", *MODALITIES}
