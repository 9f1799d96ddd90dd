"""The package around dlib's networks (benchmarks/dlib_extractor), with dlib itself and its published weights.

Needs dlib-bin and face_recognition_models in a folder that RAYGEN_DLIB names: `make nightly`.
"""

import importlib
import json
import os
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from raygen.commands.registry import load, make
from raygen.core.landmarks import from_mask
from raygen.datasets.procedural.draw import draw
from raygen.extractors.config import FaceEmbedderConfig, PackageEmbedderConfig, PackageLandmarkerConfig
from raygen.extractors.face_embedder import load_face_embedder
from raygen.extractors.landmarks import LandmarkFinder
from tests.drawn import quiet
from tests.extractors.packages import install

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "benchmarks/dlib_extractor"
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif("RAYGEN_DLIB" not in os.environ, reason="RAYGEN_DLIB is not set"),
]
EMBEDDER = PackageEmbedderConfig(name="dlib-face-recognition")


@pytest.fixture(autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    offers = project["entry-points"]["raygen.extractors"]
    install(tmp_path_factory.mktemp("site"), monkeypatch, project["name"], project["version"], offers)
    monkeypatch.setattr(sys, "path", [*sys.path, str(PACKAGE), os.environ["RAYGEN_DLIB"]])


def test_a_vector_is_that_of_dlibs_own_chip() -> None:
    """A face is cut out as dlib's own function for chips of 150 px does it; without a face there is no vector."""
    import dlib
    from raygen_dlib import weights

    points = dlib.shape_predictor(str(weights("shape_predictor_5_face_landmarks.dat")))
    network = dlib.face_recognition_model_v1(str(weights("dlib_face_recognition_resnet_model_v1.dat")))
    image = draw(5, 2, 1, 256).pixels
    face = max(dlib.get_frontal_face_detector()(image, 1), key=lambda found: found.area())
    chip = dlib.get_face_chip(image, points(image, face), 150, 0.25)
    wanted = np.array(network.compute_face_descriptor(chip))
    images = torch.from_numpy(np.stack([image, np.full_like(image, 127)]))
    vectors = load_face_embedder(FaceEmbedderConfig(network=EMBEDDER), torch.device("cpu")).embed(images)
    assert np.allclose(vectors[0], wanted / np.linalg.norm(wanted), atol=1e-5)
    assert vectors[1].isnan().all()


def test_landmarks_of_drawn_faces_are_near_those_of_their_masks() -> None:
    finder = LandmarkFinder(PackageLandmarkerConfig(name="dlib-landmarks", margin=1.6))
    face = draw(5, 2, 1, 256)
    own = from_mask(face.mask)
    distance = np.hypot(*(finder(face.pixels, face.mask) - own).T) / np.hypot(*(own[1] - own[0]))
    assert distance.max() < 0.3


def test_the_weights_are_found_without_importing_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """face_recognition_models 0.3.0 imports `pkg_resources` (face_recognition_models/__init__.py), which setuptools 84
    does not have; one would guess that a package of files needs nothing. Where the first assertion fails, the package
    can be imported.
    """
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    monkeypatch.delitem(sys.modules, "face_recognition_models", raising=False)
    with pytest.raises(ImportError, match="pkg_resources"):
        importlib.import_module("face_recognition_models")
    assert load_face_embedder(FaceEmbedderConfig(network=EMBEDDER), torch.device("cpu")).sha256.startswith("451b8db9")


@pytest.mark.real
@pytest.mark.skipif("RAYGEN_REAL_DATA" not in os.environ, reason="RAYGEN_REAL_DATA is not set")
def test_people_on_photographs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of docs/results.md: EER 0.0026, where the bundled embedder has 0.148."""
    monkeypatch.chdir(ROOT)
    faces = [f"data.root={os.environ['RAYGEN_REAL_DATA']}/att-faces", "data.size=null", "data.crop=none"]
    load("jobs/att_faces/ingest.yaml", [*faces, f"out={tmp_path}/faces"]).run(quiet)
    overrides = [f"reference={tmp_path}/faces", f"out={tmp_path}/dlib"]
    make(load("jobs/att_faces/verify_dlib.yaml", overrides).document()).run(quiet)
    rows = json.loads((tmp_path / "dlib/metrics/metrics.json").read_text())
    row = next(row for row in rows if row["metric"] == "eer:dlib-face-recognition")
    assert row["n"] == 290
    assert row["value"] == pytest.approx(0.0026, abs=0.001)
