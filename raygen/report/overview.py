"""The head of the report page: what the run made, how good it is and with which settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from raygen.metrics.noise import NoiseCheck
from raygen.report.images import ImageWithMask
from raygen.report.metric_rows import GENERATED, REFERENCE, ROUNDTRIP, Number, share_of_ceiling
from raygen.report.run_folder import EXAMPLES, RunFolder, Stage

__all__ = ["Overview", "overview", "verdict"]


#: How well images follow their masks, by the share of the reachable mean IoU.
WORDS = ((0.95, "very closely"), (0.8, "closely"), (0.6, "roughly"), (0.0, "only loosely"))


@dataclass(frozen=True)
class Overview:
    """Variables of the page's head; `finished` is the time of the last commit or metric."""

    name: str
    finished: str
    main: Stage | None
    generated: bool
    failed: int
    verdict: str
    noise: NoiseCheck | None
    images: Sequence[ImageWithMask]
    facts: Sequence[tuple[str, str]]


def overview(run: RunFolder) -> Overview:
    """The head of the page of a run. It has no time of its own, so that the same run gives the same page."""
    times = [commit.created for stage in run.stages.values() for commit in stage.commits]
    times += [number.created.timestamp() for number in run.numbers if number.created]
    finished = datetime.fromtimestamp(max(times), UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0") if times else ""
    images = run.examples[::3] if len(run.examples) == EXAMPLES else run.examples[: EXAMPLES // 3]
    failed = sum(stage.bad for stage in run.stages.values())
    return Overview(
        run.name, finished, run.main, run.generated, failed, verdict(run.numbers), run.noise, images, _facts(run)
    )


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """Names and values of the settings that are shown."""
    facts = []
    stage = run.stages.get("samples") or run.images
    if stage is not None and stage.table == "samples":
        first = run.first_sample
        resources = stage.record.get("resources") or {}
        conditions = [name for name in ("mask", "attributes", "text") if first.get(name)]
        made = [
            ("Model", f"checkpoint {str(first.get('checkpoint') or 'unknown')[:12]}"),
            ("Sampler", f"{first.get('sampler') or 'unknown'}, {first.get('steps') or '?'} steps"),
            ("Guidance", _guidance(first.get("guidance") or {}, stage.plan.settings.get("guidance_interval"))),
        ]
        if first.get("method"):
            made = [("Method", f"{first['method']}, not made by raygen")]
        facts = [
            made[0],
            ("Conditions", " + ".join(conditions) or "none"),
            *made[1:],
            ("Workers", f"{resources.get('workers', '?')} ({resources.get('runner', 'unknown')})"),
        ]
    data = run.data_set
    words = [str(data["kind"])] if "kind" in data else []
    words += [f"{data['size']} px"] if "size" in data else []
    return facts + ([("Data", " · ".join(words))] if words else [])


def _guidance(weights: Mapping[str, float | None], interval: Sequence[float] | None) -> str:
    """The weights other than 1, which is no guidance, and the part of the steps that has it."""
    shown = [(name, weight) for name, weight in weights.items() if weight not in (None, 1)]
    text = ", ".join(f"{weight:g}" if name == "joint" else f"{name} {weight:g}" for name, weight in shown)
    if text and interval is not None and tuple(interval) != (0.0, 1.0):
        text += f", from {interval[0]:.0%} to {interval[1]:.0%} of the steps"
    return text or "none"


def verdict(numbers: Sequence[Number]) -> str:
    """One sentence on how good the images are, with the numbers it rests on; empty without metrics."""
    groups: dict[str, dict[str, Number]] = {}
    for number in numbers:
        if number.base == "miou" and not number.part:
            groups.setdefault(number.metric, {})[number.population] = number
    for group in groups.values():
        generated = group.get(GENERATED)
        if generated is not None and generated.value is not None:
            return _mask_verdict(generated.value, group)
    for number in numbers:
        if number.base in ("fid", "fd") and number.population == GENERATED and number.value is not None:
            return f"The generated images have {number.metric} {number.value:.2f} to the reference (0 is equal)."
    return ""


def _mask_verdict(value: float, group: Mapping[str, Number]) -> str:
    share = share_of_ceiling(group)
    if share is None:
        return f"The images reach a mean IoU of {value:.3f} with the masks they were asked for."
    how = next(word for limit, word in WORDS if share >= limit)
    reconstructed = group.get(ROUNDTRIP)
    ceiling = (reconstructed or group[REFERENCE]).value
    which = "reconstructed reference" if reconstructed else "reference"
    return (
        f"The images follow their masks {how}: mean IoU {value:.3f}, {share:.0%} of the {ceiling:.3f} "
        f"that the same parser reaches on the {which} images."
    )
