"""Our folders in diffusers: its own classes where it has them, and our pipeline for the rest."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    LDMPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from PIL import Image

import raygen.sampling.pipeline
from raygen.core.assets import BUNDLED
from raygen.core.errors import ConfigError
from raygen.core.face_labels import PALETTE
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.sampler import SamplerConfig
from raygen.models.ldm import LDM
from raygen.sampling.config import SampleConfig
from raygen.sampling.pipeline import FacePipeline
from raygen.sampling.worker import SampleWorker
from raygen.store.images import encode_mask, picture_column
from raygen.store.schemas import ATTRIBUTE_VALUES, CONDITIONS, cast


def _stage(kind: str) -> FirstStage:
    config = AutoencoderConfig(stage=kind, image_size=16, patch=1, channels=(16, 16), latent_channels=3, codes=16)  # type: ignore[arg-type]
    return FirstStage(config)


def _noisy(module: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module


def _unconditional(folder: Path, kind: str) -> LDM:
    torch.manual_seed(0)
    config = LDMConfig(channels=(16, 32), attention=(False, True), head_dim=16)
    model = _noisy(LDM(config, _stage(kind)))
    checkpoint.save(model, folder, sampler=SamplerConfig(name="ddim", steps=5, spacing="leading"))
    return checkpoint.load(folder)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_an_unconditional_model_opens_as_a_pipeline_of_diffusers(kind: str, tmp_path: Path) -> None:
    model = _unconditional(tmp_path / "m", kind)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "m")
    assert isinstance(pipe, LDMPipeline)
    assert isinstance(pipe.vqvae, AutoencoderKL if kind == "kl" else VQModel)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(2, generator=torch.manual_seed(3), num_inference_steps=5, output_type="np").images
    z = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(3))
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "m" / "scheduler")
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            z = scheduler.step(model.predict(z, t.repeat(2), {}), t, z, return_dict=False)[0]
        ours = model.first_stage.decode(z)
    assert np.abs(theirs - (ours / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()).max() < 1e-5


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_parts_open_by_their_own_classes(kind: str, tmp_path: Path) -> None:
    model = _unconditional(tmp_path / "m", kind)
    unet = UNet2DModel.from_pretrained(tmp_path / "m", subfolder="unet")
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in model.unet.state_dict().items())
    net = (AutoencoderKL if kind == "kl" else VQModel).from_pretrained(tmp_path / "m", subfolder="vqvae")
    assert all(torch.equal(v, net.state_dict()[n]) for n, v in model.first_stage.net.state_dict().items())


def test_the_unet_of_a_conditional_model_opens_by_its_own_class(tmp_path: Path) -> None:
    config = LDMConfig(
        channels=(16, 32), attention=(False, True), head_dim=16, modalities=("mask",), mask_path="tokens", mask_side=8
    )
    model = LDM(config, _stage("kl"))
    checkpoint.save(model, tmp_path / "m")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "m", subfolder="unet")
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in model.unet.state_dict().items())
    assert isinstance(AutoencoderKL.from_pretrained(tmp_path / "m", subfolder="vae"), AutoencoderKL)


def _mask() -> np.ndarray:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[16:56, 16:48] = 1
    return mask


def test_the_pipeline_makes_the_pictures_of_generate() -> None:
    pipe = FacePipeline.from_pretrained(BUNDLED["model"])
    masks = [_mask(), _mask()]
    made = pipe(masks=masks, attributes=[{"Smiling": 1}, {}], sampler="unipc", num_inference_steps=2, seed=5)
    rows = cast(
        pa.table(
            {
                "sample_id": ["000000", "000001"],
                "plan": ["p", "p"],
                "seed": [0, 0],
                "mask": picture_column([encode_mask(mask) for mask in masks]),
                "attributes": pa.array([tuple(int(i == 31) for i in range(40)), (0,) * 40], ATTRIBUTE_VALUES),
            }
        ),
        CONDITIONS,
    )
    config = SampleConfig(
        checkpoint="bundled", sampler=SamplerConfig(name="unipc", steps=2), seed=5, batch=2, codec="png", device="cpu"
    )
    expected = SampleWorker(config)(rows)["samples"].to_pylist()
    for image, row in zip(made.images, expected, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))))
    assert pipe.unet is pipe.model.unet


def test_diffusers_loads_our_pipeline_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    pipe = DiffusionPipeline.from_pretrained(
        BUNDLED["model"], custom_pipeline=raygen.sampling.pipeline.__file__, trust_remote_code=True
    )
    assert type(pipe).__name__ == "FacePipeline"
    images = pipe(masks=[_mask()], num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 64, 64, 3)


def test_conditions_that_do_not_fit_are_named() -> None:
    pipe = FacePipeline.from_pretrained(BUNDLED["model"])
    with pytest.raises(ConfigError, match=r"different numbers: \[1, 2\]"):
        pipe(2, masks=[_mask()])
    with pytest.raises(ConfigError, match=r"does not take \['text'\]; it takes \['attributes', 'mask'\]"):
        pipe(texts=["a face"])
    with pytest.raises(ConfigError, match="no attribute 'Smilling'"):
        pipe(attributes=[{"Smilling": 1}])


def test_a_mask_with_a_palette_is_understood_as_a_file_is() -> None:
    pipe = FacePipeline.from_pretrained(BUNDLED["model"])
    used = np.unique(_mask())[::-1]
    renumbered = Image.fromarray(np.searchsorted(-used.astype(int), -_mask().astype(int)).astype(np.uint8))
    renumbered.putpalette(PALETTE[used].tobytes())
    assert (np.asarray(renumbered) != _mask()).any()
    plain, by_colour = (pipe(masks=[mask], num_inference_steps=1).images[0] for mask in (_mask(), renumbered))
    assert np.array_equal(np.asarray(plain), np.asarray(by_colour))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": [np.full((64, 64), 257)]}, "labels 257 to 257; there are 0 to 18"),
        ({"masks": [np.full((64, 64), 1.5)]}, "whole numbers .H, W., not float64"),
        ({"masks": [np.zeros((64, 64, 3), np.uint8)]}, "not uint8 .64, 64, 3."),
        ({"attributes": [{"Smiling": False}]}, "attribute Smiling is False; 1 is yes, -1 is no"),
        ({"attributes": [{"Smiling": 0.5}]}, "attribute Smiling is 0.5"),
        ({"sampler": "dpm++"}, r"sampler.name: 'dpm\+\+' is not one of .*did you mean 'dpmpp_2m'"),
        ({"num_inference_steps": 0}, "sampler.steps: .*greater than or equal to 1"),
        ({"seed": -1}, "seed: .*greater than or equal to 0"),
        ({"guidance_scale": 2.0, "texts": ["a"]}, "does not take"),
        ({"masks": ["face.png"]}, "whole numbers .H, W., not <U8"),
        ({"attributes": [{"Smiling": "yes"}]}, "attribute Smiling is 'yes'"),
    ],
)
def test_wrong_arguments_are_errors_of_raygen(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FacePipeline.from_pretrained("bundled")(1, **arguments)


def test_a_folder_without_a_checkpoint_is_named_and_the_hub_is_not_asked(tmp_path: Path) -> None:
    """`from_pretrained` of diffusers 0.42.1 takes a folder that is not there for a name on the hub."""
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="no checkpoint here"):
            FacePipeline.from_pretrained(str(place))


def test_loading_shows_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    FacePipeline.from_pretrained("bundled")
    assert "Loading pipeline components" not in capfd.readouterr().err
