"""The explorer: every row is on it, it opens offline from a disk, and only the pictures that are seen exist."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raygen.core.errors import ConfigError
from raygen.core.face_labels import ATTRIBUTES, PALETTE
from raygen.report import explorer
from raygen.report.build import build_report
from raygen.report.explorer import write_explorer
from raygen.report.run_folder import RunFolder
from raygen.store.filesystem import FileStore
from raygen.store.schemas import SAMPLES, SCORES
from tests.commandline import main
from tests.report.test_build import (
    EVIL,
    Browser,
    complaints,
    drawn,
    make_run,
    metrics_rows,
    needs_browser,
    samples_of,
    write,
    write_metrics,
)

ROWS = 60
BAD = {5: "truncated: 3 bytes not processed", 40: f"not_finite: {EVIL}"}
FILES = "explorer_files"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with masks, attributes that a classifier has judged, and two rows that failed."""
    root = make_run(tmp_path_factory.mktemp("explorer") / "run", rows=ROWS, shard=20, bad=BAD)
    tables = samples_of(range(ROWS), BAD)
    codes = {row["sample_id"]: [3.0 if i % 2 else 4.0] * 40 for i, row in enumerate(tables["samples"].to_pylist())}
    scores = [
        {**row, "value": float(row["vector"][0]), "names": None}
        for row in tables["scores"].to_pylist()
        if row["sample_id"] in codes
    ]
    scores += [
        {"sample_id": name, "attempt": 0, "metric": "attributes:c", "run_id": "r", "value": 0.5, "vector": vector}
        for name, vector in codes.items()
    ]
    judged = [{"scores": pa.Table.from_pylist(scores, SCORES)}]
    write(root, "scores/samples", "evaluate", {}, judged, begin=1_767_400_100.0, took=1.0)
    build_report(str(root), explore=1000)
    return root


def rows_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    assert EVIL not in text
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def chunk(path: Path) -> list:
    kind, number, values = json.loads("[" + path.read_text()[len("raygenChunk(") : -3] + "]")
    assert path.name == f"{kind}-{number:04d}.js"
    return values


def picture(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_every_row_is_on_the_page_with_its_error_scores_and_attributes(run: Path) -> None:
    rows = rows_of(run / "explorer.html")
    assert rows["ids"] == [f"p{n // 2:06d}-000-{n % 2:03d}" for n in range(ROWS)]
    failed = {i: rows["errors"]["words"][word] for i, word in enumerate(rows["errors"]["rows"]) if word >= 0}
    assert failed == BAD
    assert [score["metric"] for score in rows["scores"]] == ["attributes:c", "segmentation:raygen-parser"]
    assert [i for i, value in enumerate(rows["scores"][1]["values"]) if value is None] == sorted(BAD)
    assert rows["attributes"] == [name.replace("_", " ") for name in ATTRIBUTES]
    assert rows["codes"] == ["4" * 40, "3" * 40] * (ROWS // 2)
    assert 'href="explorer.html"' in (run / "report.html").read_text()


def test_pictures_are_those_of_the_rows_and_masks_have_the_official_colours(run: Path) -> None:
    thumbs, masks = chunk(run / FILES / "t-0000.js"), chunk(run / FILES / "m-0000.js")
    assert [i for i, value in enumerate(thumbs) if value is None] == sorted(BAD)
    pixels, mask = drawn(6, noise=0.1)
    difference = np.abs(np.asarray(picture(thumbs[12]).convert("RGB")).astype(int) - pixels)
    other = np.abs(drawn(7, noise=0.1)[0].astype(int) - pixels)
    assert difference.mean() < 10 < other.mean()
    coloured = np.asarray(picture(masks[12]).convert("RGBA"))
    assert (coloured[mask > 0][:, :3] == PALETTE[mask[mask > 0]]).all()
    assert ((coloured[..., 3] == 0) == (mask == 0)).all(), "the background is transparent"


def test_fewer_pictures_are_evenly_spaced_and_files_of_a_larger_page_are_removed(run: Path, tmp_path: Path) -> None:
    (tmp_path / FILES).mkdir()
    (tmp_path / FILES / "t-0007.js").write_text("of an earlier page")
    (tmp_path / FILES / "notes.txt").write_text("of the user")
    write_explorer(RunFolder.open(str(run)), FileStore(str(tmp_path)), 6, report="report.html")
    rows = rows_of(tmp_path / "explorer.html")
    assert rows["ids"] == [f"p{n // 2:06d}-000-{n % 2:03d}" for n in (5, 15, 25, 35, 45, 55)]
    assert (rows["total"], rows["link"]) == (ROWS, "report.html")
    assert sorted(path.name for path in (tmp_path / FILES).iterdir()) == ["m-0000.js", "notes.txt", "t-0000.js"]


def test_pictures_larger_than_the_grid_shows_have_files_of_their_own(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer, "SIDE", 32)
    write_explorer(RunFolder.open(str(run)), FileStore(str(tmp_path)), 3, report="report.html")
    assert rows_of(tmp_path / "explorer.html")["large"] is True
    assert picture(chunk(tmp_path / FILES / "t-0000.js")[0]).size == (32, 32)
    assert picture(chunk(tmp_path / FILES / "v-0000.js")[0]).size == (64, 64)


def test_without_the_option_nothing_is_beside_the_report(run: Path, tmp_path: Path) -> None:
    page = build_report(str(run), str(tmp_path / "r.html"))
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert "explorer" not in Path(page).read_text()


def test_reports_in_one_folder_have_explorers_of_their_own(run: Path, tmp_path: Path) -> None:
    """Of two runs in one folder the second one's pictures replaced the first one's."""
    write_explorer(RunFolder.open(str(run)), FileStore(str(tmp_path)), 2, report="a.html")
    build_report(str(run), str(tmp_path / "b 2.html"), explore=2)
    assert 'href="b%202_explorer.html"' in (tmp_path / "b 2.html").read_text()
    rows = rows_of(tmp_path / "b 2_explorer.html")
    assert (rows["link"], rows["folder"]) == ("b%202.html", "b 2_explorer_files")
    for name in ("a_explorer", "b 2_explorer"):
        assert len(chunk(tmp_path / f"{name}_files/t-0000.js")) == 2


def test_a_run_without_pictures_has_nothing_to_explore(tmp_path: Path) -> None:
    write_metrics(tmp_path, metrics_rows(10))
    with pytest.raises(ConfigError, match=r"has no SAMPLES or FACES.* leave --explore out"):
        build_report(str(tmp_path), explore=10)
    assert not (tmp_path / "report.html").exists()


def test_the_command_says_where_the_explorer_is(run: Path, tmp_path: Path, capfd) -> None:
    code, said = main(capfd, "report", str(run), f"--out={tmp_path}/ours.html", "--explore", "--pictures=2")
    assert (code, f"explorer: {tmp_path}/ours_explorer.html" in "".join(said.splitlines())) == (0, True), said


def test_of_several_classifiers_the_first_one_judges_as_in_the_report(run: Path, tmp_path: Path) -> None:
    tables = samples_of(range(4), {})
    names = [row["sample_id"] for row in tables["samples"].to_pylist()]
    row = {"attempt": 0, "run_id": "r", "value": 0.5}
    scores = [
        {**row, "sample_id": name, "metric": f"attributes:{judge}", "vector": [code] * 40}
        for name in names
        for judge, code in (("one", 4.0), ("two", 3.0))
    ]
    write(tmp_path, "samples", "generate", {}, [tables], begin=1e9, took=1.0)
    write(
        tmp_path, "scores/samples", "evaluate", {}, [{"scores": pa.Table.from_pylist(scores, SCORES)}], begin=1, took=1
    )
    page = build_report(str(tmp_path), explore=9)
    assert rows_of(tmp_path / "explorer.html")["codes"] == ["4" * 40] * 4
    assert "how often one finds it" in Path(page).read_text()


# --- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


def settled(browser: Browser) -> None:
    """Wait until the files that are asked for are there and two frames are drawn."""
    wait = """new Promise(done => { const look = () => document.head.querySelector('script') ? setTimeout(look, 20)
        : requestAnimationFrame(() => requestAnimationFrame(() => done(1))); look(); })"""
    browser.call("Runtime.evaluate", expression=wait, awaitPromise=True)


SEEN = "[...document.querySelectorAll('.cell')].filter(c => c.style.visibility === '')"


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_it_opens_from_a_disk_with_its_own_files_only(browser: Browser, run: Path, width: int) -> None:
    browser.open(run / "explorer.html", width, features=[{"name": "prefers-color-scheme", "value": "light"}])
    settled(browser)
    asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
    own = {(run / name).as_uri() for name in ("explorer.html", f"{FILES}/t-0000.js")}
    assert {url for url in asked if not url.startswith("data:")} == own
    assert complaints(browser) == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(f"{SEEN}.filter(c => c.querySelector('img').naturalWidth === 64).length") >= 6
    assert browser.evaluate(f"{SEEN}[5].textContent") == f"{BAD[5]}p000002-000-001"


@needs_browser
def test_it_sorts_filters_and_overlays_masks(browser: Browser, run: Path) -> None:
    browser.open(run / "explorer.html", 1280)
    settled(browser)
    values = rows_of(run / "explorer.html")["scores"][1]["values"]
    browser.evaluate("sort.value = 'score:1'; sort.onchange(); direction.click()")
    settled(browser)
    best = max(value for value in values if value is not None)
    assert browser.evaluate(f"{SEEN}[0].textContent") == f"{best:.3f}"
    browser.evaluate("document.querySelector('.picks button:nth-child(3)').click()")
    assert browser.evaluate("shown.textContent + ' ' + of.textContent") == f"{ROWS // 2} of {ROWS} generated faces"
    assert browser.evaluate("document.querySelector('.trait small').textContent") == "asked 100%, made 0% (0% to 11%)"
    browser.evaluate("reset.click(); search.value = 'P000003-'; search.oninput(); veil.value = 60; veil.oninput()")
    settled(browser)
    assert browser.evaluate("shown.textContent") == "2"
    assert browser.evaluate(f"{SEEN}.every(c => c.querySelector('.mask').naturalWidth === 64)") is True
    browser.evaluate("reset.click(); document.getElementById('select-errors').value = 'any'")
    browser.evaluate("document.getElementById('select-errors').onchange()")
    assert browser.evaluate("shown.textContent") == str(len(BAD))


@needs_browser
def test_a_picture_is_enlarged_and_the_keys_go_on(browser: Browser, run: Path) -> None:
    browser.open(run / "explorer.html", 390)
    settled(browser)
    browser.evaluate(f"{SEEN}[0].click(); document.getElementById('in').click()")
    assert browser.evaluate("zoom.textContent").startswith("1.5")
    for _ in range(2):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    name = browser.evaluate("document.getElementById('viewer-name').textContent")
    assert name == "p000001-000-000"
    assert browser.evaluate("facts.textContent").startswith("Attributes as asked for")
    assert browser.evaluate("document.documentElement.scrollWidth") == 390


@needs_browser
def test_a_missing_file_is_a_sentence(browser: Browser, run: Path, tmp_path: Path) -> None:
    (tmp_path / "explorer.html").write_bytes((run / "explorer.html").read_bytes())
    browser.open(tmp_path / "explorer.html", 390)
    settled(browser)
    assert browser.evaluate("problem.textContent") == (
        f"{FILES}/t-0000.js does not open. Keep the folder {FILES}/ beside this page."
    )


@needs_browser
def test_the_keyboard_goes_through_the_pictures_in_the_order_that_is_seen(browser: Browser, run: Path) -> None:
    """One tab stop; arrows; the picture that was seen last has the focus when it closes."""
    browser.open(run / "explorer.html", 1280)
    settled(browser)

    def key(name: str, **more: object) -> str:
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=name, **more)
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=name)
        settled(browser)
        return str(browser.evaluate("document.activeElement.getAttribute('aria-label')")).partition(",")[0]

    ids = rows_of(run / "explorer.html")["ids"]
    browser.evaluate("direction.click(); direction.click(); document.getElementById('veil').focus()")
    assert key("Tab") == ids[0]
    across = browser.evaluate(
        "[...document.querySelectorAll('.cell')].filter(c => c.style.transform.endsWith(', 0px)')).length"
    )
    assert [key("ArrowRight"), key("ArrowDown"), key("ArrowLeft")] == [ids[1], ids[1 + across], ids[across]]
    assert [key("ArrowUp"), key("ArrowUp")] == [ids[0], ids[0]]
    assert key("End") == ids[-1]
    assert browser.evaluate("document.activeElement.getBoundingClientRect().bottom <= innerHeight") is True
    assert browser.evaluate("document.querySelectorAll('.cell[tabindex=\"0\"]').length") == 1
    key("Home")
    browser.evaluate("document.activeElement.click()")
    for _ in range(9):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    key("Escape", windowsVirtualKeyCode=27)
    assert browser.evaluate("document.getElementById('viewer').open") is False
    assert browser.evaluate("document.activeElement.getAttribute('aria-label')").startswith(ids[9])


@needs_browser
def test_a_run_whose_rows_all_failed_says_why_and_shows_no_control_without_use(
    browser: Browser, tmp_path: Path
) -> None:
    rows = [
        {"sample_id": f"s{i}", "attempt": 0, "run_id": "r", "error": f"not_finite: step {i}", "text": "نص"}
        for i in (1, 2)
    ]
    root = tmp_path / ("long_name_" * 9)
    write(root, "samples", "generate", {}, [{"samples": pa.Table.from_pylist(rows, SAMPLES)}], begin=1, took=1)
    build_report(str(root), explore=10)
    browser.open(root / "explorer.html", 390)
    settled(browser)
    assert complaints(browser) == []
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert browser.evaluate("[problem.hidden, document.getElementById('veil-label').offsetHeight]") == [True, 0]
    browser.evaluate(f"{SEEN}[0].click()")
    box = browser.evaluate(
        "(({top, bottom}) => [top, bottom])(document.getElementById('reason').getBoundingClientRect())"
    )
    assert 0 < box[0] < box[1] < 400
    assert browser.evaluate("[...document.querySelectorAll('dd')].map(n => getComputedStyle(n).direction)") == [
        "ltr",
        "rtl",
    ]
    browser.evaluate("document.getElementById('close').click(); search.value = 'zz'; search.oninput()")
    settled(browser)
    assert browser.evaluate("none.hidden") is False
    browser.evaluate("all.click()")
    assert browser.evaluate("document.getElementById('done').textContent") == "Show 2 pictures"


@needs_browser
def test_an_identity_is_chosen_whole_among_thousands(browser: Browser, run: Path, tmp_path: Path) -> None:
    """A search for p1 finds p10 too; and a list of thousands of identities would be of no use."""
    text, rows = (run / "explorer.html").read_text(), rows_of(run / "explorer.html")
    people = [f"p{i // 2}" for i in range(6000)]
    words = list(dict.fromkeys(people))
    many = {**rows, "errors": None, "scores": [], "attributes": [], "codes": [], "total": 6000}
    many |= {
        "ids": [f"s{i}" for i in range(6000)],
        "identities": {"words": words, "rows": [i // 2 for i in range(6000)]},
    }
    start = text.index('id="data">') + len('id="data">')
    page = tmp_path / "explorer.html"
    page.write_text(text[:start] + json.dumps(many) + text[text.index("</script>", start) :])
    browser.open(page, 1280)
    assert browser.evaluate("document.getElementById('select-identities').offsetHeight") == 0
    browser.evaluate(f"{SEEN}[2].click(); facts.querySelector('button').click()")
    assert browser.evaluate("shown.textContent + ' ' + document.getElementById('select-identities').value") == "2 1"
    browser.evaluate("reset.click()")
    assert browser.evaluate("shown.textContent") == "6,000"


@needs_browser
def test_cells_are_as_many_as_are_seen(browser: Browser, run: Path, tmp_path: Path) -> None:
    """Of 20,000 rows; scrolling makes no more of them."""
    text = (run / "explorer.html").read_text()
    rows = rows_of(run / "explorer.html")
    many = {**rows, "errors": None, "scores": [], "attributes": [], "codes": []}
    many |= {"ids": [f"p{i}" for i in range(20_000)], "total": 20_000}
    start = text.index('id="data">') + len('id="data">')
    page = tmp_path / "explorer.html"
    page.write_text(text[:start] + json.dumps(many) + text[text.index("</script>", start) :])
    browser.open(page, 1280)
    browser.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    settled(browser)
    assert browser.evaluate(f"{SEEN}.at(-1).getAttribute('aria-label')") == "p19999, p19999"
    for place in (0.2, 0.8, 0.5):
        browser.evaluate(f"scrollTo(0, {place} * document.documentElement.scrollHeight)")
        settled(browser)
    assert browser.evaluate("document.querySelectorAll('.cell').length") < 120
