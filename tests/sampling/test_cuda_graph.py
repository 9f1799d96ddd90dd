"""Graphs of predictions. CUDA's capture is played by a trace of the tensor operations.

Like a CUDA graph, the trace does not run Python again, and reads and writes the tensors of its capture.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from raygen.models.base import Model
from raygen.models.conditions import Conditions
from raygen.models.config.sampler import SamplerConfig
from raygen.models.schedulers import build_sampler
from raygen.sampling.cuda_graph import GRAPHS, CudaGraphs
from raygen.sampling.guidance import GuidedDenoiser, build_guidance
from raygen.sampling.noise import KeyedNoise
from raygen.sampling.worker import SampleWorker, denoise
from tests.models.test_collaborative import conditions as expert_conditions
from tests.models.test_collaborative import together
from tests.models.test_scadm import conditions as scadm_conditions
from tests.models.test_scadm import make as scadm
from tests.sampling.test_worker import rows, tiny, worker

Results = Mapping[str, Tensor]


def trace(call: Callable[[], Results]) -> tuple[Results, Callable[[], Any]]:
    results = dict(call())
    program = make_fx(call)()

    def replay() -> None:
        for name, value in program().items():
            results[name].copy_(value)

    return results, replay


def mask_rows(model: Model, n: int, first: int = 0) -> Conditions:
    return Conditions.from_rows(rows(n, first=first), model.modalities, required=frozenset(), shapes=model.shapes)[0]


def trajectory(model: Model, predictor: Any, n: int, record: dict[str, Tensor] | None = None) -> Tensor:
    sampler = build_sampler(model.schedule, SamplerConfig(name="unipc", steps=4))
    noise = KeyedNoise(list(range(n)), model.latent_shape, torch.device("cpu"))
    return list(denoise(model, predictor, noise(0), sampler, record=record))[-1]


@torch.no_grad()
def compared(model: Model, batches: list[Conditions], weight: float = 2.0, *, record: bool = False) -> CudaGraphs:
    """Whole trajectories of each batch with graphs and without, to the bit."""
    graphs = CudaGraphs(model, trace)
    for batch in batches:
        guided = build_guidance(model, batch, weight)
        kept: dict[str, Tensor] = {}
        expected: dict[str, Tensor] = {}
        n = len(next(iter(guided.ctx.values()))) // len(guided.weights)
        found = trajectory(model, graphs.replayed(guided), n, kept if record else None)
        assert torch.equal(found, trajectory(model, guided, n, expected if record else None))
        assert kept.keys() == expected.keys()
        assert all(torch.equal(kept[name], value) for name, value in expected.items())
    return graphs


def test_replayed_trajectories_are_those_of_the_network() -> None:
    model = tiny()
    graphs = compared(model, [mask_rows(model, 3), mask_rows(model, 3, 3), mask_rows(model, 2)])
    assert graphs.problem is None
    assert len(graphs._graphs) == 2  # one for each number of rows


def test_other_conditions_guide_scadm() -> None:
    model = scadm()
    graphs = compared(model, [scadm_conditions(2), scadm_conditions(2, 3)], 1.0)
    assert graphs.problem is None


def test_influence_is_recorded_from_replays() -> None:
    graphs = compared(together("mask", "attributes"), [expert_conditions(2)], 1.0, record=True)
    assert graphs.problem is None


def test_what_the_host_keeps_is_found_before_a_graph_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    """A cache of the host is computed before the capture, so a replay would never see the next batch."""
    model = tiny()
    cache: list[Tensor] = []

    class Keeps(GuidedDenoiser):
        def __call__(self, model: Model, zt: Tensor, t: Tensor, record: Any = None) -> Tensor:
            if self.ctx["mask"] is not cache[0]:
                cache[:] = [self.ctx["mask"], self.ctx["mask"] * 2]
            return super().__call__(model, zt, t, record) + cache[1].mean()

    with torch.no_grad():
        guided = build_guidance(model, mask_rows(model, 2), 1.0)
        cache[:] = [guided.ctx["mask"], guided.ctx["mask"] * 2]
        guided = Keeps(guided.ctx, guided.weights)
        graphs = CudaGraphs(model, trace)
        zt, t = torch.randn(2, *model.latent_shape), torch.tensor([10, 20])
        assert torch.equal(graphs.predict(guided, zt, t), guided(model, zt, t))
    assert "a replay computes another output" in (graphs.problem or "")
    assert "goes on without" in capsys.readouterr().err


def test_a_capture_that_fails_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(call: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand forty lines more")

    model = tiny()
    with torch.no_grad():
        guided = build_guidance(model, mask_rows(model, 2), 1.0)
        graphs = CudaGraphs(model, refuse)
        zt, t = torch.randn(2, *model.latent_shape), torch.tensor([10, 20])
        for _ in range(2):
            assert torch.equal(graphs.predict(guided, zt, t), guided(model, zt, t))
    assert capsys.readouterr().err.count("\n") == 1
    assert (graphs.problem or "").endswith("not permitted when stream is capturing")


def test_memory_for_a_few_shapes_only() -> None:
    def run_again(call: Callable[[], Results]) -> tuple[Results, Callable[[], Any]]:
        results = dict(call())
        return results, lambda: [results[name].copy_(value) for name, value in call().items()]

    model = tiny()
    graphs = CudaGraphs(model, run_again)
    with torch.no_grad():
        for n in range(1, GRAPHS + 2):
            guided = replace(build_guidance(model, mask_rows(model, n), 1.0))
            graphs.predict(guided, torch.randn(n, *model.latent_shape), torch.zeros(n, dtype=torch.int64))
    assert graphs.problem is None
    assert [kind[0][0] for kind in graphs._graphs] == list(range(2, GRAPHS + 2)), "the oldest goes"


def test_without_a_gpu_the_pictures_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    plain, graphed = (worker(tiny(), cuda_graph=on) for on in (False, True))
    assert isinstance(graphed, SampleWorker)
    table = rows(2)
    assert plain(table)["samples"]["image_sha256"] == graphed(table)["samples"]["image_sha256"]
    assert "the device is not a GPU" in graphed.environment()["cuda_graph"]
    assert plain.environment()["cuda_graph"] == "off"
    assert capsys.readouterr().err.count("cuda_graph") == 1
