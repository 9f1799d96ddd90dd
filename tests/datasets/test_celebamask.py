"""CelebAMask-HQ: part masks, ready-made masks, the text files beside the pictures, published splits."""

import collections
import hashlib
import io
import itertools
import re
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import (
    ATTRIBUTES,
    CLASS_INDEX,
    CLASSES,
    FACE_PARSING_TO_OFFICIAL,
    PALETTE,
    attribute_list,
    colorize,
)
from raygen.datasets.annotations import attribute_values, number_of
from raygen.datasets.base import FACES_OR_ERROR, IngestWorker
from raygen.datasets.celebamask import CelebAMask, merge_parts
from raygen.store.images import decode_image, decode_mask
from raygen.store.parquet import from_parquet, to_parquet
from raygen.store.schemas import FACES, cast

SIZE = 16


def picture(path, seed=0, size=2 * SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def part(root, number, name, rows, columns, mode="RGB", value=255):
    area = np.zeros((SIZE, SIZE), np.uint8)
    area[rows, columns] = value
    path = root / f"CelebAMask-HQ-mask-anno/{number // 2000}/{number:05d}_{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(area).convert(mode).save(path)


def attribute_file(root, values, names=ATTRIBUTES, name="CelebAMask-HQ-attribute-anno.txt"):
    """The published form: a count, the names, then rows with two spaces before some values and a trailing one."""
    lines = [str(len(values)), " ".join(names)]
    for number, row in values.items():
        lines.append(f"{number}.jpg " + " ".join(f" {v}" if not str(v).startswith("-") else str(v) for v in row) + " ")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\r\n".join(lines).encode())


def rows(dataset):
    return dataset.load(dataset.listing()).to_pylist()


def only(dataset):
    (row,) = rows(dataset)
    return row


# --- parts ---


def test_parts_are_merged_in_the_official_order_whatever_their_order_on_disk(tmp_path):
    picture(tmp_path / "CelebA-HQ-img/2000.jpg")
    part(tmp_path, 2000, "skin", slice(0, 12), slice(0, 12))
    part(tmp_path, 2000, "nose", slice(4, 8), slice(4, 8), mode="L")
    part(tmp_path, 2000, "hair", slice(0, 6), slice(None), value=1)  # any non-zero value counts
    part(tmp_path, 2000, "cloth", slice(11, 16), slice(None))
    mask = decode_mask(only(CelebAMask(root=str(tmp_path)))["mask"]["bytes"])
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[0:12, 0:12] = CLASS_INDEX["skin"]
    expected[4:8, 4:8] = CLASS_INDEX["nose"]
    expected[0:6] = CLASS_INDEX["hair"]  # over skin and the upper half of the nose
    expected[11:16] = CLASS_INDEX["cloth"]
    np.testing.assert_array_equal(mask, expected)


def test_of_any_two_overlapping_parts_the_later_class_wins():
    everywhere = np.ones((2, 2), bool)
    for lower, upper in itertools.combinations(range(1, 19), 2):
        assert (merge_parts({CLASSES[upper]: everywhere, CLASSES[lower]: everywhere}) == upper).all()


def test_parts_of_different_sizes_and_damaged_parts_are_error_rows(tmp_path):
    for number in (0, 1, 2):
        picture(tmp_path / f"CelebA-HQ-img/{number}.jpg")
        part(tmp_path, number, "skin", slice(None), slice(None))
    folder = tmp_path / "CelebAMask-HQ-mask-anno/0"
    Image.new("L", (8, 8)).save(folder / "00000_nose.png")
    (folder / "00001_nose.png").write_bytes((folder / "00000_nose.png").read_bytes()[:55])
    errors = [row["error"] for row in rows(CelebAMask(root=str(tmp_path)))]
    assert errors[0].startswith("size:")
    assert errors[1].split(":")[0] in ("truncated", "corrupt")
    assert errors[2] is None


def test_odd_parts_are_error_rows_and_never_other_classes(tmp_path):
    folder = tmp_path / "CelebAMask-HQ-mask-anno/0"
    shape = np.zeros((SIZE, SIZE), np.uint8)
    shape[4:8, 4:8] = 255
    alpha = Image.fromarray(np.dstack([np.full((SIZE, SIZE, 3), 255, np.uint8), shape]))
    black = Image.fromarray(shape // 255)
    black.putpalette(bytes(6))
    jpeg = io.BytesIO()
    Image.fromarray(shape).save(jpeg, "JPEG")
    inverted = Image.fromarray(255 - shape)
    odd = {"hair": alpha, "cloth": black, "skin": Image.fromarray(shape // 2 + 1), "l_eye": inverted, "neck": jpeg}
    for number, (name, image) in enumerate(odd.items()):
        picture(tmp_path / f"CelebA-HQ-img/{number}.jpg")
        part(tmp_path, number, "nose", slice(0, 4), slice(0, 4))
        path = folder / f"{number:05d}_{name}.png"
        path.write_bytes(image.getvalue()) if image is jpeg else image.save(path)
    errors = [row["error"] for row in rows(CelebAMask(root=str(tmp_path)))]
    assert [error.split(":")[0] for error in errors] == ["part", "part", "part", "part", "lossy"]
    assert f"{folder}/00000_hair.png" in errors[0]
    assert "l_eye covers all corners" in errors[3]


def test_part_files_of_other_spellings_are_read_refused_or_said(tmp_path):
    """A part that is passed by turns its pixels into another class."""
    folder = tmp_path / "CelebAMask-HQ-mask-anno/0"
    for number in range(4):
        picture(tmp_path / f"CelebA-HQ-img/{number}.jpg")
        part(tmp_path, number, "skin", slice(None), slice(None))
        part(tmp_path, number, "hair", slice(0, 4), slice(None))
    (folder / "00000_hair.png").rename(folder / "00000_Hair.PNG")
    shutil.copytree(folder, folder.with_name("1"), ignore=lambda _, names: [n for n in names if n != "00001_hair.png"])
    Image.new("L", (SIZE, SIZE)).save(folder / "00002_nose.jpg")
    Image.new("L", (SIZE, SIZE)).save(folder / "00003_beard.png")
    dataset = CelebAMask(root=str(tmp_path))
    found = rows(dataset)
    assert [row["error"] and row["error"].split(":")[0] for row in found] == [None, "part", "lossy", None]
    assert "1/00001_hair.png: a second file of the part hair" in found[1]["error"]
    assert (decode_mask(found[0]["mask"]["bytes"])[:4] == CLASS_INDEX["hair"]).all()
    assert dataset.listing().schema.metadata[b"note"] == b"parts of no class, not read: 1 beard"


def test_everything_in_a_zip_is_read_by_a_chained_url(tmp_path):
    picture(tmp_path / "set/CelebA-HQ-img/2000.jpg")
    part(tmp_path / "set", 2000, "skin", slice(0, 12), slice(0, 12))
    attribute_file(tmp_path / "set", {2000: values(3)})
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (tmp_path / "set").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path))
    unpacked = only(CelebAMask(root=str(tmp_path / "set")))
    for root in (f"zip://set::{tmp_path}/all.zip", f"zip://set/::file://{tmp_path}/all.zip"):
        assert only(CelebAMask(root=root)) == unpacked
    assert unpacked["error"] is None
    assert decode_mask(unpacked["mask"]["bytes"]).any()


def test_a_picture_without_parts_is_an_error_when_parts_are_asked_for_and_a_null_otherwise(tmp_path):
    for number in (0, 1):
        picture(tmp_path / f"CelebA-HQ-img/{number}.jpg")
    part(tmp_path, 0, "skin", slice(None), slice(None))
    strict = rows(CelebAMask(root=str(tmp_path), masks="parts"))
    assert [row["error"] and row["error"].split(":")[0] for row in strict] == [None, "no_mask"]
    relaxed = rows(CelebAMask(root=str(tmp_path)))
    assert [(row["error"], row["mask"] is None) for row in relaxed] == [(None, False), (None, True)]


def test_masks_that_are_asked_for_and_nowhere_are_a_configuration_error(tmp_path):
    picture(tmp_path / "CelebA-HQ-img/0.jpg")
    for masks in ("parts", "index"):
        with pytest.raises(ConfigError, match=f"no masks of the kind '{masks}'"):
            CelebAMask(root=str(tmp_path), masks=masks).listing()
    assert only(CelebAMask(root=str(tmp_path)))["mask"] is None


# --- ready-made masks ---


def classes():
    return np.random.default_rng(3).integers(0, 19, (SIZE, SIZE), dtype=np.uint8)


def as_index(mask):
    return Image.fromarray(mask)


def as_palette(mask):
    image = Image.fromarray(mask)
    image.putpalette(PALETTE.tobytes())
    return image


def as_odd_palette(mask):
    image = Image.fromarray(mask)
    image.putpalette(bytes(range(57)))  # not the official colours: indices count, colours do not
    return image


def as_colours(mask):
    return Image.fromarray(colorize(mask))


@pytest.mark.parametrize("form", [as_index, as_palette, as_odd_palette, as_colours])
@pytest.mark.parametrize(
    "name",
    [
        "CelebAMaskHQ-mask/7.png",
        "CelebAMask-HQ-mask-color/7.png",
        "CelebAMask-HQ-mask-color-palette/00007.png",
        "own/7.png",
    ],
)
def test_ready_masks_keep_their_indices_in_every_form(tmp_path, form, name):
    picture(tmp_path / "CelebA-HQ-img/7.jpg")
    (tmp_path / name).parent.mkdir()
    form(classes()).save(tmp_path / name)
    given = {"mask_folder": "own"} if name.startswith("own") else {}
    mask = only(CelebAMask(root=str(tmp_path), **given))["mask"]["bytes"]
    np.testing.assert_array_equal(decode_mask(mask), classes())


def test_ready_masks_in_other_formats_are_read_or_refused_and_never_passed_by(tmp_path):
    for number, ending in enumerate(("bmp", "tif", "jpg")):
        picture(tmp_path / f"CelebA-HQ-img/{number}.jpg")
        (tmp_path / "CelebAMask-HQ-mask").mkdir(exist_ok=True)
        as_index(classes()).save(tmp_path / f"CelebAMask-HQ-mask/{number}.{ending}")
    found = rows(CelebAMask(root=str(tmp_path)))
    assert [row["error"] and row["error"].split(":")[0] for row in found] == [None, None, "lossy"]
    for row in found[:2]:
        np.testing.assert_array_equal(decode_mask(row["mask"]["bytes"]), classes())
    as_index(classes()).save(tmp_path / "CelebAMask-HQ-mask/2.png")
    assert rows(CelebAMask(root=str(tmp_path)))[2]["error"] is None, "PNG first"
    as_index(classes()).save(tmp_path / "CelebAMask-HQ-mask/00002.png")
    with pytest.raises(ConfigError, match=r"'00002.png' and '2.png' would both be the mask of picture 2"):
        CelebAMask(root=str(tmp_path)).listing()


def test_masks_in_the_order_of_face_parsing(tmp_path):
    picture(tmp_path / "0.jpg")
    as_index(classes()).save(tmp_path / "0_mask.png")
    mask = only(CelebAMask(root=str(tmp_path), labels="face_parsing"))["mask"]["bytes"]
    np.testing.assert_array_equal(decode_mask(mask), FACE_PARSING_TO_OFFICIAL[classes()])
    (tmp_path / "0_mask.png").unlink()
    with pytest.raises(ConfigError, match="labels: face_parsing"):
        CelebAMask(root=str(tmp_path), labels="face_parsing").listing()


def test_the_flat_layout_prefers_the_plain_mask_and_ignores_masks_without_a_picture(tmp_path):
    picture(tmp_path / "0.jpg")
    picture(tmp_path / "1.jpg")
    as_index(classes()).save(tmp_path / "0_mask.png")
    as_palette(np.zeros_like(classes())).save(tmp_path / "0_mask_256_palette.png")
    as_palette(classes()).save(tmp_path / "1_mask_256_palette.png")
    as_palette(classes()).save(tmp_path / "29980_mask_256_palette.png")
    found = rows(CelebAMask(root=str(tmp_path), masks="index"))
    assert [row["face_id"] for row in found] == ["00000", "00001"]
    for row in found:
        np.testing.assert_array_equal(decode_mask(row["mask"]["bytes"]), classes())


def test_pictures_and_masks_of_one_flat_folder_are_not_confused(tmp_path):
    picture(tmp_path / "0.png")
    assert only(CelebAMask(root=str(tmp_path)))["mask"] is None


@pytest.mark.parametrize(
    ("form", "mask", "reason"),
    [
        (as_index, np.full((SIZE, SIZE), 19, np.uint8), "label"),
        (as_palette, np.full((SIZE, SIZE), 200, np.uint8), "label"),
        (Image.fromarray, np.full((SIZE, SIZE, 3), (3, 4, 5), np.uint8), "palette"),
        (as_index, np.zeros((SIZE, SIZE // 2), np.uint8), "size"),
    ],
)
def test_bad_masks_are_rows_with_their_reason_beside_good_rows(tmp_path, form, mask, reason):
    for number in (0, 1):
        picture(tmp_path / f"{number}.jpg")
    form(mask).save(tmp_path / "0_mask.png")
    as_index(classes()).save(tmp_path / "1_mask.png")
    bad, good = rows(CelebAMask(root=str(tmp_path)))
    assert bad["error"].startswith(f"{reason}:")
    assert (bad["face_id"], bad["image"], good["error"]) == ("00000", None, None)


def test_size_resizes_the_picture_smoothly_and_the_mask_by_nearest(tmp_path):
    picture(tmp_path / "0.jpg", size=64)
    as_palette(classes()).save(tmp_path / "0_mask.png")
    row = only(CelebAMask(root=str(tmp_path), size=8))
    assert decode_image(row["image"]["bytes"]).shape == (8, 8, 3)
    small = np.asarray(Image.fromarray(classes()).resize((8, 8), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(decode_mask(row["mask"]["bytes"]), small)
    untouched = only(CelebAMask(root=str(tmp_path)))
    assert untouched["image"] == {"bytes": (tmp_path / "0.jpg").read_bytes(), "path": "0.jpg"}
    assert decode_mask(untouched["mask"]["bytes"]).shape == (SIZE, SIZE)


# --- attributes ---


def values(seed):
    return np.random.default_rng(seed).choice([-1, 1], 40).tolist()


@pytest.mark.parametrize(
    "name", ["CelebAMask-HQ-attribute-anno.txt", "classification_label/CelebAMask-HQ-attribute-anno.txt"]
)
def test_attributes_with_irregular_spacing(tmp_path, name):
    for number in (0, 12):
        picture(tmp_path / f"CelebA-HQ-img/{number}.jpg")
    attribute_file(tmp_path, {0: values(0), 12: values(12), 13: values(13)}, name=name)
    found = rows(CelebAMask(root=str(tmp_path)))
    assert [attribute_list(row["attributes"]) for row in found] == [values(0), values(12)]


def test_attributes_follow_the_names_in_the_file(tmp_path):
    picture(tmp_path / "0.jpg")
    attribute_file(tmp_path, {0: list(reversed(values(0)))}, names=tuple(reversed(ATTRIBUTES)))
    assert attribute_list(only(CelebAMask(root=str(tmp_path)))["attributes"]) == values(0)


def test_without_the_file_attributes_are_null(tmp_path):
    picture(tmp_path / "0.jpg")
    row = only(CelebAMask(root=str(tmp_path)))
    assert (row["attributes"], row["texts"], row["identity_id"], row["error"]) == (None, None, None, None)


def test_an_attribute_file_under_another_name_is_said_and_read_by_its_name(tmp_path):
    picture(tmp_path / "0.jpg")
    attribute_file(tmp_path, {0: values(0)}, name="list_attr.csv")
    listing = CelebAMask(root=str(tmp_path)).listing()
    assert listing.schema.metadata[b"note"].startswith(b"no attributes: list_attr.csv has not the usual name")
    named = CelebAMask(root=str(tmp_path), attributes="list_attr.csv")
    assert named.listing().schema.metadata is None
    assert attribute_list(only(named)["attributes"]) == values(0)


def test_bad_attribute_values_cost_their_own_row(tmp_path):
    for number in range(6):
        picture(tmp_path / f"{number}.jpg")
    lines = {
        0: [2, *values(0)[1:]],
        1: values(1)[:-1],
        2: ["x", *values(2)[1:]],
        3: [0, *values(3)[1:]],
        5: [*values(5), 1],
    }
    attribute_file(tmp_path, lines)
    found = rows(CelebAMask(root=str(tmp_path)))
    reasons = [row["error"] and row["error"].split(":")[0] for row in found]
    assert reasons == ["attributes", "attributes", "attributes", None, "attributes", "attributes"]
    assert "5_o_Clock_Shadow is '2'" in found[0]["error"]
    assert found[3]["attributes"]["5_o_Clock_Shadow"] == 0


def dialect(name, rows):
    """The published content in another form: bytes of the whole file."""
    space = [" ".join(ATTRIBUTES), *(f"{n}.jpg " + " ".join(map(str, row)) for n, row in rows.items())]
    with_count = [str(len(rows)), *space]
    forms = {
        "no count": space,
        "csv": [",".join(["image_id", *ATTRIBUTES]), *(line.replace(" ", ",") for line in space[1:])],
        "semicolons": [";".join(['"image_id"', *ATTRIBUTES]), *(line.replace(" ", ";") for line in space[1:])],
        "tabs": [line.replace(" ", "\t") for line in with_count],
        "image_id": [with_count[0], f"image_id {with_count[1]}", *with_count[2:]],
        "plus": [line.replace(" 1", " +1") for line in with_count],
        "decimal": [re.sub(r" (-?[01])\b", r" \1.0", line) if "jpg" in line else line for line in with_count],
        "true and false": [line.replace(" -1", " False").replace(" 1", " True") for line in with_count],
        "scientific": [
            re.sub(r" (-?[01])\b", r" \1.000000e+00", line) if "jpg" in line else line for line in with_count
        ],
        "utf-16": with_count,
        "blank lines": ["", *with_count, ""],
    }
    return "\r\n".join(forms[name]).encode("utf-16" if name == "utf-16" else "utf-8-sig")


@pytest.mark.parametrize(
    "name",
    [
        *("no count", "csv", "semicolons", "tabs", "image_id", "plus", "decimal", "true and false", "scientific"),
        *("utf-16", "blank lines"),
    ],
)
def test_dialects_of_the_attribute_file_are_read(tmp_path, name):
    given = {0: [0, *values(0)[1:]], 12: values(12)}
    for number in given:
        picture(tmp_path / f"CelebA-HQ-img/{number}.jpg")
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_bytes(dialect(name, given))
    found = rows(CelebAMask(root=str(tmp_path)))
    assert [attribute_list(row["attributes"]) for row in found] == list(given.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"2\n0.jpg 1 -1\n", "line 2: expected are the names of the 40 attributes .* found 3 words; unknown: 0.jpg, 1"),
        ((" ".join(ATTRIBUTES[:-1]) + "\n").encode(), "line 1: .* found 39 words; missing: Young$"),
        (b"", "line 1: expected"),
        ("\n".join(["1", " ".join(ATTRIBUTES), "caf\xe9.jpg 1"]).encode("latin-1"), "line 3 is not UTF-8 .*0xe9"),
        ((" ".join(ATTRIBUTES) + "\n").encode("utf-16-le"), "null bytes, .* save the file as UTF-8"),
        ((" ".join(ATTRIBUTES) + "\nface.jpg 1\n").encode(), "line 2: 'face.jpg' names no picture"),
        ((" ".join(ATTRIBUTES) + "\n" + "9" * 5000 + ".jpg 1\n").encode(), "names no picture"),
    ],
)
def test_other_attribute_files_are_refused_with_what_was_expected_and_found(tmp_path, content, message):
    picture(tmp_path / "0.jpg")
    (tmp_path / "CelebAMask-HQ-attribute-anno.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        CelebAMask(root=str(tmp_path)).listing()


def test_files_with_the_numbers_of_celeba_are_refused(tmp_path):
    """list_attr_celeba.txt has the same form, and its line 000012.jpg is about another face than 12.jpg."""
    picture(tmp_path / "CelebA-HQ-img/12.jpg")
    attribute_file(tmp_path, {12: values(12), 202_599: values(0)})
    with pytest.raises(ConfigError, match=r"attributes: has a line for picture 202599, and CelebA-HQ ends at 29999"):
        CelebAMask(root=str(tmp_path)).listing()
    attribute_file(tmp_path, {12: values(12), 29_999: values(0)})
    identities = tmp_path / "identity_CelebA-HQ.txt"
    identities.write_text("12.jpg 7\n30000.jpg 8\n")
    with pytest.raises(ConfigError, match="identities: has a line for picture 30000"):
        CelebAMask(root=str(tmp_path)).listing()
    picture(tmp_path / "CelebA-HQ-img/30000.jpg")  # another data set in this layout
    attribute_file(tmp_path, {12: values(12), 30_000: values(0)})
    assert [row["identity_id"] for row in rows(CelebAMask(root=str(tmp_path)))] == ["7", "8"]
    note = CelebAMask(root=str(tmp_path)).listing().schema.metadata[b"note"]
    assert note == b"1 pictures have numbers that CelebA-HQ has not: split 'codiff' says nothing of them"


def test_values_of_0_and_1_are_remarked(tmp_path):
    picture(tmp_path / "0.jpg")
    attribute_file(tmp_path, {0: [0, 1] * 20})
    assert b"0 (not known)" in CelebAMask(root=str(tmp_path)).listing().schema.metadata[b"note"]
    attribute_file(tmp_path, {0: [0, 1, -1, 1] * 10})
    assert not CelebAMask(root=str(tmp_path)).listing().schema.metadata


def test_a_damaged_attribute_file_is_a_configuration_error(tmp_path):
    picture(tmp_path / "0.jpg")
    attribute_file(tmp_path, {0: values(0)}, names=(*ATTRIBUTES[:-1], "Old"))
    with pytest.raises(ConfigError, match=r"line 2: .*missing: Young; unknown: Old"):
        CelebAMask(root=str(tmp_path)).listing()
    attribute_file(tmp_path, {0: values(0), "00000": values(0)})
    with pytest.raises(ConfigError, match="line 4: names picture 0 a second time"):
        CelebAMask(root=str(tmp_path)).listing()
    with pytest.raises(ConfigError, match=r"elsewhere\.txt: no such file"):
        CelebAMask(root=str(tmp_path), attributes="elsewhere.txt").listing()


@pytest.mark.parametrize("text", ["", "1 " * 39, "1 " * 41, "1 " * 39 + "-2", "1 " * 39 + "1.5"])
def test_attribute_values_are_forty_signs(text):
    with pytest.raises(InputError, match="attributes"):
        attribute_values(text)


# --- identities, numbers, splits ---


def test_identities(tmp_path):
    for number in (0, 1):
        picture(tmp_path / f"image/{number}.jpg")
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity/identity_CelebA-HQ.txt").write_text("0.jpg 3698\n1.jpg   59\n")
    assert [row["identity_id"] for row in rows(CelebAMask(root=str(tmp_path)))] == ["3698", "59"]


def test_identities_of_several_words_are_failed_rows_and_commas_may_separate(tmp_path):
    """Ann Lee and Ann Smith are not one person."""
    for number in (0, 1, 2):
        picture(tmp_path / f"{number}.jpg")
    (tmp_path / "identity_CelebA-HQ.txt").write_text("0.jpg Ann Lee\n1.jpg Ann Smith\n2.jpg,7\n")
    found = rows(CelebAMask(root=str(tmp_path)))
    assert [row["identity_id"] for row in found] == [None, None, "7"]
    assert "picture 1 has the identity 'Ann Smith', not one word" in found[1]["error"]


def test_other_files_among_the_pictures_are_counted(tmp_path):
    picture(tmp_path / "CelebA-HQ-img/0.jpg")
    for name in ("1.gif", "2.gif", "face.jpg", "Thumbs.db"):
        (tmp_path / "CelebA-HQ-img" / name).touch()
    assert CelebAMask(root=str(tmp_path)).listing().schema.metadata == {b"note": b"left out: 2 .gif, 1 .jpg"}


def test_pictures_that_a_flat_folder_leaves_out_are_counted(tmp_path):
    for name in ("0.jpg", "1.tif", "seed0002.png"):
        picture(tmp_path / name)
    as_index(classes()).save(tmp_path / "0_mask.png")
    assert CelebAMask(root=str(tmp_path)).listing().schema.metadata[b"note"] == b"left out: 1 .tif, 1 .png"


def test_two_files_with_one_number_are_refused(tmp_path):
    for name in ("7.jpg", "00007.png"):
        picture(tmp_path / name)
    with pytest.raises(ConfigError, match="'00007'"):
        CelebAMask(root=str(tmp_path)).listing()


def test_missing_places_are_configuration_errors(tmp_path):
    with pytest.raises(ConfigError, match="absent"):
        CelebAMask(root=str(tmp_path / "absent")).listing()
    (tmp_path / "face.jpg").touch()
    with pytest.raises(ConfigError, match=r"no pictures named by number .* or flat; found: face\.jpg$"):
        CelebAMask(root=str(tmp_path)).listing()


@pytest.mark.parametrize(
    ("name", "number"), [("12.jpg", 12), ("00012", 12), ("imgHQ00012.npy", 12), ("x.jpg", None), ("", None)]
)
def test_numbers_in_names(name, number):
    assert number_of(name) == number


def touch(root, numbers):
    """Empty files: a listing opens no picture."""
    (root / "CelebA-HQ-img").mkdir()
    for number in numbers:
        (root / f"CelebA-HQ-img/{number}.jpg").touch()


def test_a_subset_keeps_the_published_split_of_each_picture(tmp_path):
    touch(tmp_path, (0, 26_999, 27_000, 27_999, 28_000, 29_999))
    expected = {"codiff": [0, 0, 1, 1, 1, 1], "sca": [0, 0, 0, 0, 1, 1]}
    for split, tests in expected.items():
        listing = CelebAMask(root=str(tmp_path), split=split).listing()
        assert listing["split"].to_pylist() == [("train", "test")[t] for t in tests]


def test_the_taming_split_is_its_list(tmp_path):
    touch(tmp_path, (0, 1, 2))
    with pytest.raises(ConfigError, match=r"celebahqvalidation\.txt"):
        CelebAMask(root=str(tmp_path), split="taming").listing()
    (tmp_path / "list.txt").write_text("imgHQ00001.npy\n2.jpg\n")
    listing = CelebAMask(root=str(tmp_path), split="taming", split_file="list.txt").listing()
    assert listing["split"].to_pylist() == ["train", "val", "val"]
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(ConfigError, match=r"list\.txt: has no lines"):
        CelebAMask(root=str(tmp_path), split="taming", split_file="list.txt").listing()


def test_the_official_split_goes_by_the_mapping_file_and_skips_its_header(tmp_path):
    touch(tmp_path, range(6))
    with pytest.raises(ConfigError, match="CelebA-HQ-to-CelebA-mapping"):
        CelebAMask(root=str(tmp_path), split="official").listing()
    numbers = [162_770, 162_771, 182_637, 182_638, 0]
    lines = [f"{i:<10d}{n:<12d}{n + 1:06d}.jpg" for i, n in enumerate(numbers)]
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text("idx  orig_idx  orig_file\n" + "\n".join(lines) + "\n")
    dataset = CelebAMask(root=str(tmp_path), split="official")
    listing = dataset.listing()
    assert listing["split"].to_pylist() == ["train", "val", "val", "test", "train", None]
    (tmp_path / "bare.csv").write_text("\n".join(re.sub(" +", ",", line) for line in lines))
    bare = CelebAMask(root=str(tmp_path), split="official", split_file="bare.csv").listing()
    assert bare["split"].equals(listing["split"]), "without a header, with commas"
    (error,) = dataset.load(listing.slice(5))["error"].to_pylist()
    assert error == f"split: {tmp_path}/CelebA-HQ-img/5.jpg: picture 5 is not in the mapping file"


def test_thirty_thousand_pictures_are_listed_with_the_published_counts(tmp_path):
    touch(tmp_path, range(30_000))
    counts = {
        split: collections.Counter(CelebAMask(root=str(tmp_path), split=split).listing()["split"].to_pylist())
        for split in ("codiff", "sca")
    }
    assert counts == {"codiff": {"train": 27_000, "test": 3_000}, "sca": {"train": 28_000, "test": 2_000}}


# --- as a table ---


def test_rows_are_independent_of_how_the_listing_is_cut_and_survive_parquet(tmp_path):
    for number in range(5):
        picture(tmp_path / f"{number}.jpg", seed=number)
        as_index(classes()).save(tmp_path / f"{number}_mask.png")
    attribute_file(tmp_path, {number: values(number) for number in range(5)})
    worker = IngestWorker(CelebAMask(root=str(tmp_path), size=8))
    listing = from_parquet(to_parquet(worker.dataset.listing()))  # as it travels to a shard
    whole = worker(listing)["faces"]
    pieces = pa.concat_tables([worker(listing.slice(0, 2))["faces"], worker(listing.slice(2))["faces"]])
    assert whole.schema == FACES_OR_ERROR
    assert whole.equals(pieces)
    faces = cast(whole.drop_columns(["error"]), FACES)
    assert from_parquet(to_parquet(faces)).equals(faces)
    assert len({hashlib.sha256(image["bytes"]).digest() for image in faces["image"].to_pylist()}) == 5
