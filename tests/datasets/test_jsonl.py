"""Pictures listed by a JSON-lines file: masks, prompts, boxes and keypoints follow the picture."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from raygen.core.errors import ConfigError
from raygen.core.face_labels import CLASS_INDEX, PALETTE
from raygen.datasets import JSONLines
from raygen.planning import FromFaces
from raygen.store.images import decode_image, decode_mask
from raygen.store.schemas import texts_by_name
from raygen.training.loading import load_training_data


def write(root: Path, *lines: dict[str, Any] | str) -> Path:
    random = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 80, 3)), ("b.png", (40, 40, 3))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(root / name)
    person = np.zeros((40, 80), np.uint8)
    person[10:30, 30:50] = 255
    Image.fromarray(person).save(root / "a_mask.png")
    classes = np.zeros((40, 40), np.uint8)
    classes[5:10] = 3
    Image.fromarray(classes).save(root / "b_mask.png")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "train.jsonl").write_text(text)
    return root


A = {
    "target": "a.png",
    "mask": "a_mask.png",
    "prompts": ["somebody", "a person"],
    "face_bbox": [[30, 10, 50, 30], [0, 0, 0, 0], [0, 0, 10, 10]],
    "keypoints": [[40, 20, 2], [5, 5, 1]],
}


def test_places_follow_the_crop(tmp_path: Path) -> None:
    data = JSONLines(root=str(write(tmp_path, A)), file="train.jsonl", masks="person", crop="center", size=20)
    row = data.load(data.listing()).to_pylist()[0]
    assert row["error"] is None
    assert texts_by_name(row["texts"]) == {"overall": "somebody", "prompt-1": "a person"}
    assert row["boxes"] == [[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.0, 0.25]], "padding is left out, the rest clipped"
    assert row["keypoints"] == [[0.5, 0.5, 1.0], [-0.375, 0.125, 0.0]], "what was cut off does not count"
    mask = decode_mask(row["mask"]["bytes"])
    assert set(np.unique(mask)) == {0, CLASS_INDEX["cloth"]}
    assert (mask[5:15, 5:15] > 0).all()
    assert mask.astype(bool).sum() == 100


def test_keypoints_that_are_not_seen_have_no_weight(tmp_path: Path) -> None:
    line = {**A, "keypoints": [[40, 20, v] for v in (2, 1, 0, -1)]}
    data = JSONLines(root=str(write(tmp_path, line)), file="train.jsonl", masks="person")
    row = data.load(data.listing()).to_pylist()[0]
    assert [point[2] for point in row["keypoints"]] == [1.0, 1.0, 0.0, 0.0]


def test_without_a_crop_they_are_parts_of_both_sides(tmp_path: Path) -> None:
    data = JSONLines(root=str(write(tmp_path, A)), file="train.jsonl", masks="person")
    row = data.load(data.listing()).to_pylist()[0]
    assert row["boxes"][0] == [0.375, 0.25, 0.625, 0.75]


def test_lines_may_say_little(tmp_path: Path) -> None:
    data = JSONLines(root=str(write(tmp_path, {"target": "b.png"}, "", {**A, "mask": None})), file="train.jsonl")
    rows = data.load(data.listing()).to_pylist()
    assert [row["face_id"] for row in rows] == ["b", "a"]
    assert rows[0]["boxes"] is rows[0]["texts"] is rows[0]["mask"] is rows[0]["keypoints"] is None
    masked = JSONLines(root=str(write(tmp_path, {"target": "b.png", "mask": "b_mask.png"})), file="train.jsonl")
    assert 3 in decode_mask(masked.load(masked.listing()).to_pylist()[0]["mask"]["bytes"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ({"mask": "a.png"}, "line 2: needs `target`"),
        ({"target": "b.png", "boxes": []}, r"unknown keys \['boxes'\]"),
        ({"target": "a.png"}, "listed twice"),
        ('{"target": "b.png", "target": "c.png"}', "line 2: 'target' is there twice"),
        ("[" * 100_000, "line 2 is not JSON: nested too deeply"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JSONLines(root=str(write(tmp_path, A, line)), file="train.jsonl").listing()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"face_bbox": [[1, 2, 3]]}, "line: face_bbox"),
        ({"face_bbox": 3}, "line: face_bbox"),
        ({"keypoints": [["x", 1, 1]]}, "line: keypoints"),
        ({"face_bbox": [[40, 10, 10, 40]]}, "line: face_bbox"),
        ({"face_bbox": [[10, 40, 40, 10]]}, "line: face_bbox"),
        ({"face_bbox": [[1, 2, 10**400, 4]]}, "line: face_bbox"),
        ({"face_bbox": [[1, 2, int("9" * 4000), 4]]}, "line: face_bbox"),
        ({"face_bbox": [[1, 2, float("nan"), 4]]}, "line: face_bbox"),
        ({"face_bbox": [[True, 2, 30, 40]]}, "line: face_bbox"),
        ({"face_bbox": False}, "line: face_bbox"),
        ({"face_bbox": [[80, 2, 90, 40]]}, "line: face_bbox [80.0, 2.0, 90.0, 40.0] lies outside of 80x40 pixels"),
        ({"face_bbox": [[0.2, 0.25, 0.75, 1]]}, "line: face_bbox has fractions of the sides"),
        ({"keypoints": [[0.5, 0.25, 1], [40, 20, 0]]}, "line: keypoints has fractions of the sides"),
        ({"keypoints": [[1e300, 1, 1]]}, "line: keypoints"),
        ({"prompts": "a person"}, "line: prompts"),
        ({"prompts": ["half a pair \ud83d"]}, "line: prompts is no valid text"),
        ({"target": "a\0.png"}, r"line: image 'a\x00.png' is no file name"),
        ({"target": "\udce4.png"}, r"line: image '\udce4.png' is no file name"),
        ({"target": "\udce4" * 200 + ".png"}, "line: image"),
        ({"mask": "b\0.png"}, "line: mask"),
        ({"hint": ["b.png"]}, "line: hint"),
        ({"target": "c.png"}, "FileNotFoundError"),
    ],
)
def test_a_bad_row_keeps_its_place(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    data = JSONLines(root=str(write(tmp_path, {"target": "b.png"}, {**A, "mask": None, **fields})), file="train.jsonl")
    rows = data.load(data.listing()).to_pylist()
    assert rows[0]["error"] is None
    reason, _, text = reason.partition(": ")
    assert rows[1]["error"].startswith(f"{reason}: train.jsonl: line 2: {text}")


ODD = [
    *(
        0,
        -1,
        1e308,
        10**400,
        True,
        "",
        "x",
        "\0",
        "\ud83d",
        "a/../..",
        "/",
        ".",
        "..",
        "~",
        "://",
        "memory://",
        "zip://a::b",
    ),
    *(
        [],
        [[]],
        [None],
        [""],
        ["\ud83d"],
        [[1, 2, 3, 4]],
        [[float("inf")] * 4],
        [[True] * 4],
        [[1e39, 0, 0]],
        {},
        {"a": 1},
    ),
    *([[[]]], [{}], ["a" * 5000], "n" * 300, "a.png/b.png"),
]


@pytest.mark.parametrize("key", ["target", "mask", "hint", "prompts", "face_bbox", "keypoints"])
@pytest.mark.parametrize("masks", ["classes", "person"])
def test_no_value_of_a_line_ends_the_run(tmp_path: Path, key: str, masks: Literal["classes", "person"]) -> None:
    root = write(tmp_path)
    good = {"target": "b.png", "prompts": ["x"]}
    for value in ODD:
        line = {"target": "a.png", key: value}
        (root / "train.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(line)}\n")
        data = JSONLines(root=str(root), file="train.jsonl", masks=masks)
        if key == "target" and not isinstance(value, str):
            with pytest.raises(ConfigError, match="line 2"):
                data.listing()
            continue
        listing = data.listing()
        rows = data.load(listing).to_pylist()
        assert rows[0]["error"] is None, value
        assert rows[1]["error"] is None or "line 2" in rows[1]["error"], (value, rows[1]["error"])


def test_null_is_none_for_every_optional_key(tmp_path: Path) -> None:
    line = {"target": "b.png", "mask": None, "hint": None, "prompts": None, "face_bbox": None, "keypoints": None}
    data = JSONLines(root=str(write(tmp_path, line)), file="train.jsonl")
    (row,) = data.load(data.listing()).to_pylist()
    assert [row[key] for key in ("error", "mask", "hint", "texts", "boxes", "keypoints")] == [None] * 6


def test_a_number_of_more_digits_than_python_converts_costs_its_row(tmp_path: Path) -> None:
    """`int` refuses more than 4,300 digits (Python 3.11, `sys.set_int_max_str_digits`), and so does `json.loads`."""
    with pytest.raises(ValueError, match="4300 digits"):
        json.loads("9" * 5000)
    line = '{"target": "b.png", "face_bbox": [[1, 2, ' + "9" * 5000 + ", 4]]}"
    data = JSONLines(root=str(write(tmp_path, line, {**A, "mask": None})), file="train.jsonl")
    errors = data.load(data.listing())["error"].to_pylist()
    assert errors == ["line: train.jsonl: line 1: face_bbox is no list of 4 numbers each", None]


def test_masks_follow_the_colours_of_their_palettes(tmp_path: Path) -> None:
    root = write(tmp_path, {"target": "b.png", "mask": "p.png"})
    image = Image.fromarray(np.repeat([[0, 1]], 20, axis=1).repeat(40, axis=0).astype(np.uint8))
    image.putpalette(bytes(PALETTE[[13, 1]]))
    image.save(root / "p.png")
    data = JSONLines(root=str(root), file="train.jsonl")
    mask = decode_mask(data.load(data.listing())["mask"][0]["bytes"].as_py())
    assert np.unique(mask[:, :20]).tolist() == [13]
    assert np.unique(mask[:, 20:]).tolist() == [1]


def test_labels_of_face_parsing_are_mapped_for_class_masks_only(tmp_path: Path) -> None:
    data = JSONLines(
        root=str(write(tmp_path, {"target": "b.png", "mask": "b_mask.png"})), file="train.jsonl", labels="face_parsing"
    )
    mask = decode_mask(data.load(data.listing())["mask"][0]["bytes"].as_py())
    assert np.unique(mask).tolist() == [0, CLASS_INDEX["r_brow"]], "3 is r_brow there"
    with pytest.raises(ConfigError, match="no line has one"):
        JSONLines(root=str(write(tmp_path, {"target": "b.png"})), file="train.jsonl", labels="face_parsing").listing()
    with pytest.raises(ValueError, match="labels"):
        JSONLines(root=str(tmp_path), file="train.jsonl", labels="face_parsing", masks="person")


def test_a_person_whose_shape_is_in_the_alpha_channel_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {"target": "b.png", "mask": "p.png"})
    rgba = np.full((40, 40, 4), 255, np.uint8)
    rgba[:20, :, 3] = 0
    Image.fromarray(rgba).save(root / "p.png")
    data = JSONLines(root=str(root), file="train.jsonl", masks="person")
    (error,) = data.load(data.listing())["error"].to_pylist()
    assert error.startswith(f"part: train.jsonl: line 1: {root}/p.png: is transparent")


def test_a_picture_as_hint_comes_along_and_is_mirrored(tmp_path: Path) -> None:
    line = {"target": "b.png", "mask": "b_mask.png", "hint": "b.png"}
    data = JSONLines(root=str(write(tmp_path, line, {**A, "mask": None})), file="train.jsonl", crop="center", size=16)
    faces = data.load(data.listing())
    hint = decode_image(faces["hint"][0].as_py()["bytes"])
    assert hint.shape == (16, 16, 3)
    assert faces["hint"][1].as_py() is None
    arrays = load_training_data([faces], size=16, modalities=["hint"])
    batch = arrays.batch(np.array([0, 0, 1]), np.array([False, True, False]))
    np.testing.assert_array_equal(batch["hint"][0], hint)
    np.testing.assert_array_equal(batch["hint"][1], hint[:, ::-1])
    assert batch["present_hint"].tolist() == [True, True, False]
    rows = FromFaces(conditions=("hint",)).rows(faces).to_pylist()
    assert rows[0]["hint"] is not None
    assert "hint" in FromFaces(conditions=("hint",)).columns


def test_a_hint_of_another_shape_is_an_error(tmp_path: Path) -> None:
    data = JSONLines(root=str(write(tmp_path, {"target": "a.png", "hint": "b.png"})), file="train.jsonl", crop="center")
    assert data.load(data.listing()).to_pylist()[0]["error"] == (
        "size: train.jsonl: line 1: hint 40x40 on a picture 80x40"
    )


def test_only_a_new_line_ends_a_line(tmp_path: Path) -> None:
    line = json.dumps({"target": "b.png", "prompts": ["one\u2028two\u0085three"]}, ensure_ascii=False)
    data = JSONLines(root=str(write(tmp_path, line + "\r")), file="train.jsonl")
    assert texts_by_name(data.load(data.listing()).to_pylist()[0]["texts"])["overall"] == "one\u2028two\u0085three"


def test_training_reads_and_mirrors_places(tmp_path: Path) -> None:
    square = {**A, "target": "b.png", "mask": "b_mask.png", "face_bbox": [[4, 8, 12, 16]], "keypoints": [[10, 4, 1]]}
    data = JSONLines(root=str(write(tmp_path, square)), file="train.jsonl")
    faces = data.load(data.listing())
    arrays = load_training_data([faces], size=16, modalities=["mask"], places=["boxes", "keypoints"])
    as_is = arrays.batch(np.array([0, 0]), np.array([False, True]))
    np.testing.assert_allclose(as_is["boxes"][:, 0], [[0.1, 0.2, 0.3, 0.4], [0.7, 0.2, 0.9, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(as_is["keypoints"][:, 0], [[0.25, 0.1, 1.0], [0.75, 0.1, 1.0]], rtol=1e-6)
