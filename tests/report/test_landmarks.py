"""The landmarks that a report draws, and the crops beside them."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raygen.core.face_labels import CLASS_INDEX
from raygen.core.landmarks import from_mask
from raygen.report import landmarks
from raygen.report.build import build_report
from raygen.report.run_folder import RunFolder
from raygen.store.images import encode_image, encode_mask, picture
from raygen.store.schemas import FACES
from tests.report.test_build import drawn, write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six faces: one without a left eye, one without a mask."""
    rows = []
    for n in range(6):
        pixels, mask = drawn(n)
        mask = mask.copy()
        if n == 2:
            mask[mask == CLASS_INDEX["l_eye"]] = CLASS_INDEX["skin"]
        stored = None if n == 3 else picture(encode_mask(mask))
        rows.append({"face_id": f"f{n}", "split": "train", "image": picture(encode_image(pixels)), "mask": stored})
    root = tmp_path_factory.mktemp("landmarks")
    write(root, "faces", "ingest", {}, [{"faces": pa.Table.from_pylist(rows, FACES)}], begin=1e9, took=1.0)
    return root


def test_faces_that_can_be_aligned_are_drawn_and_the_others_have_a_reason(run: Path) -> None:
    section = landmarks.section(RunFolder.open(str(run)))
    assert section is not None
    assert [face.id for face in section.variables["faces"]] == ["f0", "f1", "f4", "f5"]
    assert (section.variables["aligned"], section.variables["examined"]) == (4, 5)
    assert section.variables["reasons"] == [("the mask has no l_eye", 1)]
    text = Path(build_report(str(run))).read_text()
    body = text[text.index('<section id="landmarks">') :]
    body = body[: body.index("</section>")]
    assert body.count('class="spot"') == 4 * 2 * 5
    assert body.count('class="cross"') == 4 * 5
    first = re.search(r'class="spot" cx="([\d.]+)" cy="([\d.]+)"', body)
    assert first is not None
    assert [float(v) for v in first.groups()] == pytest.approx(from_mask(drawn(0)[1])[0], abs=1e-4)


def test_the_faces_that_are_shown_are_evenly_spaced(tmp_path: Path) -> None:
    """Of 23, not the first twelve."""
    rows = []
    for n in range(23):
        pixels, mask = drawn(n)
        rows.append({"face_id": f"f{n}", "split": "train", "image": picture(encode_image(pixels))})
        rows[-1]["mask"] = picture(encode_mask(mask))
    write(tmp_path, "faces", "ingest", {}, [{"faces": pa.Table.from_pylist(rows, FACES)}], begin=1e9, took=1.0)
    section = landmarks.section(RunFolder.open(str(tmp_path)))
    assert section is not None
    assert [face.id for face in section.variables["faces"]] == [f"f{i * 23 // 12}" for i in range(12)]


def test_points_of_the_crop_lie_where_the_crop_shows_these_parts() -> None:
    """The left eye of the drawn faces is dark on light skin: also in the crop, at the moved point."""
    for n in (1, 2, 4, 7):
        pixels, mask = drawn(n)
        row = {"image": picture(encode_image(pixels)), "mask": picture(encode_mask(mask))}
        face = landmarks.aligned_face(row, landmarks.points_of(row), "x")
        shown = Image.open(io.BytesIO(base64.b64decode(face.crop.partition(",")[2])))
        assert shown.size == (landmarks.CROP, landmarks.CROP)
        grey = np.asarray(shown.convert("L")).astype(float)
        for x, y in face.moved[:2] * landmarks.CROP:
            eye = grey[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean()
            cheek = grey[int(y) + 14, int(x) - 2 : int(x) + 3].mean()
            assert eye < 0.75 * cheek
        assert face.misfit < 0.25


def test_landmarks_that_are_stored_are_shown_in_place_of_those_of_the_mask(tmp_path: Path) -> None:
    pixels, mask = drawn(1)
    points = (from_mask(mask) + 0.02).tolist()
    stored = {"points": points, "source": "refiner", "error": None}
    row = {"split": "train", "image": picture(encode_image(pixels)), "mask": picture(encode_mask(mask))}
    rows = [{**row, "face_id": "a", "landmarks": stored}]
    rows += [{**row, "face_id": "b", "landmarks": {"points": None, "source": "refiner", "error": "landmarks: unsure"}}]
    write(tmp_path, "faces", "ingest", {}, [{"faces": pa.Table.from_pylist(rows, FACES)}], begin=1e9, took=1.0)
    section = landmarks.section(RunFolder.open(str(tmp_path)))
    assert section is not None
    (face,) = section.variables["faces"]
    assert face.points == pytest.approx(np.array(points), abs=1e-6)
    assert section.variables["reasons"] == [("unsure", 1)]
    assert section.variables["sources"] == ["refiner"]
    assert "as stored, by refiner" in Path(build_report(str(tmp_path))).read_text()


def test_a_run_without_masks_has_no_such_section(tmp_path: Path) -> None:
    rows = [{"face_id": "f", "split": "train", "image": picture(encode_image(drawn(0)[0]))}]
    write(tmp_path, "faces", "ingest", {}, [{"faces": pa.Table.from_pylist(rows, FACES)}], begin=1e9, took=1.0)
    assert landmarks.section(RunFolder.open(str(tmp_path))) is None
