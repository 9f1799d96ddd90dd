"""A checkpoint comes back as it was, opens in diffusers alone, and a damaged one says so."""

import json
import stat
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel

from raygen.core.errors import ConfigError, InputError
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.noise import NoiseSchedule
from raygen.models.ldm import LDM
from tests.fakes import rewrite

WEIGHTS = "diffusion_pytorch_model.safetensors"


def make(**fields: object) -> LDM:
    torch.manual_seed(0)
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8)))
    stage.calibrate(torch.randn(16, 8, 4, 4))
    small = {"channels": (32, 32), "attention": (False, True), "token_width": 16, "mask_channels": 4}
    config = LDMConfig(**{"modalities": ("mask", "attributes"), **small, **fields})  # type: ignore[arg-type]
    model = checkpoint.build(config, stage, seed=1)
    assert isinstance(model, LDM)
    return model


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    model = make(noise=NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    digest = checkpoint.save(model, tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model")
    assert isinstance(loaded, LDM)
    assert loaded.config == model.config
    assert loaded.first_stage.config == model.first_stage.config
    assert torch.equal(loaded.first_stage.scale, model.first_stage.scale)
    mine, its = model.state_dict(), loaded.state_dict()
    assert list(mine) == list(its)
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert checkpoint.save(loaded, tmp_path / "again") == digest == checkpoint_folder.digest(tmp_path / "again")


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    model = make()
    checkpoint.save(model, tmp_path / "full")
    checkpoint.save(model, tmp_path / "half", weights="float16")
    assert (tmp_path / "half/unet" / WEIGHTS).stat().st_size < 0.55 * (tmp_path / "full/unet" / WEIGHTS).stat().st_size
    loaded = checkpoint.load(tmp_path / "half")
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, model.state_dict()[name].half().float(), atol=0, rtol=0)


def test_diffusers_opens_the_parts(tmp_path: Path) -> None:
    model = make(noise=NoiseSchedule(prediction_type="v_prediction"))
    checkpoint.save(model, tmp_path / "m")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "m", subfolder="unet")
    vae = AutoencoderKL.from_pretrained(tmp_path / "m", subfolder="vae")
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "m", subfolder="scheduler")
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), model.unet.parameters(), strict=True))
    net = model.first_stage.net
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), net.parameters(), strict=True))
    assert vae.config.latents_std == net.config.latents_std
    assert scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("stage", ["vq", "dc", "pixel"])
def test_other_first_stages_round_trip(tmp_path: Path, stage: str) -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(stage=stage, image_size=16, patch=2, channels=(8, 8), codes=16)  # type: ignore[arg-type]
    first = FirstStage(config)
    first.calibrate(first.encode(torch.rand(8, 3, 16, 16)).detach() + 0.5)
    model = checkpoint.build(LDMConfig(channels=(32,), attention=(False,)), first, seed=0)
    checkpoint.save(model, tmp_path / "m")
    loaded = checkpoint.load(tmp_path / "m")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert torch.equal(loaded.first_stage.mean, first.mean)
    assert torch.equal(loaded.first_stage.scale, first.scale)
    UNet2DModel.from_pretrained(tmp_path / "m", subfolder="unet")


def test_a_first_stage_alone(tmp_path: Path) -> None:
    stage = make().first_stage
    checkpoint.save(stage, tmp_path / "ae")
    loaded = checkpoint.load_first_stage(tmp_path / "ae")
    assert all(torch.equal(a, b) for a, b in zip(stage.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(ConfigError, match="first stage"):
        checkpoint.load(tmp_path / "ae")


@pytest.mark.parametrize("part", ["unet", "vae", "mask_encoder", "attribute_encoder"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "other"])
def test_damage_is_named(tmp_path: Path, part: str, damage: str) -> None:
    checkpoint.save(make(), tmp_path / "m")
    file = next((tmp_path / "m" / part).glob("*.safetensors"))
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        file.unlink()
    else:
        other = "vae" if part == "unet" else "unet"
        file.write_bytes((tmp_path / "m" / other / WEIGHTS).read_bytes())
    with pytest.raises(InputError, match=part):
        checkpoint.load(tmp_path / "m")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = make()
    next(model.unet.parameters()).data[0] = float("nan")
    checkpoint.save(model, tmp_path / "m")
    with pytest.raises(InputError, match="not finite"):
        checkpoint.load(tmp_path / "m")


def test_configs_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint"):
        checkpoint.load(tmp_path / "nothing")
    checkpoint.save(make(), tmp_path / "m")
    config = tmp_path / "m/unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "os.system"}))
    with pytest.raises(InputError, match=r"unet/config\.json: sha256 differs"):
        checkpoint.load(tmp_path / "m")
    rewrite(tmp_path / "m/raygen.json", files={})
    with pytest.raises(InputError, match=r"os\.system"):
        checkpoint.load(tmp_path / "m")
    (tmp_path / "m/raygen.json").write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="99"):
        checkpoint.load(tmp_path / "m")


def test_save_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    before = checkpoint.save(model, tmp_path / "m")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", fail)
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save(model, tmp_path / "m")
    assert checkpoint_folder.digest(tmp_path / "m") == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="left alone"):
        checkpoint.save(model, tmp_path / "other")


def test_digest_is_of_the_model_and_files_can_be_read_by_others(tmp_path: Path) -> None:
    digest = checkpoint.save(make(), tmp_path / "m")
    (tmp_path / "m/README.md").write_text("notes")
    assert checkpoint_folder.digest(tmp_path / "m") == digest
    mode = (tmp_path / "m/unet" / WEIGHTS).stat().st_mode
    assert mode & stat.S_IRGRP == (tmp_path / "m/raygen.json").stat().st_mode & stat.S_IRGRP
    model = make()
    next(model.unet.parameters()).data[0] += 1
    assert checkpoint.save(model, tmp_path / "m") != digest
