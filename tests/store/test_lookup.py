"""A few rows of a run: evenly spaced, alone or in blocks."""

from pathlib import Path

import pyarrow as pa
import pytest

from raygen.store.images import encode_image, picture
from raygen.store.lookup import evenly, images_of
from raygen.store.parquet import Slice, to_parquet
from tests.exports.export_runs import pixels


def files(folder: Path, *rows: int) -> list[Slice]:
    """Files of so many rows, numbered through in the column `n`."""
    pieces, start = [], 0
    for count in rows:
        path = folder / f"{start}.parquet"
        path.write_bytes(to_parquet(pa.table({"n": list(range(start, start + count))})))
        pieces.append(Slice(str(path), 0, count))
        start += count
    return pieces


def numbers(pieces: list[Slice], count: int, **how: int) -> list[int]:
    return [row["n"] for row in evenly(pieces, count, ["n"], **how)]


def test_rows_are_evenly_spaced(tmp_path: Path) -> None:
    pieces = files(tmp_path, 30, 70)
    assert numbers(pieces, 4) == [12, 37, 62, 87]
    assert numbers(pieces, 1000) == list(range(100))


@pytest.mark.parametrize("rows", [(30, 70), (100,), (7, 1, 92)])
def test_blocks_hold_rows_that_follow_each_other_and_none_twice(tmp_path: Path, rows: tuple[int, ...]) -> None:
    found = numbers(files(tmp_path, *rows), 64, block=8)
    assert len(found) == len(set(found))
    assert found == sorted(found)
    assert 56 <= len(found) <= 64, "a block ends with its file"
    assert {n // 25 for n in found} == {0, 1, 2, 3}, "from everywhere"


def test_few_rows_are_all_taken(tmp_path: Path) -> None:
    assert numbers(files(tmp_path, 12, 52), 64, block=8) == list(range(64))


def test_rows_without_a_picture_that_opens_are_left_out() -> None:
    rows = [{"image": picture(encode_image(pixels(1)))}, {"image": None}, {"image": picture(b"no picture")}, {}]
    assert [image.tolist() for image in images_of(rows)] == [pixels(1).tolist()]
