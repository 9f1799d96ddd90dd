"""What numbers depend on besides the settings of a job: CPU threads, full precision of float32, and aligned memory.

The settings are never set back. Pictures are scored in threads while others are generated, so restoring them at the end
of a block would change, depending on timing, the numbers of other threads. For speed use bfloat16, which is set for a
network (`dtype`) or a thread (`torch.autocast`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["copy_parameters", "full_precision", "set_deterministic_precision", "tf32"]


def set_deterministic_precision(threads: int | None = None) -> None:
    """Disable TF32 and bfloat16 passes in float32 arithmetic for this process, and set the number of CPU threads.

    Workers call it before any work; repeated calls from any thread are harmless. `threads`: None leaves the number.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def full_precision() -> Iterator[None]:
    """Full float32 inside the block: `set_deterministic_precision`, which stays, and no autocast in this thread."""
    set_deterministic_precision()
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        yield


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
