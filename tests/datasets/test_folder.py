"""Any folder of pictures: finding, naming, checking, turning, cropping, resizing, and who is who."""

import io
import os
import unicodedata
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from raygen.core.errors import ConfigError, InputError
from raygen.datasets.files import Files, refuse_collisions, safe_id
from raygen.datasets.folder import Folder
from raygen.store.images import decode_image, decode_mask, encode_image, encode_mask
from raygen.store.schemas import check_id
from tests.fakes import Shelf


def pixels(height=12, width=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def rows(dataset):
    return dataset.load(dataset.listing()).to_pylist()


def only(dataset):
    (row,) = rows(dataset)
    return row


# --- finding and naming ---


def test_pictures_are_found_recursively_in_order_and_other_files_are_not(tmp_path):
    for name in ("b/2.png", "a/1.png", "a/deep/er/3.PNG", "z.jpg", ".hidden/4.png", "__MACOSX/5.png", ".6.png"):
        save(tmp_path / name, pixels())
    for name in ("@eaDir/z.jpg/SYNOPHOTO_THUMB_M.jpg", "b/@eaDir/2.png", "#recycle/7.png", "$RECYCLE.BIN/8.png"):
        save(tmp_path / name, pixels())
    for name in ("b/@__thumb/2.png", "@tmp/9.png"):
        save(tmp_path / name, pixels())
    for name in ("README", "a/Thumbs.db", "a/desktop.ini", "a/raw.heic", "b/raw.HEIC", "b/anim.gif"):
        (tmp_path / name).write_text("x")
    listing = Folder(root=str(tmp_path)).listing()
    assert listing["face_id"].to_pylist() == ["a-1", "a-deep-er-3", "b-2", "z"]
    assert listing.schema.metadata == {b"note": b"left out: 2 .heic, 1 without ending, 1 .gif"}
    assert set(listing["split"].to_pylist()) == {"train"}


def test_all_that_is_left_out_is_counted_whatever_the_number_of_endings(tmp_path):
    save(tmp_path / "a.png", pixels())
    for ending in ("gif", "heic", "avif", "jp2", "tga", "psd", "svg", "pdf", "dng", "cr2", "mp4"):
        (tmp_path / f"b.{ending}").write_text("x")
    note = Folder(root=str(tmp_path)).listing().schema.metadata[b"note"].decode()
    assert note.count(" 1 .") == 8
    assert note.endswith("3 with other endings")


def test_limit_keeps_the_first(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png", pixels())
    assert Folder(root=str(tmp_path), limit=2).listing()["face_id"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s1/1", "s1-1"),
        ("two words (1)", "two_words__1_"),
        ("-dash", "x-dash"),
        ("a..b", "a.b"),
        ("山", "u5c71"),
        ("é", "ue9"),
        (unicodedata.normalize("NFD", "é"), "ue9"),
    ],
)
def test_ids_are_safe_file_names(name, expected):
    assert safe_id(name) == expected == check_id(expected)


def test_long_names_stay_apart_and_leave_room_for_what_plans_append():
    first, second = safe_id("x" * 300 + "1"), safe_id("x" * 300 + "2")
    assert first != second
    assert len(first) == len(second) == 96


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a/1.png", "a-1.png"),
        ("Anna.png", "anna.png"),
        ("1.png", "1.jpg"),
        (unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")),
    ],
)
def test_colliding_names_are_refused_and_both_are_named(tmp_path, first, second):
    save(tmp_path / first, pixels())
    save(tmp_path / second, pixels())
    if len(Files(str(tmp_path)).names()) < 2:
        pytest.skip("this disk does not tell the two names apart")
    with pytest.raises(ConfigError) as caught:
        Folder(root=str(tmp_path)).listing()
    assert repr(first) in str(caught.value)
    assert repr(second) in str(caught.value)


def test_two_folders_are_never_one_person(tmp_path):
    save(tmp_path / "Anna/1.png", pixels())
    save(tmp_path / "anna/2.png", pixels())
    with pytest.raises(ConfigError, match="'Anna' and 'anna'"):
        Folder(root=str(tmp_path), identity="folder").listing()


def test_a_repeated_pair_is_no_collision():
    refuse_collisions([("a", "a.png"), ("a", "a.png"), ("b", "b.png")])


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))).write_bytes(b"x")
    with pytest.raises(ConfigError, match="UTF-8"):
        Folder(root=str(tmp_path)).listing()


def test_identity_comes_from_folders_or_from_nowhere(tmp_path):
    save(tmp_path / "s1/1.png", pixels())
    save(tmp_path / "more/s1/1.png", pixels())
    save(tmp_path / "stray.png", pixels())
    known = {row["face_id"]: row for row in rows(Folder(root=str(tmp_path), identity="folder"))}
    assert known["s1-1"]["identity_id"] == "s1"
    assert known["more-s1-1"]["identity_id"] == "more-s1"
    assert known["stray"]["error"].startswith("identity:")
    assert {row["identity_id"] for row in rows(Folder(root=str(tmp_path)))} == {None}


def test_a_level_names_the_person_above_videos_and_frames(tmp_path):
    for name in ("p1/v1/1.png", "p1/v2/1.png", "p2/v1/1.png", "p2/2.png", "stray.png"):
        save(tmp_path / name, pixels())
    found = {r["face_id"]: r for r in rows(Folder(root=str(tmp_path), identity="folder", level=1))}
    people = {name: row["identity_id"] for name, row in found.items()}
    assert people == {"p1-v1-1": "p1", "p1-v2-1": "p1", "p2-v1-1": "p2", "p2-2": "p2", "stray": None}
    assert found["stray"]["error"].startswith(f"identity: {tmp_path}/stray.png: ")
    deeper = {r["face_id"]: r for r in rows(Folder(root=str(tmp_path), identity="folder", level=2))}
    assert deeper["p1-v1-1"]["identity_id"] == "p1-v1"
    assert deeper["p2-2"]["error"].startswith("identity: ")
    with pytest.raises(ValueError, match="level"):
        Folder(root=str(tmp_path), level=1)


def test_pictures_in_no_persons_folder_are_refused_together_with_the_way_out(tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, pixels())
    with pytest.raises(
        ConfigError, match=r"all 2 pictures lie directly in root \(such as 'a\.png'\).*`identity: none`"
    ):
        Folder(root=str(tmp_path), identity="folder").listing()
    save(tmp_path / "c/d.png", pixels())
    with pytest.raises(ConfigError, match="less than 2 folders deep"):
        Folder(root=str(tmp_path), identity="folder", level=2).listing()


# --- missing places ---


def test_missing_folders_empty_folders_and_files_are_configuration_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (("absent", "no such folder"), ("empty", "no pictures"), ("file", "not a folder")):
        with pytest.raises(ConfigError, match=message) as caught:
            Folder(root=str(tmp_path / name)).listing()
        assert str(tmp_path / name) in str(caught.value)
    (tmp_path / "set.zip").write_text("")
    with pytest.raises(ConfigError, match=rf"not a folder; zip://::{tmp_path}/set.zip reads what is in it"):
        Folder(root=str(tmp_path / "set.zip")).listing()


def test_a_ring_of_links_is_an_error_and_not_a_hang(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/ring").symlink_to(tmp_path)
    with pytest.raises(ConfigError) as caught:
        Folder(root=str(tmp_path)).listing()
    assert str(caught.value) == (
        f"{tmp_path}/a/ring: a symbolic link leads back to a folder above it, so the listing has no end; remove it"
    )


class NoSuchBucket(Exception):
    """As object stores' own libraries raise it: no OSError."""


class Broken(MemoryFileSystem):
    protocol = "broken"

    def exists(self, path, **kwargs):
        raise NoSuchBucket("the bucket does not exist")


@pytest.mark.parametrize("root", ["broken://bucket/faces", "shelf://nowhere", "nosuchprotocol://x"])
def test_a_missing_bucket_is_a_configuration_error(root):
    fsspec.register_implementation("broken", Broken, clobber=True)
    Shelf.register()
    with pytest.raises(ConfigError, match=root):
        Folder(root=root).listing()


def test_any_fsspec_url_is_read(tmp_path):
    Shelf.register()
    fsspec.filesystem("shelf").pipe_file("/faces-test/a/1.png", encode_image(pixels(), "png"))
    dataset = Folder(root="shelf://faces-test", identity="folder")
    assert dataset.listing()["image"].to_pylist() == ["shelf://faces-test/a/1.png"]
    assert only(dataset)["identity_id"] == "a"


def test_pictures_in_a_zip_are_read(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        archive.writestr("set/a/1.png", encode_image(pixels(), "png"))
    row = only(Folder(root=f"zip://set::{tmp_path}/faces.zip"))
    assert (row["face_id"], row["error"], row["image"]["path"]) == ("a-1", None, "1.png")


@pytest.mark.parametrize(
    ("what", "message"), [("bit", "Bad CRC-32"), ("encrypted", "encrypted"), ("method", "not supported")]
)
def test_a_member_of_an_archive_that_cannot_be_unpacked_costs_its_row(tmp_path, what, message):
    import zipfile

    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.writestr(name, encode_image(pixels(), "png"))
    data = bytearray((tmp_path / "faces.zip").read_bytes())
    if what == "bit":
        data[data.find(b"IDAT") + 8] ^= 1
    else:  # flags and method, in the header of the member and in the directory
        for start in (data.find(b"PK\x03\x04") + 6, data.find(b"PK\x01\x02") + 8):
            data[start + (2 if what == "method" else 0)] = 99 if what == "method" else 1
    (tmp_path / "faces.zip").write_bytes(data)
    bad, good = rows(Folder(root=f"zip://::{tmp_path}/faces.zip"))
    assert bad["error"].startswith(f"archive: zip://a.png::{tmp_path}/faces.zip: cannot be unpacked (")
    assert message in bad["error"]
    assert good["error"] is None


def test_addresses_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    save(tmp_path / "faces/1.png", pixels())
    monkeypatch.chdir(tmp_path)
    dataset = Folder(root="faces")
    listing = dataset.listing()
    monkeypatch.chdir("/")
    assert dataset.load(listing)["error"].to_pylist() == [None]


# --- what becomes of a picture ---


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_untouched_picture_keeps_its_bytes_and_names_its_file(tmp_path, suffix):
    path = save(tmp_path / f"x.{suffix}", pixels())
    assert only(Folder(root=str(tmp_path)))["image"] == {"bytes": path.read_bytes(), "path": f"x.{suffix}"}


def test_a_picture_that_has_the_size_already_is_untouched(tmp_path):
    path = save(tmp_path / "x.jpg", pixels())
    assert only(Folder(root=str(tmp_path), size=12, crop="center"))["image"]["bytes"] == path.read_bytes()


@pytest.mark.parametrize("suffix", ["pgm", "png", "bmp", "jpg"])
def test_grey_becomes_rgb_without_loss(tmp_path, suffix):
    path = save(tmp_path / f"x.{suffix}", pixels()[..., 0])
    image = only(Folder(root=str(tmp_path)))["image"]
    assert image["path"] is None
    with Image.open(io.BytesIO(image["bytes"])) as stored:
        assert (stored.format, stored.mode) == ("WEBP", "RGB")
    np.testing.assert_array_equal(decode_image(image["bytes"]), np.asarray(Image.open(path).convert("RGB")))


def test_ppm_is_encoded_anew_because_viewers_do_not_show_it(tmp_path):
    array = pixels()
    save(tmp_path / "x.ppm", array)
    image = only(Folder(root=str(tmp_path)))["image"]
    assert image["path"] is None
    np.testing.assert_array_equal(decode_image(image["bytes"]), array)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "x.png", pixels(8, 12), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    image = only(Folder(root=str(tmp_path)))["image"]
    np.testing.assert_array_equal(decode_image(image["bytes"]), expected)
    assert (image["path"] is None) == (orientation > 1)


def test_center_crop_takes_the_middle_and_nothing_is_squeezed(tmp_path):
    array = pixels(10, 16)
    save(tmp_path / "x.png", array)
    cropped = only(Folder(root=str(tmp_path), crop="center"))["image"]["bytes"]
    np.testing.assert_array_equal(decode_image(cropped), array[:, 3:13])
    assert only(Folder(root=str(tmp_path), size=8))["error"].startswith(f"size: {tmp_path}/x.png: 16x10 is not square")


@pytest.mark.parametrize(("name", "resample"), [("lanczos", Image.Resampling.LANCZOS), ("box", Image.Resampling.BOX)])
def test_resize_uses_the_filter_named(tmp_path, name, resample):
    array = pixels(32, 32)
    save(tmp_path / "x.png", array)
    stored = only(Folder(root=str(tmp_path), size=8, resample=name))["image"]["bytes"]
    np.testing.assert_array_equal(decode_image(stored), np.asarray(Image.fromarray(array).resize((8, 8), resample)))


# --- masks ---


def test_masks_are_matched_by_relative_name_and_resized_by_nearest(tmp_path):
    mask = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4) % 19, np.ones((8, 8), np.uint8))  # [32, 32]
    save(tmp_path / "a/1.jpg", pixels(64, 64))
    save(tmp_path / "masks/a/1.png", mask)
    row = only(Folder(root=str(tmp_path), masks="masks", size=16))
    assert row["face_id"] == "a-1"
    np.testing.assert_array_equal(decode_mask(row["mask"]["bytes"]), mask[::2, ::2])
    assert decode_image(row["image"]["bytes"]).shape == (16, 16, 3)


def test_a_mask_may_have_another_size_but_not_another_shape(tmp_path):
    save(tmp_path / "p/ok.png", pixels(64, 64))
    save(tmp_path / "m/ok.png", np.ones((32, 32), np.uint8))
    save(tmp_path / "p/wide.png", pixels(64, 64))
    save(tmp_path / "m/wide.png", np.ones((32, 40), np.uint8))
    ok, wide = rows(Folder(root=str(tmp_path / "p"), masks=str(tmp_path / "m"), crop="center"))
    assert decode_mask(ok["mask"]["bytes"]).shape == (32, 32)
    assert wide["error"] == f"size: {tmp_path}/p/wide.png: mask 40x32 on a picture 64x64"


def test_a_picture_without_the_mask_it_was_promised_is_an_error_row(tmp_path):
    save(tmp_path / "p/1.png", pixels())
    save(tmp_path / "p/2.png", pixels())
    save(tmp_path / "m/2.png", np.ones((12, 12), np.uint8))
    one, two = rows(Folder(root=str(tmp_path / "p"), masks=str(tmp_path / "m")))
    assert one["error"].startswith("no_mask:")
    assert two["error"] is None


def test_masks_that_all_have_other_names_are_a_configuration_error(tmp_path):
    save(tmp_path / "p/1.png", pixels())
    save(tmp_path / "m/1_mask.png", np.ones((12, 12), np.uint8))
    with pytest.raises(ConfigError, match="a mask is '1_mask', a picture '1'"):
        Folder(root=str(tmp_path / "p"), masks=str(tmp_path / "m")).listing()


def test_labels_need_masks(tmp_path):
    with pytest.raises(ValueError, match="labels"):
        Folder(root=str(tmp_path), labels="face_parsing")


def test_an_empty_or_missing_mask_folder_is_a_configuration_error(tmp_path):
    save(tmp_path / "1.png", pixels())
    (tmp_path / "empty").mkdir()
    for masks in ("empty", "absent"):
        with pytest.raises(ConfigError, match=masks):
            Folder(root=str(tmp_path), masks=masks).listing()


# --- bad files ---


def bomb():
    """A PNG header that asks for 900 million pixels in 60 bytes."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = buffer.getvalue()
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def bad_files():
    png, jpg = encode_image(pixels(40, 40), "png"), io.BytesIO()
    Image.fromarray(pixels(40, 40)).save(jpg, "JPEG")
    deep = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.float32)).save(deep, "TIFF")
    return {
        "bomb.png": (bomb(), "bomb"),
        "cut-too.jpg": (jpg.getvalue()[:500], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "deep.tif": (deep.getvalue(), "mode"),
        "flip.png": (flipped(png, len(png) // 2), "corrupt"),
        "html.png": (b"<html>404 Not Found</html>", "not_an_image"),
        "none.png": (b"", "empty"),
        "really-jpeg.png": (jpg.getvalue(), "extension"),
    }


def test_every_bad_file_is_a_row_with_its_reason_and_good_ones_finish(tmp_path):
    for name, (data, _) in bad_files().items():
        (tmp_path / name).write_bytes(data)
    save(tmp_path / "zz-good.png", pixels())
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    *bad, good = rows(Folder(root=str(tmp_path)))
    reasons = {row["face_id"]: row["error"].split(":")[0] for row in bad}
    expected = {Path(name).stem: reason for name, (_, reason) in bad_files().items()}
    assert reasons == {**expected, "gone": "FileNotFoundError"}
    assert good["error"] is None
    assert all(row["image"] is None for row in bad)


def test_a_flipped_bit_anywhere_in_a_png_mask_is_noticed_or_harmless():
    mask = (np.add.outer(np.arange(24), np.arange(24)) // 8).astype(np.uint8)
    data = encode_mask(mask)
    for position in range(len(data)):
        try:
            decoded = decode_mask(flipped(data, position))
        except InputError:
            continue
        np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize(
    ("name", "save_as", "array", "reason"),
    [
        ("1.png", {}, np.full((12, 12), 19, np.uint8), "label"),
        ("1.png", {}, np.full((12, 12, 3), (7, 8, 9), np.uint8), "palette"),
        ("1.jpg", {}, np.zeros((12, 12), np.uint8), "lossy"),
        ("1.png", {}, np.full((12, 12), 300, np.uint16), "label"),
        ("1.png", {}, np.zeros((12, 12), bool), "mode"),
        ("1.bmp", {"format": "PNG"}, np.zeros((12, 12), np.uint8), "extension"),
    ],
)
def test_bad_masks_are_rows_with_their_reason(tmp_path, name, save_as, array, reason):
    save(tmp_path / "p/1.png", pixels())
    save(tmp_path / "m" / name, array, **save_as)
    row = only(Folder(root=str(tmp_path / "p"), masks=str(tmp_path / "m")))
    assert row["error"].startswith(f"{reason}:")
    assert row["image"] is None


def test_files_names_are_relative_and_bounded_by_depth(tmp_path):
    for name in ("1.txt", "a/2.txt", "a/b/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    files = Files(str(tmp_path))
    assert files.names() == ["1.txt", "a/2.txt", "a/b/3.txt"]
    assert files.names("a", depth=1) == ["2.txt"]
    assert files.names("absent") == []
