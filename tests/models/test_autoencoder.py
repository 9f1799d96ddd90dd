"""Every first stage has the same interface, its latents have unit size once calibrated, half precision keeps it."""

import copy

import pytest
import torch
import torch.nn.functional as F

from raygen.core.pixels import to_pixels, to_uint8
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import AutoencoderConfig

KL = AutoencoderConfig(image_size=16, channels=(8, 8), latent_channels=4)
VQ = AutoencoderConfig(stage="vq", image_size=16, channels=(8, 8), latent_channels=3, codes=16)
DC = AutoencoderConfig(stage="dc", image_size=16, patch=2, channels=(8, 8), latent_channels=4)
PIXEL = AutoencoderConfig(stage="pixel", image_size=16, patch=2)


@pytest.mark.parametrize("config", [KL, VQ, DC, PIXEL], ids=["kl", "vq", "dc", "pixel"])
def test_shapes(config: AutoencoderConfig) -> None:
    torch.manual_seed(0)
    stage = FirstStage(config)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    moments = stage.encode(pixels)
    z = stage.sample(moments, torch.randn(2, *stage.latent_shape))
    assert z.shape == (2, *stage.latent_shape) == stage.mode(moments).shape
    assert stage.latent_shape[1] * stage.factor == 16
    assert stage.decode(z).shape == pixels.shape


def test_pixel_is_the_identity() -> None:
    stage = FirstStage(PIXEL)
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(stage.decode(stage.mode(stage.encode(pixels))), pixels)


def test_kl_samples_as_the_diffusers_posterior_does() -> None:
    torch.manual_seed(1)
    stage = FirstStage(AutoencoderConfig(image_size=16, patch=1, channels=(8, 8)))
    pixels = torch.rand(2, 3, 16, 16)
    posterior = stage.net.encode(pixels).latent_dist
    noise = torch.randn(2, *stage.latent_shape)
    expected = posterior.mean + posterior.std * noise
    torch.testing.assert_close(stage.sample(stage.encode(pixels), noise), expected)
    torch.testing.assert_close(stage.decode(expected), stage.net.decode(expected).sample)


@pytest.mark.parametrize("config", [KL, VQ, DC], ids=["kl", "vq", "dc"])
def test_calibration_gives_unit_latents_and_changes_no_picture(config: AutoencoderConfig) -> None:
    torch.manual_seed(2)
    stage = FirstStage(config)
    pixels = torch.rand(64, 3, 16, 16) * 2 - 1
    moments = stage.encode(pixels).detach() * 3 + 0.5
    before = stage.decode(stage.mode(moments))
    stage.calibrate(moments)
    z = stage.sample(moments, torch.randn(64, *stage.latent_shape))
    assert float(z.std()) == pytest.approx(1, abs=0.05)
    if config.stage != "vq":
        torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.1, rtol=0)
        torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(4), atol=0.1, rtol=0)
    torch.testing.assert_close(stage.decode(stage.mode(moments)), before, atol=1e-4, rtol=1e-4)


def test_half_precision_keeps_the_scale_exact() -> None:
    stage = FirstStage(KL)
    stage.calibrate(torch.randn(8, 8, 4, 4))
    mean, scale = stage.mean.clone(), stage.scale.clone()
    stage.to(torch.bfloat16)
    assert stage.net.dtype == torch.bfloat16
    assert torch.equal(stage.mean, mean)
    assert torch.equal(stage.scale, scale)
    assert stage.decode(torch.zeros(1, 4, 4, 4)).dtype == torch.float32


def test_codes_are_chosen_in_float32_under_every_precision() -> None:
    """In bfloat16 diffusers 0.42 chooses other codes for some latents (`VectorQuantizer.forward`: cdist of rounded)."""
    torch.manual_seed(3)
    config = AutoencoderConfig(stage="vq", image_size=16, channels=(8, 8), latent_channels=3, codes=512)
    whole = FirstStage(config)
    torch.nn.init.normal_(whole.net.quantize.embedding.weight)
    half = copy.deepcopy(whole).to(torch.bfloat16)
    naive = copy.deepcopy(half.net).to(torch.bfloat16)
    moments = torch.randn(16, 3, 8, 8)
    codes = whole.quantise(moments)[2]
    assert torch.equal(codes, half.quantise(moments)[2])
    assert torch.equal(whole.quantise(moments)[0], half.quantise(moments)[0])
    others = naive.quantize(moments.bfloat16())[2][2]
    assert (others != codes).float().mean() > 0.02
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codes, whole.quantise(moments)[2])
    assert half.net.dtype == torch.bfloat16
    seen = []
    half.net.post_quant_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert half.decode(half.mode(moments)).isfinite().all()
    assert torch.equal(seen[0], whole.net.quantize(moments)[0].bfloat16())  # decoded from the same codes
    again = half.to(torch.float32)
    assert torch.equal(again.net.quantize.embedding.weight, whole.net.quantize.embedding.weight)
    with torch.no_grad():
        expected = whole.net.decode(moments, return_dict=False)[0]
    assert torch.equal(whole.decode(whole.mode(moments)), F.pixel_shuffle(expected, config.patch))


def test_uint8_round_trip_and_what_is_not_finite() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    assert torch.equal(to_uint8(to_pixels(images)), images)
    pixels = torch.tensor([float("nan"), float("inf"), 2.0, -2.0]).view(1, 1, 1, 4).repeat(1, 3, 1, 1)
    assert to_uint8(pixels)[0, 0, :, 0].tolist() == [0, 0, 255, 0]


def test_sizes_must_fit() -> None:
    with pytest.raises(ValueError, match="multiple"):
        AutoencoderConfig(image_size=18, patch=2, channels=(8, 8))
