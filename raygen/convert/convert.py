"""Published files -> a checkpoint folder: every tensor is used, left out for a stated reason, or an error.

Tensors are views of the mapped file until they are written, so a conversion needs little memory however large the file.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from raygen.convert.families import FAMILIES, guess
from raygen.convert.key_maps import Pick
from raygen.convert.parts import Draft, Options
from raygen.core.errors import ConfigError, InputError
from raygen.core.location import is_remote
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.checkpoint_files import OWN_WEIGHTS, Writing, write_weights
from raygen.models.config.sampler import SamplerConfig
from raygen.store.sealed import seal_folder
from raygen.store.weight_file import Entry, WeightFile, open_weights

__all__ = ["MAPPING", "ConversionReport", "convert", "inspect"]


#: Version of the name mapping; it grows when the same file would become another folder.
MAPPING: Final = 1
#: No settings except those of the files.
PUBLISHED: Final = Options()
#: The sampler of the released models, step for step.
RELEASED: Final = SamplerConfig(name="ddim", steps=50, spacing="leading")
#: How many names an error shows.
SHOWN: Final = 3


@dataclass
class ConversionReport:
    """What happened to every tensor of the files."""

    family: str
    files: list[WeightFile]
    #: Part of the model -> (tensors, parameters).
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Reason -> how many tensors are left out.
    left: dict[str, int] = field(default_factory=dict)
    #: What the user should know of choices that the files do not settle.
    notes: list[str] = field(default_factory=list)
    #: Why the files cannot be imported.
    problems: list[str] = field(default_factory=list)
    digest: str = ""

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(count for _, count in self.parts.values())

    def facts(self) -> dict[str, str]:
        """Lines of the report, by title."""
        lines = {"family": f"{self.family}: {FAMILIES[self.family].text}"}
        for file in self.files:
            facts = f"{file.kind}, {file.size / 1e6:,.1f} MB, {len(file.tensors):,} tensors"
            lines[f"file {file.path.name}"] = ", ".join(filter(None, (facts, file.place)))
            for name, phrase in file.beside.items():
                lines[f"  {name}"] = f"{phrase}; not read"
        for name, (tensors, parameters) in self.parts.items():
            lines[name] = f"{parameters:,} parameters from {tensors:,} tensors"
        for index, (reason, tensors) in enumerate(self.left.items()):
            lines["left behind" + " " * index] = f"{tensors:,} tensors: {reason}"
        lines |= {"note" + " " * index: note for index, note in enumerate(self.notes)}
        if not self.problems:
            lines["parameters"] = f"{self.parameters:,}; every tensor accounted for"
        return lines | ({"digest": self.digest} if self.digest else {})


class _Filled(NamedTuple):
    """The source of one parameter."""

    entry: Entry
    pick: Pick


def inspect(files: Sequence[str | Path], family: str | None = None, options: Options = PUBLISHED) -> ConversionReport:
    """The report of an import without doing it; only the tensors of the noise schedule are read.

    `ConfigError` where files cannot be read or are of no known family; `InputError` where one is damaged or is no file
    of weights.
    """
    quick = Options(options.image_size, options.weights, options.scaling_factor, options.vocabulary, False)
    report, draft, entries = _draft(files, family, quick)
    if draft is not None:
        _match(draft, entries, report)
    return report


def convert(
    family: str | None, files: Sequence[str | Path], out: str | Path, options: Options = PUBLISHED
) -> ConversionReport:
    """Write the model of `files` as the folder `out`; errors as for `inspect` and `checkpoint.save`.

    Several files are read as one: a model and, after it, the first stage or base that it lacks. `family` None is
    guessed. All names and shapes are checked before anything is written: `InputError` (`weights`).
    """
    if is_remote(str(out)):
        raise ConfigError(f"{out}: is a URL; an import writes to a local folder only, copy the result afterwards")
    if inside := [path for path in files if Path(path).resolve().is_relative_to(Path(out).resolve())]:
        raise ConfigError(f"{inside[0]}: lies inside of {out}, which would be replaced")
    report, draft, entries = _draft(files, family, options)
    filled = {} if draft is None else _match(draft, entries, report)
    if report.problems or draft is None:
        raise InputError(f"{files[0]}: {'; '.join(report.problems)}", reason="weights")
    if (target := Path(out)).exists() and not (target / "raygen.json").is_file():
        raise ConfigError(f"{target}: exists and is not a checkpoint; it is left alone")
    for part in draft.parts:
        _fill(part.module, filled[part.name], str(files[0]))
    sources = {file.path.name: file.sha256 for file in report.files}
    metadata = {"source_sha256": " ".join(sources.values()), "mapping": f"{report.family} {MAPPING}"}
    extra = {"imported": {"family": report.family, "mapping": MAPPING, "files": sources}}
    if isinstance(draft.model, Model | FirstStage):
        report.digest = checkpoint.save(draft.model, out, extra=extra, metadata=metadata, sampler=RELEASED)
    else:
        write_weights(draft.model, Path(out) / OWN_WEIGHTS, Writing(metadata=metadata))
        seal_folder(Path(out), "raygen.json", {"format": 1, "parser": report.family, "extra": extra})
    return report


# --- names --------------------------------------------------------------------------------------------------


def _draft(
    files: Sequence[str | Path], family: str | None, options: Options
) -> tuple[ConversionReport, Draft | None, dict[str, Entry]]:
    """The report, the draft of the model, and the entries of all files; problems go into the report."""
    opened = [open_weights(path, average=options.weights != "raw") for path in files]
    if options.weights == "ema" and any(file.averaged for file in opened):
        options = replace(options, weights=None)  # it is taken: files that keep it apart do not name it in the tensors
    entries: dict[str, Entry] = {}
    for file in opened:
        if shared := sorted(entries.keys() & file.tensors.keys()):
            raise ConfigError(f"{file.path} and a file before it both hold {shared[0]}")
        entries |= file.tensors
    shapes = {name: entry.shape for name, entry in entries.items()}
    name = family or guess(shapes)
    if name is None:
        raise ConfigError(f"{files[0]}: of no family that we know; it begins with {sorted(shapes)[0]!r}")
    if name not in FAMILIES:
        raise ConfigError(f"{name!r} is no family; there are {', '.join(FAMILIES)}")
    report = ConversionReport(name, opened)
    try:
        with torch.device("meta"):
            draft = FAMILIES[name].draft(shapes, lambda key: entries[key].read(), options)
    except (InputError, KeyError, IndexError, ValueError) as error:
        problem = f"not of the family {name!r} ({type(error).__name__}: {error})"
        if isinstance(error, InputError):
            problem = str(error).partition(": ")[2]
        other = guess(shapes) or name
        unlike = FAMILIES[other].draft != FAMILIES[name].draft
        report.problems.append(f"{problem}; by its names it is {other!r}" if unlike else problem)
        return report, None, entries
    report.notes = draft.notes
    return report, draft, entries


def _match(draft: Draft, entries: Mapping[str, Entry], report: ConversionReport) -> dict[str, dict[str, _Filled]]:
    """The source of every parameter, by part; problems go into the report."""
    used: Counter[str] = Counter()
    expected_uses: dict[str, int] = {}
    sources: dict[str, dict[str, _Filled]] = {}
    missing, unlike = [], []
    for part in draft.parts:
        inside: dict[str, _Filled] = {}
        for name, tensor in part.module.state_dict().items():
            pick = part.rename(name)
            key = "" if pick is None else part.prefix + pick.key
            if pick is None or key not in entries:
                if not name.endswith("num_batches_tracked"):  # files from before there were such counters
                    missing.append(f"{part.name}: {name} ({key})")
                continue
            used[key] += 1
            expected_uses[key] = pick.shared
            if (problem := _difference(pick, entries[key], tensor)) is not None:
                unlike.append(f"{key} {problem}")
            inside[name] = _Filled(entries[key], pick)
        sources[part.name] = inside
        numel = sum(parameter.numel() for parameter in part.module.parameters())
        report.parts[part.name] = (len({part.prefix + f.pick.key for f in inside.values()}), numel)
    twice = [key for key, times in used.items() if times != expected_uses[key]]
    unused = []
    for key in entries:
        if key not in used:
            reason = next((reason for pattern, reason in draft.left if re.fullmatch(pattern, key)), None)
            if reason is None:
                unused.append(key)
            else:
                report.left[reason] = report.left.get(reason, 0) + 1
    for problem, names in (
        ("missing", missing),
        ("of another shape", unlike),
        ("used for more than one parameter", twice),
        ("of no use that we know", unused),
    ):
        if names:
            more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            report.problems.append(f"{problem}: {', '.join(names[:SHOWN])}{more}")
    return sources


def _difference(pick: Pick, entry: Entry, parameter: Tensor) -> str | None:
    """How a tensor of the file differs from the parameter that it fills; None where it fits."""
    try:
        shape = tuple(pick.of(torch.empty(entry.shape, device="meta")).shape)
    except (ValueError, RuntimeError) as error:
        return f"{list(entry.shape)}: {error}"
    if shape != tuple(parameter.shape):
        return f"{list(entry.shape)}, not {list(parameter.shape)}"
    floating = entry.dtype.startswith(("float", "bfloat"))
    return None if floating == parameter.is_floating_point() else f"is {entry.dtype}"


def _fill(module: nn.Module, filled: Mapping[str, _Filled], source: str) -> None:
    """Replace the parameters by views of the file; `InputError` (`weights`) where one is not finite."""
    tensors: dict[str, Any] = {}
    for name, (entry, pick) in filled.items():
        tensor = pick.of(entry.read())
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{source}: {pick.key} is not finite", reason="weights")
        tensors[name] = tensor
    for name, tensor in module.state_dict().items():
        if name not in tensors:
            tensors[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    module.load_state_dict(tensors, strict=True, assign=True)
