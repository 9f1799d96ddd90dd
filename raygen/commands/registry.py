"""The table of commands that run job files; reading a job from a file or a dictionary.

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

#: Written by `raygen init` in place of a value that has to be filled in.
PLACEHOLDER: Final = "???"


@dataclass(frozen=True)
class Command:
    """What a command reads and writes, and one sentence about it.

    `stage`: whether its jobs may be stages of an ablation. `example`: overrides that are shown in its help.
    """

    reads: str
    writes: str
    help: str
    stage: bool = True
    example: str = "resources.runner=ray resources.workers=8"

    @property
    def summary(self) -> str:
        """One line for `raygen --help`."""
        return f"{self.help} ({self.reads} -> {self.writes})"


COMMANDS: Final[Mapping[str, Command]] = {
    "ingest": Command(
        "raw data",
        "FACES or SAMPLES",
        "Read, check and store pictures with their masks, attributes and texts.",
        example="data.size=128",
    ),
    "parse": Command(
        "FACES",
        "FACES",
        "Make the masks of faces with a face parser.",
        example="parser.kind=bisenet parser.weights=bisenet.pth",
    ),
    "plan": Command(
        "FACES", "CONDITIONS", "Write the rows that say which pictures to generate.", example="planning.per_face=4"
    ),
    "encode": Command(
        "FACES", "LATENTS", "Encode pictures with a first stage (autoencoder), for training.", example="batch=64"
    ),
    "train": Command(
        "FACES",
        "checkpoint",
        "Train a first stage, a diffusion model, a parser, a classifier or a face embedder.",
        example="training.steps=10000",
    ),
    "generate": Command(
        "CONDITIONS", "SAMPLES", "Generate pictures with a diffusion model.", example="sampler.steps=25 guidance=2"
    ),
    "edit": Command("CONDITIONS and FACES", "SAMPLES", "Edit existing pictures.", example="sampler.steps=25"),
    "evaluate": Command(
        "SAMPLES and FACES", "METRICS", "Score pictures and compare them with real ones.", example="score.features=null"
    ),
    "select": Command(
        "SAMPLES",
        "SELECTION",
        "Generate pictures, reject those that fail a gate, try these again.",
        stage=False,
        example="max_retries=3",
    ),
    "sweep": Command(
        "CONDITIONS",
        "METRICS",
        "Compare samplers, step counts, guidance weights and checkpoints on the same rows.",
        stage=False,
        example="'steps=[10, 20]'",
    ),
    "ablation": Command(
        "jobs",
        "METRICS",
        "Run the same jobs for several variants of a setting, and compare them.",
        stage=False,
        example="stages.model.training.steps=2000",
    ),
    "study": Command(
        "SAMPLES",
        "pages",
        "Write offline pages on which people choose between the pictures of several methods.",
        stage=False,
        example="trials=40 forms=12",
    ),
    "export": Command(
        "SAMPLES or FACES",
        "data set",
        "Write image folders, RecordIO, WebDataset, Hugging Face or CSV files, with a data card.",
        stage=False,
        example="format.kind=webdataset",
    ),
}


def job_type(name: str) -> type[Job]:
    """The job class of a command; `ConfigError` lists the commands and names the nearest one."""
    if name not in COMMANDS:
        raise ConfigError(f"kind: must be one of {', '.join(COMMANDS)} (got {name!r}){nearest(name, COMMANDS)}")
    return cast(type[Job], import_module(f"raygen.commands.{name}").JOB)


def load(path: str, assignments: Sequence[str] = (), command: str | None = None) -> Job:
    """The job in a YAML file with `a.b=c` overrides applied.

    `ConfigError` names the file, the key, the allowed values and the nearest known key. It is also raised where
    `command` is given and the job is for another command.
    """
    document = override(read_yaml(path), assignments)
    kind = str(document.get("kind"))
    if command is not None and kind in COMMANDS and kind != command:
        raise ConfigError(f"{path}: is a job for `raygen {kind}`, not `raygen {command}`")
    return make(document, path)


def make(document: Mapping[str, Any], source: str = "job") -> Job:
    """The job of a dictionary with `kind`, settings, `resources` and `out`; raises `ConfigError` like `load`."""
    if missing := _placeholders(document):
        raise ConfigError(f"{source}: {', '.join(missing)}: still {PLACEHOLDER}; fill in a value")
    try:
        kind = job_type(str(document.get("kind")))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return cast(Job, parse(kind, dict(document), source))


def _placeholders(node: object, path: str = "") -> list[str]:
    """Dotted paths of the values that are still `PLACEHOLDER`."""
    if node == PLACEHOLDER:
        return [path]
    if isinstance(node, Mapping):
        return [p for key, value in node.items() for p in _placeholders(value, f"{path}.{key}" if path else str(key))]
    if isinstance(node, list | tuple):
        return [p for i, value in enumerate(node) for p in _placeholders(value, f"{path}.{i}")]
    return []
