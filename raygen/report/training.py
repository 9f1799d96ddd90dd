"""Section: trainings, each with its loss curve, scores and last preview."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from raygen.core.documents import load_json
from raygen.report.plots import DataPoint, Series, line_plot
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section
from raygen.store.filesystem import FileStore
from raygen.training.history import read_history

__all__ = ["TrainingSummary", "section", "summarize"]


#: Points of a loss curve that are drawn.
POINTS: Final = 240
SCORES: Final = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}


@dataclass(frozen=True)
class TrainingSummary:
    """One training as far as it got: (step, loss) pairs, facts, and its last preview as a data URL."""

    folder: str
    facts: Sequence[tuple[str, str]]
    losses: Sequence[tuple[int, float]]
    preview: str | None
    preview_step: int


def section(run: RunFolder) -> Section | None:
    """Every training in the run folder, in order of name; None where there is none."""
    trainings = [training for folder in run.trainings if (training := summarize(run.storage, folder))]
    plots = [
        line_plot(
            [Series("loss", [DataPoint(step, loss) for step, loss in training.losses])],
            name=f"loss-{i}",
            title="Training loss over steps; lower is better",
            xlabel="steps",
            log_y=True,
            markers=False,
        )
        for i, training in enumerate(trainings)
    ]
    variables = {"trainings": [(training, Markup(plot)) for training, plot in zip(trainings, plots, strict=True)]}
    return Section("training", "Training", "training.html.j2", variables) if trainings else None


def summarize(storage: FileStore, folder: str) -> TrainingSummary | None:
    """The training in `folder`; None where its history has no loss yet."""
    place = f"{folder}/training".lstrip("/")
    history = read_history(storage.get(f"{place}/history.jsonl").decode())
    losses = [(int(row["step"]), float(row["loss"])) for row in history if float(row["loss"]) > 0]
    if not losses:
        return None
    losses = [*losses[:: max(1, len(losses) // POINTS)], losses[-1]]
    previews = sorted(name for name in storage.names(f"{place}/sheets") if name.endswith(".png"))
    preview, step = None, 0
    if previews:
        data = base64.b64encode(storage.get(f"{place}/sheets/{previews[-1]}")).decode()
        preview, step = f"data:image/png;base64,{data}", int(previews[-1].removeprefix("step-").removesuffix(".png"))
    return TrainingSummary(folder or ".", _facts(storage, place, history), losses, preview, step)


def _facts(storage: FileStore, place: str, history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    try:
        result: Mapping[str, Any] = load_json(storage.get(f"{place}/result.json"))
    except (FileNotFoundError, ValueError):
        return [("State", "not finished; the same command continues it")]
    facts = [
        ("Parameters", f"{result['parameters']:,}"),
        ("Images seen", f"{result['pictures']:,}"),
        ("Time", f"{result['trained_s']:,.0f} s"),
        ("Images/s", f"{history[-1]['images_per_s']:,.0f}"),
    ]
    for name, value in result.get("reconstruction", {}).items():
        facts.append((SCORES.get(name, name), f"{value:.4g}"))
    if "scored" in result:
        facts.append(("Scored on", f"{result['scored']['pictures']:,} images of {result['scored']['split']}"))
    if result.get("left_out", "none") != "none":
        facts.append(("Left out", str(result["left_out"])))
    return facts
