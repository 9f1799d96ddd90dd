"""A pickle as data: the few opcodes that files of weights use, read without importing or calling what a file names.

Python's own unpickler looks every name up and calls it; one that is told to refuse some still runs methods of what it
let through. This one looks nothing up: a name is a known word, or one that belongs to a training program and is
replaced by an object without behaviour, or it ends the reading. `pickletools` decodes the opcodes.

Why not `torch.load(weights_only=True, mmap=True)`: with torch 2.15.0, on the tests of this module, it does not end
every damaged file with an exception; it refuses checkpoints that name Lightning's callbacks or numpy's random state
beside the weights; it refuses pickled numpy arrays of every protocol, those of Python 2 included; and it does not map
files of the older format without a zip. Only its memory for zipped files is as small.
"""

import math
import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, NamedTuple

from raygen.core.errors import InputError
from raygen.store.pickle_names import INERT, INERT_NAMES, LITERALS

__all__ = ["DType", "OpaqueObject", "PickledArray", "PickledStorage", "PickledTensor", "read_pickle"]
CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
#: Of one pickle; the largest published checkpoint has a thirtieth of it.
MOST_OPCODES: Final = 5_000_000
#: Of a tensor: how many sides, and what they may come to, empty ones left out.
MOST_SIDES, LARGEST_TENSOR = 8, 1 << 48
#: Parts of a name that is a tuple; and up to where numbers that are names have hashes of their own.
MOST_PARTS, LARGEST_NUMBER = 16, 1 << 60


class DType(NamedTuple):
    """An element type by torch's name, such as `float32`."""

    name: str


class PickledStorage(NamedTuple):
    """Elements that lie somewhere else in the file."""

    dtype: str
    key: str
    elements: int


class PickledTensor(NamedTuple):
    """A tensor: which elements of a storage, and in what shape."""

    storage: PickledStorage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class PickledArray:
    """An array of numpy; `data`, its bytes or the text that old pickles keep them as, is empty without its state."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: bytes | str = b""


@dataclass(eq=False)
class OpaqueObject:
    """In the place of something that a training program left. Takes anything, does nothing."""

    name: str


@dataclass
class _NumpyType:
    """A dtype of numpy: `f4` and, once its state was read, the order of its bytes."""

    code: str
    order: str = "<"


class _Known(NamedTuple):
    """A name with a meaning here: what a call of it gives."""

    name: str
    call: Callable[..., Any]


class _Refused(Exception):
    """Why a pickle is not one of weights."""


def read_pickle(file: IO[bytes], what: str, storages: dict[str, PickledStorage] | None = None) -> Any:
    """The next pickle of `file` as plain values; the file stands behind it afterwards.

    `storages`: every storage that it speaks of is added, by its key, also those in the state of a stand-in.

    Dictionaries become dicts, tensors `PickledTensor`, arrays `PickledArray`, what belongs to a training program
    `OpaqueObject`. `what` names the file in errors: `InputError` (`unsafe`) where it asks for anything else by
    name, `weights` where it is damaged or no such file.
    """
    try:
        return _Machine({} if storages is None else storages).run(file)
    except _Refused as error:
        raise InputError(f"{what}: {error}", reason="unsafe") from error
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{what}: not a file of weights ({type(error).__name__})", reason="weights") from error


# --- names --------------------------------------------------------------------------------------------------


def _resolved(name: str) -> Any:
    if name in KNOWN:
        return KNOWN[name]
    if name in INERT_NAMES or any(name.startswith(f"{prefix}.") for prefix in INERT):
        return OpaqueObject(name)
    raise _Refused(
        f"asks for {name[:80]!r} by name, which weights have no use for; nothing of it was run. Save the state_dict() "
        "alone, where that name is known"
    )


def _mapping(*items: Any) -> dict[Any, Any]:
    """OrderedDict() or OrderedDict(pairs)."""
    made: dict[Any, Any] = {}
    for key, value in items[0] if items and isinstance(items[0], list) else ():
        made[_key(key)] = value
    return made


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> PickledTensor:
    if not isinstance(storage, PickledStorage):
        raise TypeError("a tensor without a storage")
    if type(offset) is not int or offset < 0 or len(_sides(shape)) != len(_sides(stride)):
        raise ValueError("a tensor whose shape is none")
    return PickledTensor(storage, offset, shape, stride)


def _parameter(data: Any, *rest: Any) -> PickledTensor:
    if not isinstance(data, PickledTensor):
        raise TypeError("a parameter without a tensor")
    return data


def _typed(function: Any, kind: Any, arguments: Any, *rest: Any) -> PickledTensor:
    """A tensor of a subclass, such as `Parameter`, as a plain one."""
    if not isinstance(function, _Known) or not isinstance(arguments, tuple):
        raise TypeError("a tensor that nothing makes")
    return _parameter(function.call(*arguments))


def _encoded(text: Any, encoding: Any = "latin1") -> str:
    """How Python 3 writes bytes into old pickles; left as it is: a thousand of them are not a thousand copies."""
    if not isinstance(text, str) or encoding != "latin1":
        raise TypeError("no bytes")
    return text


def _numpy_type(code: Any, *rest: Any) -> _NumpyType:
    if not isinstance(code, str) or len(code) > 8:
        raise TypeError("no element type")
    return _NumpyType(code.lstrip("<>|="), ">" if code.startswith(">") else "<")


def _nothing(*rest: Any) -> None:
    raise TypeError("cannot be called")


def _scalar(kind: Any, data: Any = b"") -> PickledArray:
    if not isinstance(kind, _NumpyType) or not isinstance(data, bytes | str):
        raise TypeError("no scalar")
    return PickledArray(kind.order + kind.code, (), False, data)


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> PickledArray:
    if not isinstance(kind, _NumpyType) or not isinstance(data, bytes | bytearray):
        raise TypeError("no array")
    return PickledArray(kind.order + kind.code, _sides(shape), order == "F", bytes(data))


def _sides(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > MOST_SIDES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a shape that is none")
    if math.prod(max(n, 1) for n in shape) > LARGEST_TENSOR:
        raise ValueError("a shape that no file could fill")
    return shape


def _known() -> Iterator[tuple[str, Callable[..., Any]]]:
    made: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _mapping,
        "collections.defaultdict": lambda *_: {},
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch._tensor._rebuild_from_type_v2": _typed,
        "torch.Size": lambda values=(): _sides(values),
        "_codecs.encode": _encoded,
        "numpy.dtype": _numpy_type,
        "numpy.ndarray": _nothing,
    }
    yield from made.items()
    for package in ("numpy.core", "numpy._core"):
        yield f"{package}.multiarray._reconstruct", lambda *_: PickledArray()
        yield f"{package}.multiarray.scalar", _scalar
        yield f"{package}.numeric._frombuffer", _from_buffer
    for module in ("builtins", "__builtin__"):
        yield f"{module}.set", lambda values=(): values
        yield f"{module}.dict", _mapping


STORAGES: Final = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
KNOWN: Final[Mapping[str, Any]] = {
    **{name: _Known(name, call) for name, call in _known()},
    **{f"torch.{kind}": DType(dtype) for kind, dtype in STORAGES.items()},
    **{f"torch.cuda.{kind}": DType(dtype) for kind, dtype in STORAGES.items()},
    **{f"torch.{dtype}": DType(dtype) for dtype in STORAGES.values()},
}


# --- opcodes ------------------------------------------------------------------------------------------------


def _key(value: Any) -> Any:
    """A value that may name an entry: nothing whose hash could be costly."""
    if value is None or isinstance(value, str | bytes | OpaqueObject):
        return value
    if isinstance(value, int) and abs(value) < LARGEST_NUMBER:
        return value
    if isinstance(value, tuple) and len(value) <= MOST_PARTS and not any(isinstance(part, tuple) for part in value):
        return tuple(_key(part) for part in value)
    raise TypeError(f"a {type(value).__name__} as a key")


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, storages: dict[str, PickledStorage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count == MOST_OPCODES:
                raise ValueError("too much for a file of weights")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in LITERALS:
                self.stack.append(CONSTANTS.get(opcode.name, argument))
            else:
                self._step(opcode.name, argument)
        raise ValueError("ends in the middle")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_SET":
                stack.append({} if name == "EMPTY_DICT" else [])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(name[-1])
                if len(stack) < n:
                    raise IndexError("too few values")
                stack[-n:] = [tuple(stack[-n:])]
            case "TUPLE" | "LIST" | "FROZENSET" | "DICT":
                items = self._marked()
                self.stack.append(tuple(items) if name == "TUPLE" else _pairs(items) if name == "DICT" else items)
            case "APPEND" | "SETITEM":
                n = 1 if name == "APPEND" else 2
                items = [stack.pop() for _ in range(n)][::-1]
                self._put(stack[-1], items, pairs=n == 2)
            case "APPENDS" | "ADDITEMS" | "SETITEMS":
                items = self._marked()
                self._put(self.stack[-1], items, pairs=name == "SETITEMS")
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_resolved(str(argument).replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if not isinstance(attribute, str) or not isinstance(module, str):
                    raise TypeError("a name that is no text")
                stack.append(_resolved(f"{module}.{attribute}"))
            case "BINPERSID":
                value = stack.pop()
                if isinstance(value, tuple) and len(value) == 4 and value[0] == "module":
                    stack.append(value[1])  # a class, beside which torch's older format keeps its source
                else:
                    storage = _storage(value)
                    self.storages[storage.key] = storage
                    stack.append(storage)
            case "REDUCE" | "NEWOBJ":
                arguments, called = stack.pop(), stack.pop()
                stack.append(_called(called, arguments))
            case "NEWOBJ_EX":
                _, arguments, called = stack.pop(), stack.pop(), stack.pop()
                stack.append(_called(called, arguments))
            case "BUILD":
                state = stack.pop()
                _built(stack[-1], state)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._marked()
            case "DUP":
                stack.append(stack[-1])
            case _:
                raise _Refused(f"has the opcode {name}, which files of weights have no use for")

    def _marked(self) -> list[Any]:
        """What came since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    @staticmethod
    def _put(target: Any, items: list[Any], *, pairs: bool) -> None:
        if isinstance(target, OpaqueObject):
            return
        if pairs and type(target) is dict:
            target.update(_pairs(items))
        elif not pairs and type(target) is list:
            target.extend(items)
        else:
            raise TypeError(f"{type(target).__name__} holds nothing")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _called(called: Any, arguments: Any) -> Any:
    if isinstance(called, OpaqueObject):
        return OpaqueObject(called.name)
    if not isinstance(called, _Known) or not isinstance(arguments, tuple):
        raise _Refused("calls something that cannot be called in a file of weights")
    return called.call(*arguments)


def _built(target: Any, state: Any) -> None:
    if isinstance(target, OpaqueObject) or type(target) is dict:
        return  # attributes of an OrderedDict, which say what versions its modules had
    if isinstance(target, _NumpyType):
        target.order = ">" if state[1] == ">" else "<"
    elif isinstance(target, PickledArray):
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _NumpyType):
            raise TypeError("no array")
        target.dtype, target.shape, target.fortran = kind.order + kind.code, _sides(shape), fortran is True
        target.data = data if isinstance(data, bytes | str) else b""
    else:
        raise _Refused(f"sets the state of a {type(target).__name__}")


def _storage(value: Any) -> PickledStorage:
    """What stands for the elements of a tensor: ("storage", type, key, device, elements)."""
    kind, dtype, key, _, elements, *view = value
    if kind != "storage" or not isinstance(dtype, DType) or any(part is not None for part in view):
        raise ValueError("a storage of another kind")
    if type(elements) is not int or elements < 0 or not isinstance(key, str | int):
        raise ValueError("a storage of another kind")
    return PickledStorage(dtype.name, str(key), elements)
