"""Several UNets on the same input, in few launches: those of equal shapes as one, the others on streams of their own.

UNets of equal shapes run as one over stacked weights (`torch.func.vmap`): convolutions become grouped ones, matrix
products batched ones. On a CPU that is not faster, so it is done on accelerators alone, and only without gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.models.attention import KEYS_VALUES, PADDING
from raygen.models.base import Context
from raygen.models.ldm import run_unet

__all__ = ["SideBySide"]


#: Names in a context whose second dimension is that of tokens, which may be unequally many.
TOKENS: Final = ("tokens", KEYS_VALUES)
#: Added to the score of a token that is only there to fill up: as small as half precision has.
NONE: Final = -6e4


class SideBySide:
    """Runs UNets by name. It keeps their stacked weights, of which the weights of each one become views."""

    def __init__(self) -> None:
        #: Whether equal UNets run as one: None on accelerators alone.
        self.grouped: bool | None = None
        self._stacks: dict[tuple[str, ...], _Stack] = {}
        self._forms: dict[str, tuple[Any, ...]] = {}

    def __call__(
        self, unets: Mapping[str, Any], contexts: Mapping[str, Context], zt: Tensor, t: Tensor
    ) -> dict[str, Tensor]:
        """The output of each UNet for zt [B, C, h, w] at t [B], float32."""
        groups = [[name] for name in unets]
        if (zt.is_cuda if self.grouped is None else self.grouped) and not torch.is_grad_enabled():
            groups = self._groups(unets, contexts)
        calls: list[Callable[[], Sequence[Tensor]]] = []
        for names in groups:
            own = [contexts[name] for name in names]
            if len(names) == 1:
                calls.append(lambda unet=unets[names[0]], ctx=own[0]: [run_unet(unet, zt, t, ctx)])  # type: ignore[misc]
            else:
                stack = self._stacks.setdefault(tuple(names), _Stack())
                stack.hold([unets[name] for name in names])
                calls.append(lambda stack=stack, own=own: stack(own, zt, t))  # type: ignore[misc]
        outputs = _on_streams(calls) if zt.is_cuda else [call() for call in calls]
        by_name = {n: o for names, made in zip(groups, outputs, strict=True) for n, o in zip(names, made, strict=True)}
        return {name: by_name[name] for name in unets}

    def _groups(self, unets: Mapping[str, Any], contexts: Mapping[str, Context]) -> list[list[str]]:
        """Names of UNets that can run as one: equal in all shapes but the number of tokens, and not compiled."""
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, unet in unets.items():
            if name not in self._forms:
                compiled = any(m._compiled_call_impl is not None for m in unet.modules())
                weights = tuple((n, p.shape) for n, p in unet.named_parameters())
                self._forms[name] = (type(unet), weights, unet.dtype, name if compiled else None)
            shapes = (
                (key, value.shape[2:] if key.startswith(TOKENS) else value.shape)
                for key, value in contexts[name].items()
            )
            groups.setdefault((*self._forms[name], *sorted(shapes)), []).append(name)
        return list(groups.values())


class _Stack:
    """UNets of equal shapes that run as one."""

    def __init__(self) -> None:
        self.unets: list[Any] = []
        self.weights: dict[str, Tensor] = {}
        self._given: list[Tensor] = []
        self._context: dict[str, Tensor] = {}

    def hold(self, unets: list[Any]) -> None:
        """Stack their weights; where a network was moved since, again."""
        first = next(iter(self.weights.values()), None)
        held = first is not None and all(
            next(unet.parameters()).data_ptr() == part.data_ptr() for unet, part in zip(unets, first, strict=True)
        )
        if held and all(a is b for a, b in zip(unets, self.unets, strict=True)):
            return
        self.unets, self.weights = unets, {}
        with torch.inference_mode(False):  # the weights may train later
            for name, _ in unets[0].named_parameters():
                parameters = [unet.get_parameter(name) for unet in unets]
                stacked = torch.stack([p.detach() for p in parameters])
                for parameter, part in zip(parameters, stacked, strict=True):
                    parameter.data = part  # a view: nothing is kept twice, and what changes a weight changes the stack
                self.weights[name] = stacked

    def __call__(self, contexts: Sequence[Context], zt: Tensor, t: Tensor) -> Sequence[Tensor]:
        """The output of each UNet."""
        module = _Module(self.unets[0])

        def one(weights: dict[str, Tensor], ctx: dict[str, Tensor]) -> Tensor:
            named = {f"unet.{name}": value for name, value in weights.items()}
            output: Tensor = torch.func.functional_call(module, named, (zt, t, ctx))
            return output

        outputs: Tensor = torch.func.vmap(one)(self.weights, self._stacked(contexts))
        return outputs.unbind()

    def _stacked(self, contexts: Sequence[Context]) -> dict[str, Tensor]:
        """The contexts [G, B, ...], kept from step to step while they are the same tensors.

        In a CUDA graph they are stacked each time: there the same tensors hold the conditions of batch after batch.
        """
        given = [value for context in contexts for value in context.values()]
        known = len(given) == len(self._given) and all(a is b for a, b in zip(given, self._given, strict=True))
        if known and not (given[0].is_cuda and torch.cuda.is_current_stream_capturing()):
            return self._context
        counts = [context["tokens"].shape[1] for context in contexts if "tokens" in context]
        most = max(counts, default=0)
        stacked = {}
        for name in contexts[0]:
            values = [context[name] for context in contexts]
            if name.startswith(TOKENS):
                values = [F.pad(value, (0, 0, 0, most - value.shape[1])) for value in values]
            stacked[name] = torch.stack(values)
        if len(set(counts)) > 1:
            tokens = stacked["tokens"]
            place = torch.arange(most, device=tokens.device)
            absent = torch.stack([place >= count for count in counts]).unsqueeze(1)  # [G, 1, K], without a copy
            stacked[PADDING] = (absent * NONE).to(tokens.dtype).expand(tokens.shape[:3])
        self._given, self._context = given, stacked
        return stacked


class _Module(nn.Module):
    """`run_unet` as a module, so that its weights can be given."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, zt: Tensor, t: Tensor, ctx: Context) -> Tensor:
        return run_unet(self.unet, zt, t, ctx)


@cache
def _stream(device: int, place: int) -> Any:
    """The same in every step: memory that was freed on a stream is used again on that stream alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _on_streams(calls: Sequence[Callable[[], Sequence[Tensor]]]) -> list[Sequence[Tensor]]:
    """The results of `calls`, each on a stream of its own; the current one goes on after all of them."""
    current = torch.cuda.current_stream()
    streams = [current, *(_stream(current.device_index, place) for place in range(1, len(calls)))]
    results: list[Sequence[Tensor]] = []
    for stream in streams[1:]:
        stream.wait_stream(current)  # before anything is queued on it that only the first call needs
    for stream, call in zip(streams, calls, strict=True):
        with torch.cuda.stream(stream):
            results.append(call())
    for stream, made in zip(streams[1:], results[1:], strict=True):
        current.wait_stream(stream)
        for tensor in made:
            tensor.record_stream(current)
    return results
