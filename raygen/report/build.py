"""One offline HTML file about a run: what ran, how good it is, how fast it was, how to have it again.

Knows which stores a run folder may hold, and turns commits, scores and metrics into a page. Reads only commits,
METRICS, per-sample counts and the few pictures it shows; never all pictures. Computes no metric of its own except
the order of the pictures. The page needs no network and no script; whatever a data row says is escaped text.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raygen.core.errors import ConfigError
from raygen.core.face_labels import CLASSES, PALETTE
from raygen.evaluation.comparison import grid, variant_of
from raygen.report import edits as edits_section
from raygen.report import influence, nearest_pairs, selection, styles, verification
from raygen.report import pictures as picture_rows
from raygen.report import sweep as sweep_section
from raygen.report.cards import LABELS, Number, cards, class_rows, numbers, slices, verdict
from raygen.report.run_folder import Stage, stages_of
from raygen.report.timeline import Span, axis, bins, clock, lanes, steps, without_pauses
from raygen.report.training import training_sections
from raygen.store.filesystem import FileStore
from raygen.store.parquet import Slice, from_parquet, read_slice
from raygen.store.run_store import open_input
from raygen.store.set_digest import KEYS

__all__ = ["build_report"]


HERO, PAIRS, ERRORS, FILES, MOST_SPANS, MOST_LANES = 24, 48, 50, 60, 400, 16
SAMPLE_COLUMNS: Final = ("sample_id", "image", "mask", "source")


def build_report(root: str, out: str | None = None, *, command: str | None = None, faces: str | None = None) -> str:
    """Write the report of the run folder `root` (path or URL); its address.

    `out` names the file (default: `report.html` in `root`); `command` is what somebody types to have the same
    run again; `faces` the ingest run that rows refer to, where it does not lie in `root`. `ConfigError` where `root`
    holds no run, or `faces` none.
    """
    page = _page(root, command, faces).encode()
    folder, _, name = (out or f"{root.rstrip('/')}/report.html").rpartition("/")
    storage = FileStore(folder or ".")
    storage.put(name, page)
    return storage.address(name)


def _page(root: str, command: str | None, faces: str | None) -> str:
    stages = list(stages_of(root))
    rows = list(_metrics(root))
    sweep = sweep_section.sweep_section(root, rows)
    found = [] if sweep else numbers(row for row in rows if variant_of(row) is None)
    trained = training_sections(root)
    if not (stages or rows or trained):
        one = FileStore(root).exists("attempt-00/plan.json")
        hint = "; it is a single run: give the folder around it" if one else ""
        raise ConfigError(f"{root}: none of faces/, conditions/, samples/, scores/, metrics/, training/ is here{hint}")
    by_folder = {stage.folder: stage for stage in stages}
    own = by_folder["faces"].slices("faces") if "faces" in by_folder else []
    given = own if faces is None else open_input(faces)[0].slices("faces")
    context = _context(root, by_folder, found, command, given)
    context |= {"trainings": trained, "variants": grid(rows), "sweep": sweep}
    context["crowd"] = _people(context["main"])
    context["verification"] = verification.verification_section(root, rows)
    context["roc"] = Markup(verification.roc_svg(root, rows))
    context["selection"] = selection.selection_section(root, rows)
    context["nearby"] = nearest_pairs.nearest_pairs_section(root, _pictures(by_folder), given, found)
    environment = Environment(
        loader=PackageLoader("raygen.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clock=clock, count=_count, size=_size, number=_number, label=LABELS.get)
    css = _style()
    policy = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(css=Markup(css), policy=policy, **context)


def _style() -> str:
    """The style sheet, and one rule for each class colour: nothing on the page needs a style attribute."""
    fills = (f".k{i}{{fill:rgb({r},{g},{b});background:rgb({r},{g},{b})}}" for i, (r, g, b) in enumerate(PALETTE))
    path = Path(__file__).with_name("templates") / "report.css"
    return path.read_text(encoding="utf-8") + "".join(fills)


# --- reading ------------------------------------------------------------------------------------------------


def _metrics(root: str) -> Iterator[dict[str, Any]]:
    storage = FileStore(root)
    for name in storage.names("metrics"):
        if name.endswith(".parquet"):
            yield from from_parquet(storage.get(f"metrics/{name}")).to_pylist()


# --- the page -----------------------------------------------------------------------------------------------


def _context(
    root: str, stages: Mapping[str, Stage], found: Sequence[Number], command: str | None, faces: Sequence[Slice]
) -> dict[str, Any]:
    pictures = _pictures(stages)
    main = pictures or stages.get("faces") or next(iter(stages.values()), None)
    first = _first_sample(pictures)
    drawn = _data(stages).get("kind") == "procedural"
    hero, sheet = _sheet(main)
    return {
        "run": {"name": root.rstrip("/").rsplit("/", 1)[-1] or "run", "finished": _finished(stages, found)},
        "main": main,
        "generated": main is not None and main.table == "samples",
        "facts": _facts(stages, first),
        "verdict": verdict(found),
        "cards": cards(found),
        "hero": hero,
        "sheet": sheet,
        "legend": list(enumerate(CLASSES)),
        "class_rows": class_rows(found),
        "slices": slices(found),
        "gallery": _gallery(stages, faces),
        **_strips(stages, faces),
        "errors": _errors(stages),
        "time": _timeline(stages.get("samples") or main),
        "stages": list(stages.values()),
        "reproduce": _reproduce(root, stages, first, command),
        "drawn": drawn,
        "data": _data(stages),
    }


def _pictures(stages: Mapping[str, Stage]) -> Stage | None:
    """The pictures that the run is about: of a selection those that count."""
    return stages.get("selected") or stages.get("samples")


def _people(stage: Stage | None) -> list[tuple[str, list[picture_rows.ImageWithMask]]]:
    """A few of those whom the pictures show, where rows say so."""
    if stage is None or stage.table not in ("samples", "faces"):
        return []
    return picture_rows.identities_section(stage.slices(stage.table), KEYS[stage.table][0])


def _data(stages: Mapping[str, Stage]) -> Mapping[str, Any]:
    stage = stages.get("faces") or stages.get("selected")  # a selection of faces knows what they are
    data = None if stage is None else stage.plan.settings.get("data")
    return data if isinstance(data, dict) else {}


def _finished(stages: Mapping[str, Stage], found: Sequence[Number]) -> str:
    """The day of the last commit or metric, so that the same run gives the same page."""
    times = [commit.created for stage in stages.values() for commit in stage.commits]
    times += [number.created.timestamp() for number in found if number.created]
    return datetime.fromtimestamp(max(times), UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0") if times else ""


def _first_sample(stage: Stage | None) -> dict[str, Any]:
    """The settings that a sample row carries, from the first one; `size` from its picture."""
    pieces = stage.slices("samples") if stage else []
    if not pieces:
        return {}
    columns = ["checkpoint", "sampler", "steps", "guidance", "mask", "attributes", "text"]
    row: dict[str, Any] = read_slice(pieces[0]._replace(rows=1), columns).to_pylist()[0]
    return row


def _facts(stages: Mapping[str, Stage], first: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Short name and value, for the head of the page."""
    facts = []
    stage = stages.get("samples") or _pictures(stages)
    if stage is not None and stage.table == "samples":
        where = stage.record.get("resources") or {}
        conditions = [name for name in ("mask", "attributes", "text") if first.get(name)]
        facts = [
            ("Model", f"checkpoint {str(first.get('checkpoint') or 'unknown')[:12]}"),
            ("Conditions", " + ".join(conditions) or "none"),
            ("Sampler", f"{first.get('sampler') or 'unknown'}, {first.get('steps') or '?'} steps"),
            ("Guidance", _guidance(first.get("guidance") or [])),
            ("Workers", f"{where.get('workers', '?')} ({where.get('runner', 'unknown')})"),
        ]
    data = _data(stages)
    words = [str(data[key]) for key in ("kind", "size") if key in data]
    return facts + ([("Data", " · ".join(words) + (" px" if "size" in data else ""))] if words else [])


def _guidance(weights: Sequence[tuple[str, float]]) -> str:
    """Weights by modality; a weight of 1 is no guidance."""
    names = {"joint": "all"}
    return ", ".join(f"{names.get(name, name)} {weight:g}" for name, weight in weights if weight != 1) or "none"


def _sheet(stage: Stage | None) -> tuple[list[picture_rows.ImageWithMask], list[picture_rows.ImageWithMask]]:
    """Pictures for the head of the page, and pairs for the contact sheet: evenly spaced rows, nobody's choice."""
    if stage is None or stage.table not in ("samples", "faces"):
        return [], []
    key = KEYS[stage.table][0]
    rows = picture_rows.evenly(stage.slices(stage.table), HERO + PAIRS, [key, *SAMPLE_COLUMNS[1:]])
    pairs = [pair for row in rows if (pair := picture_rows.pair(row, key))]
    if len(pairs) < HERO + PAIRS:
        return pairs[:HERO], pairs[:PAIRS]
    return pairs[::3], [pair for i, pair in enumerate(pairs) if i % 3]


def _gallery(stages: Mapping[str, Stage], faces: Sequence[Slice]) -> dict[str, Any] | None:
    """The best and worst samples by their own mIoU, with picture, mask and the reference picture of that mask."""
    pictures = _pictures(stages)
    if pictures is None:
        return None
    stored = [stages[name].slices("scores") for name in ("scores/samples", pictures.folder) if name in stages]
    ranking = picture_rows.rank(next((pieces for pieces in stored if pieces), []))
    if ranking is None:
        return None
    ids = [row.id for row in (*ranking.best, *ranking.worst)]
    rows = picture_rows.find(pictures.slices("samples"), "sample_id", ids, SAMPLE_COLUMNS[1:])
    sources = picture_rows.find(faces, "face_id", {row["source"] for row in rows.values() if row["source"]}, ["image"])

    def shown(ranked: Sequence[picture_rows.RankedSample]) -> list[dict[str, Any]]:
        pairs = [(row, picture_rows.pair(rows[row.id], "sample_id")) for row in ranked if row.id in rows]
        return [{"row": row, "pair": pair, "source": _source(pair, sources)} for row, pair in pairs if pair]

    best, worst = shown(ranking.best), shown(ranking.worst)
    return {"ranking": ranking, "bars": bins(ranking.counts), "best": best, "worst": worst}


def _strips(stages: Mapping[str, Stage], faces: Sequence[Slice]) -> dict[str, Any]:
    """Influence maps over steps, and edits over alpha, where the samples have them."""
    stage = _pictures(stages)
    if stage is None:
        return {"influence": None, "edits": None, "styled": None}
    return {
        "influence": influence.influence_section(stage.slices("influence"), stage.slices("scores")),
        "edits": edits_section.edits_section(stage.slices("samples"), stage.slices("scores"), faces),
        "styled": styles.styles_section(stage.slices("samples"), faces),
    }


def _source(pair: picture_rows.ImageWithMask, sources: Mapping[str, Mapping[str, Any]]) -> str | None:
    row = sources.get(pair.source or "")
    shown = picture_rows.pair(row, "face_id") if row else None
    return shown.image if shown else None


def _errors(stages: Mapping[str, Stage]) -> dict[str, Any]:
    """Failed rows: how many for each reason, and the first of them in full."""
    reasons = Counter((stage.title, reason) for stage in stages.values() for reason in stage.reasons.elements())
    rows: list[dict[str, Any]] = []
    for stage in stages.values():
        for piece in stage.slices("quarantine"):
            if len(rows) < ERRORS:
                rows += read_slice(piece._replace(rows=min(piece.rows, ERRORS - len(rows)))).to_pylist()
    return {"total": sum(reasons.values()), "reasons": reasons.most_common(), "rows": rows}


def _timeline(stage: Stage | None) -> dict[str, Any] | None:
    """Shards by time and worker in percent of the wall time; None where nothing is committed."""
    if stage is None or not stage.commits:
        return None
    usual = sorted(span.end - span.start for span in stage.spans)[len(stage.commits) // 2]
    spans, paused = without_pauses(stage.spans, max(30.0, 3 * usual))
    resumed = int(stage.record.get("resumed_shards") or 0)
    began = spans[0].start
    if not resumed and stage.record.get("finished"):
        began = min(began, float(stage.record["finished"]) - float(stage.record.get("seconds") or 0))
    end = max(max(span.end for span in spans) - began, 1e-3)
    names = sorted({span.worker for span in spans})
    known = all(names)
    lane = [names.index(span.worker) for span in spans] if known else lanes(spans)
    shift = [span._replace(start=span.start - began, end=span.end - began) for span in spans]
    boxes = [(100 * s.start / end, 100 * (s.end - s.start) / end, row, s) for s, row in zip(shift, lane, strict=True)]
    return {
        "end": end,
        "ticks": [tick for tick in axis(end) if tick.at < 95],
        "paused": paused,
        "resumed": resumed,
        "first": min(span.end for span in shift),
        "startup": shift[0].start,
        "known": known,
        "usual": usual,
        "boxes": boxes if len(boxes) <= MOST_SPANS and max(lane) < MOST_LANES else [],
        "lanes": max(lane) + 1,
        "shares": _shares(shift, lane),
        "shards": len(shift),
        "path": steps([span.end for span in shift], [span.rows for span in shift], end),
        "rate": sum(span.rows for span in shift) / max(end - shift[0].start, 1e-9),
    }


def _shares(spans: Sequence[Span], lane: Sequence[int]) -> list[dict[str, float]]:
    """What each worker did; percentages of all rows and of all time."""
    total = max(sum(span.rows for span in spans), 1)
    shares = []
    for number in sorted(set(lane))[:MOST_LANES]:
        mine = [span for span, at in zip(spans, lane, strict=True) if at == number]
        rows, busy = sum(s.rows for s in mine), sum(s.end - s.start for s in mine)
        share = {"number": number + 1, "shards": len(mine), "rows": rows, "busy": busy, "share": 100 * rows / total}
        shares.append({**share, "rate": rows / max(busy, 1e-9)})
    return shares


def _reproduce(root: str, stages: Mapping[str, Stage], first: Mapping[str, Any], command: str | None) -> dict[str, Any]:
    main = _pictures(stages) or next(iter(stages.values()), None)
    if main is None:
        return {}
    place = root.rstrip("/")
    shown = place.rsplit("/", 1)[-1] if place.startswith(("/", "file:")) else place  # whose home it is stays private
    facts = [
        ("run_id", main.plan.run_id),
        ("seed", main.plan.settings.get("seed")),
        ("checkpoint (sha256)", first.get("checkpoint")),
        ("set digest", main.digest),
        ("batch", main.plan.batch),
        ("shards", len(main.plan.shards)),
    ]
    environment = main.commits[0].environment if main.commits else main.record.get("versions") or {}
    plans = [(s.title, json.dumps(s.plan.settings, indent=2, ensure_ascii=False, default=str)) for s in stages.values()]
    files = [(stage.folder, entry) for stage in stages.values() for c in stage.commits for entry in c.files]
    return {
        "command": command or f"raygen {main.plan.kind} JOB.yaml",
        "verify": f"raygen verify {shown}/{main.folder}",
        "facts": [(name, value) for name, value in facts if value is not None],
        "versions": {key: str(value) for key, value in environment.items() if key != "worker"},  # that names a host
        "what": plans,
        "files": files[:FILES],
        "more": max(len(files) - FILES, 0),
    }


# --- words --------------------------------------------------------------------------------------------------


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _size(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _number(value: float | None, digits: int = 2) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
