"""Plots as SVG: equal bytes, no shared ids, nothing that the page's policy forbids, colours for both schemes."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from raygen.report.plots import COLOURS, DataPoint, RocCurve, Series, histogram_plot, line_plot, roc_plot
from tests.report.test_build import contrast

PAPER = ("#faf9f6", "#ffffff", "#131517", "#1b1e21")
EVIL = "</svg><script>$x$ & _\x00"


def lines(name: str, *names: str) -> str:
    points = [DataPoint(x, 1 / x, 0.9 / x, 1.1 / x) for x in (1, 10, 100)]
    return line_plot([Series(n, points) for n in names], name=name, title="A title", xlabel="steps", log_x=True)


def every_plot(name: str = "one") -> list[str]:
    return [
        lines(f"{name}-lines", "first", EVIL),
        roc_plot([RocCurve(EVIL, [1, 0.1, 0], [1, 0.5, 0], [(EVIL, 0.1, 0.5)])], 0.01, name=f"{name}-roc"),
        histogram_plot({EVIL: [1, 2], "b": [2, 1]}, (-1, 1), name=f"{name}-two", title=EVIL, xlabel="x", ylabel="y"),
        histogram_plot({"a": [1, 2]}, (0, 1), name=f"{name}-bars", title="t", xlabel="x", ylabel="y", mean=0.7),
    ]


def test_equal_input_gives_equal_bytes_whatever_the_users_settings_are() -> None:
    before = every_plot()
    with matplotlib.rc_context(
        {"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}
    ):
        assert every_plot() == before
        assert matplotlib.rcParams["font.size"] == 30, "settings of the process are left alone"


def test_two_plots_share_no_id() -> None:
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for name in ("one", "two") for svg in every_plot(name)]
    assert all(ids)
    assert len(set.union(*ids)) == sum(map(len, ids))


@pytest.mark.parametrize("number", range(4))
def test_a_plot_obeys_the_pages_policy_and_its_text_is_text(number: int) -> None:
    svg = every_plot()[number]
    root = ET.fromstring(svg)
    tags = {node.tag for node in root.iter()}
    assert tags <= {"svg", "defs", "g", "path", "use", "text", "title", "clipPath", "rect"}
    assert "style=" not in svg
    assert "://" not in svg
    assert "<text" in svg
    assert root.get("role") == "img"
    names = {node.get("id") for node in root.iter()} - {None}
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    assert used <= names


def test_colours_are_read_on_light_and_on_dark_paper() -> None:
    assert all(contrast(colour, paper) >= 3 for colour in COLOURS for paper in PAPER)
    svg = lines("schemes", *(f"line {i}" for i in range(8)))
    assert set(re.findall(r'(?:fill|stroke)="(#\w+)"', svg)) == set(COLOURS), "text and axes have the page's colour"
    looks = set()
    for path in ET.fromstring(svg).iter("path"):
        if path.get("stroke") in COLOURS and path.get("clip-path"):
            looks.add(path.get("stroke-dasharray"))
    assert len(looks) == 4, "four kinds of dashes"


def test_matplotlib_is_imported_when_a_plot_is_drawn() -> None:
    code = "import sys, raygen.report.build; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
