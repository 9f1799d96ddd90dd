"""Ids that are files of their own on every system, and those that are not."""

import pytest

from raygen.core.errors import InputError
from raygen.store.filenames import portable_ids


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["Anna", "anna"], "'Anna' and 'anna'"),
        (["a", "a"], "'a' and 'a'"),
        (["caf\u00e9", "cafe\u0301"], "would be one file"),
        (["\uff21nna", "anna"], "would be one file"),
        (["Stra\u00dfe", "STRASSE"], "would be one file"),
        (["\ufb01n", "fin"], "would be one file"),
        (["nul"], "device"),
        (["Com1.jpg"], "device"),
        (["COM\u00b9"], "device"),
        (["aux .x"], "device"),
        (["a."], "dot"),
        ([".."], "dot"),
        ([" a"], "space"),
        ([""], "empty"),
        (["a/b"], "holds '/'"),
        (["a\\b"], "holds"),
        (["a\uff0fb"], "holds '/'"),
        (["a:b"], "holds"),
        (["a\0"], "holds"),
        (["a\u200db"], "holds"),
        (["x" * 256], "256 bytes"),
    ],
)
def test_ids_that_are_no_files_of_their_own(names: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        portable_ids(names)


def test_good_ids_pass() -> None:
    portable_ids(["id-000001", "Anna", "\u6797 1", "console", "com", "nul-1", "x" * 255])
