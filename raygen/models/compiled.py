"""`torch.compile` of the blocks that a network repeats: minutes less than of the whole network, and nearly as fast.

Equal blocks share their kernels, so the time of the compiler grows with the kinds of blocks and not with their number.
"""

import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch
from torch import nn

from raygen.models.config.compile import Compile

__all__ = ["compile_blocks", "compiler_problem", "first_line", "remove_broken_libraries", "run_uncompiled"]


#: Classes of diffusers whose instances a network repeats; one without any is compiled as a whole.
REPEATED: Final = frozenset({"ResnetBlock2D", "BasicTransformerBlock", "Attention", "EfficientViTBlock", "ResBlock"})
#: Forms of one class that are compiled before the others run as they are. torch has room for 8; a UNet of four levels
#: has more residual blocks of unlike widths.
FORMS: Final = 64
#: A library that is shorter than it says was left by a killed process if it is older than this many seconds.
LINKED_S: Final = 10


def compile_blocks(networks: Iterable[nn.Module], mode: Compile, device: torch.device) -> str | None:
    """Compile the repeated blocks of `networks` in place, at their first call.

    Where there is no compiler nothing is compiled, and a sentence says why. CUDA graphs are off: parts of a batch and
    ranks write gradients while a graph would own its memory.
    """
    if mode == "off":
        return None
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # it takes a second, which few jobs need

    remove_broken_libraries(Path(cache_dir()))
    if (problem := compiler_problem(device)) is not None:
        return f"compile: {mode} has no effect here, and the work goes on without: {problem}"
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
    for block in _blocks(networks):
        block.compile(dynamic=False, mode="max-autotune-no-cudagraphs" if mode == "max-autotune" else None)
    return None


def run_uncompiled(networks: Iterable[nn.Module]) -> None:
    """Undo `compile_blocks`."""
    for block in _blocks(networks):
        block._compiled_call_impl = None


def _blocks(networks: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for network in networks:
        yield from list(_repeated(network)) or [network]


def _repeated(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost repeated blocks."""
    for child in network.children():
        if type(child).__name__ in REPEATED:
            yield child
        else:
            yield from _repeated(child)


def compiler_problem(device: torch.device) -> str | None:
    """Why torch cannot compile for `device`; None where it can. The first call takes seconds."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler has another class with every backend and version
        return first_line(error)
    return None


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def remove_broken_libraries(folder: Path) -> None:
    """Remove libraries that a killed linker left in the cache of compiled kernels.

    torch 2.15 takes a library for whole where its file exists (`_inductor/codecache.py`), so every later process would
    end with `ImportError: file too short`, also one that continues the killed training.
    """
    for path in folder.glob("**/*.so"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LINKED_S and not _is_whole(path):
                path.unlink()


def _is_whole(path: Path) -> bool:
    """Whether the section table of an ELF file of 64 bits, which comes last in it, lies within the file."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:4] != b"\x7fELF":
        return False
    (offset,), (size, count) = struct.unpack_from("<Q", head, 40), struct.unpack_from("<HH", head, 58)
    return bool(offset + size * count <= path.stat().st_size)
