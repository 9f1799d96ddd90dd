"""Shares of attributes that were asked for and that a classifier finds."""

import pyarrow as pa
import pytest
from scipy.stats import binomtest

from raygen.core.face_labels import ATTRIBUTES
from raygen.metrics.proportion import wilson
from raygen.report import attributes
from raygen.report.run_folder import RunFolder
from raygen.store.schemas import SCORES
from tests.report.test_build import samples_of, write


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (1, 7), (7, 7), (340, 1024)])
def test_the_interval_is_wilsons(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_shares_are_over_the_images_that_were_asked(tmp_path) -> None:
    """Codes: 0 not asked for, 1 rightly absent, 2 wrongly there, 3 wrongly missing, 4 rightly there."""
    codes = {"Bald": [1, 1, 2, 2, 0, 0, 0, 0], "Smiling": [3, 3, 3, 3, 4, 1, 1, 2], "Young": [4, 4, 4, 1, 1, 1, 1, 1]}
    rows = [
        {
            "sample_id": f"s{i}",
            "attempt": 0,
            "metric": "attributes:judge",
            "run_id": "r",
            "vector": [float(codes.get(name, [0] * 8)[i]) for name in ATTRIBUTES],
        }
        for i in range(8)
    ]
    write(tmp_path, "samples", "generate", {}, [samples_of(range(8), {})], begin=1e9, took=1.0)
    scores = [{"scores": pa.Table.from_pylist(rows, SCORES)}]
    write(tmp_path, "scores/samples", "evaluate", {}, scores, begin=1e9, took=1.0)
    section = attributes.section(RunFolder.open(str(tmp_path)))
    assert section is not None
    shares = section.variables["shares"]
    assert [(s.name, s.asked, s.made, s.n) for s in shares] == [
        ("Bald", 0.0, 0.5, 4),
        ("Smiling", 5 / 8, 2 / 8, 8),
        ("Young", 3 / 8, 3 / 8, 8),
    ]
    assert [s.off for s in shares] == [True, True, False]
    assert (section.variables["network"], section.variables["off"]) == ("judge", 2)
