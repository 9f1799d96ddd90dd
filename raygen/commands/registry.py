"""The table of commands that run job files, and the way from a file or a dictionary to a job.

A command is a module `raygen/commands/NAME.py` with a `JOB` class, and one line in `COMMANDS`. The module is imported
when the command is used, so that making a plan does not import torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, cast

from raygen.commands.base import Job
from raygen.core.config import nearest, override, parse, read_yaml
from raygen.core.errors import ConfigError

__all__ = ["COMMANDS", "Command", "job_type", "load", "make"]

#: What `raygen init` writes where a value has to be filled in.
PLACEHOLDER: Final = "???"


@dataclass(frozen=True)
class Command:
    """What a command reads and writes, and one sentence about it."""

    reads: str
    writes: str
    help: str
    #: Whether it may be a stage of an ablation.
    stage: bool = True

    @property
    def summary(self) -> str:
        """One line for `raygen --help`."""
        return f"{self.reads} -> {self.writes}: {self.help}"


COMMANDS: Final[Mapping[str, Command]] = {
    "ingest": Command("raw data", "FACES", "read, check and store pictures, masks, attributes and texts."),
    "plan": Command("FACES", "CONDITIONS", "the rows that say which pictures to generate."),
    "encode": Command("FACES", "LATENTS", "run the first stage once."),
    "train": Command("FACES", "checkpoint", "train a first stage, a denoiser, a parser, a classifier or an embedder."),
    "generate": Command("CONDITIONS", "SAMPLES", "generate the pictures."),
    "edit": Command("CONDITIONS and FACES", "SAMPLES", "edit existing pictures."),
    "evaluate": Command("SAMPLES and FACES", "METRICS", "score the pictures against real ones."),
    "select": Command("SAMPLES", "SELECTION", "apply gates, retry what they reject, keep what passes.", stage=False),
    "sweep": Command(
        "CONDITIONS", "METRICS", "compare samplers, steps, guidance and checkpoints on the same rows.", stage=False
    ),
    "ablation": Command("jobs", "METRICS", "run the same jobs for several variants of a setting.", stage=False),
    "export": Command(
        "SAMPLES or FACES",
        "data set",
        "write image folders, RecordIO, WebDataset, Hugging Face or CSV, with a data card.",
        stage=False,
    ),
}


def job_type(name: str) -> type[Job]:
    """The job class of a command; `ConfigError` names the known ones."""
    if name not in COMMANDS:
        raise ConfigError(f"kind: must be one of {', '.join(COMMANDS)} (got {name!r}){nearest(name, COMMANDS)}")
    return cast(type[Job], import_module(f"raygen.commands.{name}").JOB)


def load(path: str, assignments: Sequence[str] = (), command: str | None = None) -> Job:
    """The job in a YAML file with `a.b=c` overrides applied.

    `ConfigError` names the file, the key, the allowed values and the nearest known key; or says that the file is
    a job of another command.
    """
    document = override(read_yaml(path), assignments)
    kind = str(document.get("kind"))
    if command is not None and kind in COMMANDS and kind != command:
        raise ConfigError(f"{path}: this is a job for `raygen {kind}`, not `raygen {command}`")
    return make(document, path)


def make(document: Mapping[str, Any], source: str = "job") -> Job:
    """The job that a dictionary with `kind`, settings, `resources` and `out` describes; `ConfigError` as for `load`."""
    if missing := _placeholders(document):
        raise ConfigError(f"{source}: {', '.join(missing)}: still {PLACEHOLDER}; fill in a value")
    try:
        kind = job_type(str(document.get("kind")))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return cast(Job, parse(kind, dict(document), source))


def _placeholders(node: object, path: str = "") -> list[str]:
    """Dotted paths of the values that `raygen init` left open."""
    if node == PLACEHOLDER:
        return [path]
    if isinstance(node, Mapping):
        return [p for key, value in node.items() for p in _placeholders(value, f"{path}.{key}" if path else str(key))]
    if isinstance(node, list | tuple):
        return [p for i, value in enumerate(node) for p in _placeholders(value, f"{path}.{i}")]
    return []
