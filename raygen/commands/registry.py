"""The closed union of jobs: read a file, apply overrides, give back the job.

Knows the verbs and which job belongs to each. A verb's module is imported only when it is asked for: making a
plan needs no torch.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal, assert_never, cast, get_args

from raygen.commands.base import Job
from raygen.core.config import override, parse, read_yaml
from raygen.core.errors import ConfigError

__all__ = ["VERBS", "Verb", "job_type", "load", "make"]


Verb = Literal[
    "ingest", "plan", "encode", "train", "generate", "edit", "evaluate", "ablation", "sweep", "select", "export"
]
VERBS: Final[tuple[Verb, ...]] = get_args(Verb)


def job_type(verb: Verb) -> type[Job]:
    """The job class of a verb."""
    match verb:
        case "ingest":
            from raygen.commands.ingest import IngestJob

            return IngestJob
        case "plan":
            from raygen.commands.plan import PlanJob

            return PlanJob
        case "encode":
            from raygen.commands.encode import EncodeJob

            return EncodeJob
        case "train":
            from raygen.commands.train import TrainJob

            return TrainJob
        case "generate":
            from raygen.commands.generate import GenerateJob

            return GenerateJob
        case "edit":
            from raygen.commands.edit import EditJob

            return EditJob
        case "evaluate":
            from raygen.commands.evaluate import EvaluateJob

            return EvaluateJob
        case "ablation":
            from raygen.commands.ablation import AblationJob

            return AblationJob
        case "sweep":
            from raygen.commands.sweep import SweepJob

            return SweepJob
        case "select":
            from raygen.commands.select import SelectJob

            return SelectJob
        case "export":
            from raygen.commands.export import ExportJob

            return ExportJob
    assert_never(verb)


def load(path: str, assignments: Sequence[str] = (), verb: str | None = None) -> Job:
    """The job in a YAML file with `a.b=c` overrides applied.

    `ConfigError` names the file, the key, what is allowed and the nearest known key; or says that the file is
    a job of another verb.
    """
    document = override(read_yaml(path), assignments)
    kind = document.get("kind")
    if kind not in VERBS:
        raise ConfigError(f"{path}: kind: must be one of {', '.join(VERBS)} (got {kind!r})")
    if verb is not None and kind != verb:
        raise ConfigError(f"{path}: this is a job for `raygen {kind}`, not `raygen {verb}`")
    return make(document, path)


def make(document: dict[str, Any], source: str = "job") -> Job:
    """The job that a dictionary with `kind`, `what`, `where` and `out` describes."""
    return cast(Job, parse(job_type(document["kind"]), document, source))
