"""Every family in bfloat16: weights as generation has them, and autocast as training does; close to float32."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.conditions import Conditions
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.training.config.losses import AttentionLoss, SimpleLoss
from raygen.training.losses import DiffusionObjective
from tests.models import test_collaborative as collaborative
from tests.models import test_controlnet as controlnet
from tests.models import test_scadm as scadm

Made = tuple[Model, Conditions]


def _scadm(tmp_path: Path, **fields: object) -> Made:
    return scadm.make(**fields), scadm.conditions()


def _sdm(tmp_path: Path) -> Made:
    return _scadm(tmp_path, style=None)


def _gated(tmp_path: Path) -> Made:
    return _scadm(tmp_path, gating="paper")


def _expert(name: str, tmp_path: Path) -> Made:
    return collaborative.expert(name).eval(), collaborative.conditions(2)


def _text(tmp_path: Path) -> Made:
    return _expert("text", tmp_path)


def _mask(tmp_path: Path) -> Made:
    return _expert("mask", tmp_path)


def _together(tmp_path: Path) -> Made:
    return collaborative.together("mask", "text").eval(), collaborative.conditions(2)


def _branch(tmp_path: Path) -> Made:
    checkpoint.save(controlnet.base_of(**next(iter(controlnet.BASES.values()))), tmp_path / "base")
    model = controlnet.awake(controlnet.build(tmp_path / "base")).eval()
    return model, controlnet.conditions(model)


FAMILIES: list[Callable[[Path], Made]] = [_scadm, _sdm, _gated, _text, _mask, _together, _branch]


def output(model: Model, given: Conditions) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    zt = torch.randn(given.n, *model.latent_shape, generator=generator)
    t = torch.tensor([10, 900][: given.n])
    return model.predict(zt, t, model.prepare(model.embed(given)))


@pytest.mark.parametrize("make", FAMILIES)
def test_weights_in_bfloat16_predict_nearly_the_same(make: Callable[[Path], Made], tmp_path: Path) -> None:
    model, given = make(tmp_path)
    with torch.inference_mode():
        exact = output(model, given)
        rough = output(model.to(torch.bfloat16), given)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("make", FAMILIES)
def test_training_in_bfloat16_has_nearly_the_same_loss(make: Callable[[Path], Made], tmp_path: Path) -> None:
    model, given = make(tmp_path)
    for parameter in model.trainable():
        parameter.requires_grad_(True)
    watched = isinstance(model, scadm.SCADM) and model.config.style is not None
    attention = AttentionLoss() if watched else None
    objective = DiffusionObjective(model.train(), SimpleLoss(), attention=attention)
    generator = torch.Generator().manual_seed(4)
    shape = (given.n, *model.latent_shape)
    moments = 2 * shape[1] if model.first_stage.config.stage == "kl" else shape[1]
    size = model.first_stage.config.image_size
    batch = {
        "moments": torch.randn(given.n, moments, *shape[2:], generator=generator),
        "posterior": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "t": torch.tensor([10, 900]),
        "dropout": torch.ones(given.n),
        "images": torch.randint(0, 256, (given.n, size, size, 3), dtype=torch.uint8, generator=generator),
        **{
            name: value
            for name in ("mask", "text", "hint", "attributes")
            if (value := getattr(given, name)) is not None
        },
        **{f"present_{name}": value for name, value in given.present.items()},
    }
    exact = objective(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(batch)["loss"]
    rough.backward()
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("stage", ["kl", "vq", "dc", "pixel"])
def test_first_stages_in_bfloat16_are_close(stage: str) -> None:
    torch.manual_seed(0)
    net = FirstStage(AutoencoderConfig(stage=stage, image_size=32, channels=(16, 16), codes=32)).eval()  # type: ignore[arg-type]
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        moments = net.encode(pixels)
        z = net.mode(moments)
        exact = net.decode(z)
        net.to(torch.bfloat16)
        assert (net.encode(pixels) - moments).norm() < 0.05 * moments.norm()
        assert (net.decode(z) - exact).norm() < 0.05 * exact.norm()
