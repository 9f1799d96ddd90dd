"""Pictures of another method on the rows of a plan: which file belongs to which row, and what is said of the others."""

import json

import numpy as np
import pytest
from PIL import Image

from raygen.commands.registry import make
from raygen.commands.verify import verify
from raygen.core.errors import ConfigError, TooManyBadRows
from raygen.core.hashing import digest
from raygen.datasets.results import MethodResults
from raygen.evaluation.reference import picture_size
from raygen.store.images import decode_mask
from raygen.store.run_store import open_input
from tests.drawn import drawn, quiet


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Faces `id000000-000` and so on, and a plan of one and of two rows for each of them."""
    root = drawn(tmp_path_factory.mktemp("world"), 2, 2)
    planning = {"kind": "from_faces", "per_face": 2}
    make({"kind": "plan", "faces": f"{root}/faces", "planning": planning, "out": f"{root}/twice"}).run(quiet)
    return root


def rows_of(url, table):
    return [row for part in open_input(str(url))[0].tables(table) for row in part.to_pylist()]


def picture(path, seed=0, size=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def job(tmp_path, world, pattern, rows="rows", max_error_fraction=0.01, **data):
    data = {"kind": "results", "method": "SEAN", "root": f"{tmp_path}/in", "conditions": f"{world}/{rows}"} | data
    return make(
        {"kind": "ingest", "data": data | {"pattern": pattern}, "max_error_fraction": max_error_fraction}
        | {"out": f"{tmp_path}/out"}
    )


def test_pictures_become_samples_of_their_rows_without_seed_and_checkpoint(tmp_path, world):
    conditions = rows_of(world / "rows", "conditions")
    for number, row in enumerate(conditions):
        picture(tmp_path / f"in/{row['source']}_fake.png", number)
    result = job(tmp_path, world, "{source_id}_fake.png").run(quiet)
    assert result.facts["note"] == "masks: 4 of 4; SEAN: pictures of 4 of 4 rows"
    samples = rows_of(tmp_path / "out", "samples")
    assert [row["sample_id"] for row in samples] == [row["sample_id"] for row in conditions]
    for asked, made in zip(conditions, samples, strict=True):
        data = (tmp_path / f"in/{asked['source']}_fake.png").read_bytes()
        assert made["image"] == {"bytes": data, "path": f"{asked['source']}_fake.png"}
        assert (made["method"], made["seed"], made["checkpoint"], made["sampler"]) == ("SEAN", None, None, None)
        assert made["image_sha256"] == digest(data)
        kept = ("mask", "attributes", "source", "identity_id", "group_id", "plan")
        assert {key: made[key] for key in kept} == {key: asked[key] for key in kept}
        assert decode_mask(made["mask"]["bytes"]).shape == (64, 64)
    store = open_input(str(tmp_path / "out"))[0]
    assert (verify(store).problems, store.has("faces"), picture_size(store, "samples")) == ([], False, (64, 64))
    assert not (tmp_path / "out/unmatched.json").exists()


def test_what_finds_nothing_is_counted_named_and_listed(tmp_path, world):
    conditions = rows_of(world / "rows", "conditions")
    for number, row in enumerate(conditions[:3]):
        picture(tmp_path / f"in/{row['source']}.png", number)
    for name in ("a", "b", "c", "d"):
        picture(tmp_path / f"in/deep/{name}.jpg")
    (tmp_path / "in/readme.txt").write_text("x")
    missing = conditions[3]["sample_id"]
    with pytest.raises(TooManyBadRows, match=rf"1 of 4 rows failed \(no_picture 1\), such as {missing}: no_picture: "):
        job(tmp_path, world, "{source}.png").run(quiet)
    facts = job(tmp_path, world, "{source}.png", max_error_fraction=0.3).run(quiet).facts
    assert facts["note"] == (
        f"masks: 4 of 4; SEAN: pictures of 3 of 4 rows; 1 rows without picture ({missing}); "
        "4 pictures without row (deep/a.jpg, deep/b.jpg, deep/c.jpg, ...)"
    )
    assert json.loads((tmp_path / "out/unmatched.json").read_text()) == {
        "rows_without_picture": [missing],
        "pictures_without_row": [f"deep/{name}.jpg" for name in "abcd"],
    }
    last = rows_of(tmp_path / "out", "samples")[3]
    assert (last["image"], last["error"][:10], last["method"]) == (None, "no_picture", "SEAN")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{row:06d}.png", ["000000.png", "000001.png", "000002.png", "000003.png"]),
        ("sample_{row}.*", ["sample_0.jpg", "a/sample_1.png", "sample_2.webp", "b/sample_3.jpg"]),
        ("{identity_id}/{variant:03d}.png", None),
        (r"(?P<row>\d+)(_.*)?\.(png|jpg)", ["000.png", "01_fake.png", "0002_x.jpg", "deep/3.jpg"]),
        (r"run/(?P<row>\d+)/.*", ["run/0/x.png", "run/1/x.png", "run/2/x.png", "run/3/x.png"]),
    ],
)
def test_patterns(tmp_path, world, pattern, names):
    conditions = rows_of(world / "rows", "conditions")
    if names is None:  # one picture of each person: the pictures of a person have the same variant in this plan
        picture(tmp_path / "in/a.png")
        with pytest.raises(ConfigError, match=r"both fit .*; add \{variant\} or \{sample_id\}"):
            job(tmp_path, world, pattern).estimate()
        return
    for number, name in enumerate(names):
        picture(tmp_path / "in" / name, number)
    listing = job(tmp_path, world, pattern).data.listing()
    assert listing["face_id"].to_pylist() == [row["sample_id"] for row in conditions]
    assert listing["image"].to_pylist() == [f"{tmp_path}/in/{name}" for name in names]


def test_several_pictures_of_a_face_are_told_apart_by_their_variant(tmp_path, world):
    conditions = rows_of(world / "twice", "conditions")
    for row in conditions:
        picture(tmp_path / f"in/{row['variant']}/{row['source']}.png")
    listing = job(tmp_path, world, "{variant}/{source}.png", rows="twice").data.listing()
    assert listing["image"].to_pylist() == [f"{tmp_path}/in/{row['variant']}/{row['source']}.png" for row in conditions]
    both = f"{conditions[0]['sample_id']} and {conditions[1]['sample_id']} both fit"
    with pytest.raises(ConfigError, match=both):
        job(tmp_path, world, "{source}.png", rows="twice").estimate()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{sourse}.png", "'sourse' is none of sample_id, source, .*did you mean"),
        ("fake.png", "names no row"),
        ("{source}", "does not end like a picture"),
        ("{source!r}.png", "only a number of digits"),
        ("{source:>6}.png", "only a number of digits"),
        ("{source.png", "pattern: "),
        ("(?P<source>[.png", "no regular expression"),
        (r"(?P<who>\d+).png", "'who' is none of"),
    ],
)
def test_patterns_that_cannot_be_read(tmp_path, world, pattern, message):
    with pytest.raises(ConfigError, match=message):
        job(tmp_path, world, pattern)


@pytest.mark.parametrize(
    ("pattern", "names", "message"),
    [
        ("{row:05d}.png", ["0.png"], "asks for '00000.png' for row .*, a picture is '0.png'; .*06d"),
        ("{row}.png", ["a/0.png", "b/0.png"], "fits 'a/0.png' and 'b/0.png'; write the folder"),
        (r"(?P<row>\d+)\.png", ["0.png", "00.png"], "fits '0.png' and '00.png'"),
        ("{source:06d}.png", ["0.png"], "is for numbers; row .* has 'p0"),
        ("{edit_id}.png", ["0.png"], "has no edit_id"),
        ("{row}.png", ["0.txt"], "holds no pictures"),
    ],
)
def test_files_that_fit_badly(tmp_path, world, pattern, names, message):
    for name in names:
        picture(tmp_path / "in" / name) if name.endswith("png") else (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match=message):
        job(tmp_path, world, pattern).estimate()
    assert not (tmp_path / "out").exists()


def test_an_export_names_the_method_and_not_raygen(tmp_path, world):
    for number, row in enumerate(rows_of(world / "rows", "conditions")):
        picture(tmp_path / f"in/{row['source']}.png", number)
    job(tmp_path, world, "{source}.png").run(quiet)
    out = tmp_path / "set"
    make({"kind": "export", "samples": f"{tmp_path}/out", "format": {"kind": "folder"}, "out": f"{out}"}).run(quiet)
    first = next(path for path in sorted(out.rglob("*.png")) if "mask" not in str(path))
    with Image.open(first) as image:
        made = json.loads(image.text["raygen"])
    assert (made["generator"], made["method"]) == ("SEAN", "SEAN")
    assert not {"seed", "noise_seed", "checkpoint"} & made.keys()
    card = (out / "dataset/README.md").read_text()
    assert "| method that made the pictures, not raygen | `SEAN` |" in card
    assert "The noise of a picture depends" not in card


def test_conditions_that_are_none(tmp_path, world):
    picture(tmp_path / "in/0.png")
    with pytest.raises(ConfigError, match="has no CONDITIONS"):
        job(tmp_path, world, "{row}.png", rows="faces").estimate()
    data = MethodResults(method="a", root=f"{tmp_path}/in", conditions=f"{world}/rows", pattern="{row}.png")
    assert len(data.inputs()[0]) == 64  # another plan is another run
