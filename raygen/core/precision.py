"""What numbers depend on besides the settings of a job: CPU threads, how float32 is computed, and aligned memory.

A precision (`Precision`) is one of

- `float32`: whole float32; TF32 and passes in bfloat16 are off,
- `tf32`: weights in float32, and products on an NVIDIA GPU of numbers that are cut to 10 bits after the point,
- `bfloat16`, `float16`: the network in half precision.

TF32 is one switch for all threads of a process, and pictures are scored in threads while others are generated. So
`arithmetic` is a lock as well: threads that need the same go on together, those that need the other one wait. Outside
of it float32 is whole.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from raygen.core.errors import ConfigError
from raygen.core.types import Precision

__all__ = [
    "DTYPES",
    "arithmetic",
    "check_precision",
    "copy_parameters",
    "full_precision",
    "set_deterministic_precision",
    "tf32",
]

#: Precision -> type of the weights of a network that is not trained.
DTYPES: Final = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class _Switch:
    """Which threads compute in float32, and whether with TF32. A thread may enter again with another answer."""

    def __init__(self) -> None:
        self._changed, self._inside, self._tf32 = threading.Condition(), 0, False
        self._local = threading.local()

    def enter(self, use_tf32: bool) -> None:
        """Wait until no other thread needs the opposite."""
        held: list[bool] = self._local.__dict__.setdefault("held", [])
        if held:
            self._release()  # the outer block does not compute meanwhile; else two threads could wait for each other
        try:
            self._acquire(use_tf32)
        except BaseException:  # an interrupt
            if held:
                self._acquire(held[-1])
            raise
        held.append(use_tf32)

    def leave(self) -> None:
        """Back to what the block around needs."""
        held: list[bool] = self._local.held
        held.pop()
        self._release()
        if held:
            self._acquire(held[-1])

    def _acquire(self, use_tf32: bool) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside or self._tf32 == use_tf32)
            self._inside, self._tf32 = self._inside + 1, use_tf32
            _set_tf32(use_tf32)  # each time, because a library may have changed it

    def _release(self) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside:
                _set_tf32(False)
                self._changed.notify_all()


_SWITCH: Final = _Switch()


def _set_tf32(on: bool) -> None:
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Inside, float32 is computed as `precision` says; half precision is a matter of the weights or of autocast."""
    _SWITCH.enter(precision == "tf32")
    try:
        yield
    finally:
        _SWITCH.leave()


def set_deterministic_precision(threads: int | None = None) -> None:
    """Whole float32 for this process outside of `arithmetic`, and the number of CPU threads.

    Workers call it before any work; repeated calls from any thread are harmless. `threads`: None leaves the number.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with arithmetic("float32"):
        pass


@contextmanager
def full_precision() -> Iterator[None]:
    """Whole float32 inside the block, and no autocast in this thread."""
    with arithmetic("float32"), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        yield


def check_precision(precision: Precision, device: torch.device) -> None:
    """`ConfigError` for TF32 on a device that has none."""
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(
            "precision: tf32 is arithmetic of NVIDIA GPUs, and this process computes on "
            f"{'a CPU' if device.type == 'cpu' else device.type}; use float32, or a worker with a GPU"
        )


def copy_parameters(module: Any) -> Any:
    """`module`, its parameters and buffers copied once into memory of torch, which begins at a multiple of 64 bytes.

    Loaders of diffusers and transformers leave them where they lie in the mapped file. Kernels of a CPU add in another
    order at another alignment: with torch 2.15.0, equal weights in one file or in several gave outputs of a UNet that
    differ by 8e-7.
    """
    assert isinstance(module, nn.Module)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return module


def tf32() -> str:
    """`on` if convolutions or matrix products of float32 may use TF32, else `off`: recorded with results."""
    return "on" if torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32 else "off"
