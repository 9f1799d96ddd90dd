"""Counts and scores of label maps against cases counted by hand."""

import numpy as np
import numpy.typing as npt
import pytest

from raygen.core.face_labels import CLASS_INDEX, CLASSES, OFFICIAL_TO_FACE_PARSING
from raygen.metrics.segmentation import Counts, bootstrap_miou, confusion, per_picture_miou

UInt8Array = npt.NDArray[np.uint8]
SKIN, NOSE, HAIR = (CLASS_INDEX[name] for name in ("skin", "nose", "hair"))
WANTED = np.array([[0, 0, SKIN], [SKIN, SKIN, NOSE]], dtype=np.uint8)
PARSED = np.array([[0, SKIN, SKIN], [SKIN, HAIR, SKIN]], dtype=np.uint8)


def pictures(n: int, seed: int = 0, wrong: float = 0.2) -> tuple[UInt8Array, UInt8Array]:
    """Masks of unequal classes, and parses of them that are wrong here and there."""
    random = np.random.default_rng(seed)
    share = np.geomspace(1, 0.02, len(CLASSES))
    wanted = random.choice(len(CLASSES), size=(n, 24, 24), p=share / share.sum()).astype(np.uint8)
    noise = random.integers(0, len(CLASSES), wanted.shape).astype(np.uint8)
    return wanted, np.where(random.random(wanted.shape) < wrong, noise, wanted)


def counts(wanted: UInt8Array, parsed: UInt8Array) -> Counts:
    return Counts.from_vectors(
        np.array([Counts.of(confusion(a, b)).vector() for a, b in zip(wanted, parsed, strict=True)])
    )


def test_a_case_counted_by_hand() -> None:
    matrix = confusion(WANTED, PARSED)
    assert matrix.sum() == 6
    assert matrix[0, 0] == matrix[0, SKIN] == matrix[SKIN, HAIR] == matrix[NOSE, SKIN] == 1
    assert matrix[SKIN, SKIN] == 2
    found = Counts.of(matrix)
    iou = found.iou()
    assert iou[0] == pytest.approx(1 / 2)
    assert iou[SKIN] == pytest.approx(2 / 5)
    assert iou[NOSE] == iou[HAIR] == 0  # wanted and never found, found and never wanted: both count
    assert np.isnan(np.delete(iou, [0, SKIN, NOSE, HAIR])).all()
    scores = found.scores()
    assert scores["miou"] == pytest.approx((1 / 2 + 2 / 5) / 4)
    assert scores["pixel_accuracy"] == pytest.approx(3 / 6)
    assert scores["class_accuracy"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert scores["frequency_iou"] == pytest.approx(2 / 6 / 2 + 3 / 6 * 2 / 5)
    assert scores["classes"] == 4


def test_a_perfect_parse_scores_one_over_the_classes_that_are_there() -> None:
    scores = Counts.of(confusion(WANTED, WANTED)).scores()
    assert scores == {
        "miou": 1.0,
        "pixel_accuracy": 1.0,
        "class_accuracy": 1.0,
        "frequency_iou": pytest.approx(1.0),
        "classes": 3.0,
    }


def test_nothing_counted_is_not_a_number_and_not_an_error() -> None:
    empty = Counts.of(confusion(WANTED[:0], PARSED[:0])).scores()
    assert np.isnan(empty["miou"])
    assert np.isnan(empty["class_accuracy"])
    assert empty["classes"] == 0


@pytest.mark.parametrize(
    ("wanted", "parsed"),
    [([0, 25], [0, 0]), ([0, 0], [0, 25]), ([0, 1], [0, -1]), ([18, 18], [19, 0]), ([0, 0, 0], [0, 0])],
)
def test_labels_that_are_none_and_other_shapes_are_refused(wanted: list[int], parsed: list[int]) -> None:
    with pytest.raises(ValueError):
        confusion(np.array(wanted), np.array(parsed))


def test_a_forgotten_remap_lowers_the_score_much() -> None:
    wanted, parsed = pictures(20)
    right = counts(wanted, parsed).total().scores()
    forgotten = counts(wanted, OFFICIAL_TO_FACE_PARSING[parsed]).total().scores()
    assert right["miou"] > 0.4
    assert forgotten["miou"] < 0.5 * right["miou"]
    assert forgotten["pixel_accuracy"] < 0.75 * right["pixel_accuracy"]


def test_vectors_round_trip_through_float32() -> None:
    matrix = np.random.default_rng(1).integers(0, 50_000, (19, 19))
    matrix[3, 3] = 4096 * 4096 - 1 - int(matrix.sum(axis=1)[3])  # the largest picture that is allowed
    before = Counts.of(matrix)
    after = Counts.from_vectors(np.array([before.vector()] * 2, dtype=np.float32))
    for name in ("both", "wanted", "predicted"):
        np.testing.assert_array_equal(getattr(after, name), [getattr(before, name)] * 2)


def test_counts_add_up() -> None:
    wanted, parsed = pictures(7)
    total, whole = counts(wanted, parsed).total(), Counts.of(confusion(wanted, parsed))
    np.testing.assert_array_equal(total.both, whole.both)
    np.testing.assert_array_equal(total.wanted, whole.wanted)
    np.testing.assert_array_equal(total.predicted, whole.predicted)


def test_the_level_of_the_average_matters() -> None:
    wanted, parsed = np.stack([WANTED, WANTED]), np.stack([WANTED, PARSED])
    found = counts(wanted, parsed)
    np.testing.assert_allclose(per_picture_miou(found), [1.0, (1 / 2 + 2 / 5) / 4])
    assert found.total().scores()["miou"] != pytest.approx(per_picture_miou(found).mean())


def test_the_bootstrap_is_repeatable_and_contains_the_score() -> None:
    found = counts(*pictures(30))
    low, high = bootstrap_miou(found, rounds=100)
    assert (low, high) == bootstrap_miou(found, rounds=100)
    assert (low, high) != bootstrap_miou(found, rounds=100, seed=1)
    assert low < found.total().scores()["miou"] < high
