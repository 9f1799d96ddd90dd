"""What numbers depend on in a whole process: threads, and that float32 is whole float32.

Knows torch's settings of precision, which all threads of a process share. Knows no network and no pictures.

They are only ever set, to the same values, and never set back: pictures are scored in threads while the next ones are
made, so a block that gave back what it found would change, by timing alone, what happens beside it. Those who want
speed ask for bfloat16, which belongs to a network (`dtype`) or a thread (`torch.autocast`), not to a process.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["full_precision", "set_deterministic_precision", "tf32"]


def set_deterministic_precision(threads: int | None = None) -> None:
    """From here on this process has no TF32 and no bfloat16 passes in float32 arithmetic, and so many CPU threads.

    Whoever computes does this before any work; again is harmless, from any thread. `threads`: None leaves them.
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
    """`on` where convolutions or products of float32 may be TF32, else `off`: said beside what was made."""
    return "on" if torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32 else "off"
