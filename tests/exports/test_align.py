"""Aligned exports: landmarks lie on the template, bad faces are rows with a reason, masks turn with pictures."""

import numpy as np
import pytest
from PIL import Image

from raygen.commands.registry import make
from raygen.core.errors import ConfigError
from raygen.core.landmarks import ARCFACE_TEMPLATE, from_mask
from raygen.datasets.procedural.draw import draw
from raygen.store.face_crop import crop
from raygen.store.images import encode_image, encode_mask, picture
from raygen.store.run_store import RunStore
from tests.drawn import quiet
from tests.exports.export_runs import sample, store_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six drawn faces of 96 px; the last one has no mask, and the one before no nose."""
    rows = []
    for i in range(6):
        face = draw(5, i, 0, 96)
        mask = face.mask.copy()
        if i == 4:
            mask[mask == 2] = 1
        made = {"image": picture(encode_image(face.pixels)), "mask": picture(encode_mask(mask))}
        rows.append({**sample(i), **made, **({"mask": None} if i == 5 else {})})
    return store_rows(tmp_path_factory.mktemp("run") / "samples", rows)


def test_landmarks_lie_on_the_template_and_bad_faces_are_rows(run, tmp_path):
    form = {"kind": "folder", "size": 64, "align": "arcface", "masks": True}
    job = {"kind": "export", "samples": run, "format": form, "out": str(tmp_path / "out"), "max_error_fraction": 0.5}
    make(job).run(quiet)
    store = RunStore(str(tmp_path / "out"))
    failed = {row["id"]: row["error"] for table in store.tables("quarantine") for row in table.to_pylist()}
    assert sorted(failed.values()) == [
        "landmarks: the mask has no nose",
        "landmarks: the row has no mask and no landmarks, so it cannot be aligned",
    ]
    paths = sorted(path for path in (tmp_path / "out/dataset").rglob("*.png"))
    pictures = [np.asarray(Image.open(path)) for path in paths]
    masks = [image for image in pictures if image.ndim == 2]
    assert len(masks) == 4
    assert all(image.shape[:2] == (64, 64) for image in pictures)
    for mask in masks:
        assert np.abs(from_mask(mask) - ARCFACE_TEMPLATE).max() < 0.06
    assert "the template of ArcFace" in (tmp_path / "out/dataset/README.md").read_text()


def test_a_template_of_ones_own(run, tmp_path):
    """The template that the landmarks have already: nothing moves but by rounding."""
    face = draw(5, 0, 0, 96)
    own = [[float(value) for value in point] for point in from_mask(face.mask)]
    same = crop(face.pixels, np.array(own), np.array(own), 96)
    assert np.abs(same.astype(int) - face.pixels).mean() < 0.5
    form = {"kind": "recordio", "size": 96, "align": own}
    assert make({"kind": "export", "samples": run, "format": form, "out": str(tmp_path)}).format.template.shape == (
        5,
        2,
    )


@pytest.mark.parametrize("size", [32, 200])
def test_a_crop_is_sampled_without_aliasing_and_lies_where_it_should(size):
    """A fine pattern of stripes becomes grey where it is made smaller; a spot comes where the transform sends it."""
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    small = crop(stripes, ARCFACE_TEMPLATE, ARCFACE_TEMPLATE, size)
    assert small[4:-4, 4:-4].std() < 8
    spot = np.zeros((400, 400, 3), np.uint8)
    spot[100:120, 300:320] = 255
    moved = crop(spot, ARCFACE_TEMPLATE, ARCFACE_TEMPLATE, size)[..., 0].astype(float)
    rows, columns = np.mgrid[:size, :size] + 0.5
    middle = [(moved * axis).sum() / moved.sum() / size for axis in (columns, rows)]
    assert middle == pytest.approx([310 / 400, 110 / 400], abs=0.002)


@pytest.mark.parametrize(
    ("form", "match"),
    [
        ({"kind": "folder", "align": "arcface"}, "align: crops need a `size`, such as 112"),
        ({"kind": "csv", "align": "arcface", "size": 112}, "align"),
        ({"kind": "folder", "align": [[0.5, 0.5]], "size": 112}, "align"),
    ],
)
def test_settings_that_do_not_fit_are_refused(run, tmp_path, form, match):
    with pytest.raises(ConfigError, match=match):
        make({"kind": "export", "samples": run, "format": form, "out": str(tmp_path)})
