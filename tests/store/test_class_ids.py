"""Class indices from every way in which masks are stored: which one is meant, and when that is not clear."""

import io

import numpy as np
import pytest
from PIL import Image

from raygen.core.errors import InputError
from raygen.core.face_labels import FACE_PARSING_TO_OFFICIAL, PALETTE, colorize
from raygen.store.images import decode_mask, decode_part


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mask(classes=(0, 1, 2, 4, 5, 10, 12, 13, 17)):
    return np.random.default_rng(0).choice(np.array(classes, np.uint8), (24, 20))


def with_palette(ids, colours):
    image = Image.fromarray(ids)
    image.putpalette(np.asarray(colours, np.uint8).tobytes())
    return image


def renumbered(ids, colour_of=PALETTE, seed=1):
    """The same colours with other indices, as an optimiser leaves them: only used colours, in any order."""
    used = np.random.default_rng(seed).permutation(np.unique(ids))
    table = np.zeros(256, np.uint8)
    table[used] = np.arange(len(used))
    return with_palette(table[ids], colour_of[used])


# --- palettes ---


@pytest.mark.parametrize("seed", range(3))
def test_official_colours_in_another_order_keep_their_classes(seed):
    np.testing.assert_array_equal(decode_mask(png(renumbered(mask(), seed=seed))), mask())


def test_quantised_and_repeated_palettes_keep_their_classes():
    colours = Image.fromarray(colorize(mask()))
    for image in (
        colours.quantize(32),
        colours.convert("P", palette=Image.Palette.ADAPTIVE, colors=16),
        colours.quantize(palette=with_palette(np.zeros((1, 1), np.uint8), PALETTE[::-1]), dither=Image.Dither.NONE),
    ):
        assert image.mode == "P"
        assert (np.asarray(image) != mask()).any(), "the indices are not the classes"
        np.testing.assert_array_equal(decode_mask(png(image)), mask())


def test_one_class_alone_follows_its_colour():
    ids = np.full((4, 4), 13, np.uint8)
    np.testing.assert_array_equal(decode_mask(png(renumbered(ids))), ids)
    background = with_palette(np.full((4, 4), 1, np.uint8), PALETTE[[13, 0]])
    assert not decode_mask(png(background)).any()


def test_a_grey_mask_that_an_optimiser_stored_with_a_palette_keeps_its_values():
    greys = np.repeat(np.arange(19, dtype=np.uint8)[:, None], 3, axis=1)
    image = renumbered(mask(), greys)
    assert (np.asarray(image) != mask()).any()
    np.testing.assert_array_equal(decode_mask(png(image)), mask())


@pytest.mark.parametrize("order", ["celebamask", "face_parsing"])
def test_greys_of_such_a_palette_are_indices_in_the_order_of_the_labels(order):
    greys = np.repeat(np.arange(19, dtype=np.uint8)[:, None], 3, axis=1)
    plain = decode_mask(png(Image.fromarray(mask())), label_order=order)
    np.testing.assert_array_equal(decode_mask(png(renumbered(mask(), greys)), label_order=order), plain)


@pytest.mark.parametrize(
    "colours",
    [
        np.arange(57).reshape(19, 3),
        np.repeat(np.arange(19)[:, None] * 13, 3, axis=1),
        np.repeat(np.arange(256)[:, None], 3, axis=1),
        np.zeros((19, 3)),
        PALETTE,
        np.vstack([PALETTE[:10], np.arange(27).reshape(9, 3) + 100]),
    ],
    ids=["other", "ramp", "grey", "black", "official", "official as far as known"],
)
def test_indices_count_where_the_palette_is_official_or_has_no_official_colour(colours):
    np.testing.assert_array_equal(decode_mask(png(with_palette(mask(), colours))), mask())


def test_a_palette_that_is_partly_official_is_refused():
    colours = PALETTE.copy()
    colours[[1, 2]] = PALETTE[[2, 1]]
    colours[13] = (1, 2, 3)
    with pytest.raises(InputError, match="index 1 has the official colour of class 2") as caught:
        decode_mask(png(with_palette(mask(), colours)))
    assert caught.value.reason == "palette"


def test_a_palette_that_is_nearly_official_in_another_order_is_refused():
    shifted = np.clip(PALETTE.astype(int) + 3, 0, 255).astype(np.uint8)
    with pytest.raises(InputError, match="nearly the official ones"):
        decode_mask(png(renumbered(mask(), shifted)))


@pytest.mark.parametrize("ids", [mask(), mask((0, 1))], ids=["nine classes", "two"])
def test_other_colours_that_an_optimiser_numbered_anew_are_refused(ids):
    """ImageMagick and pngquant keep only used colours, so class 17 of another palette may be index 8."""
    colours = np.arange(57).reshape(19, 3) + 100
    with pytest.raises(InputError, match="numbered the classes anew") as caught:
        decode_mask(png(renumbered(ids, colours)))
    assert caught.value.reason == "palette"
    buffer = io.BytesIO()
    renumbered(ids, colours).save(buffer, "TIFF")
    with pytest.raises(InputError, match="numbered the classes anew"):
        decode_mask(buffer.getvalue())
    np.testing.assert_array_equal(decode_mask(png(with_palette(ids, colours))), ids)


def test_an_index_without_a_colour_is_no_class():
    with pytest.raises(InputError, match="label 200"):
        decode_mask(png(with_palette(np.full((4, 4), 200, np.uint8), PALETTE)))


# --- other forms ---


def test_unambiguous_forms_are_read():
    ids, full = mask(), np.full_like(mask(), 255)
    forms = {
        "three channels": np.stack([ids] * 3, axis=-1),
        "four channels": np.dstack([ids, ids, ids, full]),
        "LA": np.dstack([ids, full]),
        "16 bit": ids.astype(np.uint16),
        "RGBA": np.dstack([colorize(ids), full]),
        "transparent background": np.dstack([colorize(ids), np.where(ids == 0, 0, 255).astype(np.uint8)]),
    }
    for name, array in forms.items():
        np.testing.assert_array_equal(decode_mask(png(Image.fromarray(array))), ids, err_msg=name)


@pytest.mark.parametrize(
    ("array", "reason", "message"),
    [
        (np.dstack([mask(), np.full_like(mask(), 254)]), "transparent", "hide classes"),
        (colorize(mask())[..., ::-1], "palette", "not BGR"),
        (np.full((4, 4, 3), 19, np.uint8), "label", "label 19"),
        (np.full((4, 4), 257, np.uint16), "label", "label 257"),
        (mask() > 0, "mode", "8-bit grey PNG"),
    ],
)
def test_other_forms_are_refused_with_the_way_out(array, reason, message):
    with pytest.raises(InputError, match=message) as caught:
        decode_mask(png(Image.fromarray(np.ascontiguousarray(array))))
    assert caught.value.reason == reason


def png_of(samples, bits, colour_type):
    """A PNG of one row of samples, which are numbers of at most 8 bits and stored with 4 or 16."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    channels = {0: 1, 4: 2, 2: 3, 6: 4}[colour_type]
    width = len(samples) // channels
    row = struct.pack(f">{len(samples)}H", *samples) if bits == 16 else bytes([samples[0] << 4 | samples[1]])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def test_few_bits_of_grey_are_refused():
    """Pillow (11.0 and 13.0) multiplies the values of a 4-bit grey PNG by 17, so that class 1 would be class 17.

    That is right for pictures (PNG specification, 13.12 "Sample depth rescaling") and not what a mask means.
    """
    data = png_of([0, 1], 4, 0)
    with Image.open(io.BytesIO(data)) as image:
        assert np.asarray(image).tolist() == [[0, 17]]
    with pytest.raises(InputError, match="its values go up to 15"):
        decode_mask(data)
    assert not decode_mask(png_of([0, 0], 4, 0)).any()


@pytest.mark.parametrize("header", ["P5\n2 1\n18\n", "P5 2 1 # made by hand\n18\n", "P2\n# 19 classes\n2 1\n18\n"])
def test_a_pgm_whose_white_is_another_number_is_refused(header):
    """Pillow 13.0 multiplies so that white is 255: class 1 of a PGM up to 18 would be class 14."""
    values = b"0 1" if header.startswith("P2") else b"\0\1"
    with Image.open(io.BytesIO(header.encode() + values)) as image:
        assert np.asarray(image).tolist() == [[0, 14]]
    with pytest.raises(InputError, match="its values go up to 18, and decoders multiply them"):
        decode_mask(header.encode() + values)
    assert decode_mask(b"P5\n2 1\n255\n\0\1").tolist() == [[0, 1]]


@pytest.mark.parametrize("colour_type", [2, 4, 6], ids=["RGB", "LA", "RGBA"])
def test_small_values_of_16_bits_in_several_channels_are_refused(colour_type):
    """Pillow 13.0 keeps their upper 8 bits, so that all classes would be 0."""
    channels = {2: (5, 5, 5), 4: (5, 65_535), 6: (5, 5, 5, 65_535)}[colour_type]
    data = png_of(channels, 16, colour_type)
    for decode in (decode_mask, decode_part):
        with pytest.raises(InputError, match="16 bits in each of several channels"):
            decode(data)
    colour = tuple(int(value) * 257 for value in PALETTE[13])
    if colour_type == 2:
        assert decode_mask(png_of(colour, 16, 2)).tolist() == [[13]]


def test_indices_of_face_parsing_are_mapped_and_colours_are_not():
    theirs = np.arange(19, dtype=np.uint8)[None]
    ours = FACE_PARSING_TO_OFFICIAL[theirs]
    np.testing.assert_array_equal(decode_mask(png(Image.fromarray(theirs)), label_order="face_parsing"), ours)
    np.testing.assert_array_equal(decode_mask(png(Image.fromarray(theirs))), theirs)
    for image in (Image.fromarray(colorize(ours)), renumbered(ours), with_palette(ours, PALETTE)):
        np.testing.assert_array_equal(decode_mask(png(image), label_order="face_parsing"), ours)


# --- parts ---


def shape():
    inside = np.zeros((12, 12), bool)
    inside[3:9, 2:7] = True
    return inside


def white(inside):
    return np.where(inside, 255, 0).astype(np.uint8)


def test_parts_are_read_in_every_form_that_shows_them():
    grey = white(shape())
    images = {
        "L": Image.fromarray(grey),
        "RGB": Image.fromarray(np.stack([grey] * 3, axis=-1)),
        "opaque": Image.fromarray(np.dstack([grey, np.full_like(grey, 255)])),
        "1 bit": Image.fromarray(shape()),
        "16 bit": Image.fromarray(shape().astype(np.uint16)),
        "palette": with_palette(shape().astype(np.uint8), [(0, 0, 0), (255, 255, 255)]),
        "one": Image.fromarray(shape().astype(np.uint8)),
    }
    for name, image in images.items():
        np.testing.assert_array_equal(decode_part(png(image)), shape(), err_msg=name)
    assert decode_part(png(Image.new("L", (4, 4), 255))).all()
    assert not decode_part(png(Image.new("L", (4, 4), 0))).any()


@pytest.mark.parametrize("how", ["bilinear", "lanczos", "jpeg"])
def test_soft_edges_of_parts_are_at_half_of_white(how):
    inside = np.zeros((64, 64), bool)
    inside[10:30, 20:50] = True
    image = Image.fromarray(white(inside))
    if how == "jpeg":
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=60)
        image = Image.open(buffer).convert("RGB")
    else:
        image = image.resize((192, 192), Image.Resampling[how.upper()])
        inside = inside.repeat(3, axis=0).repeat(3, axis=1)
    assert (np.asarray(image.convert("L")) != 0).sum() > 1.05 * inside.sum(), "not black, and not of the part"
    assert (decode_part(png(image)) ^ inside).sum() <= 4, "the corners"


def test_numbered_persons_are_all_of_a_part():
    numbers = np.zeros((12, 12), np.uint8)
    numbers[2:10, 2:10] = np.repeat([40, 80, 120, 160, 200, 220, 240, 255], 8).reshape(8, 8)
    np.testing.assert_array_equal(decode_part(png(Image.fromarray(numbers))), numbers != 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.dstack([np.full((12, 12, 3), 255, np.uint8), white(shape())])), "alpha channel"),
        (Image.fromarray(np.dstack([white(shape()), white(shape())])), "alpha channel"),
        (with_palette(shape().astype(np.uint8), np.zeros((2, 3))), "different shapes"),
        (with_palette(shape().astype(np.uint8), [(255, 255, 255), (0, 0, 0)]), "different shapes"),
        (Image.fromarray(np.where(shape(), 255, 1).astype(np.uint8)), "background is not 0"),
        (Image.fromarray(np.full((12, 12), 7, np.uint8)), "background is not 0"),
    ],
)
def test_parts_whose_shape_is_not_in_their_values_are_refused(image, message):
    with pytest.raises(InputError, match=message) as caught:
        decode_part(png(image))
    assert caught.value.reason == "part"
