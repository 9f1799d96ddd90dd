"""Picture files that people have: endings, transparency, many bits, many megapixels; and how a change is noticed."""

import io
import os
import struct
import zipfile
import zlib

import fsspec
import numpy as np
import pytest
from PIL import Image

from raygen.core.errors import InputError
from raygen.core.face_labels import PALETTE
from raygen.datasets.files import Files
from raygen.datasets.folder import Folder
from raygen.datasets.pictures import read_mask, read_part, read_picture
from raygen.store import images
from raygen.store.images import decode_image
from tests.fakes import Shelf
from tests.store.test_class_ids import png_of


def pixels(height=12, width=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def only(dataset):
    (row,) = dataset.load(dataset.listing()).to_pylist()
    return row


# --- endings ---


@pytest.mark.parametrize(
    ("name", "kind"), [("x.jfif", "JPEG"), ("x.jpe", "JPEG"), ("x.tif", "TIFF"), ("x.TIFF", "TIFF"), ("x.JPG", "JPEG")]
)
def test_less_common_endings_are_read(tmp_path, name, kind):
    data = encoded(pixels(), kind)
    (tmp_path / name).write_bytes(data)
    image = only(Folder(root=str(tmp_path)))["image"]
    np.testing.assert_array_equal(decode_image(image["bytes"]), np.asarray(Image.open(io.BytesIO(data))))
    assert (image["path"] is None) == (kind == "TIFF"), "viewers of tables show no TIFF"


def test_a_folder_of_other_formats_says_what_is_there(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(Exception, match=r"holds no pictures .*left out: 1 \.heic"):
        Folder(root=str(tmp_path)).listing()


# --- transparency ---


def transparent(form):
    """Red, hidden in the left half, in each way in which a picture can be transparent."""
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    red[:, :4] = (0, 255, 0)
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:, :4] = 0
    if form == "RGBA":
        return encoded(np.dstack([red, alpha]), "PNG")
    if form == "LA":
        return encoded(np.dstack([red[..., 0], alpha]), "PNG")
    if form == "16 bit":
        return encoded(np.where(alpha == 0, 5, 65_535).astype(np.uint16), "PNG", transparency=5)
    if form == "grey":
        return encoded(red[..., 0], "PNG", transparency=0)
    if form == "colour":
        return encoded(red, "PNG", transparency=(0, 255, 0))
    if form == "webp":
        return encoded(np.dstack([red, alpha]), "WEBP", lossless=True, exact=True)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([red, alpha])).quantize(4, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["RGBA", "LA", "colour", "grey", "16 bit", "webp", "palette"])
def test_transparent_pixels_have_the_stated_colour_and_never_a_hidden_one(tmp_path, form):
    (tmp_path / ("x.webp" if form == "webp" else "x.png")).write_bytes(transparent(form))
    error = only(Folder(root=str(tmp_path)))["error"]
    assert error.startswith(f"transparent: {tmp_path}/x.")
    assert "`background: white`" in error
    for background, value in (("white", 255), ("grey", 128), ("black", 0)):
        row = only(Folder(root=str(tmp_path), background=background))
        left = decode_image(row["image"]["bytes"])[:, :4]
        assert (left == value).all(), (form, background)


def test_an_opaque_alpha_channel_is_dropped(tmp_path):
    array = np.dstack([pixels(), np.full((12, 12), 255, np.uint8)])
    (tmp_path / "x.png").write_bytes(encoded(array, "PNG"))
    row = only(Folder(root=str(tmp_path)))
    np.testing.assert_array_equal(decode_image(row["image"]["bytes"]), array[..., :3])
    assert row["image"]["path"] is None


# --- 16 bit ---


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, name):
    """Pillow (11.0 to 13.0) clips 16-bit grey at 255 where it is converted to RGB."""
    ramp = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    clipped = np.asarray(Image.fromarray(ramp).convert("RGB"))
    assert (clipped[ramp > 255] == 255).all()
    (tmp_path / name).write_bytes(encoded(ramp, {"png": "PNG", "tif": "TIFF", "pgm": "PPM"}[name[2:]]))
    stored = decode_image(only(Folder(root=str(tmp_path)))["image"]["bytes"])
    np.testing.assert_array_equal(stored[..., 0], np.round(ramp / 257).astype(np.uint8))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "colour.png"])
@pytest.mark.parametrize("bits", [8, 12])
def test_values_of_fewer_bits_in_16_are_refused_and_never_black(tmp_path, name, bits):
    """Microscopes and depth cameras write 12 bits into files of 16, and programs that convert types write 8."""
    values = np.linspace(0, (1 << bits) - 1, 64).astype(np.uint16).reshape(8, 8)
    if name == "colour.png":
        (tmp_path / name).write_bytes(png_of(values.ravel().tolist()[:63], 16, 2))
    else:
        Image.fromarray(values).save(tmp_path / name)
    assert "16-bit values below a sixteenth of their range" in only(Folder(root=str(tmp_path)))["error"]


# --- many megapixels ---


def gradient(height, width):
    """A smooth picture, so that ways of making it small agree."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([255 * x / width, 255 * y / height, 255 - 255 * x / width], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("name", "kind"), [("x.jpg", "JPEG"), ("x.png", "PNG"), ("x.tif", "TIFF")])
def test_photographs_above_the_stored_size_are_read_smaller(tmp_path, monkeypatch, name, kind):
    array = gradient(3000, 4500)
    (tmp_path / name).write_bytes(encoded(array, kind))
    whole = decode_image(only(Folder(root=str(tmp_path), size=64, crop="center"))["image"]["bytes"])
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000_000)
    file = read_picture(str(tmp_path / name), size=64)
    assert (file.width, file.height) == (4500, 3000)
    assert 128 <= min(file.pixels.shape[:2]) < 600, "it was made small while it was read"
    small = decode_image(only(Folder(root=str(tmp_path), size=64, crop="center"))["image"]["bytes"])
    assert small.shape == (64, 64, 3)
    assert np.abs(small.astype(int) - whole.astype(int)).max() <= 6


@pytest.mark.parametrize("kind", ["grey", "palette", "part"])
def test_a_mask_is_as_large_as_the_photograph_that_it_belongs_to(tmp_path, monkeypatch, kind):
    mask = np.zeros((60, 90), np.uint8)
    mask[20:40, 30:60] = 13
    image = Image.fromarray(mask)
    if kind == "palette":
        image.putpalette(PALETTE.tobytes())
    image.save(tmp_path / "m.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 600)  # 5,400 pixels: each third row and column
    if kind == "part":
        found = read_part(str(tmp_path / "m.png"), max_pixels=6_000) * 13
    else:
        found = read_mask(str(tmp_path / "m.png"), max_pixels=6_000)
    np.testing.assert_array_equal(found, mask[1::3, 1::3])
    with pytest.raises(InputError, match="90x60 pixels, 600 allowed"):
        read_mask(str(tmp_path / "m.png"), max_pixels=600)


def test_a_turned_photograph_has_the_sides_of_the_upright_one(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "x.jpg").write_bytes(encoded(gradient(1000, 1500), "JPEG", exif=exif))
    monkeypatch.setattr(images, "MAX_PIXELS", 100_000)
    file = read_picture(str(tmp_path / "x.jpg"), size=16)
    assert (file.width, file.height) == (1000, 1500)
    assert file.pixels.shape[0] > file.pixels.shape[1]


def claiming(width, height):
    """A small PNG whose header asks for so many pixels."""
    data = encoded(np.zeros((1, 1), np.uint8), "PNG")
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_24_megapixels_need_a_size_and_200_are_within_the_limit(tmp_path):
    path = tmp_path / "x.png"
    Image.new("L", (6000, 4000)).save(path, compress_level=1)
    assert "set `size`" in only(Folder(root=str(tmp_path)))["error"]
    assert only(Folder(root=str(tmp_path), size=64))["error"].startswith("size:"), "it is not square"
    assert only(Folder(root=str(tmp_path), size=64, crop="center"))["error"] is None
    Image.new("1", (16_320, 12_240)).save(path)
    assert only(Folder(root=str(tmp_path), size=64, crop="center"))["error"] is None
    path.write_bytes(claiming(16_384, 16_384))
    assert only(Folder(root=str(tmp_path), size=64, crop="center"))["error"].startswith("bomb:")


def test_pillows_own_limit_is_as_it_was(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded(pixels(), "PNG"))
    before = Image.MAX_IMAGE_PIXELS
    read_picture(str(tmp_path / "x.png"))
    with pytest.raises(InputError):
        read_picture(str(tmp_path / "x.png").replace("x.png", "y\0.png"))
    assert Image.MAX_IMAGE_PIXELS == before is not None


# --- changed files ---


def versions(dataset):
    return dict(zip(*(dataset.listing()[name].to_pylist() for name in ("face_id", "versions")), strict=True))


def test_a_changed_file_has_another_version_and_the_others_keep_theirs(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encoded(pixels(), "PNG"))
    dataset = Folder(root=str(tmp_path))
    before = versions(dataset)
    assert versions(dataset) == before
    stat = os.stat(tmp_path / "b.png")
    os.utime(tmp_path / "b.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    touched = versions(dataset)
    assert touched["a"] == before["a"]
    assert touched["b"] != before["b"]
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to("nowhere.png")
    assert versions(dataset)["b"] == ["absent"]


def test_with_content_only_the_bytes_count(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(pixels(), "PNG"))
    dataset = Folder(root=str(tmp_path), changes="content")
    before, stat = versions(dataset), os.stat(path)
    os.utime(path, ns=(1, 1))
    assert versions(dataset) == before
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert versions(dataset) != before
    assert versions(Folder(root=str(tmp_path))) == versions(Folder(root=str(tmp_path)))


def test_one_listing_is_enough_on_remote_storage(monkeypatch):
    Shelf.register()
    memory = fsspec.filesystem("shelf")
    memory.pipe({f"/versions-test/{name}.png": encoded(pixels(), "PNG") for name in "ab"})
    dataset = Folder(root="shelf://versions-test")
    before = versions(dataset)
    memory.pipe_file("/versions-test/b.png", encoded(pixels(seed=1), "PNG"))
    for call in ("info", "ls"):
        calls = []
        original = getattr(type(memory), call)
        monkeypatch.setattr(type(memory), call, lambda *a, o=original, c=calls, **k: (c.append(a[1]), o(*a, **k))[1])
        after = versions(dataset)
        assert not [path for path in calls if path.endswith(".png")], "no request for each file"
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]
    files = Files("shelf://versions-test")
    assert files.versions([["shelf://versions-test/b.png"], ["shelf://versions-test/c.png"]], "time") == [
        after["b"],
        ["absent"],
    ], "files that were not listed are looked up in their folder"


def test_files_in_a_zip_change_with_their_checksum(tmp_path):
    found = []
    for seed in (0, 0, 1):
        path = tmp_path / f"{len(found)}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("set/a.png", encoded(pixels(seed=seed), "BMP"))
        found.append(versions(Folder(root=f"zip://set::{path}"))["a"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("name", "how", "kind"),
    [
        ("m.webp", {"quality": 90}, "lossy WebP"),
        ("m.webp", {"quality": 90, "exif": b"Exif\0\0II*\0\x08" + bytes(9)}, "lossy WebP"),
        ("m.tif", {"compression": "jpeg"}, "TIFF with JPEG inside"),
    ],
)
def test_masks_that_a_codec_changed_are_refused_whatever_the_file_is(tmp_path, name, how, kind):
    """Values near edges are others, and are classes as well."""
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 5
    image = Image.fromarray(mask)
    image.save(tmp_path / name, **how)
    for reader in (read_mask, read_part):
        with pytest.raises(InputError, match=f"{name}: {kind} changes classes at every edge") as caught:
            reader(str(tmp_path / name))
        assert caught.value.reason == "lossy"
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {"compression": "tiff_lzw"}))
    np.testing.assert_array_equal(read_mask(str(tmp_path / name)), mask)
