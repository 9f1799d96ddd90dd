"""The vocabulary of faces against the published conventions."""

import collections

import numpy as np
import pytest

from raygen.core.face_labels import (
    ATTRIBUTE_INDEX,
    ATTRIBUTES,
    CLASS_INDEX,
    CLASSES,
    FACE_PARSING_CLASSES,
    FACE_PARSING_TO_OFFICIAL,
    LEFT_RIGHT,
    OFFICIAL_TO_FACE_PARSING,
    PALETTE,
    SPLITS,
    colorize,
    flip_mask,
    from_palette,
    split_of,
)


def some_mask():
    return np.random.default_rng(0).integers(0, 19, (16, 24), dtype=np.uint8)


def test_nineteen_classes_and_forty_attributes_without_repeats():
    assert len(CLASSES) == len(set(CLASSES)) == 19 == len(PALETTE)
    assert len(ATTRIBUTES) == len(set(ATTRIBUTES)) == 40
    assert [CLASS_INDEX[name] for name in ("skin", "hair", "cloth")] == [1, 13, 18]
    assert [ATTRIBUTE_INDEX[name] for name in ("5_o_Clock_Shadow", "Male", "Young")] == [0, 20, 39]


def test_every_class_has_its_own_colour():
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == 19
    assert PALETTE[7].tolist() == [255, 204, 204]  # face-parsing's own colour map differs just here


def test_face_parsing_order_is_remapped_as_published():
    published = [0, 1, 6, 7, 4, 5, 3, 8, 9, 15, 2, 10, 11, 12, 17, 16, 18, 13, 14]
    assert FACE_PARSING_TO_OFFICIAL.tolist() == published
    for label, official in enumerate(published):
        assert FACE_PARSING_CLASSES[label] == CLASSES[official]
        assert OFFICIAL_TO_FACE_PARSING[official] == label


def test_a_flip_mirrors_and_exchanges_left_and_right():
    mask = np.array([[4, 1, 0], [6, 2, 9]], np.uint8)
    assert flip_mask(mask).tolist() == [[0, 1, 5], [8, 2, 7]]


def test_two_flips_are_none_and_only_paired_classes_change():
    mask = some_mask()
    np.testing.assert_array_equal(flip_mask(flip_mask(mask)), mask)
    paired = {index for pair in LEFT_RIGHT for index in pair}
    assert {CLASSES[index] for index in paired} == {"l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"}
    for index in set(range(19)) - paired:
        np.testing.assert_array_equal(flip_mask(mask) == index, (mask == index)[:, ::-1])


def test_flip_keeps_batches_type_and_the_original():
    batch = np.stack([some_mask(), some_mask()])
    before = batch.copy()
    assert flip_mask(batch).shape == batch.shape
    assert flip_mask(batch).dtype == np.uint8
    np.testing.assert_array_equal(batch, before)


def test_colours_and_back():
    mask = some_mask()
    np.testing.assert_array_equal(from_palette(colorize(mask)), mask)


def test_a_mixed_colour_is_refused_and_named():
    pixels = colorize(some_mask())
    pixels[3, 5] = (1, 2, 3)
    with pytest.raises(ValueError, match=r"colour \(1, 2, 3\) at \(3, 5\)"):
        from_palette(pixels)


def test_a_class_above_18_has_no_colour():
    with pytest.raises(IndexError):
        colorize(np.array([[19]], np.uint8))


@pytest.mark.parametrize(
    ("name", "train", "test", "first"), [("codiff", 27_000, 3_000, 27_000), ("sca", 28_000, 2_000, 28_000)]
)
def test_splits_by_number(name, train, test, first):
    parts = [split_of(name, index) for index in range(30_000)]
    assert collections.Counter(parts) == {"train": train, "test": test}
    assert parts.index("test") == first


def test_the_taming_split_needs_its_list_and_follows_it():
    with pytest.raises(ValueError, match="celebahqvalidation"):
        split_of("taming", 0)
    chosen = frozenset(range(0, 30_000, 6))
    counts = collections.Counter(split_of("taming", index, validation=chosen) for index in range(30_000))
    assert counts == {"train": 25_000, "val": 5_000}


def test_the_official_split_needs_the_mapping_and_keeps_the_published_limits():
    with pytest.raises(ValueError, match="mapping"):
        split_of("official", 0)
    limits = {0: "train", 162_770: "train", 162_771: "val", 182_637: "val", 182_638: "test", 202_598: "test"}
    assert {n: split_of("official", 0, celeba_index=n) for n in limits} == limits


def test_every_named_split_is_known():
    for name in SPLITS:
        assert split_of(name, 0, celeba_index=0, validation=frozenset()) == "train"
