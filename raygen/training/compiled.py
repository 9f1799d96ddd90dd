"""`torch.compile` of the blocks that a network repeats: minutes less than of the whole network, and nearly as fast.

Equal blocks share their kernels, so the time of the compiler grows with the kinds of blocks and not with their number.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import torch
from torch import nn

from raygen.training.config.loop import Compile

__all__ = ["compile_blocks", "compiler_problem"]


#: Classes of diffusers whose instances a network repeats; one without any is compiled as a whole.
REPEATED: Final = frozenset({"ResnetBlock2D", "BasicTransformerBlock", "Attention", "EfficientViTBlock", "ResBlock"})
#: Forms of one class that are compiled before the others run as they are. torch has room for 8; a UNet of four levels
#: has more residual blocks of unlike widths.
FORMS: Final = 64


def compile_blocks(networks: Iterable[nn.Module], mode: Compile, device: torch.device) -> str | None:
    """Compile the repeated blocks of `networks` in place, at their first call.

    Where there is no compiler nothing is compiled, and a sentence says why. CUDA graphs are off: parts of a batch and
    ranks write gradients while a graph would own its memory.
    """
    if mode == "off":
        return None
    if (problem := compiler_problem(device)) is not None:
        return f"compile: {mode} has no effect here, and training goes on without: {problem}"
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
    for network in networks:
        for block in list(_repeated(network)) or [network]:
            block.compile(dynamic=False, mode="max-autotune-no-cudagraphs" if mode == "max-autotune" else None)
    return None


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
        return str(error).strip().splitlines()[0]
    return None
