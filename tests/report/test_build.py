"""The report: what it says, what it survives, and that it opens offline on a phone."""

import fcntl
import html
import io
import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from raygen.core.errors import ConfigError
from raygen.core.face_labels import CLASS_INDEX, CLASSES
from raygen.report import best_worst, cards, images, metric_rows, overview, slices, timeline
from raygen.report.build import build_report
from raygen.report.run_folder import EXAMPLES
from raygen.report.training import summarize
from raygen.store.filesystem import FileStore
from raygen.store.images import encode_image, encode_mask, picture
from raygen.store.parquet import RANGE, Slice, read_slice, to_parquet
from raygen.store.run_store import Plan, RunStore, make_shards
from raygen.store.schemas import FACES, METRICS, QUARANTINE, SAMPLES, SCORES
from raygen.store.sealed import to_bytes

SIZE = 64
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;"
CHECKPOINT = "ab" * 32

# --- a run folder as the other stages write it -----------------------------------------------------------------


def drawn(number: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A simple face and its mask, 64 x 64; `noise` makes the picture wrong in its own way."""
    random = np.random.default_rng(number)
    shift = random.integers(-4, 5, 2)
    skin, hair, back = random.integers(120, 235, 3), random.integers(10, 150, 3), random.integers(60, 250, 3)
    shapes = [
        ("hair", (9, 4, 55, 60), hair),
        ("neck", (25, 44, 39, 64), skin * 0.8),
        ("cloth", (8, 56, 56, 80), back * 0.4),
        ("skin", (15, 12, 49, 56), skin),
        ("l_eye", (36, 27, 43, 31), (40, 30, 30)),
        ("r_eye", (21, 27, 28, 31), (40, 30, 30)),
        ("l_brow", (35, 22, 44, 24), hair * 0.7),
        ("r_brow", (20, 22, 29, 24), hair * 0.7),
        ("nose", (29, 30, 35, 40), skin * 0.88),
        ("u_lip", (26, 44, 38, 47), (170, 60, 70)),
        ("l_lip", (26, 47, 38, 50), (190, 80, 90)),
    ]
    if number % 5 == 0:
        shapes.append(("hat", (10, 2, 54, 18), back * 0.7))
    big = Image.new("RGB", (SIZE * 4, SIZE * 4), tuple(int(v) for v in back))
    mask = Image.new("L", (SIZE, SIZE), 0)
    for name, box, colour in shapes:
        place = [v + shift[i % 2] for i, v in enumerate(box)]
        ImageDraw.Draw(big).ellipse([4 * v for v in place], fill=tuple(int(v) for v in colour))
        ImageDraw.Draw(mask).ellipse([int(v) for v in place], fill=CLASS_INDEX[name])
    pixels = np.asarray(big.resize((SIZE, SIZE), Image.Resampling.BOX)).astype(float)
    pixels += noise * random.normal(size=pixels.shape) * 60
    return pixels.clip(0, 255).astype(np.uint8), np.asarray(mask)


def counts(mask: np.ndarray, quality: float) -> list[float]:
    target = np.bincount(mask.ravel(), minlength=len(CLASSES)).astype(float)
    hit = np.floor(target * quality)
    return [*hit, *target, *target]


def write(
    root: Path,
    folder: str,
    kind: str,
    what: dict,
    tables: list[dict[str, pa.Table]],
    *,
    begin: float,
    took: float,
    workers: int = 2,
    done: int | None = None,
) -> RunStore:
    """A finished store of one shard for each of `tables`, with times as two workers would leave them."""
    rows = [next(iter(parts.values())).num_rows for parts in tables]
    store = RunStore(str(root / folder))
    shards = make_shards([Slice(RANGE, 0, sum(rows))], max(rows))
    plan = Plan(kind, "0123456789abcdef", what, 32, shards)
    store.create(plan)
    for number, parts in enumerate(tables[: len(tables) if done is None else done]):
        reasons: dict[str, int] = {}
        for row in parts["quarantine"].to_pylist() if "quarantine" in parts else []:
            reason = row["error"].split(":")[0]
            reasons[reason] = reasons.get(reason, 0) + 1
        start = begin + (number // workers) * took + 0.3 * (number % workers)
        made, _ = store.commit(
            number,
            len(tables),
            parts,
            timings={"started": start, "work_s": took * 0.9, "read_s": 0.1},
            environment={"python": "3.11.7", "torch": "2.13.0"},
            reasons=reasons,
        )
        record = made._replace(created=start + took * (0.85 + 0.13 * (number % 3) / 2))._asdict()
        store.storage.put(f"commits/shard-{number:05d}.json", to_bytes(record))
    if done is None:
        store.finish(plan)
        seconds = -(-len(tables) // workers) * took + 4.2
        run = {
            "seconds": seconds,
            "finished": begin - 4 + seconds,
            "resumed_shards": 0,
            "resources": {"runner": "ray", "workers": workers},
            "first_commit_s": took + 4,
        }
        store.storage.put("run.json", to_bytes(run))
    return store


def samples_of(numbers: range, bad: dict[int, str], evil: str = "") -> dict[str, pa.Table]:
    rows, scores, errors = [], [], []
    for n in numbers:
        pixels, mask = drawn(n // 2, noise=0.1)
        name = f"p{n // 2:06d}-000-{n % 2:03d}{evil}"
        rows.append(
            {
                "sample_id": name,
                "attempt": 0,
                "image": None if n in bad else picture(encode_image(pixels)),
                "error": bad.get(n),
                "plan": "from_faces",
                "seed": 7,
                "source": f"p{n // 2:06d}-000",
                "mask": picture(encode_mask(mask)),
                "attributes": (1,) * 40,
                "run_id": "0123456789abcdef",
                "checkpoint": CHECKPOINT,
                "sampler": "ddim",
                "steps": 20,
                "guidance": {"mask": 1.5},
                "image_sha256": "0" * 64,
            }
        )
        if n in bad:
            errors.append({"id": name, "table": "samples", "error": bad[n]})
        else:
            quality = 0.35 + 0.6 * float(np.random.default_rng(n).beta(6, 2))
            vector = counts(mask, quality)
            scores.append(
                {
                    "sample_id": name,
                    "attempt": 0,
                    "metric": "segmentation:raygen-parser",
                    "run_id": "r",
                    "vector": vector,
                }
            )
    tables = {"samples": pa.Table.from_pylist(rows, SAMPLES), "scores": pa.Table.from_pylist(scores, SCORES)}
    return {**tables, "quarantine": pa.Table.from_pylist(errors, QUARANTINE)} if errors else tables


def faces_of(numbers: range) -> dict[str, pa.Table]:
    rows = []
    for n in numbers:
        pixels, mask = drawn(n)
        image, mask_png = picture(encode_image(pixels)), picture(encode_mask(mask))
        rows.append({"face_id": f"p{n:06d}-000", "split": "train", "image": image, "mask": mask_png})
    return {"faces": pa.Table.from_pylist(rows, FACES)}


def metric(name: str, part: str, value: float | None, n: int = 200, **protocol: object) -> dict:
    return {
        "run_id": "0123456789abcdef",
        "metric": name,
        "slice": part,
        "value": value,
        "n": n,
        "ci_low": None,
        "ci_high": None,
        "reference": "faces",
        "protocol": json.dumps(protocol),
        "created": datetime(2026, 1, 2, tzinfo=UTC),
    }


def metrics_rows(n: int) -> list[dict]:
    network = {"network": "raygen-parser", "sha256": "c" * 64, "size": 64, "resize": "none", "precision": "float32"}
    rows = []
    for part, miou, accuracy in (("all", 0.6131, 0.9012), ("roundtrip", 0.7211, 0.951), ("reference", 0.8123, 0.972)):
        rows.append(
            {**metric("miou:raygen-parser", part, miou, n, **network), "ci_low": miou - 0.011, "ci_high": miou + 0.012}
        )
        rows.append(metric("pixel_accuracy:raygen-parser", part, accuracy, n, **network))
    rows.append(metric("fd:raygen-parser", "all", 12.3456, n, **network, features=64))
    rows.append(metric("fd:raygen-parser", "roundtrip", 3.21, n, **network, features=64))
    for i, name in enumerate(CLASSES):
        top = None if name == "neck_l" else max(0.15, 0.97 - 0.045 * i)
        for part, share in (("{}", 0.78), ("roundtrip/{}", 0.9), ("reference/{}", 1.0)):
            rows.append(
                metric("iou:raygen-parser", part.format(name), None if top is None else round(top * share, 4), n)
            )
    return rows


def write_metrics(root: Path, rows: list[dict]) -> None:
    (root / "metrics").mkdir(parents=True, exist_ok=True)
    (root / "metrics/metrics.parquet").write_bytes(to_parquet(pa.Table.from_pylist(rows, METRICS)))


def make_run(root: Path, *, rows: int = 48, shard: int = 16, bad: dict[int, str] | None = None, evil: str = "") -> Path:
    """Faces, generated samples with inline scores, metrics."""
    procedural = {"data": {"kind": "procedural", "identities": rows // 2, "size": SIZE, "seed": 7}}
    cuts = [range(i, min(i + shard, rows)) for i in range(0, rows, shard)]
    begin = 1_767_400_000.0
    faces = [faces_of(range(c.start // 2, c.stop // 2)) for c in cuts]
    write(root, "faces", "ingest", procedural, faces, begin=begin, took=1.1)
    what = {"checkpoint": CHECKPOINT, "seed": 7, "sampler": {"name": "ddim", "steps": 20}, "batch": 32}
    samples = [samples_of(c, bad or {}, evil) for c in cuts]
    write(root, "samples", "generate", what, samples, begin=begin + 20, took=7.0)
    write_metrics(root, metrics_rows(rows - len(bad or {})))
    return root


# --- a browser over a pipe ---------------------------------------------------------------------------------------

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None
)


class Browser:
    """A headless Chromium spoken to in the DevTools protocol over two pipes; keeps every event."""

    def __init__(self, profile: Path) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_read, to_write)]

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]
        self._process = subprocess.Popen(
            [str(CHROMIUM), *flags],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_read, to_write, *ends):
            os.close(end)
        self._rest, self._number = b"", 0
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return self._until(lambda m: m.get("id") == self._number)["result"]

    def _until(self, wanted: Callable[[dict], bool]) -> dict:
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._from], [], [], 60)
                assert ready, "the browser says nothing"
                self._rest += os.read(self._from, 1 << 20)
            line, _, self._rest = self._rest.partition(b"\0")
            message = json.loads(line)
            if "method" in message:
                self.events.append(message)
            if wanted(message):
                return message

    def open(self, page: Path, width: int, **media: object) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", **media)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        self._until(lambda m: m.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> object:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self) -> None:
        os.close(self._to)
        self._process.terminate()
        self._process.wait(20)
        os.close(self._from)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run folder with two failed rows, and its report."""
    root = make_run(
        tmp_path_factory.mktemp("report") / "quickstart",
        rows=96,
        shard=16,
        bad={5: "truncated: 3 bytes not processed", 40: "not_finite: step 12"},
    )
    build_report(str(root), command="raygen quickstart --seed 7")
    return root


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text()


def words(page: str) -> str:
    """What a reader sees: tags out, entities resolved, white space folded."""
    body = page[page.index("<body") :]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


HEADINGS = (
    "Metrics",
    "Contact sheet",
    "Landmarks",
    "IoU by class",
    "Best and worst",
    "Failed rows",
    "Throughput",
    "Stored tables",
    "How to reproduce it",
    "Provenance",
)


# --- what it says ------------------------------------------------------------------------------------------------


def test_every_section_is_there(page: str) -> None:
    assert [html.unescape(h) for h in re.findall(r"<h2>(.*?)</h2>", page)] == list(HEADINGS)
    assert page.count("<h1") == 1
    assert "94 synthetic faces" in words(page)


def test_numbers_are_those_of_metrics(page: str) -> None:
    text = words(page)
    for shown in ("0.613", "0.721", "0.812", "0.602 to 0.625", "0.901", "12.35", "85% of"):
        assert shown in text
    rows = re.findall(r'class="first">([^<]+)</span><span role="cell">([^<]+)</span><span role="cell">([^<]+)<', page)
    stored = {(r["slice"]): r["value"] for r in metrics_rows(94) if r["metric"].startswith("iou")}
    places = [(name, f"roundtrip/{name}", f"reference/{name}") for name in CLASSES]
    shown = [tuple("n/a" if stored[p] is None else f"{stored[p]:.3f}" for p in three) for three in places]
    assert sorted(rows) == sorted(shown)


def test_caveats(page: str) -> None:
    text = words(page)
    assert "fd:raygen-parser is not FID" in text
    assert "Low n: 94 images, 10,000 advised" in text
    assert "Every image on this page is synthetic" in text


@pytest.mark.parametrize(
    ("n", "protocol", "said"),
    [
        (94, {}, "Low n: 94 images, 10,000 advised"),
        (50_000, {"low_n": True, "n_reference": 3000}, "Low n: 3,000 reference images, 10,000 advised"),
        (50_000, {"low_n": True, "n_reference": 60_000}, "Low n: too few pairs"),
        (20_000, {"low_n": False, "n_reference": 30_000}, ""),
        (400, {"low_n": True, "n_reference": "unknown", "fewer_rows_than_values": True}, "Low n: 400 images"),
        (400, {"fewer_rows_than_values": True}, "No more images than a feature has values"),
        (400, {"counts": "groups"}, "Low n: 400 groups"),
    ],
)
def test_few_rows_are_said_as_the_protocol_has_them(n: int, protocol: dict, said: str) -> None:
    """Whoever measured knows the reference too; a number without the flag goes by its pictures."""
    row = metric("fid@clean", "all", 20.0, **protocol) | {"n": n}
    (card,) = cards.cards(metric_rows.numbers([row]))
    assert card.warning.startswith(said) if said.startswith("Low") else said in card.warning
    assert bool(card.warning) == bool(said)


def test_failed_rows_are_listed_with_their_reason(page: str) -> None:
    text = words(page)
    assert "2 rows failed" in text
    assert "p000002-000-001 samples truncated: 3 bytes not processed" in text
    assert "not_finite: step 12" in text


def test_how_to_have_it_again(page: str, run: Path) -> None:
    text = words(page)
    digest = json.loads((run / "samples/attempt-00/MANIFEST.json").read_text())["set_digest"]
    for shown in ("raygen quickstart --seed 7", "0123456789abcdef", CHECKPOINT, digest, "torch 2.13.0"):
        assert shown in text


def test_small_deterministic_and_self_contained(page: str, run: Path, tmp_path: Path) -> None:
    assert len(page) < 3_000_000
    again = build_report(str(run), str(tmp_path / "again.html"), command="raygen quickstart --seed 7")
    assert Path(again).read_text() == page
    assert "://" not in page
    assert "<script" not in page
    assert " style=" not in page
    assert {src[:10] for src in re.findall(r'(?:src|href)="([^"#]*)', page)} <= {"", "data:,", "data:image"}


def test_pairs_are_the_rows_of_the_set(page: str) -> None:
    sheet = page[page.index('id="contact-sheet"') : page.index('id="landmarks"')]
    names = re.findall(r'class="pair" title="([^"]+)"', sheet)
    assert len(names) == len(set(names)) == EXAMPLES * 2 // 3 == 48
    assert sheet.count("<img") == 2 * 48
    assert all(re.search(r' alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", sheet))


# --- what it survives --------------------------------------------------------------------------------------------


def test_text_of_rows_is_never_markup(tmp_path: Path) -> None:
    root = make_run(tmp_path / "r", rows=8, shard=8, bad={3: f"bad_{EVIL}: {EVIL}"}, evil=EVIL)
    write_metrics(root, [metric(f"miou:{EVIL}", "all", 0.5, note=EVIL, **{EVIL: EVIL})])
    page = Path(build_report(str(root), command=EVIL)).read_text()
    assert EVIL not in page
    assert "<script" not in page
    assert "<img src=x" not in page
    assert html.unescape(page).count(EVIL) >= 8


@pytest.mark.parametrize("kept", [("faces",), ("samples",), ("metrics",), ("faces", "metrics"), ("samples", "metrics")])
def test_missing_parts_are_left_out(run: Path, tmp_path: Path, kept: tuple[str, ...]) -> None:
    for name in kept:
        shutil.copytree(run / name, tmp_path / name)
    page = Path(build_report(str(tmp_path))).read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert ("Metrics" in headings) == ("metrics" in kept)
    assert ("Best and worst" in headings) == ("samples" in kept)
    assert ("Contact sheet" in headings) == (kept != ("metrics",))


def test_few_pictures_are_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Picture columns are read one row at a time, for the rows on the page alone."""
    reads: list[int] = []

    def watched(piece: Slice, columns: Sequence[str] | None = None) -> pa.Table:
        if columns is None or {"image", "mask"} & set(columns):
            reads.append(piece.rows)
        return read_slice(piece, columns)

    monkeypatch.setattr(images, "read_slice", watched)
    build_report(str(run), str(tmp_path / "page.html"))
    assert max(reads) == 1
    assert len(reads) <= EXAMPLES + 2 * 18


def test_scores_of_their_own_store_count_once(run: Path, tmp_path: Path) -> None:
    """Where samples carry scores and scores/samples has them too, no picture is ranked twice."""
    shutil.copytree(run / "samples", tmp_path / "samples")
    write(
        tmp_path, "scores/samples", "evaluate", {}, [{"scores": samples_of(range(20), {})["scores"]}], begin=1e9, took=1
    )
    assert "over 20 images" in words(Path(build_report(str(tmp_path))).read_text())


def test_a_resumed_run_leaves_out_its_pauses(tmp_path: Path) -> None:
    tables = [samples_of(range(i, i + 8), {}) for i in (0, 8, 16)]
    store = write(tmp_path, "samples", "generate", {}, tables, begin=1e9, took=10.0, workers=1)
    for number in (1, 2):
        record = store.commit_of(number)
        late = {"created": record.created + 7200, "timings": {"started": record.timings["started"] + 7200}}
        store.storage.put(f"commits/shard-{number:05d}.json", to_bytes({**record._asdict(), **late}))
    store.storage.put("run.json", to_bytes({"seconds": 20.0, "resumed_shards": 1, "finished": 1e9 + 7230}))
    text = words(Path(build_report(str(tmp_path))).read_text())
    assert "1 shard was already there from an earlier start" in text
    assert "Pauses of 2 h in all are left out" in text
    assert "24 synthetic faces in 2" in text


@pytest.mark.parametrize(
    ("bad", "colour", "headline", "alert"),
    [
        (
            24,
            False,
            "24 images of noise",
            "These are no faces. 24 images were looked at: 24 with the statistics of noise",
        ),
        (24, True, "24 images of one colour", "These are no faces. 24 images were looked at: 24 of one colour"),
        (6, False, "24 synthetic faces", "Not all are faces. 24 images were looked at: 6 with the statistics of noise"),
        (0, False, "24 synthetic faces", None),
    ],
)
def test_the_headline_says_what_the_images_show(
    tmp_path: Path, bad: int, colour: bool, headline: str, alert: str | None
) -> None:
    """It depends on the images alone: there are no metrics here."""
    random = np.random.default_rng(0)
    rows = samples_of(range(24), {})["samples"].to_pylist()
    for row in rows[:bad]:
        pixels = np.full((SIZE, SIZE, 3), 90) if colour else random.normal(128, 40, (SIZE, SIZE, 3)).clip(0, 255)
        row["image"] = picture(encode_image(pixels.astype(np.uint8)))
    write(tmp_path, "samples", "generate", {}, [{"samples": pa.Table.from_pylist(rows, SAMPLES)}], begin=1e9, took=9.0)
    text = words(Path(build_report(str(tmp_path))).read_text())
    assert headline in text
    assert (alert in text) if alert else ("no faces" not in text and "Not all" not in text)


def test_a_folder_without_a_run_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of faces/"):
        build_report(str(tmp_path))


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    tables = [samples_of(range(i, i + 8), {}) for i in (0, 8, 16)]
    write(tmp_path, "samples", "generate", {"seed": 7}, tables, begin=1e9, took=3.0, done=2)
    text = words(Path(build_report(str(tmp_path))).read_text())
    assert "Not complete: 2 of 3 shards are committed" in text
    assert "16 synthetic faces" in text


def test_a_picture_that_does_not_open_is_left_out(tmp_path: Path) -> None:
    tables = samples_of(range(4), {})
    rows = tables["samples"].to_pylist()
    rows[1]["image"], rows[2]["mask"] = picture(b"RIFF broken"), picture(b"no mask")
    tables["samples"] = pa.Table.from_pylist(rows, SAMPLES)
    write(tmp_path, "samples", "generate", {}, [tables], begin=1e9, took=3.0)
    page = Path(build_report(str(tmp_path))).read_text()
    sheet = page[page.index('id="contact-sheet"') : page.index('id="best-worst"')]
    assert sheet.count('class="pair"') == 3
    assert sheet.count('class="mask"') == 2


def test_pictures_without_masks(tmp_path: Path) -> None:
    tables = samples_of(range(4), {})
    rows = [{**row, "mask": None, "source": None} for row in tables["samples"].to_pylist()]
    write(tmp_path, "samples", "generate", {}, [{"samples": pa.Table.from_pylist(rows, SAMPLES)}], begin=1e9, took=3.0)
    page = Path(build_report(str(tmp_path))).read_text()
    assert 'class="sheet single"' in page
    assert "Colours of the 19 classes" not in page


# --- the parts ---------------------------------------------------------------------------------------------------


def test_ranking_against_a_hand_count() -> None:
    """Two classes: IoU 8/10 and 3/7 are mean 0.6143; a class that nobody has does not count."""
    vector = np.zeros((1, 3, len(CLASSES)))
    vector[0, :, 1], vector[0, :, 13] = (8, 9, 9), (3, 5, 5)
    ranking = best_worst.Ranking()
    ranking.add(["a"], vector)
    assert ranking.best[0].value == pytest.approx((8 / 10 + 3 / 7) / 2)
    assert (ranking.best[0].weakest, ranking.n) == ("hair", 1)


def test_ranking_in_pieces_equals_ranking_at_once() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(1, 50, (200, len(CLASSES)))
    vectors = np.stack([random.integers(0, targets + 1), targets, targets], axis=1).astype(float)
    ids = [f"s{i:03d}" for i in range(200)]
    whole, parts = best_worst.Ranking(), best_worst.Ranking()
    whole.add(ids, vectors)
    for start in range(0, 200, 7):
        parts.add(ids[start : start + 7], vectors[start : start + 7])
    assert (whole.best, whole.worst) == (parts.best, parts.worst)
    assert (whole.counts == parts.counts).all()
    assert whole.worst[0].value <= whole.worst[-1].value <= whole.best[-1].value <= whole.best[0].value


def test_the_newest_number_counts_and_nan_is_no_number() -> None:
    old = metric("miou:p", "all", 0.1)
    new = {**metric("miou:p", "all", 0.2), "created": datetime(2027, 1, 1, tzinfo=UTC)}
    assert [number.value for number in metric_rows.numbers([new, old])] == [0.2]
    assert metric_rows.numbers([metric("fd:p", "all", float("nan"))])[0].value is None
    assert cards.cards(metric_rows.numbers([metric("fd:p", "all", float("nan"))]))[0].value == "n/a"


@pytest.mark.parametrize(
    ("generated", "words"),
    [(0.7, "very closely"), (0.6, "closely"), (0.45, "roughly"), (0.2, "only loosely")],
)
def test_verdict_follows_the_numbers(generated: float, words: str) -> None:
    rows = [metric("miou:p", "all", generated), metric("miou:p", "roundtrip", 0.72), metric("miou:p", "reference", 0.9)]
    assert f"follow their masks {words}:" in overview.verdict(metric_rows.numbers(rows))


def test_slices_by_population_and_class() -> None:
    names = ("hair", "all/hair", "reference/hair", "hair/reference", "roundtrip")
    found = [metric_rows.numbers([metric("iou:p", name, 0.5)])[0] for name in names]
    assert [(n.population, n.part) for n in found] == [
        ("generated", "hair"),
        ("generated", "hair"),
        ("reference", "hair"),
        ("reference", "hair"),
        ("roundtrip", ""),
    ]


def test_parts_are_a_table_and_no_cards() -> None:
    rows = [metric("miou:p", "all", 0.7), metric("miou:p", "Male: yes", 0.6), metric("fd:p", "Male: yes", 0.2)]
    rows += [metric("iou:p", "Male: yes/hair", 0.5), metric("miou:p", "all/hat", 0.1)]
    found = metric_rows.numbers(rows)
    assert [card.metric for card in cards.cards(found)] == ["miou:p"]
    metrics, parts = slices.slices(found)
    assert metrics == ["miou:p", "fd:p"]
    assert {part: {m: n.value for m, n in values.items()} for part, values in parts.items()} == {
        "Male: yes": {"miou:p": 0.6, "fd:p": 0.2}
    }


def test_lanes_are_as_few_as_overlaps_need() -> None:
    spans = [timeline.Span(s, e, 1, i, "") for i, (s, e) in enumerate([(0, 4), (1, 5), (4, 8), (5, 9), (6, 7)])]
    assert timeline.lanes(spans) == [0, 1, 0, 1, 2]


def test_pauses_are_taken_out() -> None:
    spans = [timeline.Span(s, s + 10, 1, i, "") for i, s in enumerate((0, 10, 5000))]
    moved, removed = timeline.without_pauses(spans, 60)
    assert removed == 4980
    assert [span.start for span in moved] == [0, 10, 20]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.84, "0.8 s"), (58, "58 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (3600, "1 h")]
)
def test_clock(seconds: float, text: str) -> None:
    assert timeline.clock(seconds) == text


# --- in a browser ------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome here")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


def complaints(browser: Browser) -> list[dict]:
    kinds = (
        "Log.entryAdded",
        "Runtime.consoleAPICalled",
        "Runtime.exceptionThrown",
        "Audits.issueAdded",
        "Network.loadingFailed",
    )
    return [event for event in browser.events if event["method"] in kinds]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_opens_without_network_complaints_or_sideways_scrolling(
    browser: Browser, run: Path, width: int, scheme: str
) -> None:
    address = run / "report.html"
    browser.open(address, width, features=[{"name": "prefers-color-scheme", "value": scheme}])
    asked = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {address.as_uri()}
    assert complaints(browser) == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)") == list(HEADINGS)
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)") is True


@needs_browser
def test_no_text_is_paler_than_people_can_read(browser: Browser, run: Path) -> None:
    """Contrast of ink and soft text on paper, on cards and on warnings: at least 4.5 (WCAG AA)."""
    pairs = [("ink", "paper"), ("soft", "paper"), ("soft", "card"), ("accent", "paper"), ("warn-ink", "warn")]
    for scheme in ("light", "dark"):
        browser.open(run / "report.html", 390, features=[{"name": "prefers-color-scheme", "value": scheme}])
        for front, back in pairs:
            colours = [
                browser.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{n}')")
                for n in (front, back)
            ]
            assert contrast(*(str(c).strip() for c in colours)) >= 4.5, (scheme, front, back)


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@needs_browser
def test_a_violated_policy_would_be_seen(browser: Browser, run: Path, tmp_path: Path) -> None:
    """The test above can fail: a script and a picture from elsewhere, put into a copy, are refused and reported."""
    copy = tmp_path / "copy.html"
    bad = "<script>1</script><img src='http://127.0.0.1:9/x.png'></body>"
    copy.write_text((run / "report.html").read_text().replace("</body>", bad))
    browser.open(copy, 390)
    assert complaints(browser)


@needs_browser
def test_prints_with_its_colours(browser: Browser, run: Path) -> None:
    browser.open(run / "report.html", 1280, media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('.card')).breakInside") == "avoid"
    assert len(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"]) > 10_000


# --- trainings and variants ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training and an ablation leave, as files."""
    root = tmp_path_factory.mktemp("ablation")
    for variant, loss in (("gamma-0", 0.5), ("<gamma>", 0.25)):
        folder = root / variant / "model" / "training"
        (folder / "sheets").mkdir(parents=True)
        lines = [{"step": s, "loss": loss / s, "images_per_s": 50.0} for s in range(1, 400)]
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
        facts = {
            "parameters": 1_234_567,
            "pictures": 12_800,
            "trained_s": 61.5,
            "left_out": "1: f2: label",
            "reconstruction": {"psnr": 31.25},
            "scored": {"pictures": 64, "split": "test"},
        }
        (folder / "result.json").write_text(json.dumps(facts))
        buffer = io.BytesIO()
        Image.new("RGB", (64, 32), "teal").save(buffer, "PNG")
        (folder / "sheets/step-000000399.png").write_bytes(buffer.getvalue())
    rows = [
        {
            "run_id": variant,
            "metric": metric,
            "slice": slice_,
            "value": value,
            "n": 10,
            "ci_low": None,
            "ci_high": None,
            "reference": None,
            "protocol": json.dumps({"variant": variant}),
            "created": datetime(2026, 11, 21, tzinfo=UTC),
        }
        for variant, value in (("gamma-0", 0.5), ("<gamma>", 0.75))
        for metric, slice_ in (("miou:p", "all"), ("miou:p", "roundtrip"), ("iou:p", "all/hair"))
    ]
    (root / "metrics").mkdir()
    (root / "metrics/metrics.parquet").write_bytes(to_parquet(pa.Table.from_pylist(rows, METRICS)))
    return root


def test_variants_stand_side_by_side_and_never_in_one_card(ablation: Path) -> None:
    text = Path(build_report(str(ablation))).read_text(encoding="utf-8")
    section = text[text.index('<section id="variants">') : text.index('<section id="training">')]
    assert section.count("miou:p") == 1
    assert "iou:p</th>" not in section.replace("miou:p", "")
    assert section.index("gamma-0") < section.index("0.75")
    assert "&lt;gamma&gt;" in section
    assert "<gamma>" not in text
    assert 'id="metrics"' not in text


def test_a_training_shows_its_curve_scores_and_sheet(ablation: Path) -> None:
    text = Path(build_report(str(ablation / "gamma-0" / "model"))).read_text(encoding="utf-8")
    for words in ("1,234,567", "PSNR, dB", "31.25", "64 images of test", "1: f2: label", "data:image/png;base64,"):
        assert words in text
    training = summarize(FileStore(str(ablation / "gamma-0")), "model")
    assert training is not None
    assert training.folder == "model"
    assert training.losses[0] == (1, 0.5)
    assert training.losses[-1] == (399, 0.5 / 399)
    assert 'aria-label="Training loss over steps' in text


def test_an_unfinished_training_says_so(ablation: Path, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training/history.jsonl").write_text('{"step": 1, "loss": 0.5, "images_per_s": 3.0}\n')
    training = summarize(FileStore(str(tmp_path)), "")
    assert training is not None
    assert training.facts == [("State", "not finished; the same command continues it")]
    assert training.preview is None
    assert "not finished" in Path(build_report(str(tmp_path))).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("weights", "interval", "text"),
    [
        ({"joint": 2.0}, [0.5, 1.0], "2, from 50% to 100% of the steps"),
        ({"joint": 2.0}, [0.0, 1.0], "2"),
        ({"mask": 1.5, "text": 3.0, "attributes": None}, None, "mask 1.5, text 3"),
        ({"joint": 1.0}, None, "none"),
        ({}, None, "none"),
    ],
)
def test_the_head_says_which_steps_are_guided(weights, interval, text):
    assert overview._guidance(weights, interval) == text
