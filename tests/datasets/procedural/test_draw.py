"""Drawn faces: one scene is one picture, and its mask, attributes and captions say what the picture shows."""

import re
from functools import cache

import numpy as np
import pytest

from raygen.core.face_labels import ATTRIBUTE_INDEX, ATTRIBUTES, CLASS_INDEX, CLASSES
from raygen.datasets.procedural.draw import DrawnFace, draw

PEOPLE = 300
RECIPES = ("Bangs", "Eyeglasses", "No_Beard", "Smiling", "Young")


@cache
def faces() -> list[DrawnFace]:
    return [draw(1, identity, 0, 64) for identity in range(PEOPLE)]


@cache
def attributes() -> np.ndarray:
    """[500, 40]; the pictures are small, for attributes do not depend on the size."""
    return np.stack([draw(3, identity, 0, 32).attributes for identity in range(500)])


def has(face: DrawnFace, name: str) -> bool:
    return bool(face.attributes[ATTRIBUTE_INDEX[name]] == 1)


def pixels_of(face: DrawnFace, name: str) -> int:
    return int((face.mask == CLASS_INDEX[name]).sum())


def column(name: str) -> np.ndarray:
    return attributes()[:, ATTRIBUTE_INDEX[name]] == 1


@pytest.mark.parametrize("size", [32, 48, 63, 64, 200])
def test_shapes_and_types(size):
    face = draw(0, 12, 3, size)
    assert (face.pixels.shape, face.pixels.dtype) == ((size, size, 3), np.uint8)
    assert (face.mask.shape, face.mask.dtype) == ((size, size), np.uint8)
    assert (face.attributes.shape, face.attributes.dtype) == ((40,), np.int8)
    assert set(face.attributes.tolist()) == {-1, 1}
    assert face.mask.max() < len(CLASSES)
    assert face.identity_id == "p000012"


@pytest.mark.parametrize("size", [0, 31, 513])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"size {size}"):
        draw(0, 0, 0, size)


def test_a_face_is_a_function_of_its_numbers():
    first, again = draw(7, 4, 2, 64), draw(7, 4, 2, 64)
    assert (first.pixels == again.pixels).all()
    assert (first.mask == again.mask).all()
    assert (first.attributes == again.attributes).all()
    assert first.texts == again.texts
    for other in (draw(8, 4, 2, 64), draw(7, 5, 2, 64), draw(7, 4, 3, 64)):
        assert (first.pixels != other.pixels).mean() > 0.5


def test_another_size_shows_the_same_scene():
    difference, agreement = [], []
    for identity in range(12):
        small, large = draw(2, identity, 1, 64), draw(2, identity, 1, 128)
        halved = large.pixels.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        difference.append(np.abs(halved - small.pixels).mean())
        agreement.append((large.mask[::2, ::2] == small.mask).mean())
        assert (small.attributes == large.attributes).all()
        assert small.texts == large.texts
    assert np.mean(difference) < 4
    assert np.mean(agreement) > 0.95


def test_a_person_keeps_the_looks_and_no_two_pictures_are_alike():
    looks = ("Male", "Young", "Bald", "Black_Hair", "Blond_Hair", "Big_Nose", "Oval_Face", "Mustache", "Pale_Skin")
    for identity in range(10):
        variants = [draw(5, identity, variant, 48) for variant in range(4)]
        for name in looks:
            assert len({has(face, name) for face in variants}) == 1, name
        assert len({face.texts["beard_and_age"] for face in variants}) == 1
        for face in variants[1:]:
            assert np.abs(face.pixels.astype(int) - variants[0].pixels).mean() > 5


def test_every_class_occurs_and_left_is_the_persons_left():
    counts = np.sum([np.bincount(face.mask.ravel(), minlength=len(CLASSES)) for face in faces()], axis=0)
    assert (counts > 0).all()
    for name in ("eye", "brow"):
        for face in faces():
            left, right = (np.nonzero(face.mask == CLASS_INDEX[f"{side}_{name}"])[1] for side in "lr")
            if len(left) and len(right):
                assert left.mean() > right.mean()


def test_eyes_and_mouth_are_large_enough_to_read():
    for name, width in (("l_eye", 7), ("r_eye", 7), ("l_lip", 8)):
        widths = [
            np.ptp(np.nonzero(face.mask == CLASS_INDEX[name])[1]) + 1 for face in faces() if pixels_of(face, name)
        ]
        assert np.median(widths) >= width


@pytest.mark.parametrize(
    ("attribute", "name", "least"),
    [
        ("Eyeglasses", "eye_g", 50),
        ("Wearing_Hat", "hat", 50),
        ("Wearing_Earrings", "ear_r", 1),
        ("Wearing_Necklace", "neck_l", 3),
        ("Mouth_Slightly_Open", "mouth", 1),
    ],
)
def test_what_is_worn_is_in_the_mask(attribute, name, least):
    worn = [pixels_of(face, name) for face in faces() if has(face, attribute)]
    assert worn
    assert np.percentile(worn, 5) >= least
    assert all(pixels_of(face, name) == 0 for face in faces() if not has(face, attribute))


def test_the_bald_have_no_hair_and_no_hair_colour():
    bald = [face for face in faces() if has(face, "Bald")]
    assert bald
    for face in bald:
        assert pixels_of(face, "hair") < 40
        assert not any(has(face, f"{colour}_Hair") for colour in ("Black", "Blond", "Brown", "Gray"))


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_is_met_and_missed(name):
    assert 5 <= column(name).sum() <= 495


def test_attributes_do_not_contradict_each_other():
    assert np.sum([column(f"{colour}_Hair") for colour in ("Black", "Blond", "Brown", "Gray")], axis=0).max() == 1
    assert not (column("Straight_Hair") & column("Wavy_Hair")).any()
    for name in ("Bangs", "Straight_Hair", "Wavy_Hair", "Receding_Hairline"):
        assert not (column("Bald") & column(name)).any(), name
    for name in ("Mustache", "Goatee", "5_o_Clock_Shadow", "Sideburns", "Wearing_Necktie"):
        assert not (column(name) & ~column("Male")).any(), name
    assert not (column("No_Beard") & (column("Goatee") | column("5_o_Clock_Shadow"))).any()
    assert not (column("Heavy_Makeup") & ~column("Wearing_Lipstick")).any()
    assert 0.4 < column("Male").mean() < 0.6


def test_captions_say_what_the_attributes_say():
    for face in faces():
        assert set(face.texts) == {*RECIPES, "overall", "beard_and_age"}
        for recipe in RECIPES:
            assert re.fullmatch(r"[A-Z][^.]*\.", face.texts[recipe])
            assert face.texts[recipe] in face.texts["overall"]
        assert ("is wearing" in face.texts["Eyeglasses"]) == has(face, "Eyeglasses")
        assert ("smiling broadly" in face.texts["Smiling"] or "gentle smile" in face.texts["Smiling"]) == has(
            face, "Smiling"
        )
        assert (" man " in face.texts["Young"]) == has(face, "Male")
        if has(face, "Goatee"):
            assert re.search("goatee|beard", face.texts["No_Beard"])
        if not has(face, "Male"):
            assert "no beard" in face.texts["No_Beard"]


def test_beard_and_age_leaves_out_what_the_mask_shows():
    said = {face.texts["beard_and_age"] for face in faces()}
    assert len(said) > 8
    assert not any(re.search("bangs|forehead|glasses|lenses|smil", text) for text in said)
    for face in faces():
        assert face.texts["beard_and_age"] == f"{face.texts['Young']} {face.texts['No_Beard']}"


def test_grades_are_told_apart():
    for recipe, grades in (("Bangs", 3), ("Eyeglasses", 3), ("No_Beard", 4), ("Smiling", 4), ("Young", 8)):
        assert len({face.texts[recipe] for face in faces()}) >= grades


def mean_iou(guess: np.ndarray, truth: np.ndarray) -> float:
    classes = len(CLASSES)
    confusion = np.bincount(truth.ravel().astype(int) * classes + guess.ravel(), minlength=classes**2)
    confusion = confusion.reshape(classes, classes)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return float(np.mean(np.diag(confusion)[union > 0] / union[union > 0]))


def test_a_class_cannot_be_told_by_its_colour():
    pixels, masks = np.stack([f.pixels for f in faces()]), np.stack([f.mask for f in faces()])
    code = (pixels // 16).astype(int) @ np.array([256, 16, 1])  # 16 levels a channel
    counts = np.bincount(code[:200].ravel() * 32 + masks[:200].ravel(), minlength=4096 * 32).reshape(4096, 32)
    assert mean_iou(counts.argmax(axis=1)[code[200:]], masks[200:]) < 0.25


def test_a_class_cannot_be_told_by_colour_and_height():
    """The stronger guess: the most frequent class of a colour (8 levels) in each of 8 bands of the picture."""
    pixels, masks = np.stack([f.pixels for f in faces()]), np.stack([f.mask for f in faces()])
    code = (pixels // 32).astype(int) @ np.array([64, 8, 1]) + 512 * (np.arange(64) // 8)[:, None]
    counts = np.bincount(code[:200].ravel() * 32 + masks[:200].ravel(), minlength=4096 * 32).reshape(4096, 32)
    assert mean_iou(counts.argmax(axis=1)[code[200:]], masks[200:]) < 0.5
