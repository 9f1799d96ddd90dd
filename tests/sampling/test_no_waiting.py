"""The loop does not wait for the device: nothing is read back from it, and no data are sent to it, between steps.

The device is `meta`, which has no data: whatever reads a value fails by itself. Copies to it are told by a dispatch
mode that looks at every operation.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raygen.models.base import Model
from raygen.models.conditions import Conditions
from raygen.models.config.mixing import AnyMixing, ConstantMixing, DifferenceMixing, PaperMixing
from raygen.models.config.sampler import SamplerConfig
from raygen.models.schedulers import build_sampler
from raygen.sampling.guidance import Guidance, build_guidance
from raygen.sampling.noise import KeyedNoise
from raygen.sampling.worker import denoise
from tests.models.test_collaborative import together
from tests.models.test_scadm import conditions as scadm_conditions
from tests.models.test_scadm import make as scadm
from tests.sampling.test_worker import tiny

META = torch.device("meta")
#: Operations whose result needs a value of the device on the host.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")


class Waits(RuntimeError):
    """An operation waits for the device, or copies to it."""


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS or name.startswith("lift_fresh"):  # torch.tensor of data of the host is lifted
            raise Waits(name)
        flat = [*args, *(kwargs or {}).values()]
        flat += [part for value in flat if isinstance(value, list | tuple) for part in value]
        devices = {value.device for value in flat if isinstance(value, Tensor) and value.ndim}
        device = (kwargs or {}).get("device")
        if name in ("_to_copy", "copy_") and len(devices | ({torch.device(device)} if device else set())) > 1:
            raise Waits(f"{name} between devices")
        if name == "index" and any(isinstance(v, Tensor) and v.dtype == torch.bool for v in args[1]):
            raise Waits("index by a mask")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Also with CUDA's own check, where there is one."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoWaiting():
            yield
    finally:
        if cuda:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1.0, 2.0], device=x.device) * x[:2],
        lambda x: x + torch.ones(4).to(x.device),
        lambda x: x.cpu(),
    ],
)
def test_the_check_finds_what_waits(waiting: Any) -> None:
    x = torch.ones(4, device=META)
    with pytest.raises((Waits, NotImplementedError, RuntimeError)), no_waiting():
        waiting(x)


def run(model: Model, conditions: Conditions, name: str = "unipc", guidance: Guidance = 1.0) -> None:
    """All steps of a sampler on a device without data, with everything that a step may do."""
    config = SamplerConfig(name=name, steps=4, eta=0.5 if name == "ddim" else 0.0)  # type: ignore[arg-type]
    sampler = build_sampler(model.schedule, config)
    record: dict[str, Tensor] = {}
    zt = torch.empty(2, *model.latent_shape, device=META)
    noise = KeyedNoise([1, None], model.latent_shape, META)
    with torch.inference_mode():
        both = [build_guidance(model, conditions, weights) for weights in (guidance, 1.0)]
        guided, plain = (replace(g, ctx={key: value.to(META) for key, value in g.ctx.items()}) for g in both)
        model = model.to(META).eval()
        model.schedule.x0_from(zt, zt, torch.zeros(2, dtype=torch.int64, device=META))  # its tables, made once
        options: dict[str, Any] = {"unguided": plain, "interval": (0.3, 1.0), "record": record}
        steps = denoise(
            model, guided, zt, sampler, step_noise=(lambda i: noise(1 + i)) if sampler.noisy else None, **options
        )
        made = 0
        with no_waiting():
            for latent in steps:
                assert latent.shape == zt.shape
                assert "x0" in record
                made += 1
    assert made == 4


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_no_sampler_waits(name: str) -> None:
    model = tiny()
    run(model, model.null(2), name, guidance={"mask": 2.0, "attributes": 1.5})


@pytest.mark.parametrize(
    "mixing", [PaperMixing(), DifferenceMixing(), ConstantMixing(weights={"mask": 0.3, "attributes": 0.7})]
)
def test_no_collaboration_waits(mixing: AnyMixing) -> None:
    model = together("mask", "attributes", nulls=("mask", "attributes"))
    model.mix(mixing)
    run(model, model.null(2))


def test_no_style_waits() -> None:
    run(scadm(), scadm_conditions())
