"""Landmark networks: they see the face, their points come back to the picture, and what they get wrong is told."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from skimage.transform import SimilarityTransform

from raygen import load_dataset
from raygen.commands.registry import make
from raygen.core.config import parse
from raygen.core.errors import ConfigError, InputError
from raygen.core.landmarks import ARCFACE_TEMPLATE, from_mask, stored_points
from raygen.datasets.procedural.draw import draw
from raygen.evaluation.config import ScoreConfig
from raygen.evaluation.scoring import Scorer
from raygen.extractors.config import ONNXLandmarkerConfig, PackageLandmarkerConfig
from raygen.extractors.landmarks import LandmarkFinder
from raygen.store.face_crop import crop
from raygen.store.images import decode_image, decode_mask, encode_mask, picture
from raygen.store.schemas import SAMPLES
from tests.drawn import quiet
from tests.extractors.onnx_models import constant_points
from tests.extractors.packages import install_example

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)])
#: Where the dots lie, in pixels from the landmarks of the mask.
SHIFTS = np.array([(3, 1), (-2, 2), (1, -2), (2, 2), (-1, 3)])


def dotted(side: int, identity: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grey picture with five coloured dots, the mask of a drawn face, and the places of the dots [5, 2]."""
    mask = draw(5, identity, 1, side).mask
    pixels = np.full((side, side, 3), 128, np.uint8)
    places = np.round(from_mask(mask) * side + SHIFTS).astype(int)
    for (x, y), colour in zip(places, COLOURS, strict=True):
        pixels[y - 3 : y + 3, x - 3 : x + 3] = colour
    return pixels, mask, places / side


def test_the_points_of_a_network_come_back_to_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mask it sees a turned crop of the face, without one the whole picture."""
    install_example(tmp_path, monkeypatch)
    for margin in (1.0, 1.5):
        finder = LandmarkFinder(PackageLandmarkerConfig(name="example-landmarker", margin=margin))
        assert (finder.source, finder.needs_pixels) == ("example-landmarker", True)
        pixels, mask, places = dotted(256)
        assert np.abs(finder(pixels, mask) - places).max() < 0.5 / 256
        assert np.abs(finder(pixels, None) - places).max() < 1e-6
        turned, turned_mask = (np.asarray(Image.fromarray(array).rotate(20)) for array in (pixels, mask))
        cos, sin = np.cos(np.pi / 9), np.sin(np.pi / 9)
        wanted = (places - 0.5) @ np.array([[cos, -sin], [sin, cos]]) + 0.5
        assert np.abs(finder(turned, turned_mask) - wanted).max() < 1 / 256
        # The mask's own points are further from the dots, so it is the network that was right.
        assert np.abs(from_mask(mask) - places).max() > 2 / 256


def test_what_a_network_gets_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_example(tmp_path, monkeypatch)
    finder = LandmarkFinder(PackageLandmarkerConfig(name="example-landmarker", margin=2))
    pixels, mask, _ = dotted(256)
    with pytest.raises(InputError, match=r"^landmarks: example-landmarker finds no face$"):
        finder(np.full_like(pixels, 128), mask)
    with pytest.raises(InputError, match=r"^landmarks: the row has no picture$"):
        finder(None, mask)
    moved = np.roll(pixels, 40, axis=0)
    with pytest.raises(InputError, match=r"example-landmarker are 0\.\d\d of the distance of the eyes away"):
        finder(moved, mask)
    narrow = np.pad(pixels[:, ::4], ((0, 0), (96, 96), (0, 0)), constant_values=128)
    with pytest.raises(InputError, match="seen from the side"):
        finder(narrow, None)


@pytest.mark.parametrize("coordinates", ["fraction", "signed", "pixels"])
def test_an_onnx_network_in_each_form(tmp_path: Path, coordinates: str) -> None:
    """Whatever it sees, it says that the points lie as in ArcFace's template: where the crop was taken from."""
    many = np.zeros((8, 2))
    many[[1, 3, 4, 6, 7]] = ARCFACE_TEMPLATE
    many[0], many[1] = ARCFACE_TEMPLATE[0] + 0.01, ARCFACE_TEMPLATE[0] - 0.01
    given = {"fraction": many, "signed": many * 2 - 1, "pixels": many * 32}[coordinates]
    settings = {
        "weights": constant_points(tmp_path / "points.onnx", given, 32),
        "size": 32,
        "coordinates": coordinates,
        "points": [[0, 1], [3], [4], [6], [7]],
    }
    finder = LandmarkFinder(parse(ONNXLandmarkerConfig, settings, "landmarks"))
    pixels, mask, _ = dotted(128)
    start = from_mask(mask)
    moved = SimilarityTransform.from_estimate(ARCFACE_TEMPLATE, start)(ARCFACE_TEMPLATE)
    assert np.abs(finder(pixels, mask) - moved).max() < 1e-2
    assert finder(pixels, None) == pytest.approx(ARCFACE_TEMPLATE, abs=1e-5)
    assert finder.source == "points"


def test_points_that_a_network_does_not_have(tmp_path: Path) -> None:
    weights = constant_points(tmp_path / "points.onnx", ARCFACE_TEMPLATE, 32)
    settings = {"weights": weights, "size": 32, "points": [[0], [1], [2], [3], [5]]}
    pixels, mask, _ = dotted(64)
    with pytest.raises(ConfigError, match="points gives 5 points, and number 5 is asked for"):
        LandmarkFinder(parse(ONNXLandmarkerConfig, settings, "landmarks"))(pixels, mask)
    odd = constant_points(tmp_path / "odd.onnx", np.zeros(9), 32)
    with pytest.raises(ConfigError, match=r"gave an array \[1, 9\], which is not \[1, n, 2\]"):
        LandmarkFinder(ONNXLandmarkerConfig(weights=odd, size=32))(pixels, mask)
    with pytest.raises(ConfigError, match="a lower and a higher number"):
        parse(ONNXLandmarkerConfig, {**settings, "value_range": [1, 1]}, "landmarks")


def test_ingest_stores_landmarks_and_exports_use_them(tmp_path: Path) -> None:
    """A network that moves all points: the exported crops follow the column, not the mask."""
    shifted = ARCFACE_TEMPLATE + np.array([0.05, 0.0])
    weights = constant_points(tmp_path / "points.onnx", shifted, 32)
    network = {"kind": "onnx", "weights": weights, "size": 32}
    data = {"kind": "procedural", "identities": 6, "pictures": 1, "size": 64, "seed": 5}
    crops = {}
    for name, landmarks in {"none": None, "mask": {"kind": "mask"}, "network": network}.items():
        job = {"kind": "ingest", "data": data, "landmarks": landmarks, "out": f"{tmp_path}/{name}"}
        make(job).run(quiet)
        form = {"kind": "folder", "size": 48, "align": "arcface", "masks": False}
        export = {"kind": "export", "faces": f"{tmp_path}/{name}", "format": form, "max_error_fraction": 1}
        make({**export, "out": f"{tmp_path}/{name}-crops"}).run(quiet)
        crops[name] = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / f"{name}-crops").rglob("*.png")}
    assert crops["none"].keys() == crops["mask"].keys()
    assert max(np.abs(crops["none"][key].astype(int) - crops["mask"][key]).max() for key in crops["none"]) <= 2
    rows = {name: load_dataset(f"{tmp_path}/{name}").to_pylist() for name in ("none", "mask", "network")}
    assert all(row["landmarks"] is None for row in rows["none"])
    told = 0
    for by_mask, by_network in zip(rows["mask"], rows["network"], strict=True):
        mask = decode_mask(by_mask["mask"]["bytes"])
        if by_mask["landmarks"]["points"] is None:
            assert by_mask["landmarks"]["error"].startswith("landmarks: ")
            continue
        told += 1
        assert np.allclose(by_mask["landmarks"]["points"], from_mask(mask), atol=1e-6)
        assert by_network["landmarks"]["source"] == "points"
        points = stored_points(by_network["landmarks"])
        wanted = crop(decode_image(by_network["image"]["bytes"]), points, ARCFACE_TEMPLATE, 48)
        same = [image for image in crops["network"].values() if (image == wanted).all()]
        assert len(same) == 1
    assert told >= 3


def test_identities_are_embedded_from_aligned_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the column, else by the mask; a row without either, or with an error, has no vector."""
    install_example(tmp_path, monkeypatch)
    faces = [draw(5, i, 1, 64) for i in range(4)]
    moved = (ARCFACE_TEMPLATE + 0.05).tolist()
    stored = [None, {"points": moved, "source": "x"}, {"error": "landmarks: hidden", "source": "x"}, None]
    rows = [
        {
            "sample_id": f"s{i}",
            "attempt": 0,
            "run_id": "r",
            "mask": None if i == 3 else picture(encode_mask(face.mask)),
            "landmarks": landmarks,
        }
        for i, (face, landmarks) in enumerate(zip(faces, stored, strict=True))
    ]
    identity = {"network": {"kind": "package", "name": "example-embedder"}, "region": "aligned"}
    score = {"parser": None, "features": None, "classifier": None, "identity": identity}
    scorer = Scorer(parse(ScoreConfig, score, "score"), run_id="r")
    images = np.stack([face.pixels for face in faces])
    scored = scorer(images, pa.Table.from_pylist(rows, SAMPLES)).to_pylist()
    assert [row["sample_id"] for row in scored] == ["s0", "s1"]
    for row, points in zip(scored, (from_mask(faces[0].mask), np.array(moved)), strict=True):
        aligned = crop(images[int(row["sample_id"][1])], points, ARCFACE_TEMPLATE, 16)
        wanted = scorer.identity.embed(torch.from_numpy(aligned[None].copy()))[0]
        assert np.allclose(row["vector"], wanted, atol=1e-5)
    assert scorer.protocols()["example-embedder"]["region"] == "aligned"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"points": None, "error": "landmarks: the mask has no nose"}, "^landmarks: the mask has no nose$"),
        ({"points": None, "error": None}, "^landmarks: none are stored$"),
        ({"points": [[0.5, 0.5]] * 5, "error": None}, "not five places"),
        ({"points": [[0.5, float("nan")]] * 5, "error": None}, "not five places"),
        ({"points": [[0.5, 0.4]], "error": None}, "not five places"),
    ],
)
def test_stored_landmarks_that_cannot_be_used(value: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        stored_points(value)
