"""Process-wide settings of torch that numbers depend on: CPU threads, and full precision of float32.

The settings are never set back. Pictures are scored in threads while others are generated, so restoring them at the end
of a block would change, depending on timing, the numbers of other threads. For speed use bfloat16, which is set for a
network (`dtype`) or a thread (`torch.autocast`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["full_precision", "set_deterministic_precision", "tf32"]


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


def tf32() -> str:
    """`on` if convolutions or matrix products of float32 may use TF32, else `off`: recorded with results."""
    return "on" if torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32 else "off"
