"""Predictions that are replayed as one CUDA graph: a step costs a few launches instead of hundreds.

A graph repeats kernels on the addresses of its capture, so whatever the network computes on the host stays what it was
then. Every graph is compared with the prediction without it, on other inputs, before it is used.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from raygen.models.base import Model, Record
from raygen.models.compiled import first_line
from raygen.sampling.guidance import GuidedDenoiser, Predictor

__all__ = ["Capture", "CudaGraphs", "capture"]

#: Runs a call once for its results, which each call of the second value computes again, at the same addresses.
Capture = Callable[[Callable[[], Mapping[str, Tensor]]], tuple[Mapping[str, Tensor], Callable[[], Any]]]
#: Kinds of inputs (conditions, guidance, batch) with a graph of their own. Each keeps the memory of its activations.
GRAPHS: Final = 4
#: Calls before a capture: libraries choose their kernels and workspaces in the first ones.
WARM_UP: Final = 3
OUTPUT: Final = "output"


def capture(call: Callable[[], Mapping[str, Tensor]]) -> tuple[Mapping[str, Tensor], Callable[[], Any]]:
    """Capture `call` on the current CUDA device."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return results, graph.replay


class _Graph:
    """One prediction, whose inputs and outputs have fixed addresses."""

    def __init__(self, guided: GuidedDenoiser, model: Model, zt: Tensor, t: Tensor, keep: bool, take: Capture) -> None:
        self.zt, self.t = zt.clone(), t.clone()
        self.guided = replace(guided, ctx={name: value.clone() for name, value in guided.ctx.items()})

        def call() -> Mapping[str, Tensor]:
            record: Record | None = {} if keep else None
            output = self.guided(model, self.zt, self.t, record)
            return {OUTPUT: output, **(record or {})}

        self.results, self.replay = take(call)
        self.given = guided

    def __call__(self, guided: GuidedDenoiser, zt: Tensor, t: Tensor, record: Record | None) -> Tensor:
        if guided is not self.given:  # conditions are copied once a batch
            for name, value in guided.ctx.items():
                self.guided.ctx[name].copy_(value)
            self.given = guided
        self.zt.copy_(zt)
        self.t.copy_(t)
        self.replay()
        # The next replay writes to the same addresses, and multistep samplers keep earlier outputs.
        results = {name: value.clone() for name, value in self.results.items()}
        output = results.pop(OUTPUT)
        if record is not None:
            record.update(results)
        return output


class CudaGraphs:
    """The graphs of one model. `take`: what captures, `capture` by default."""

    def __init__(self, model: Model, take: Capture | None = None) -> None:
        self.model, self.take = model, take or capture
        #: Why predictions run without a graph; None while they have one.
        self.problem: str | None = None
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        if take is None and model.device.type != "cuda":
            self._give_up("the device is not a GPU")

    def _give_up(self, why: str) -> None:
        self._graphs.clear()
        self.problem = f"cuda_graph: true has no effect here, and the work goes on without: {why}"
        sys.stderr.write(f"{self.problem}\n")

    def replayed(self, guided: GuidedDenoiser) -> Predictor:
        """`guided` for the model of these graphs, replayed."""
        return lambda model, zt, t, record=None: self.predict(guided, zt, t, record)

    def predict(self, guided: GuidedDenoiser, zt: Tensor, t: Tensor, record: Record | None = None) -> Tensor:
        """What `guided` predicts. The first call with inputs of a kind captures its graph, and waits for the device."""
        shapes = tuple((name, value.shape, value.dtype) for name, value in sorted(guided.ctx.items()))
        kind = (zt.shape, zt.dtype, guided.weights, guided.whole, record is not None, shapes)
        if self.problem is None and kind not in self._graphs:
            self._add(kind, guided, zt, t, record is not None)
        if self.problem is not None:
            return guided(self.model, zt, t, record)
        return self._graphs[kind](guided, zt, t, record)

    def _add(self, kind: tuple[Any, ...], guided: GuidedDenoiser, zt: Tensor, t: Tensor, keep: bool) -> None:
        try:
            if len(self._graphs) == GRAPHS:
                del self._graphs[next(iter(self._graphs))]  # the oldest
            graph = _Graph(guided, self.model, zt, t, keep, self.take)
            if name := self._differs(graph, guided, zt, t, keep):
                raise RuntimeError(f"a replay computes another {name}")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # CUDA's errors, and those of what cannot be captured, have no class in common
            self._give_up(first_line(error))
        else:
            self._graphs[kind] = graph

    def _differs(self, graph: _Graph, guided: GuidedDenoiser, zt: Tensor, t: Tensor, keep: bool) -> str | None:
        """The name of a result that differs, to the bit, on inputs that are not those of the capture."""
        other = replace(guided, ctx={name: _changed(value) for name, value in guided.ctx.items()})
        zt, t = _changed(zt), (t + 1) % self.model.schedule.timesteps
        right: Record | None = {} if keep else None
        found: Record | None = {} if keep else None
        outputs = {OUTPUT: other(self.model, zt, t, right), **(right or {})}
        replayed = {OUTPUT: graph(other, zt, t, found), **(found or {})}
        if outputs.keys() != replayed.keys():
            return "record"
        return next((n for n, value in outputs.items() if not _equal(value, replayed[n])), None)


def _changed(value: Tensor) -> Tensor:
    """Other values of the same kind."""
    turned = value.flip(0)
    return turned * 0.5 + 0.25 if value.is_floating_point() else turned


def _equal(a: Tensor, b: Tensor) -> bool:
    """To the bit; values that are not numbers are equal."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
