"""Files of named tensors: what they hold, without reading it, and each tensor as a view of the mapped file.

A view costs no memory of its own: its pages belong to the file. Tensors must lie within the file, and none may be
larger than what it stores, so a header cannot ask for more memory than the file has bytes.
"""

import hashlib
import json
import math
import mmap
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raygen.core.errors import ConfigError, InputError
from raygen.store.not_weights import START, why_not_weights
from raygen.store.pickle_reader import OpaqueObject, PickledArray, PickledStorage, PickledTensor, read_pickle
from raygen.store.torch_zip import MappedFile, TorchZip

__all__ = ["Entry", "WeightFile", "open_weights"]


#: What the readers below make of bytes that are no file of weights.
DAMAGED: Final = (
    zipfile.BadZipFile,
    SafetensorError,
    struct.error,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,
)
#: Element types of arrays that are read.
NUMPY: Final = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"})
#: What the first of the pickles of torch's older format holds.
LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
#: Where training programs keep tensors by name, and the moving averages of them.
RAW: Final = ("state_dict", "model_state_dict", "model", "params", "network", "net", "module", "weights")
AVERAGED: Final = ("params_ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema", "g_ema")
#: What a moving average counts, beside the tensors.
COUNTERS: Final = frozenset({"n_averaged", "num_updates", "updates", "steps", "decay"})
#: How deep they may lie below each other.
DEEPEST: Final = 3
#: What torch.compile, FSDP, activation checkpointing and Lightning put before the names of the module that they wrap.
WRAPPED: Final = re.compile(
    r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
#: Names of a file with the places of tensors that are stored in several.
INDEX: Final = re.compile(r"\.index(\.\w+)?\.json$")


class Entry(NamedTuple):
    """What a tensor is, and how it is read."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


class WeightFile:
    """A file of weights: `tensors` by name, and `beside` what else it holds, a phrase a name.

    `place`: what to know of where the tensors were found, empty where they are all there is. `averaged`: whether they
    are a moving average by their place. `shards`: the files that an index names, else none.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        tensors: Mapping[str, Entry],
        beside: Mapping[str, str],
        *,
        place: str = "",
        averaged: bool = False,
        shards: Sequence["WeightFile"] = (),
    ) -> None:
        self.path, self.kind, self.tensors, self.beside = path, kind, tensors, beside
        self.place, self.averaged, self.shards = place, averaged, shards
        self._sha256: str | None = None

    @property
    def sha256(self) -> str:
        """Of the whole file; of an index, of the digests of all its files."""
        if self._sha256 is None:
            with self.path.open("rb") as file:
                own = hashlib.file_digest(file, "sha256").hexdigest()
            digests = "".join((own, *(shard.sha256 for shard in self.shards)))
            self._sha256 = hashlib.sha256(digests.encode()).hexdigest() if self.shards else own
        return self._sha256

    @property
    def size(self) -> int:
        """Bytes, shards included."""
        return self.path.stat().st_size + sum(shard.size for shard in self.shards)


def open_weights(path: str | Path, *, average: bool = True) -> WeightFile:
    """A file of weights of any format, or the index of one that is stored in several files.

    Tensors are looked for below the names that training programs give them, and lose prefixes that wrappers put before
    their names. `average`: where a file has them twice, as last weights and as their moving average, take the latter.

    `ConfigError` where it cannot be read; `InputError` with the reason `weights` where it is damaged or no such file,
    `unsafe` where it is a program rather than weights. Nothing in it is run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(START)
    except OSError as error:
        raise ConfigError(f"{path}: weights cannot be read ({error.strerror or error})") from error
    if INDEX.search(path.name):
        return _sharded(path, average)
    if (reason := why_not_weights(start)) is not None:
        raise InputError(f"{path}: {reason}", reason="weights")
    try:
        if start[:4] == b"PK\x03\x04":
            return _zipped(path, average)
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return _safe(path)
        return _pickled(path, average)
    except DAMAGED as error:
        raise InputError(f"{path}: not a file of weights ({_sentence(error)})", reason="weights") from error


def _sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160] or type(error).__name__


def _sharded(path: Path, average: bool) -> WeightFile:
    """The files of an index, which lie beside it, as one."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not an index of weights ({_sentence(error)})", reason="weights") from error
    if bad := [name for name in names.values() if Path(name).name != name or INDEX.search(name)]:
        raise InputError(f"{path}: names {bad[0]!r}, which is no file beside it", reason="weights")
    opened = {name: open_weights(path.parent / name, average=average) for name in sorted(set(names.values()))}
    if missing := [name for name, file in names.items() if name not in opened[file].tensors]:
        raise InputError(f"{path.parent / names[missing[0]]}: lacks {missing[0]}, of the index", reason="weights")
    tensors = {name: opened[file].tensors[name] for name, file in names.items()}
    kinds = ", ".join(sorted({file.kind for file in opened.values()}))
    shards = tuple(opened.values())
    return WeightFile(path, f"index of {len(opened)}, {kinds}", tensors, {}, shards=shards)


# --- safetensors --------------------------------------------------------------------------------------------


def _safe(path: Path) -> WeightFile:
    """The library checks its header: lengths, overlaps, and that shapes fit."""
    file: Any = safe_open(path, framework="pt")

    def entry(name: str) -> Entry:
        header = file.get_slice(name)
        dtype = str(header.get_dtype())
        return Entry(tuple(header.get_shape()), SAFE.get(dtype, dtype), lambda: file.get_tensor(name))

    names = sorted(file.keys())
    notes = {f"metadata {key}": f"{len(str(value))} characters" for key, value in (file.metadata() or {}).items()}
    return WeightFile(path, "safetensors", {name: entry(name) for name in names}, notes)


SAFE: Final = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


# --- torch.save ---------------------------------------------------------------------------------------------


def _zipped(path: Path, average: bool) -> WeightFile:
    file = TorchZip(path)
    return _document(path, "torch", file.document(), file.view, average)


def _pickled(path: Path, average: bool) -> WeightFile:
    """torch.save before 1.6: pickles one after the other, and then all storages; or one pickle of numpy's arrays."""
    mapped = MappedFile(path)
    file: Any = mapped.bytes  # it reads like one
    first = read_pickle(file, str(path))
    if first != LEGACY_MAGIC:
        return _document(path, "numpy", first, _no_storage, average)
    version, system = read_pickle(file, str(path)), read_pickle(file, str(path))
    if version != 1001 or not isinstance(system, dict) or not system.get("little_endian", True):
        raise ValueError("written by another version of torch, or with the other byte order")
    storages: dict[str, PickledStorage] = {}
    document, keys = read_pickle(file, str(path), storages), read_pickle(file, str(path))
    if not isinstance(keys, list):
        raise ValueError("no list of storages")
    places = dict(_legacy_places(mapped.bytes, file.tell(), keys, storages))

    def view(stored: PickledTensor) -> Callable[[], Tensor]:
        return mapped.view(stored, *places[stored.storage.key])

    return _document(path, "torch 1.5", document, view, average)


def _legacy_places(
    data: mmap.mmap, at: int, keys: list[Any], storages: Mapping[str, PickledStorage]
) -> Iterator[tuple[str, tuple[int, int]]]:
    for key in map(str, keys):
        (elements,) = struct.unpack_from("<q", data, at)
        room = elements * int(getattr(torch, storages[key].dtype).itemsize)
        if elements < 0 or at + 8 + room > len(data):
            raise ValueError("a storage that ends behind the file")
        yield key, (at + 8, room)
        at += 8 + room


def _storages(document: Any, seen: set[int]) -> dict[str, PickledStorage]:
    """Every storage that a document speaks of, wherever it stands but in containers that were `seen`."""
    found: dict[str, PickledStorage] = {}
    rest = [document]
    while rest:
        value = rest.pop()
        if isinstance(value, PickledTensor):
            found[value.storage.key] = value.storage
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            rest.extend(value.values() if isinstance(value, dict) else value)
    return found


def _no_storage(stored: Any) -> Any:
    raise ValueError("a tensor without its storage")


# --- what a document holds ----------------------------------------------------------------------------------


def _document(
    path: Path, kind: str, document: Any, view: Callable[[PickledTensor], Callable[[], Tensor]], average: bool
) -> WeightFile:
    """Named tensors of a checkpoint or of a bare state dict; `beside` tells of the rest."""
    if isinstance(document, OpaqueObject):
        raise ValueError(f"a whole {document.name} object instead of tensors by name: save its state_dict()")
    if not isinstance(document, dict):
        raise ValueError("holds no names")
    place, named, outer = _named(document, average)
    tensors: dict[str, Entry] = {}
    for name, value in named.items():
        if name in COUNTERS and getattr(value, "shape", ()) == ():
            outer[name] = value
        elif isinstance(value, PickledTensor) and isinstance(name, str):
            tensors[name] = Entry(value.shape, value.storage.dtype, view(value))
        elif isinstance(value, PickledArray) and isinstance(name, str):
            tensors[name] = _array(value)
        else:
            outer[name] = value
    if not tensors:
        whole = [f", and {name!r} is a whole {v.name}" for name, v in document.items() if isinstance(v, OpaqueObject)]
        places = [repr(name) for name, value in document.items() if isinstance(name, str) and _holds_tensors(value)]
        below = f", but below {', '.join(places[:5])}, of which none is a usual name" if places else ""
        raise ValueError(f"holds no tensors by name{below}{''.join(whole[:1])}: save a state_dict()")
    bare, prefixes = _without_wrappers(tensors)
    said = [f"under {'.'.join(place)!r}"] if place else []
    said += [f"names without {prefix!r}" for prefix in prefixes]
    seen: set[int] = set()
    beside = {str(name): _phrase(value, seen) for name, value in outer.items()}
    return WeightFile(path, kind, bare, beside, place=", ".join(said), averaged=bool(set(place) & set(AVERAGED)))


def _named(document: dict[Any, Any], average: bool) -> tuple[list[str], dict[Any, Any], dict[Any, Any]]:
    """Where the tensors of a document stand, the dictionary that holds them by name, and what stands around it."""
    place: list[str] = []
    outer: dict[Any, Any] = {}
    while len(place) < DEEPEST:
        averaged, raw = ([n for n in names if _holds_tensors(document.get(n))] for names in (AVERAGED, RAW))
        if averaged and raw and _bare_names(document[averaged[0]]) != _bare_names(document[raw[0]]):
            averaged = []  # the average of a part of the model
        if not averaged and not raw:
            break
        inside = (averaged + raw if average else raw + averaged)[0]
        outer |= {".".join((*place, str(name))): value for name, value in document.items() if name != inside}
        place.append(inside)
        document = document[inside]
    return place, document, outer


def _bare_names(document: Mapping[Any, Any]) -> set[str]:
    """Names in a document, without counters and without the prefix of a wrapper that all of them have."""
    names = {str(name) for name in document if name not in COUNTERS}
    return {name.removeprefix("module.") for name in names} if all(n.startswith("module.") for n in names) else names


def _holds_tensors(value: Any, deep: int = 1) -> bool:
    """Whether a value is a dictionary with tensors by name, or with such a dictionary in one of the usual places."""
    if not isinstance(value, dict):
        return False
    if any(isinstance(v, PickledTensor | PickledArray) and isinstance(name, str) for name, v in value.items()):
        return True
    return deep < DEEPEST and any(_holds_tensors(value.get(name), deep + 1) for name in (*AVERAGED, *RAW))


def _without_wrappers(tensors: dict[str, Entry]) -> tuple[dict[str, Entry], list[str]]:
    """Tensors by the names that they had before `torch.compile` or data parallelism; the prefixes that went."""
    bare = {WRAPPED.sub("", name): entry for name, entry in tensors.items()}
    gone = sorted({f"{prefix}." for name in tensors for prefix in WRAPPED.findall(name)})
    while all(name.startswith("module.") for name in bare):
        bare = {name.removeprefix("module."): entry for name, entry in bare.items()}
        gone.append("module.")
    return (bare, gone) if len(bare) == len(tensors) else (tensors, [])


def _array(value: PickledArray) -> Entry:
    if value.dtype[1:] not in NUMPY or int(value.dtype[-1]) * math.prod(value.shape) != len(value.data):
        raise ValueError("an array of another kind, or whose bytes do not fit its shape")
    dtype = np.dtype(value.dtype)

    def read() -> Tensor:
        data = value.data.encode("latin1") if isinstance(value.data, str) else value.data
        made = np.frombuffer(data, dtype).reshape(value.shape, order="F" if value.fortran else "C")
        return torch.from_numpy(np.ascontiguousarray(made.astype(dtype.newbyteorder("="))))

    return Entry(value.shape, str(dtype.newbyteorder("=")), read)


def _phrase(value: Any, seen: set[int]) -> str:
    """What something is, in a few words, without showing it. `seen`: containers that were counted before."""
    count = len(_storages(value, seen))
    if count:
        return f"{count:,} tensors"
    if isinstance(value, OpaqueObject):
        return value.name[:80]
    if isinstance(value, bool | int | float):
        return repr(value)
    return f"{len(value)} entries" if isinstance(value, dict | list | tuple) else type(value).__name__.lower()
