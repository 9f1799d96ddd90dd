"""Section: shards over time, and what each worker did."""

from collections.abc import Sequence
from typing import Final

from raygen.execution.bottleneck import WorkerTime
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.report.timeline import Span, axis, lanes, steps, without_pauses

__all__ = ["section"]


#: More shards or workers than these are not drawn one by one.
MAX_SPANS, MAX_LANES = 400, 16
#: The shortest time without work that is left out of the chart, seconds.
PAUSE: Final = 30.0


def section(run: RunFolder) -> Section | None:
    """Shards by time and worker, in percent of the wall time; None where nothing is committed."""
    stage = run.stages.get("samples") or run.main
    if stage is None or not stage.commits:
        return None
    usual = sorted(span.end - span.start for span in stage.spans)[len(stage.commits) // 2]
    worker_time = WorkerTime()
    for commit in stage.commits:
        worker_time.add(commit)
    spans, paused = without_pauses(stage.spans, max(PAUSE, 3 * usual))
    resumed = int(stage.record.get("resumed_shards") or 0)
    began = spans[0].start
    if not resumed and stage.record.get("finished"):
        began = min(began, float(stage.record["finished"]) - float(stage.record.get("seconds") or 0))
    spans = [span._replace(start=span.start - began, end=span.end - began) for span in spans]
    end = max(max(span.end for span in spans), 1e-3)
    workers = sorted({span.worker for span in spans})
    known = all(workers)
    lane = [workers.index(span.worker) for span in spans] if known else lanes(spans)
    boxes = [(100 * s.start / end, 100 * (s.end - s.start) / end, row, s) for s, row in zip(spans, lane, strict=True)]
    variables = {
        "end": end,
        "ticks": [tick for tick in axis(end) if tick.at < 95],
        "paused": paused,
        "resumed": resumed,
        "first": min(span.end for span in spans),
        "startup": spans[0].start,
        "known": known,
        "usual": usual,
        "boxes": boxes if len(boxes) <= MAX_SPANS and max(lane) < MAX_LANES else [],
        "lanes": max(lane) + 1,
        "workers": _by_worker(spans, lane),
        "shards": len(spans),
        "waited": worker_time.sentence(stage.plan.settings),
        "path": steps([span.end for span in spans], [span.rows for span in spans], end),
        "rate": sum(span.rows for span in spans) / max(end - spans[0].start, 1e-9),
    }
    return Section("throughput", "Throughput", "throughput.html.j2", variables)


def _by_worker(spans: Sequence[Span], lane: Sequence[int]) -> list[dict[str, float]]:
    """Shards, rows, percent of all rows, busy seconds and rows per second of each worker."""
    total = max(sum(span.rows for span in spans), 1)
    workers = []
    for number in sorted(set(lane))[:MAX_LANES]:
        own = [span for span, at in zip(spans, lane, strict=True) if at == number]
        rows, busy = sum(span.rows for span in own), sum(span.end - span.start for span in own)
        worker = {"number": number + 1, "shards": len(own), "rows": rows, "busy": busy, "share": 100 * rows / total}
        workers.append({**worker, "rate": rows / max(busy, 1e-9)})
    return workers
