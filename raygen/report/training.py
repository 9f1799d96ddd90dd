"""What a report says of trainings: curve, scores and the last sheet; and the table of an ablation's variants.

Knows the files that a training leaves beside its checkpoint, and METRICS rows that name their variant. Knows no model;
needs no torch.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raygen.store.filesystem import FileStore
from raygen.training.history import read_history

__all__ = ["TrainingSection", "training_sections"]


#: Folders below the root that may be trainings: its own, a stage's, a variant's stage.
DEPTH: Final = 2
POINTS: Final = 240
SCORES: Final = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}


@dataclass(frozen=True)
class TrainingSection:
    """One training as far as it got."""

    folder: str
    facts: Sequence[tuple[str, str]]
    path: str  # of the loss, area 1000 x 100, logarithmic
    high: float
    low: float
    last: float
    steps: int
    sheet: str | None  # data: URI
    sheet_step: int


def training_sections(root: str) -> list[TrainingSection]:
    """Every training in a run folder, in order of name."""
    storage = FileStore(root)
    return [found for folder in _folders(storage, "", DEPTH) if (found := _training(storage, folder))]


def _folders(storage: FileStore, folder: str, depth: int) -> Iterator[str]:
    names = storage.names(folder)
    if "training" in names:
        yield folder
    elif depth:
        for name in sorted(names):
            if "." not in name and not name.startswith(("attempt-", "_")):
                yield from _folders(storage, f"{folder}/{name}".lstrip("/"), depth - 1)


def _training(storage: FileStore, folder: str) -> TrainingSection | None:
    place = f"{folder}/training".lstrip("/")
    try:
        text = storage.get(f"{place}/history.jsonl").decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    history = read_history(text)
    losses = [(int(h["step"]), float(h["loss"])) for h in history if float(h["loss"]) > 0]
    if not losses:
        return None
    path, low, high = _curve(losses)
    sheet, step = _sheet(storage, place)
    return TrainingSection(
        folder or ".", _facts(storage, place, history), path, high, low, losses[-1][1], losses[-1][0], sheet, step
    )


def _curve(losses: Sequence[tuple[int, float]]) -> tuple[str, float, float]:
    """SVG path of the loss over steps on a logarithmic scale, and what its bottom and top stand for."""
    every = max(1, len(losses) // POINTS)
    kept = [*losses[::every], losses[-1]]
    low, high = min(v for _, v in kept), max(v for _, v in kept)
    span = math.log(high / low) or 1.0
    last = max(losses[-1][0], 1)
    points = [(1000 * step / last, 100 * math.log(high / value) / span) for step, value in kept]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), low, high


def _sheet(storage: FileStore, place: str) -> tuple[str | None, int]:
    names = sorted(n for n in storage.names(f"{place}/sheets") if n.endswith(".png"))
    if not names:
        return None, 0
    data = base64.b64encode(storage.get(f"{place}/sheets/{names[-1]}")).decode()
    return f"data:image/png;base64,{data}", int(names[-1].removeprefix("step-").removesuffix(".png"))


def _facts(storage: FileStore, place: str, history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    try:
        result: Mapping[str, Any] = json.loads(storage.get(f"{place}/result.json"))
    except (FileNotFoundError, ValueError):
        return [("State", "not ended; the same command goes on")]
    facts = [
        ("Parameters", f"{result['parameters']:,}"),
        ("Pictures seen", f"{result['pictures']:,}"),
        ("Time", f"{result['trained_s']:,.0f} s"),
        ("Pictures/s", f"{history[-1]['images_per_s']:,.0f}"),
    ]
    for name, value in result.get("reconstruction", {}).items():
        facts.append((SCORES.get(name, name), f"{value:.4g}"))
    if "scored" in result:
        facts.append(("Scored on", f"{result['scored']['pictures']:,} pictures of {result['scored']['split']}"))
    if result.get("left_out", "none") != "none":
        facts.append(("Left out", str(result["left_out"])))
    return facts
