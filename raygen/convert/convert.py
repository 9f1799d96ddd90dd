"""Published files -> a folder of ours: every tensor is used, left behind for a reason, or an error.

Knows how drafts are filled and written, and what is said about a file that is only looked at. Knows no family.

Tensors are views of the mapped file until they are written, so the memory that a conversion takes of its own is little,
however large the file.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from raygen.convert.families import FAMILIES, guess
from raygen.convert.key_maps import Pick
from raygen.convert.parts import Draft, Options
from raygen.core.errors import ConfigError, InputError
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.checkpoint_files import OWN_WEIGHTS, Writing, write_json, write_weights
from raygen.models.schedule import SamplerConfig
from raygen.store.weight_file import Entry, WeightFile, open_weights

__all__ = ["MAPPING", "ConversionReport", "convert", "inspect"]


#: Of the rules by which names become ours; it grows when the same file would become another folder.
MAPPING: Final = 1
#: Nothing known but what the files say.
PUBLISHED: Final = Options()
#: The sampler of the released models, step for step.
RELEASED: Final = SamplerConfig(name="ddim", steps=50, spacing="leading")
#: How many names an error shows.
SHOWN: Final = 3


@dataclass
class ConversionReport:
    """What became of every tensor of the files."""

    family: str
    files: list[WeightFile]
    #: Part of the model -> (tensors, parameters).
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Why -> how many tensors are left behind.
    left: dict[str, int] = field(default_factory=dict)
    #: What keeps the files from being imported.
    problems: list[str] = field(default_factory=list)
    digest: str = ""

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(count for _, count in self.parts.values())

    def facts(self) -> dict[str, str]:
        """For a person, line by line."""
        said = {"family": f"{self.family}: {FAMILIES[self.family].text}"}
        for file in self.files:
            size = file.path.stat().st_size
            said[f"file {file.path.name}"] = f"{file.kind}, {size / 1e6:,.1f} MB, {len(file.tensors):,} tensors"
            for name, phrase in file.beside.items():
                said[f"  {name}"] = f"{phrase}; not read"
        for name, (tensors, parameters) in self.parts.items():
            said[name] = f"{parameters:,} parameters from {tensors:,} tensors"
        for place, (why, tensors) in enumerate(self.left.items()):
            said["left behind" + " " * place] = f"{tensors:,} tensors: {why}"
        if not self.problems:
            said["parameters"] = f"{self.parameters:,}; every tensor accounted for"
        return said | ({"digest": self.digest} if self.digest else {})


class _Filled(NamedTuple):
    """A parameter of ours and where it comes from."""

    entry: Entry
    pick: Pick


def inspect(files: Sequence[str | Path], family: str | None = None, options: Options = PUBLISHED) -> ConversionReport:
    """What files are and what an import of them would do; no tensor is read but the schedule's.

    `ConfigError` where they cannot be read, are none of our families', or the family is unknown; `InputError` where one
    is damaged or is no file of weights.
    """
    quick = Options(options.image_size, options.weights, options.scaling_factor, options.vocabulary, False)
    account, draft, entries = _drafted(files, family, quick)
    if draft is not None:
        _matched(draft, entries, account)
    return account


def convert(
    family: str | None, files: Sequence[str | Path], out: str | Path, options: Options = PUBLISHED
) -> ConversionReport:
    """Write the model of `files` as the folder `out`; errors as for `inspect`, and as `checkpoint.save` has them.

    Several files are read as one: a model and, after it, the first stage or base that it lacks. `family` None is
    guessed. Before anything is written every name is accounted for and every shape checked: `InputError` (`weights`).
    """
    if inside := [path for path in files if Path(path).resolve().is_relative_to(Path(out).resolve())]:
        raise ConfigError(f"{inside[0]}: lies inside of {out}, which would be replaced")
    account, draft, entries = _drafted(files, family, options)
    filled = {} if draft is None else _matched(draft, entries, account)
    if account.problems or draft is None:
        raise InputError(f"{files[0]}: {'; '.join(account.problems)}", reason="weights")
    if (target := Path(out)).exists() and not (target / "raygen.json").is_file():
        raise ConfigError(f"{target}: exists and is not a checkpoint; it is left alone")
    for part in draft.parts:
        _fill(part.module, filled[part.name], str(files[0]))
    sources = {file.path.name: file.sha256 for file in account.files}
    metadata = {"source_sha256": " ".join(sources.values()), "mapping": f"{account.family} {MAPPING}"}
    extra = {"imported": {"family": account.family, "mapping": MAPPING, "files": sources}}
    if isinstance(draft.model, Model | FirstStage):
        account.digest = checkpoint.save(draft.model, out, extra=extra, metadata=metadata, sampler=RELEASED)
    else:
        write_weights(draft.model, Path(out) / OWN_WEIGHTS, Writing(metadata=metadata))
        write_json(Path(out) / "raygen.json", {"format": 1, "parser": account.family, "extra": extra})
    return account


# --- names --------------------------------------------------------------------------------------------------


def _drafted(
    files: Sequence[str | Path], family: str | None, options: Options
) -> tuple[ConversionReport, Draft | None, dict[str, Entry]]:
    """The files as one, and the model that they are of; problems of the draft go into the account."""
    opened = [open_weights(path) for path in files]
    entries: dict[str, Entry] = {}
    for file in opened:
        if both := sorted(entries.keys() & file.tensors.keys()):
            raise ConfigError(f"{file.path} and a file before it both hold {both[0]}")
        entries |= file.tensors
    shapes = {name: entry.shape for name, entry in entries.items()}
    found = family or guess(shapes)
    if found is None:
        raise ConfigError(f"{files[0]}: of no family that we know; it begins with {sorted(shapes)[0]!r}")
    if found not in FAMILIES:
        raise ConfigError(f"{found!r} is no family; there are {', '.join(FAMILIES)}")
    account = ConversionReport(found, opened)
    try:
        with torch.device("meta"):
            draft = FAMILIES[found].draft(shapes, lambda name: entries[name].read(), options)
    except (InputError, KeyError, IndexError, ValueError) as error:
        other_family = f"not of the family {found!r} ({type(error).__name__}: {error})"
        said = str(error).partition(": ")[2] if isinstance(error, InputError) else other_family
        other = guess(shapes) or found
        unlike = FAMILIES[other].draft != FAMILIES[found].draft
        account.problems.append(f"{said}; by its names it is {other!r}" if unlike else said)
        return account, None, entries
    return account, draft, entries


def _matched(draft: Draft, entries: Mapping[str, Entry], account: ConversionReport) -> dict[str, dict[str, _Filled]]:
    """Every parameter of ours with its source, by part; what does not fit goes into the account."""
    used: Counter[str] = Counter()
    wanted_times: dict[str, int] = {}
    made: dict[str, dict[str, _Filled]] = {}
    missing, unlike = [], []
    for part in draft.parts:
        inside: dict[str, _Filled] = {}
        for name, wanted in part.module.state_dict().items():
            pick = part.rename(name)
            key = "" if pick is None else part.prefix + pick.key
            if pick is None or key not in entries:
                if not name.endswith("num_batches_tracked"):  # files from before there were such counters
                    missing.append(f"{part.name}: {name} ({key})")
                continue
            used[key] += 1
            wanted_times[key] = pick.shared
            if (problem := _unlike(pick, entries[key], wanted)) is not None:
                unlike.append(f"{key} {problem}")
            inside[name] = _Filled(entries[key], pick)
        made[part.name] = inside
        numel = sum(parameter.numel() for parameter in part.module.parameters())
        account.parts[part.name] = (len({part.prefix + f.pick.key for f in inside.values()}), numel)
    twice = [key for key, times in used.items() if times != wanted_times[key]]
    rest = _left(draft, entries, used, account)
    for what, names in (
        ("missing", missing),
        ("of another shape", unlike),
        ("used for more than one parameter", twice),
        ("of no use that we know", rest),
    ):
        if names:
            more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            account.problems.append(f"{what}: {', '.join(names[:SHOWN])}{more}")
    return made


def _left(draft: Draft, entries: Mapping[str, Entry], used: Counter[str], account: ConversionReport) -> list[str]:
    """Names that nothing uses and that are not left behind on purpose."""
    rest = []
    for key in entries:
        if key in used:
            continue
        why = next((why for pattern, why in draft.left if re.fullmatch(pattern, key)), None)
        if why is None:
            rest.append(key)
            continue
        account.left[why] = account.left.get(why, 0) + 1
    return rest


def _unlike(pick: Pick, entry: Entry, wanted: Tensor) -> str | None:
    """How a tensor of the file is other than ours must be."""
    try:
        shape = tuple(pick.of(torch.empty(entry.shape, device="meta")).shape)
    except (ValueError, RuntimeError) as error:
        return f"{list(entry.shape)}: {error}"
    if shape != tuple(wanted.shape):
        return f"{list(entry.shape)}, not {list(wanted.shape)}"
    floating = entry.dtype.startswith(("float", "bfloat"))
    return None if floating == wanted.is_floating_point() else f"is {entry.dtype}"


def _fill(module: nn.Module, filled: Mapping[str, _Filled], source: str) -> None:
    """Views of the file in the place of the parameters; `InputError` (`weights`) where one is not finite."""
    tensors: dict[str, Any] = {}
    for name, (entry, pick) in filled.items():
        tensor = pick.of(entry.read())
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{source}: {pick.key} is not finite", reason="weights")
        tensors[name] = tensor
    for name, wanted in module.state_dict().items():
        if name not in tensors:
            tensors[name] = torch.zeros(wanted.shape, dtype=wanted.dtype)
    module.load_state_dict(tensors, strict=True, assign=True)
