"""Loss weights against published values, and objectives that are functions of their batch."""

import pytest
import torch
from torch import Tensor

from raygen.extractors.bundled import BundledClassifier, BundledParser
from raygen.extractors.config import BundledClassifierConfig, BundledParserConfig, LPIPSConfig
from raygen.models.autoencoder import FirstStage
from raygen.models.checkpoint import build
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.conditions import ConditionDropout
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.noise import NoiseSchedule
from raygen.training.config.losses import (
    AutoencoderObjectiveConfig,
    DiscriminatorConfig,
    MinSNRLoss,
    P2Loss,
    SimpleLoss,
)
from raygen.training.losses import (
    AutoencoderObjective,
    ClassifierObjective,
    DiffusionObjective,
    ParserObjective,
    PatchDiscriminator,
    edges,
)
from raygen.training.losses.discriminator import adaptive_weight, hinge, loss_gradients

SCHEDULE = NoiseSchedule()
V = NoiseSchedule(prediction_type="v_prediction")


@pytest.mark.parametrize(
    ("gamma", "weights"),
    [
        (0.5, {0: 0.0387, 21: 0.1851, 100: 0.4206, 200: 0.6208, 500: 0.9408}),
        (1.0, {0: 0.0015, 21: 0.0343, 100: 0.1769, 200: 0.3854, 500: 0.8851}),
    ],
)
def test_p2_weights(gamma: float, weights: dict[int, float]) -> None:
    found = torch.from_numpy(P2Loss(gamma=gamma).weights(SCHEDULE))
    for t, weight in weights.items():
        assert float(found[t]) == pytest.approx(weight, abs=6e-5)


def test_p2_without_gamma_is_simple_exactly() -> None:
    assert torch.equal(
        torch.from_numpy(P2Loss(gamma=0).weights(SCHEDULE)), torch.from_numpy(SimpleLoss().weights(SCHEDULE))
    )


def test_min_snr_clips_the_error_in_z() -> None:
    snr = torch.tensor(SCHEDULE.snr()).float()
    torch.testing.assert_close(torch.from_numpy(MinSNRLoss(gamma=5).weights(SCHEDULE)) * snr, snr.clamp(max=5))
    torch.testing.assert_close(torch.from_numpy(MinSNRLoss(gamma=5).weights(V)) * (snr + 1), snr.clamp(max=5))
    zero = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert torch.isfinite(torch.from_numpy(MinSNRLoss().weights(zero))).all()


def tiny(noise: NoiseSchedule = SCHEDULE) -> DiffusionObjective:
    torch.manual_seed(0)
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8)))
    config = LDMConfig(
        modalities=("mask", "attributes"), channels=(32,), attention=(True,), token_width=16, noise=noise
    )
    return DiffusionObjective(build(config, stage, seed=0), SimpleLoss(), ConditionDropout(null=0.5))


def batch(n: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randint(0, 256, (n, 16, 16, 3), generator=generator, dtype=torch.uint8),
        "posterior": torch.randn(n, 4, 4, 4, generator=generator),
        "noise": torch.randn(n, 4, 4, 4, generator=generator),
        "t": torch.tensor([0, 100, 500, 999][:n]),
        "dropout": torch.tensor([0.1, 0.6, 0.6, 0.9][:n]),
        "mask": torch.randint(0, 19, (n, 16, 16), generator=generator, dtype=torch.uint8),
        "attributes": torch.ones(n, 40, dtype=torch.int8),
        "present_mask": torch.ones(n, dtype=torch.bool),
        "present_attributes": torch.ones(n, dtype=torch.bool),
    }


@pytest.mark.parametrize("noise", [SCHEDULE, V], ids=["eps", "v"])
def test_diffusion_loss_by_hand(noise: NoiseSchedule) -> None:
    objective = tiny(noise)
    model, values = objective.model, batch()
    with torch.no_grad():
        z = model.first_stage.sample(
            model.first_stage.encode(values["images"].permute(0, 3, 1, 2) / 127.5 - 1), values["posterior"]
        )
        zt = noise.add_noise(z, values["noise"], values["t"])
        conditions = objective.conditions(values, 4).take(slice(1, 4))
        tokens = [model.prepare(model.embed(c)) for c in (model.null(1), conditions)]
        ctx = {name: torch.cat([part[name] for part in tokens]) for name in tokens[0]}
        error = model.predict(zt, values["t"], ctx) - noise.target(z, values["noise"], values["t"])
        losses = objective(values)
    torch.testing.assert_close(losses["loss"], error.square().mean())
    torch.testing.assert_close(losses["mse"], error.square().mean())


def test_cached_moments_are_the_pictures() -> None:
    objective, values = tiny(), batch()
    with torch.no_grad():
        from_images = objective(values)["loss"]
        values["moments"] = objective.model.first_stage.encode(values.pop("images").permute(0, 3, 1, 2) / 127.5 - 1)
        torch.testing.assert_close(objective(values)["loss"], from_images)


def test_weights_apply_to_their_timestep() -> None:
    model, values = tiny().model, batch(1)
    with torch.no_grad():
        simple = DiffusionObjective(model, SimpleLoss())(values)["loss"]
        p2 = DiffusionObjective(model, P2Loss(gamma=1))(values)["loss"]
    torch.testing.assert_close(p2, simple * (1 - SCHEDULE.alphas_cumprod()[0]), rtol=1e-4, atol=0)


def test_only_what_is_trainable_gets_gradients() -> None:
    objective = tiny()
    objective(batch())["loss"].backward()
    assert all(p.grad is not None for p in objective.phases()[0])
    assert all(p.grad is None for p in objective.model.first_stage.parameters())


@pytest.mark.parametrize("stage", ["kl", "vq", "dc"])
def test_first_stage_terms(stage: str) -> None:
    torch.manual_seed(0)
    first = FirstStage(AutoencoderConfig(stage=stage, image_size=16, channels=(8, 8), codes=8))  # type: ignore[arg-type]
    config = AutoencoderObjectiveConfig(l1=2.0, edges=0.5, perceptual=LPIPSConfig(weight=0.1), kl=1e-3, codebook=0.7)
    losses = AutoencoderObjective(first, config, lambda a, b: (a - b).square().flatten(1).mean(dim=1))(batch())
    expected = 2 * losses["l1"] + 0.5 * losses["edges"] + 0.1 * losses["perceptual"]
    expected = expected + {"kl": 1e-3 * losses.get("kl", 0), "vq": 0.7 * losses.get("codebook", 0), "dc": 0}[stage]
    torch.testing.assert_close(losses["loss"].detach(), expected)
    losses["loss"].backward()
    assert all(p.grad is not None for p in first.parameters())


def test_a_perceptual_weight_needs_a_distance() -> None:
    with pytest.raises(ValueError, match="perceptual"):
        AutoencoderObjective(
            FirstStage(AutoencoderConfig(channels=(8, 8))), AutoencoderObjectiveConfig(perceptual=LPIPSConfig())
        )


def test_hinge_by_hand() -> None:
    real, made = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert float(hinge(real, made)) == pytest.approx(0.5 * (0.25 + 0.5))


def test_the_adaptive_weight_is_a_ratio_of_gradients() -> None:
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    weight = adaptive_weight(loss_gradients((2 * layer).sum(), (0.5 * layer).sum(), layer))
    assert float(weight) == pytest.approx(2 * 2**0.5 / (0.5 * 2**0.5 + 1e-4))
    assert float(adaptive_weight(loss_gradients((1e9 * layer).sum(), layer.sum(), layer))) == 1e4


def test_the_discriminator_enters_the_loss_with_its_weight() -> None:
    torch.manual_seed(0)
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8), mid_attention=False))
    config = AutoencoderObjectiveConfig(discriminator=DiscriminatorConfig(start=10, channels=8, layers=1, weight=0.5))
    objective = AutoencoderObjective(stage, config)
    values = batch()
    before = objective(values)
    objective.step = 10
    after = objective(values)
    added = 0.5 * after["adaptive_weight"] * after["adversarial"]
    torch.testing.assert_close(after["loss"], before["loss"] + added)
    judged = objective(values, 1)
    assert judged["loss"].requires_grad
    judged["loss"].backward()
    assert all(p.grad is None for p in stage.parameters())


def test_published_discriminator_size() -> None:
    with torch.device("meta"):
        made = PatchDiscriminator(DiscriminatorConfig(norm="batch"))
    assert sum(p.numel() for p in made.parameters()) == 2_765_633
    assert made(torch.zeros(1, 3, 256, 256, device="meta")).shape == (1, 1, 30, 30)


def test_classifier_loss_leaves_unknown_attributes_out() -> None:
    torch.manual_seed(0)
    objective = ClassifierObjective(BundledClassifier(BundledClassifierConfig(image_size=16, channels=(8, 8))))
    values = {**batch(2), "noise": torch.randn(2, 8, 1, 1, generator=torch.Generator().manual_seed(2))}
    values["attributes"] = torch.zeros(2, 40, dtype=torch.int8)
    values["attributes"][:, 3] = 1
    few = objective(values)["loss"]
    values["attributes"][:, 4] = -1
    assert not torch.equal(few, objective(values)["loss"])
    values["present_attributes"] = torch.zeros(2, dtype=torch.bool)
    assert float(objective(values)["loss"].detach()) == 0


def test_edges_are_differences_of_neighbours() -> None:
    pixels = torch.arange(6.0).view(1, 1, 2, 3)
    assert edges(pixels)[0].tolist() == [[[1, 1, 0], [1, 1, 0]], [[3, 3, 3], [0, 0, 0]]]


def test_parser_loss_depends_on_its_batch_alone() -> None:
    values = {**batch(2), "noise": torch.randn(2, 8, 1, 1, generator=torch.Generator().manual_seed(2))}
    torch.manual_seed(0)
    objective = ParserObjective(BundledParser(BundledParserConfig(image_size=16, channels=(8, 8))))
    losses = objective(values)
    assert torch.equal(losses["loss"], objective(values)["loss"])
    assert 0 <= float(losses["accuracy"]) <= 1
    losses["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters())
