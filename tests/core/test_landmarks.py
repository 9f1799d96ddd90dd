"""Five landmarks from masks: how far from the true ones of drawn faces; the transform against least squares."""

import numpy as np
import pytest
from PIL import Image
from skimage.transform import SimilarityTransform

from raygen.core.errors import InputError
from raygen.core.face_labels import CLASS_INDEX
from raygen.core.landmarks import ARCFACE_TEMPLATE, from_mask, misfit, similarity
from raygen.datasets.procedural.draw import draw
from raygen.datasets.procedural.points import landmarks
from raygen.datasets.procedural.scene_sampler import person_of, scene_of


@pytest.fixture(scope="module")
def faces():
    """Masks of drawn faces with their true landmarks."""
    found = []
    for identity in range(40):
        person = person_of(5, identity)
        found.append((draw(5, identity, 1, 128).mask, landmarks(person, scene_of(5, identity, 1, person))))
    return found


def test_landmarks_of_drawn_faces_are_near_the_true_ones(faces):
    errors = []
    for mask, true in faces:
        eyes = np.hypot(*(true[1] - true[0]))
        errors.append(np.hypot(*(from_mask(mask) - true).T) / eyes)
    assert np.mean(errors, axis=0).max() < 0.08  # of the distance of the eyes, for each of the five
    assert np.max(errors) < 0.25


def test_they_turn_and_scale_with_the_picture(faces):
    mask, _ = faces[0]
    points = from_mask(mask)
    large = from_mask(mask.repeat(2, axis=0).repeat(2, axis=1))
    assert np.abs(large - points).max() < 0.01
    mirrored = from_mask(mask[:, ::-1].copy())
    assert np.abs(mirrored[[1, 0, 2, 4, 3]] * [-1, 1] + [1, 0] - points).max() < 0.01
    turned = from_mask(np.asarray(Image.fromarray(mask).rotate(20)))
    cos, sin = np.cos(np.pi / 9), np.sin(np.pi / 9)
    assert np.abs(turned - ((points - 0.5) @ np.array([[cos, -sin], [sin, cos]]) + 0.5)).max() < 0.02


@pytest.mark.parametrize(("name", "text"), [("nose", "no nose"), ("l_eye", "no l_eye"), ("mouth", "no mouth")])
def test_a_missing_part_is_told(faces, name, text):
    mask = faces[0][0].copy()
    parts = {"nose": ("nose",), "l_eye": ("l_eye", "eye_g"), "mouth": ("mouth", "u_lip", "l_lip")}[name]
    mask[np.isin(mask, [CLASS_INDEX[part] for part in parts])] = CLASS_INDEX["skin"]
    with pytest.raises(InputError, match=f"^landmarks: the mask has {text}$"):
        from_mask(mask)


def test_eyes_behind_glasses_are_where_the_glasses_say(faces):
    mask, true = next((m, t) for m, t in faces if not (m == CLASS_INDEX["eye_g"]).any())
    mask, eyes = mask.copy(), (true[:2] * 128).astype(int)
    mask[np.isin(mask, [CLASS_INDEX["l_eye"], CLASS_INDEX["r_eye"]])] = CLASS_INDEX["skin"]
    half = (eyes[1, 0] - eyes[0, 0]) // 2
    top = eyes[:, 1].min()
    mask[top - 8 : top + 9, eyes[0, 0] - half : eyes[1, 0] + half] = CLASS_INDEX["eye_g"]
    assert np.abs(from_mask(mask)[:2] - true[:2]).max() < 0.05


def test_a_face_from_the_side_is_told(faces):
    mask, _ = faces[0]
    narrow = mask[:, ::4]
    with pytest.raises(InputError, match=r"^landmarks: seen from the side"):
        from_mask(np.pad(narrow, ((0, 0), (48, 48))))


def test_the_transform_is_that_of_scikit_image():
    generator = np.random.default_rng(0)
    for _ in range(20):
        source, target = generator.normal(size=(5, 2)), generator.normal(size=(5, 2))
        theirs = SimilarityTransform.from_estimate(source, target)
        assert np.allclose(similarity(source, target), theirs.params[:2], atol=1e-9)
    with pytest.raises(ValueError, match="one place"):
        similarity(np.ones((5, 2)), ARCFACE_TEMPLATE)


def test_the_template_fits_itself_however_it_lies():
    turn = 3 * np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])
    assert misfit(ARCFACE_TEMPLATE @ turn.T + [4, 5]) == pytest.approx(0, abs=1e-12)
