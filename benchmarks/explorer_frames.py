"""Frame times of an explorer page while it is scrolled in Chromium: `python -m benchmarks.explorer_frames PAGE`.

`PAGE` is the explorer.html of `raygen report FOLDER --explore`. Without it a run of 10,000 drawn faces is made first.
"""

import argparse
import tempfile
from pathlib import Path

from raygen.report.build import build_report
from tests.report.test_build import Browser, make_run

#: Pixels a frame: reading, and flinging.
STEPS = (60, 400)
FRAMES = 600
SCROLL = """new Promise(done => {
  const frames = []; let last = performance.now(), y = 0, seen = 0, blank = 0; long.length = 0;
  const go = now => {
    frames.push(now - last); last = now; y += STEP; scrollTo(0, y);
    for (const cell of document.querySelectorAll('.cell')) if (cell.style.visibility === '') {
      seen++; if (!cell.querySelector('img').src) blank++;
    }
    if (frames.length < FRAMES) return requestAnimationFrame(go);
    frames.sort((a, b) => a - b);
    const at = share => Math.round(10 * frames[Math.floor(share * (FRAMES - 1))]) / 10;
    done(`p50 ${at(0.5)} ms, p95 ${at(0.95)} ms, p99 ${at(0.99)} ms, longest ${at(1)} ms, `
      + `${long.length} long tasks (longest ${Math.round(Math.max(0, ...long))} ms), `
      + `${(100 * blank / seen).toFixed(1)} % of cells empty`);
  };
  requestAnimationFrame(go);
})"""
WATCH = """long = [];
new PerformanceObserver(l => l.getEntries().forEach(e => long.push(e.duration))).observe({type: 'longtask'})"""
SORT = """(() => {
  const began = performance.now(); sort.value = 'score:0'; sort.onchange(); return performance.now() - began })()"""


def measure(page: Path) -> None:
    """Print a line for each width, order and speed."""
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        for width in (1280, 390):
            browser.open(page, width)
            browser.evaluate(WATCH)
            for order in ("rows", "score", "score, masks"):
                if order == "score":
                    print(f"{width} px: sorting takes {browser.evaluate(SORT):.0f} ms")
                if order == "score, masks":
                    browser.evaluate("veil.value = 60; veil.oninput()")
                for step in STEPS:
                    code = SCROLL.replace("STEP", str(step)).replace("FRAMES", str(FRAMES))
                    result = browser.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
                    print(f"{width} px, by {order}, {step} px a frame: {result['result']['value']}")
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?", type=Path)
    page = parser.parse_args().page
    with tempfile.TemporaryDirectory() as folder:
        if page is None:
            build_report(str(make_run(Path(folder) / "run", rows=10_000, shard=1000)), explore=10_000)
            page = Path(folder) / "run" / "explorer.html"
        measure(page)
