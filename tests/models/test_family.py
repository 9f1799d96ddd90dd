"""A family that the package does not know is a `FAMILY`, its `NETWORKS` and one entry of `FAMILIES`."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from raygen.core.errors import ConfigError
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.autoencoder import FirstStage
from raygen.models.conditions import Conditions
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.mixing import PaperMixing
from raygen.models.config.sampler import SamplerConfig
from raygen.models.schedulers import build_sampler
from raygen.sampling.guidance import build_guidance
from raygen.sampling.worker import denoise
from raygen.training.config.losses import SimpleLoss
from raygen.training.losses import DiffusionObjective

MODULE = '''
from typing import Literal

from torch import nn

from raygen.core.config import Config
from raygen.models.base import Model
from raygen.models.checkpoint_files import OWN_WEIGHTS, fill, write_weights
from raygen.models.family import Family
from raygen.models.networks import Networks
from raygen.models.config.noise import NoiseSchedule


class ToyConfig(Config):
    kind: Literal["toy"] = "toy"
    noise: NoiseSchedule = NoiseSchedule()
    width: int = 8


def network(config, channels):
    first, last = nn.Conv2d(channels, config.width, 3, padding=1), nn.Conv2d(config.width, channels, 1)
    return nn.Sequential(first, nn.SiLU(), last)


class Toy(Model):
    """A denoiser that knows neither time nor conditions."""

    def __init__(self, config, first_stage):
        super().__init__()
        self.config, self.schedule = config, config.noise
        self.modalities = self.required_conditions = frozenset()
        self.first_stage = first_stage.requires_grad_(False)
        self.net = network(config, self.latent_shape[0])

    def embed(self, conditions):
        return {}

    def prepare(self, tokens):
        return tokens

    def predict(self, zt, t, ctx, record=None):
        return self.net(zt)


def save(model, folder, writing, index):
    write_weights(model.net, folder / "unet" / OWN_WEIGHTS, writing)
    return {"model": model.config.model_dump(mode="json")}


def load(opened, config, first_stage, parts):
    model = Toy(config, first_stage)
    fill(model.net, opened.root / "unet" / OWN_WEIGHTS)
    return model


FAMILY = Family(kind="toy", config=ToyConfig, networks=__name__, needs=lambda config, parts: frozenset())
NETWORKS = Networks(
    build=lambda config, inputs: Toy(config, inputs.first_stage),
    save=save,
    load=load,
    count=lambda config, inputs: {"net": network(config, inputs.latent_shape[0])},
)
'''


def test_a_new_family_is_built_counted_trained_sampled_saved_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_family.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "toy_family", ModuleType("toy_family"))  # so that it is gone after the test
    del sys.modules["toy_family"]
    toy = importlib.import_module("toy_family")
    monkeypatch.setitem(checkpoint_folder.FAMILIES, toy.FAMILY.kind, toy.FAMILY)
    config = toy.ToyConfig(width=6)
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8)))

    model = checkpoint.build(config, stage, seed=1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.parameters(), checkpoint.build(config, stage, seed=1).parameters(), strict=True)
    )
    assert checkpoint.count(config, model.latent_shape) == {"net": sum(p.numel() for p in model.trainable())}
    assert checkpoint_folder.modalities_of(config) == frozenset()

    batch = {
        "moments": torch.randn(2, 2 * model.latent_shape[0], *model.latent_shape[1:]),
        **{name: torch.randn(2, *model.latent_shape) for name in ("posterior", "noise")},
        "t": torch.tensor([3, 700]),
        "dropout": torch.ones(2),
    }
    DiffusionObjective(model, SimpleLoss())(batch)["loss"].backward()
    assert all(p.grad is not None for p in model.trainable())

    digest = checkpoint.save(model, tmp_path / "saved")
    assert checkpoint_folder.digest(tmp_path / "saved") == digest
    assert checkpoint_folder.modalities(tmp_path / "saved") == frozenset()
    assert checkpoint.load_tokenizer(tmp_path / "saved") is None
    with pytest.raises(ConfigError, match="one denoiser"):
        checkpoint_folder.check_mixing(tmp_path / "saved", PaperMixing())
    loaded = checkpoint.load(tmp_path / "saved")
    assert type(loaded) is toy.Toy
    assert loaded.config == config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))

    z = torch.randn(2, *model.latent_shape)
    sampler = build_sampler(loaded.schedule, SamplerConfig(steps=2))
    guided = build_guidance(loaded, Conditions.null(2, loaded.modalities, loaded.shapes, loaded.device), 1.0)
    *_, z0 = denoise(loaded, guided, z, sampler)
    assert torch.isfinite(z0).all()


def test_the_mapping_names_every_family_once() -> None:
    assert set(checkpoint_folder.FAMILIES) == {"ldm", "control", "collaborative", "scadm", "stable_diffusion"}
    for kind, family in checkpoint_folder.FAMILIES.items():
        assert family.kind == kind
