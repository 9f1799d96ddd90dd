"""Pictures listed by a JSON-lines file: masks, prompts, boxes and keypoints follow the picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raygen.core.errors import ConfigError
from raygen.core.face_labels import CLASS_INDEX
from raygen.datasets import JSONLines
from raygen.planning import FromFaces
from raygen.store.images import decode_image, decode_mask
from raygen.store.schemas import texts_by_name
from raygen.training.data import load_training_data


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
        ({"prompts": "a person"}, "line: prompts"),
        ({"target": "c.png"}, "FileNotFoundError"),
    ],
)
def test_a_bad_row_keeps_its_place(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    data = JSONLines(root=str(write(tmp_path, {"target": "b.png"}, {**A, "mask": None, **fields})), file="train.jsonl")
    rows = data.load(data.listing()).to_pylist()
    assert rows[0]["error"] is None
    assert rows[1]["error"].startswith(reason)


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
    assert data.load(data.listing()).to_pylist()[0]["error"].startswith("size: hint 40x40 on a picture 80x40")


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
