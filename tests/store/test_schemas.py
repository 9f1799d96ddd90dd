"""Tables: schemas, the picture codec, Parquet that notices damage, and typed refusals."""

import contextlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raygen.commands.registry import make
from raygen.core.errors import ConfigError, InputError
from raygen.core.face_labels import PALETTE, colorize
from raygen.store.images import decode_image, decode_mask, encode_image, encode_mask, picture, picture_column
from raygen.store.parquet import from_parquet, to_parquet
from raygen.store.schemas import CONDITIONS, FACES, SAMPLES, SCHEMAS, cast, check_id, reason_of


def pixels(size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def mask(size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 19, (size, size), dtype=np.uint8)


def faces(count=6):
    rows = [
        {
            "face_id": f"f{i}",
            "split": "train",
            "image": picture(encode_image(pixels(seed=i))),
            "mask": picture(encode_mask(mask(seed=i))) if i % 2 else None,
            "attributes": (1, -1) * 20 if i % 3 else None,
            "texts": [("overall", f"Face {i}.")] if i else None,
            "boxes": [[0.0, 0.0, 1.0, 2.0]] if i else None,
            "identity_id": None,
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, FACES)


# --- schemas and Parquet ---


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_schema_survives_parquet(name):
    schema = SCHEMAS[name]
    back = from_parquet(to_parquet(schema.empty_table()))
    # Parquet renames the inside of lists to `element`, which Arrow does not count as another type.
    assert back.schema == schema
    assert back.schema.metadata == schema.metadata
    assert [field.nullable for field in back.schema] == [field.nullable for field in schema]
    assert cast(back, schema).schema.equals(schema, check_metadata=True)


def test_rows_survive_parquet_with_their_nulls():
    table = faces()
    back = from_parquet(to_parquet(table))
    assert back.equals(table)
    assert back["mask"].null_count == 3
    assert pa.concat_tables([table, back]).num_rows == 12


def test_picture_columns_carry_the_feature_metadata_that_makes_viewers_show_them():
    schema = pq.ParquetFile(pa.BufferReader(to_parquet(faces()))).schema_arrow
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {name: {"_type": "Image"} for name in ("image", "mask", "hint")}
    assert b"huggingface" not in (SCHEMAS["scores"].metadata or {})
    assert set(json.loads(CONDITIONS.metadata[b"huggingface"])["info"]["features"]) == {"mask", "hint"}


def test_picture_pages_have_neither_dictionary_nor_second_compression_and_groups_are_small():
    file = pq.ParquetFile(pa.BufferReader(to_parquet(faces(), row_group_rows=4)))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 2]
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["image.bytes"].compression == "UNCOMPRESSED"
    assert not any("DICTIONARY" in encoding for encoding in columns["image.bytes"].encodings)
    assert columns["face_id"].compression == "ZSTD"


def test_columns_can_be_chosen():
    assert from_parquet(to_parquet(faces()), columns=["split", "face_id"]).column_names == ["split", "face_id"]


def test_a_flipped_bit_in_any_page_is_noticed():
    data = to_parquet(faces())
    file = pq.ParquetFile(pa.BufferReader(data)).metadata
    for group in range(file.num_row_groups):
        for index in range(file.num_columns):
            column = file.row_group(group).column(index)
            start = column.dictionary_page_offset or column.data_page_offset
            last = start + column.total_compressed_size - 1  # of the page's content; headers come first
            damaged = bytearray(data)
            damaged[last] ^= 0x10
            with pytest.raises(InputError, match="parquet"):
                from_parquet(bytes(damaged))


def test_a_flipped_bit_in_a_picture_is_noticed_wherever_it_is():
    table = faces(1)
    data = to_parquet(table)
    image = table["image"][0].as_py()["bytes"]
    start = data.index(image)
    for position in range(start, start + len(image), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(InputError, match="parquet"):
            from_parquet(bytes(damaged))


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -20])
def test_cut_files_and_other_files_are_refused(keep):
    with pytest.raises(InputError, match="parquet"):
        from_parquet(to_parquet(faces())[:keep])


# --- cast ---


def test_cast_fills_absent_columns_with_nulls_in_the_order_of_the_schema():
    table = cast(pa.table({"split": ["train"], "face_id": ["a"]}), FACES)
    assert table.schema.equals(FACES, check_metadata=True)
    assert table["image"].null_count == table["attributes"].null_count == 1


def test_cast_narrows_types_that_fit():
    table = pa.table({"sample_id": ["a"], "plan": ["p"], "seed": pa.array([1], pa.int32()), "alpha": [0.5]})
    assert cast(table, CONDITIONS)["alpha"].type == pa.float32()


@pytest.mark.parametrize(
    ("columns", "schema", "reason"),
    [
        ({"face_id": ["a"], "split": ["train"], "age": [3]}, FACES, "columns: unknown columns"),
        ({"face_id": ["a"]}, FACES, "columns: column 'split' is missing"),
        ({"face_id": ["a", None], "split": ["train", "train"]}, FACES, "null: column 'face_id' has 1 nulls"),
        ({"sample_id": ["a"], "attempt": ["first"], "run_id": ["r"]}, SAMPLES, "type: column 'attempt'"),
        ({"face_id": ["a"], "split": ["train"], "attributes": [[1, -1]]}, FACES, "type: column 'attributes'"),
    ],
)
def test_cast_refuses_with_a_reason(columns, schema, reason):
    with pytest.raises(InputError) as caught:
        cast(pa.table(columns), schema)
    assert str(caught.value).startswith(reason)


# --- pictures ---


@pytest.mark.parametrize("codec", ["webp", "png", "png_fast"])
def test_pictures_survive_without_loss(codec):
    noise = np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    for values in (pixels(33), noise, np.zeros((1, 1, 3), np.uint8), noise[:, ::-1], noise[::3, 1:8]):
        np.testing.assert_array_equal(decode_image(encode_image(values, codec)), values)
    grey = np.ascontiguousarray(noise[:, :, 0])
    np.testing.assert_array_equal(decode_image(encode_image(grey, codec)), np.repeat(grey[..., None], 3, axis=2))


def test_a_codec_whose_package_is_missing_is_refused_before_anything_runs(monkeypatch):
    job = {"kind": "generate", "conditions": "c", "checkpoint": "bundled", "codec": "png_fast", "out": "o"}
    assert make(job).codec == "png_fast"
    monkeypatch.setattr("raygen.store.images.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"codec.*raygen\[fast\]"):
        make(job)


def test_black_under_webp_stays_black_and_grey_becomes_rgb():
    grey = mask()
    np.testing.assert_array_equal(decode_image(encode_image(grey)), np.repeat(grey[..., None], 3, axis=2))


def test_masks_survive_as_indices():
    data = encode_mask(mask())
    assert Image.open(io.BytesIO(data)).mode == "L"
    np.testing.assert_array_equal(decode_mask(data), mask())


@pytest.mark.parametrize("colours", [PALETTE.tobytes(), bytes(range(57)), bytes(57)])
def test_masks_in_mode_p_keep_their_indices_whatever_the_palette(colours):
    image, buffer = Image.fromarray(mask()), io.BytesIO()
    image.putpalette(colours)
    image.save(buffer, "PNG")
    assert Image.open(io.BytesIO(buffer.getvalue())).mode == "P"
    np.testing.assert_array_equal(decode_mask(buffer.getvalue()), mask())


def test_colour_masks_are_inverted_through_the_palette():
    np.testing.assert_array_equal(decode_mask(encode_image(colorize(mask()), "png")), mask())


def png(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"not a picture", "not_an_image"),
        (png(pixels())[:-200], "truncated"),
        (png(np.full((4, 4), 19, np.uint8)), "label"),
        (png(np.full((4, 4), 255, np.uint8)), "label"),
        (png(np.full((4, 4, 3), (1, 2, 3), np.uint8)), "palette"),
        (png(np.full((4, 4), 257, np.uint16)), "label"),
        (png(np.zeros((4, 4), bool)), "mode"),
    ],
)
def test_bad_masks_have_their_own_reason(data, reason):
    with pytest.raises(InputError) as caught:
        decode_mask(data)
    assert caught.value.reason == reason


def test_a_picture_larger_than_allowed_is_refused_before_it_is_decoded():
    with pytest.raises(InputError) as caught:
        decode_image(png(np.zeros((200, 200), np.uint8)), max_pixels=10_000)
    assert caught.value.reason == "bomb"


def test_a_flipped_bit_in_a_png_is_noticed_though_the_decoder_would_let_it_pass():
    data = png(mask(24) // 8)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 2
        try:
            decoded = decode_mask(bytes(damaged))
        except InputError:
            continue
        np.testing.assert_array_equal(decoded, mask(24) // 8)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF"])
def test_random_damage_is_an_input_error_or_a_picture_and_nothing_else(suffix, capfd):
    buffer, random = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(pixels()).save(buffer, suffix)
    for _ in range(150):
        damaged = bytearray(buffer.getvalue())
        for position in random.integers(0, len(damaged), 3):
            damaged[position] ^= 1 << int(random.integers(8))
        for decode in (decode_image, decode_mask):
            with contextlib.suppress(InputError):
                decode(bytes(damaged))


def test_picture_columns_keep_nulls():
    column = picture_column([b"x", None])
    assert column.to_pylist() == [{"bytes": b"x", "path": None}, None]


# --- ids and reasons ---


@pytest.mark.parametrize("good", ["a", "00001", "p000001-003", "s1-1.2_x", "x" * 128])
def test_good_ids(good):
    assert check_id(good) == good


@pytest.mark.parametrize("bad", ["", "x" * 129, "a/b", "..", "a..b", ".a", "-a", "a b", "é", "a\n", None, 3])
def test_bad_ids_are_refused(bad):
    with pytest.raises(InputError) as caught:
        check_id(bad)
    assert caught.value.reason == "bad_id"


def test_reasons_start_with_one_stable_word_and_are_short():
    assert reason_of(InputError("the file ends\nearly", reason="truncated")) == "truncated: the file ends early"
    assert reason_of(FileNotFoundError("gone")) == "FileNotFoundError: gone"
    assert len(reason_of(ValueError("x" * 1000))) == 300
