"""The number of threads of OpenBLAS, the linear algebra in the wheels of numpy and scipy.

After each call a thread of OpenBLAS waits in a loop for the next one (2^26 clock cycles by default) and keeps its core
busy. With matrices of a few hundred rows that costs more than it computes: on two cores that others use as well, the
spectrum of [256, 256] took 43 ms of CPU time with two threads, and 2.5 ms with one (OpenBLAS 0.3, scipy 1.17).
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from itertools import product
from typing import Any, Final

__all__ = ["NARROW", "threads_for"]

#: Largest side of a matrix that one thread works on.
NARROW: Final = 512
#: Modules that are linked against an OpenBLAS: numpy and scipy bring one each.
_MODULES: Final = ("numpy.linalg._umath_linalg", "scipy.linalg._fblas")
_lock = threading.Lock()
_inside, _before = 0, list[int]()


@cache
def _controls() -> list[tuple[Any, Any]]:
    """The functions that read and set the number of threads of each OpenBLAS; empty where another library is used."""
    found = []
    for module in _MODULES:
        library = ctypes.CDLL(import_module(module).__file__)
        for prefix, suffix in product(("scipy_openblas", "openblas"), ("64_", "")):  # with long and with short integers
            read, write = (getattr(library, f"{prefix}_{verb}_num_threads{suffix}", None) for verb in ("get", "set"))
            if read is not None and write is not None:
                found.append((read, write))
                break
    return found


@contextmanager
def threads_for(side: int) -> Iterator[None]:
    """One thread of OpenBLAS in the block where matrices are at most `NARROW` wide; else what it has.

    The number is one for the whole process, so other threads have it as well while the block runs.
    """
    global _inside
    if side > NARROW:
        yield
        return
    with _lock:
        if not _inside:
            _before[:] = [read() for read, _ in _controls()]
            for _, write in _controls():
                write(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for (_, write), number in zip(_controls(), _before, strict=True):
                    write(number)
