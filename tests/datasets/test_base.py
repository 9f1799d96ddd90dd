"""`load_rows`: whatever is wrong with one row costs that row, and what is wrong with the machine costs none."""

import errno

import pyarrow as pa
import pytest

from raygen.core.errors import InputError
from raygen.datasets.base import FACES_OR_ERROR, load_rows
from raygen.store.images import picture

GOOD = {"image": picture(b"x"), "identity_id": "i"}


def load(*values):
    """Rows `r0`, `r1` …, of which each gives its value or raises it."""
    listing = pa.table({"face_id": [f"r{i}" for i in range(len(values))], "image": ["/p/a.png"] * len(values)})

    def row(listed):
        value = values[int(listed["face_id"][1:])]
        if isinstance(value, BaseException):
            raise value
        return value

    return load_rows(listing, row)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (InputError("cut off", reason="truncated"), "truncated: /p/a.png: cut off"),
        (InputError("/p/a.png: cut off", reason="truncated"), "truncated: /p/a.png: cut off"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/p/a.png"),
            "FileNotFoundError: [Errno 2] No such file: '/p/a.png'",
        ),
        (ValueError("embedded null byte"), "ValueError: /p/a.png: embedded null byte"),
        ({**GOOD, "identity_id": "\ud83d"}, "value: /p/a.png: a value does not fit the table"),
        ({**GOOD, "texts": [("overall", "\udce4")]}, "value: "),
        ({**GOOD, "attributes": [10**400] * 40}, "value: "),
        ({**GOOD, "attributes": [1]}, "value: "),
        ({**GOOD, "boxes": [["x", 1, 1, 1]]}, "value: "),
        (InputError("half a pair \ud83d", reason="line"), "line: /p/a.png: half a pair \\ud83d"),
    ],
)
def test_one_bad_value_costs_its_row(value, error):
    table = load(GOOD, value, GOOD)
    assert table.schema == FACES_OR_ERROR
    first, second, third = table.to_pylist()
    assert (first["error"], third["error"]) == (None, None)
    assert (first["image"], third["image"]) == (picture(b"x"), picture(b"x"))
    assert second["error"].startswith(error)
    assert second["image"] is None


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset"),
        TimeoutError("slow"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EMFILE, "Too many open files"),
        MemoryError(),
        TypeError("a defect"),
    ],
)
def test_errors_of_the_machine_and_defects_are_raised(error):
    with pytest.raises(type(error)):
        load(GOOD, error)
