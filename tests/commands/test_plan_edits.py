"""Files of edits: each line is checked before anything is planned, and a bad one is named."""

import json

import fsspec
import pytest

from raygen.commands.plan import read_edits
from raygen.core.errors import ConfigError
from tests.fakes import Shelf

GOOD = json.dumps({"edit_id": "a", "source": "x"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3 is not JSON"),
        ("[" * 100_000, "line 3 is not JSON: nested too deeply"),
        (json.dumps({"edit_id": "b", "source": "x", "text": "half a pair \ud83d"}), "line 3 is not JSON: .*surrogates"),
        (json.dumps({"edit_id": "\udce4", "source": "x"}), "line 3 is not JSON: .*surrogates"),
        ('{"edit_id": "b", "source": "x", "source": "y"}', "line 3: 'source' is there twice"),
        ('{"edit_id": "b", "source": "x", "attributes": {"Smiling": ' + "9" * 5000 + "}}", "line 3: attributes"),
        (json.dumps({"edit_id": "b"}), "line 3: source"),
        (GOOD, "lines 1 and 3 both have edit_id 'a'"),
    ],
)
def test_a_bad_line_is_named_by_its_number_in_the_file(tmp_path, line, message):
    path = tmp_path / "edits.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_edits(str(path))


def test_a_file_behind_a_url_is_read():
    Shelf.register()
    fsspec.filesystem("shelf").pipe_file("shelf://edits/edits.jsonl", f"{GOOD}\n".encode())
    assert read_edits("shelf://edits/edits.jsonl").to_pylist() == [{"line": GOOD}]
    with pytest.raises(ConfigError, match=r"shelf://edits/none.jsonl"):
        read_edits("shelf://edits/none.jsonl")


def test_a_byte_order_mark_and_blank_lines_are_ignored(tmp_path):
    path = tmp_path / "edits.jsonl"
    path.write_text(f"\n{GOOD}\n\n", encoding="utf-8-sig")
    assert read_edits(str(path)).to_pylist() == [{"line": GOOD}]
