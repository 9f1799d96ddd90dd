"""The latent diffusion model keeps the Model contract for every mix of conditions."""

import pytest
import torch

from raygen.models.autoencoder import FirstStage
from raygen.models.checkpoint import build
from raygen.models.condition_encoders import MaskEncoder
from raygen.models.conditions import Conditions
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.noise import NoiseSchedule
from raygen.models.ldm import LDM

STAGE = AutoencoderConfig(image_size=16, channels=(8, 8))
SMALL = {"channels": (32, 32), "attention": (False, True), "token_width": 16, "mask_channels": 4}


def make(**fields: object) -> LDM:
    torch.manual_seed(0)
    model = build(LDMConfig(**{**SMALL, **fields}), FirstStage(STAGE), seed=0)  # type: ignore[arg-type]
    assert isinstance(model, LDM)
    for parameter in model.parameters():  # as if it had been trained
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def conditions(n: int) -> Conditions:
    generator = torch.Generator().manual_seed(5)
    return Conditions(
        n=n,
        mask=torch.randint(0, 19, (n, 16, 16), generator=generator, dtype=torch.uint8),
        attributes=torch.randint(0, 2, (n, 40), generator=generator).float() * 2 - 1,
        present={"mask": torch.ones(n, dtype=torch.bool), "attributes": torch.ones(n, dtype=torch.bool)},
    )


@pytest.mark.parametrize("modalities", [(), ("mask",), ("attributes",), ("mask", "attributes")])
@pytest.mark.parametrize("path", ["tokens", "vector", "both"])
def test_every_mix_predicts(modalities: tuple[str, ...], path: str) -> None:
    model = make(modalities=modalities, attribute_path=path)
    zt, t = torch.randn(3, *model.latent_shape), torch.tensor([0, 500, 999])
    ctx = model.prepare(model.embed(conditions(3) if modalities else model.null(3)))
    output = model.predict(zt, t, ctx)
    assert output.shape == zt.shape
    assert torch.isfinite(output).all()
    assert type(model.unet).__name__ == (
        "UNet2DConditionModel" if "attributes" in modalities and path != "vector" else "UNet2DModel"
    )


@pytest.mark.parametrize("hidden", ["mask", "attributes"])
def test_an_absent_condition_says_nothing(hidden: str) -> None:
    model = make(modalities=("mask", "attributes"))
    one, other = conditions(2), conditions(2)
    value = getattr(other, hidden)
    value.copy_(value.flip(0) if hidden == "mask" else -value)
    kept = {"mask", "attributes"} - {hidden}
    zt, t = torch.randn(2, *model.latent_shape), torch.tensor([10, 900])
    with torch.no_grad():
        full = [model.eps(zt, t, model.prepare(model.embed(c))) for c in (one, other)]
        bare = [model.eps(zt, t, model.prepare(model.embed(c.keep(kept)))) for c in (one, other)]
    assert not torch.equal(*full)
    assert torch.equal(*bare)


def test_eps_of_a_v_model_is_eps() -> None:
    model = make(noise=NoiseSchedule(prediction_type="v_prediction"))
    zt, t = torch.randn(2, *model.latent_shape), torch.tensor([10, 900])
    v = model.predict(zt, t, {})
    abar = torch.tensor(model.schedule.alphas_cumprod()[t.numpy()]).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(model.eps(zt, t, {}), abar.sqrt() * v + (1 - abar).sqrt() * zt)


def test_training_starts_from_nothing() -> None:
    config = LDMConfig(modalities=("mask", "attributes"), **SMALL)  # type: ignore[arg-type]
    model = build(config, FirstStage(STAGE), seed=0)
    zt = torch.randn(2, *model.latent_shape)
    assert not model.predict(zt, torch.tensor([10, 900]), model.prepare(model.embed(conditions(2)))).any()


def test_the_first_stage_is_frozen() -> None:
    model = make(modalities=("mask", "attributes"))
    trainable = {id(p) for p in model.trainable()}
    assert trainable == {id(p) for p in model.parameters() if p.requires_grad}
    assert not trainable & {id(p) for p in model.first_stage.parameters()}
    assert {id(p) for p in model.unet.parameters()} < trainable


def test_an_eye_of_three_pixels_is_seen() -> None:
    torch.manual_seed(0)
    encoder = MaskEncoder(factor=4, channels=8)
    mask = torch.ones(2, 64, 64, dtype=torch.uint8)
    mask[1, 21, 30:33] = 4
    features = encoder(mask, torch.tensor([True, True]))
    difference = (features[0] - features[1]).abs().sum(dim=0)
    assert features.shape == (2, 9, 16, 16)
    assert (difference > 0).nonzero().tolist() == [[5, 7], [5, 8]]


def test_null_rows_are_null() -> None:
    model = make(modalities=("mask", "attributes"))
    null = model.null(3)
    assert null.modalities == {"mask", "attributes"}
    assert not any(flag.any() for flag in null.present.values())
    zt, t = torch.randn(2, *model.latent_shape), torch.tensor([10, 900])
    with torch.no_grad():
        dropped = model.eps(zt, t, model.prepare(model.embed(conditions(2).keep(()))))
        assert torch.equal(dropped, model.eps(zt, t, model.prepare(model.embed(model.null(2)))))


def test_build_depends_on_the_seed_alone() -> None:
    stage = FirstStage(STAGE)
    config = LDMConfig(**SMALL)  # type: ignore[arg-type]
    torch.manual_seed(1)
    first = build(config, stage, seed=3)
    torch.manual_seed(2)
    second = build(config, stage, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    "fields",
    [{"attention": (True,)}, {"required": ("mask",)}, {"channels": (24, 32)}],
    ids=["levels", "required", "heads"],
)
def test_configs_that_cannot_be(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        LDMConfig(**{**SMALL, **fields})  # type: ignore[arg-type]
