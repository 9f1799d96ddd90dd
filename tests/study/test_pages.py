"""The pages of a study: blinded, offline, by keys and by touch, resumed after a break."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from raygen.core.errors import ConfigError
from raygen.store.filesystem import FileStore
from raygen.store.images import decode_image, encode_image, encode_mask, picture
from raygen.store.parquet import from_parquet
from raygen.store.schemas import SAMPLES
from raygen.study.answers import read_answers
from raygen.study.build import read_key
from tests.commandline import main
from tests.report.test_build import EVIL, Browser, complaints, drawn, needs_browser, write

METHODS = ("spatial-unet", "Baseline_7")
QUESTION = "Which picture follows the mask <better>?"


def samples(root: Path, method: str, *, rows: int = 12, size: int = 64, first: int = 0) -> str:
    """SAMPLES of a method, whose pictures have a brightness of its own and bear its name in their files."""
    made = []
    for n in range(first, first + rows):
        pixels, mask = drawn(n)
        shade = (pixels * (0.5 if method == METHODS[0] else 1.0)).astype(np.uint8)
        row = {
            "sample_id": f"p{n:03d}",
            "attempt": 0,
            "run_id": "r",
            "plan": "p",
            "seed": 1,
            "text": f"face {n} {EVIL}",
        }
        row |= {"image": {"bytes": encode_image(shade[:size, :size], "png"), "path": f"{method}.png"}}
        made.append(row | {"mask": picture(encode_mask(mask)), "attributes": (1, -1) * 20})
    made[-1] |= {"image": None, "error": "not_finite: step 3"} if method == METHODS[1] else {}
    tables = [{"samples": pa.Table.from_pylist(made, SAMPLES)}]
    write(root, method, "generate", {"name": method}, tables, begin=1e9, took=1.0)
    return str(root / method)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    settings = {
        "kind": "study",
        "methods": {method: samples(root, method) for method in METHODS},
        "question": QUESTION,
        "instructions": f"Look. {EVIL}",
        "show": ["mask", "attributes", "text"],
        "trials": 6,
        "checks": 2,
        "forms": 2,
        "ties": True,
        "out": str(root / "pages"),
    }
    (root / "study.yaml").write_text(yaml.safe_dump(settings))
    return root / "study.yaml"


@pytest.fixture(scope="module")
def pages(job: Path, request: pytest.FixtureRequest) -> Path:
    from raygen.commands.registry import load

    load(str(job)).run(lambda _: None)
    return job.parent / "pages"


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(text[text.index('id="data">') + 10 : text.index("</script>", text.index('id="data">'))])


def test_nothing_that_raters_get_names_a_method(pages: Path) -> None:
    files = [path for path in pages.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files if path.suffix == ".html") == ["form-01.html", "form-02.html"]
    words = [*METHODS, *(str(pages.parent / method) for method in METHODS), "p000", "sample_id", "seed"]
    for path in files:
        content = path.read_bytes().lower()
        assert not [word for word in words if word.lower() in str(path.relative_to(pages)).lower()]
        assert not [word for word in words if word.lower().encode() in content], path
    assert set(read_key(f"{pages}.key.json")["methods"]) == set(METHODS)


def test_pictures_hold_pixels_alone_and_their_names_and_times_say_nothing(pages: Path) -> None:
    key, page = read_key(f"{pages}.key.json"), data_of(pages / "form-01.html")
    files = sorted((pages / "pictures").iterdir())
    for path in files:
        data = path.read_bytes()
        assert (data[:4], data[8:16], len(data)) == (b"RIFF", b"WEBPVP8L", int.from_bytes(data[4:8], "little") + 8)
    assert [path.name for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)] == [p.name for p in files]
    dark = []
    for trial, shown in zip(key["forms"][0]["trials"], page["trials"], strict=True):
        assert trial["id"] == shown["id"]
        for method, name in zip(trial["sides"], shown["pictures"], strict=True):
            pixels = decode_image((pages / f"pictures/{name}.webp").read_bytes())
            bright = drawn(int(trial["sample_id"][1:]))[0]
            wanted = (bright * 0.5).astype(np.uint8) if method == METHODS[0] else bright
            assert (pixels == wanted).all(), "lossless, and of the row and the method that the key says"
            dark.append((name, method == METHODS[0]))
    order = [is_dark for _, is_dark in sorted(set(dark))]
    assert order not in (sorted(order), sorted(order, reverse=True))


def test_rows_that_failed_are_left_out_and_too_few_are_an_error(job: Path, pages: Path, capfd) -> None:
    assert all(t["sample_id"] != "p011" for f in read_key(f"{pages}.key.json")["forms"] for t in f["trials"])
    out = f"out={job.parent}/more"
    code, said = main(capfd, "study", str(job), out, "--dry-run")
    assert (code, "rows   6" in said, "bytes  not estimated" in said) == (0, True, True), said
    code, said = main(capfd, "study", str(job), out, "trials=12")
    assert (code, "need 12 rows, and 11 are in all methods; set trials to at most 11" in said) == (2, True), said
    assert not (job.parent / "more").exists()


def test_a_key_is_never_beside_the_pages_nor_overwritten_by_another(job: Path, pages: Path, capfd) -> None:
    assert main(capfd, "study", str(job))[0] == 0, "the same study again"
    before = Path(f"{pages}.key.json").read_bytes()
    code, said = main(capfd, "study", str(job), "seed=9")
    assert (code, "is the key of another study" in said) == (2, True), said
    assert Path(f"{pages}.key.json").read_bytes() == before
    code, said = main(capfd, "study", str(job), "seed=9", f"key={job.parent}/new.json")
    assert (code, "holds the pages of another study" in said) == (2, True), said
    assert not (job.parent / "new.json").exists()
    code, said = main(capfd, "study", str(job), f"key={pages}/pictures/key.json")
    assert (code, "key: lies in `out`" in said) == (2, True), said
    (job.parent / "used").mkdir()
    (job.parent / "used" / "notes.txt").write_text("x")
    for more in ((), ("--dry-run",)):
        code, said = main(capfd, "study", str(job), f"out={job.parent}/used", *more)
        assert (code, "holds other files" in said) == (2, True), said


def test_pictures_that_would_tell_their_method_or_do_not_open_are_named(job: Path, tmp_path: Path, capfd) -> None:
    """Row 7 of the second method is smaller, of another shape or damaged; the row that gives the size is not."""
    other = samples(tmp_path, METHODS[1])
    store = FileStore(f"{other}/attempt-00/data/samples")
    (name,) = [name for name in store.names("") if name.endswith(".parquet")]
    table = from_parquet(store.get(name))
    for shape, said, more in (
        ((32, 32), "p007 is 32 px wide, and others are 64 px: enlarged, it would tell its method; set size=32", ""),
        ((64, 32), "row p007: size: picture is 32x64, not square; a study needs square pictures that open", "size=64"),
        (None, "row p007: ", "size=64"),
    ):
        rows = table.to_pylist()
        content = b"RIFF" if shape is None else encode_image(drawn(7)[0][: shape[0], : shape[1]])
        rows[7]["image"] = picture(content)
        tables = [{"samples": pa.Table.from_pylist(rows, SAMPLES)}]
        write(tmp_path / str(shape), "m", "generate", {}, tables, begin=1, took=1)
        methods = json.dumps({"a": str(job.parent / METHODS[0]), "b": str(tmp_path / str(shape) / "m")})
        words = [f"methods={methods}", "trials=11", f"out={tmp_path}/out", *([more] if more else [])]
        code, text = main(capfd, "study", str(job), *words)
        assert (code, "methods.b: row p007" in text, said in " ".join(text.split())) == (2, True, True), text
        assert not (tmp_path / "out").exists()
    assert main(capfd, "study", str(job), f"methods={methods}", "trials=11", f"key={tmp_path}")[0] == 2


def test_methods_that_were_asked_for_other_things_are_not_compared(job: Path, tmp_path: Path) -> None:
    from raygen.commands.registry import load

    other = samples(tmp_path, METHODS[1])
    rows = []
    for n in range(12):
        row = {"sample_id": f"p{n:03d}", "attempt": 0, "run_id": "r", "plan": "p", "seed": 1, "text": "another"}
        rows.append(row | {"image": picture(encode_image(drawn(n)[0]))})
    write(tmp_path, "third", "generate", {}, [{"samples": pa.Table.from_pylist(rows, SAMPLES)}], begin=1e9, took=1.0)
    methods = json.dumps({"a": other, "b": str(tmp_path / "third")})
    study = load(str(job), [f"methods={methods}", f"out={tmp_path}/out"])
    with pytest.raises(ConfigError, match=r"row p\d+ has another text in b than in a"):
        study.run(lambda _: None)
    assert not (tmp_path / "out").exists()


# --- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


READY = """new Promise(done => { const look = () => document.querySelector('.choice:not(:disabled)')
    || !document.getElementById('end').hidden ? setTimeout(() => done(1), 300) : setTimeout(look, 10); look(); })"""


def ready(browser: Browser) -> None:
    """Wait until a choice can be made, or all are."""
    browser.call("Runtime.evaluate", expression=READY, awaitPromise=True)


def press(browser: Browser, key: str) -> None:
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
    browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)
    time.sleep(0.2)
    ready(browser)


@needs_browser
def test_a_form_is_answered_by_keys_paused_resumed_and_evaluated(
    browser: Browser, pages: Path, tmp_path: Path, capfd
) -> None:
    """The darker picture is chosen in each trial, though a reload comes between."""
    page = pages / "form-01.html"
    key = {trial["id"]: trial["sides"] for trial in read_key(f"{pages}.key.json")["forms"][0]["trials"]}
    trials = [trial["id"] for trial in data_of(page)["trials"]]
    wanted = [key[trial].index(METHODS[0]) + 1 for trial in trials]
    browser.open(page, 1280)
    browser.evaluate("rater.value = 'rater <7>'; document.getElementById('begin').requestSubmit()")
    ready(browser)
    press(browser, str(wanted[0]))
    press(browser, "0")
    press(browser, "Backspace")
    press(browser, "ArrowLeft" if wanted[1] == 1 else "ArrowRight")
    assert browser.evaluate("document.getElementById('place').textContent") == f"3 of {len(trials)}"
    browser.evaluate("document.getElementById('pause').click()")
    assert browser.evaluate("document.getElementById('trial').hidden") is True, "pictures are not seen in a pause"
    browser.open(page, 1280)
    assert browser.evaluate("stored.textContent") == f"rater <7>: 2 of {len(trials)} are answered."
    browser.evaluate("document.getElementById('continue').click()")
    ready(browser)
    for place in wanted[2:]:
        press(browser, str(place))
    assert browser.evaluate("document.getElementById('end').hidden") is False
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.evaluate("download.click()")
    for _ in range(100):
        if files := list(tmp_path.glob("*.jsonl")):
            break
        time.sleep(0.05)
    answers, problems = read_answers(read_key(f"{pages}.key.json"), files)
    assert problems == []
    assert {answer.trial: answer.method for answer in answers} == dict.fromkeys(trials, METHODS[0])
    assert all(answer.ms > 200 for answer in answers)
    assert complaints(browser) == []
    words = ["study-results", f"{pages}.key.json", str(tmp_path), f"--out={tmp_path}/results"]
    code, said = main(capfd, *words)
    assert code == 0, said
    assert f"| win rate | {METHODS[0]} | {METHODS[1]} | 1.000 |" in said
    assert "| rater &lt;7> | 6 | 0 of 2 |" in said


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_trial_fits_the_window_and_asks_for_nothing_else(browser: Browser, pages: Path, width: int) -> None:
    page = pages / "form-02.html"
    browser.open(page, width)
    browser.evaluate("localStorage.clear()")
    browser.open(page, width)
    browser.evaluate("rater.value = 'r'; document.getElementById('begin').requestSubmit()")
    ready(browser)
    assert complaints(browser) == []
    urls = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith((pages.as_uri() + "/", "data:")) for url in urls)
    assert browser.evaluate("[...document.querySelectorAll('.choice img, #mask')].every(i => i.naturalWidth === 64)")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.choice, #tie')].map(n => n.getBoundingClientRect().bottom)"
    )
    assert max(boxes) <= 844, "both pictures and the button are seen without scrolling"
    sides = browser.evaluate("document.querySelector('.choice').offsetWidth")
    assert sides >= 180
    assert browser.evaluate("document.getElementById('text').textContent").endswith(EVIL)


@needs_browser
def test_rows_of_three_methods_are_answered_to_the_end_on_a_phone(
    browser: Browser, job: Path, tmp_path: Path, capfd
) -> None:
    """In Arabic, with a pause at the wrong moment, a choice that is changed at the end, and a second person."""
    methods = {method: str(job.parent / method) for method in METHODS} | {"third": samples(tmp_path, "third")}
    words = [f"methods={json.dumps(methods)}", "layout=rows", "trials=3", "checks=1", "forms=1", f"out={tmp_path}/rows"]
    words += ["show=[]", "question=أي صورة أفضل؟", 'instructions="One.\\n\\nTwo."']
    code, said = main(capfd, "study", str(job), *words)
    assert code == 0, said
    browser.open(tmp_path / "rows/form-01.html", 390)
    assert browser.evaluate("instructions.innerText") == "One.\n\nTwo."
    assert browser.evaluate("getComputedStyle(document.querySelector('h1')).direction") == "rtl"
    browser.evaluate("rater.value = 'Анна'; document.getElementById('begin').requestSubmit()")
    ready(browser)
    tops = "[...document.querySelectorAll('.choice')].map(n => Math.round(n.getBoundingClientRect().top))"
    assert len(set(browser.evaluate(tops))) in (1, 3), "no picture stands alone in a line"
    press(browser, "2")
    for key in "3p":
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
    time.sleep(0.3)
    assert browser.evaluate("document.getElementById('paused').hidden") is False, "the next trial ends no pause"
    press(browser, "p")
    assert browser.evaluate("document.getElementById('place').textContent") == "3 of 4"
    press(browser, "1")
    press(browser, "1")
    browser.evaluate("HTMLAnchorElement.prototype.click = function () { window.saved = this.download; }")
    browser.evaluate("last.click()")
    ready(browser)
    assert browser.evaluate("document.getElementById('place').textContent") == "4 of 4"
    press(browser, "3")
    browser.evaluate("download.click(); confirm = () => true")
    study = read_key(f"{tmp_path}/rows.key.json")["study"]
    assert browser.evaluate("saved") == f"answers-{study}-01-Анна.jsonl"
    kept = json.loads(str(browser.evaluate(f"localStorage.getItem('study:{study}:1')")))
    assert [answer["choice"] for answer in kept["answers"]] == [1, 2, 0, 2]
    browser.evaluate("other.click()")
    assert browser.evaluate("[document.getElementById('start').hidden, begin.hidden, rater.value]") == [
        False,
        False,
        "",
    ]
    assert complaints(browser) == []


@needs_browser
def test_a_page_with_its_pictures_in_it_needs_no_folder(browser: Browser, job: Path, tmp_path: Path, capfd) -> None:
    code, said = main(capfd, "study", str(job), "embed=true", "forms=1", f"out={tmp_path}/one")
    assert code == 0, said
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["form-01.html"]
    browser.open(tmp_path / "one/form-01.html", 390)
    browser.evaluate("rater.value = 'r'; document.getElementById('begin').requestSubmit()")
    ready(browser)
    assert browser.evaluate("[...document.querySelectorAll('.choice img')].every(i => i.naturalWidth === 64)") is True


@needs_browser
def test_a_missing_picture_is_a_sentence_and_no_dead_end(browser: Browser, pages: Path, tmp_path: Path) -> None:
    (tmp_path / "form-01.html").write_bytes((pages / "form-01.html").read_bytes())
    browser.open(tmp_path / "form-01.html", 390)
    browser.evaluate("rater.value = 'r'; document.getElementById('begin').requestSubmit()")
    for _ in range(100):
        if not browser.evaluate("document.getElementById('problem').hidden"):
            break
        time.sleep(0.02)
    assert "Keep the folder pictures/" in str(browser.evaluate("problem.textContent"))
    browser.evaluate("skip.click()")
    time.sleep(0.1)
    assert browser.evaluate("document.getElementById('place').textContent").startswith("2 of")
