"""SDM's additions: boundaries of parts beside the classes, and a variance that the network learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from raygen.commands.registry import make as make_job
from raygen.core.errors import ConfigError
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.conditions import Conditions
from raygen.models.config.autoencoder import pixel_stage
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.sampler import SamplerConfig
from raygen.models.config.scadm import SCADMConfig
from raygen.models.scadm import SCADM
from raygen.models.schedulers import build_sampler
from raygen.models.spade import boundaries
from raygen.sampling.guidance import build_guidance
from raygen.sampling.worker import denoise
from raygen.training.config.losses import P2Loss, SimpleLoss
from raygen.training.losses import DiffusionObjective
from raygen.training.losses.variance import HYBRID, variational_bound

SCHEDULE = NoiseSchedule(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
SIDE = 16


def sdm(**fields: object) -> SCADM:
    stage = pixel_stage(f"pixels-{SIDE}")
    assert stage is not None
    shape = {"channels": (8, 16), "layers_per_block": 1, "attention": (False, True), "head_dim": 8, "spade_hidden": 4}
    config = SCADMConfig(**{**shape, "style": None, "noise": SCHEDULE, "edges": True, "learn_sigma": True, **fields})
    model = checkpoint.build(config, FirstStage(stage), seed=0)
    assert isinstance(model, SCADM)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def masks(labels: Tensor) -> Conditions:
    return Conditions(n=len(labels), mask=labels, present={"mask": torch.ones(len(labels), dtype=torch.bool)})


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- edges ----------------------------------------------------------------------------------------------------


def test_boundaries_are_both_sides_of_a_change_of_class() -> None:
    labels = torch.tensor([[[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 2, 2], [1, 1, 2, 2]]], dtype=torch.uint8)
    wanted = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0]])
    there = torch.ones(1, dtype=torch.bool)
    assert torch.equal(boundaries(labels, there, 4, torch.float32)[0, 0].long(), wanted)
    assert torch.equal(boundaries(labels, there, 2, torch.float32)[0, 0].long(), wanted[::2, ::2])  # nearest
    assert not boundaries(labels, ~there, 4, torch.float32).any()
    assert not boundaries(torch.full_like(labels, 7), there, 4, torch.float32).any()


def test_boundaries_are_read_beside_the_classes() -> None:
    plain, model = sdm(edges=False), sdm()
    assert {m.shared.in_channels for m in model.modules() if hasattr(m, "shared")} == {20}
    assert {m.shared.in_channels for m in plain.modules() if hasattr(m, "shared")} == {19}
    labels = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    labels[:, 6:, :] = 3
    with torch.no_grad():
        before = model.prepare(model.embed(masks(labels)))
        for module in model.modules():
            if hasattr(module, "shared"):
                module.shared.weight[:, 19] += 1.0
        after = model.prepare(model.embed(masks(labels)))
        changed = (after["spade.0"] - before["spade.0"]).abs().sum(dim=(0, 1)) > 0
        assert torch.equal(model.embed(model.null(1))["present"], torch.zeros(1, dtype=torch.bool))
    # The edge lies in rows 5 and 6 of 16: in row 3 of the 8 of the middle, which two convolutions of 3 x 3 spread.
    assert changed.any(dim=1).nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5]


# --- variance -------------------------------------------------------------------------------------------------


def test_predictions_leave_the_variance_out_and_a_folder_keeps_both(tmp_path: Path) -> None:
    model = sdm().eval()
    labels = torch.randint(0, 19, (2, SIDE, SIDE), dtype=torch.uint8)
    zt, t = draw(2, 3, SIDE, SIDE), torch.tensor([3, 700])
    with torch.no_grad():
        ctx = model.prepare(model.embed(masks(labels)))
        both = model.outputs(zt, t, ctx)
        assert both.shape == (2, 6, SIDE, SIDE)
        assert torch.equal(model.predict(zt, t, ctx), both[:, :3])
        checkpoint.save(model, tmp_path / "model")
        again = checkpoint.load(tmp_path / "model")
        assert torch.equal(again.outputs(zt, t, again.prepare(again.embed(masks(labels)))), both)


def test_a_step_of_ddpm_with_a_learned_variance_is_that_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in (1000, 50):
        options = SCHEDULE.scheduler_config() | {"clip_sample": False, "timestep_spacing": "trailing"}
        oracle = DDPMScheduler(**options, variance_type="learned_range")
        oracle.set_timesteps(steps)
        sampler = build_sampler(SCHEDULE, SamplerConfig(name="ddpm", steps=steps))
        assert list(sampler.timesteps) == oracle.timesteps.tolist()
        trajectory = sampler.start()
        ours = theirs = draw(2, 3, 4, 4)
        for i, t in enumerate(sampler.timesteps[:40]):
            noise, variance = draw(2, 3, 4, 4, seed=i), torch.tanh(draw(2, 3, 4, 4, seed=1000 + i))
            monkeypatch.setattr(
                "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, noise=noise, **__: noise
            )
            output = torch.tanh(theirs * 1.3)
            theirs = oracle.step(torch.cat([output, variance], dim=1), t, theirs).prev_sample
            ours = trajectory.advance(ours, torch.tanh(ours * 1.3), noise, variance)
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


def test_the_bounds_are_the_posterior_and_beta() -> None:
    sampler = build_sampler(SCHEDULE, SamplerConfig(name="ddpm", steps=1000))
    step, zero, one = sampler.steps[500], torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    t = sampler.timesteps[500]
    abar = SCHEDULE.alphas_cumprod()

    def noise(variance: Tensor | None) -> float:
        trajectory = sampler.start()
        for _ in range(500):
            next(trajectory._steps)
        return float(trajectory.advance(zero, zero, one, variance))

    assert noise(-one) == pytest.approx(step.noise, rel=1e-5) == pytest.approx(noise(None), rel=1e-5)
    assert noise(one) == pytest.approx((1 - abar[t] / abar[t - 1]) ** 0.5, rel=2e-3)
    assert sampler.steps[-1].bounds is None  # the last step adds no noise
    ddim = build_sampler(SCHEDULE, SamplerConfig(name="ddim", steps=50, eta=0.5))
    assert all(step.bounds is None for step in ddim.steps)


def test_guidance_keeps_the_variance_of_the_prediction_with_conditions() -> None:
    model = sdm().eval()
    labels = torch.randint(0, 19, (1, SIDE, SIDE), dtype=torch.uint8)
    zt, t = draw(1, 3, SIDE, SIDE), torch.tensor([400])
    with torch.no_grad():
        with_mask = model.outputs(zt, t, model.prepare(model.embed(masks(labels))))
        without = model.outputs(zt, t, model.prepare(model.embed(model.null(1))))
        guided = build_guidance(model, masks(labels), 1.5)(model, zt, t)
    torch.testing.assert_close(guided[:, :3], without[:, :3] + 1.5 * (with_mask[:, :3] - without[:, :3]))
    torch.testing.assert_close(guided[:, 3:], with_mask[:, 3:])
    sampler = build_sampler(SCHEDULE, SamplerConfig(name="ddim", steps=3))
    with torch.no_grad():
        *_, z = denoise(model, build_guidance(model, masks(labels), 1.5), zt, sampler)  # others leave it unread
    assert z.shape == zt.shape


@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule(), NoiseSchedule(prediction_type="v_prediction")])
def test_the_bound_is_a_divergence_of_normal_distributions(schedule: NoiseSchedule) -> None:
    z, eps = draw(3, 3, 4, 4, seed=1).clamp(-1, 1), draw(3, 3, 4, 4, seed=2)
    t, variance = torch.tensor([1, 40, 900]), torch.tanh(draw(3, 3, 4, 4, seed=4))
    zt = schedule.add_noise(z, eps, t)
    output = schedule.target(z, eps, t) + 0.1 * draw(3, 3, 4, 4, seed=5)
    bound = variational_bound(schedule, z, zt, t, output, variance)
    abar = schedule.alphas_cumprod()
    for row, step in enumerate(t.tolist()):
        a, before = abar[step], abar[step - 1]
        beta = 1 - a / before
        posterior = beta * (1 - before) / (1 - a)

        def mean(x: Tensor, row: int = row, a: float = a, before: float = before, beta: float = beta) -> Tensor:
            return (x * before**0.5 * beta + zt[row].double() * (1 - beta) ** 0.5 * (1 - before)) / (1 - a)

        guess = schedule.x0_from(output, zt, t)[row].double()
        share = (variance[row].double() + 1) / 2
        deviation = torch.exp(0.5 * (share * np.log(beta) + (1 - share) * np.log(posterior)))
        true = Normal(mean(z[row].double()), torch.full_like(guess, posterior**0.5))
        wanted = kl_divergence(true, Normal(mean(guess), deviation)).mean() / np.log(2)
        assert float(bound[row]) == pytest.approx(float(wanted), rel=2e-3)


def test_the_last_step_is_the_likelihood_of_8_bit_values() -> None:
    values = torch.arange(256) / 127.5 - 1
    z = values.view(1, 1, 16, 16)
    t = torch.zeros(1, dtype=torch.int64)
    zt = SCHEDULE.add_noise(z, torch.zeros_like(z), t)
    bits = variational_bound(SCHEDULE, z, zt, t, torch.zeros_like(z), torch.full_like(z, -1))
    posterior = SCHEDULE.alphas_cumprod()
    low = (1 - posterior[1] / posterior[0]) * (1 - posterior[0]) / (1 - posterior[1])
    inside = 2 * Normal(0.0, low**0.5).cdf(torch.tensor(1 / 255)) - 1
    assert float(bits) == pytest.approx(float(-torch.log2(inside)), rel=0.02)  # the outer two have a tail more
    worse = variational_bound(SCHEDULE, z, zt, t, 30 + torch.zeros_like(z), torch.full_like(z, -1))
    assert torch.isfinite(worse).all()
    assert worse > bits


def test_the_hybrid_loss_trains_both_halves_by_their_own_terms() -> None:
    model = sdm()
    objective = DiffusionObjective(model, SimpleLoss())
    batch = {
        "images": torch.randint(0, 256, (4, SIDE, SIDE, 3), dtype=torch.uint8),
        "posterior": draw(4, 3, SIDE, SIDE),
        "noise": draw(4, 3, SIDE, SIDE, seed=9),
        "t": torch.tensor([0, 10, 500, 999]),
        "dropout": torch.ones(4),
        "mask": torch.randint(0, 19, (4, SIDE, SIDE), dtype=torch.uint8),
        "present_mask": torch.ones(4, dtype=torch.bool),
    }
    losses = objective(batch)
    torch.testing.assert_close(losses["loss"], losses["mse"] + HYBRID * 1000 * losses["bound"])
    half = P2Loss(gamma=1)
    weighted = DiffusionObjective(model, half)(batch)
    p2 = torch.from_numpy(half.weights(SCHEDULE))[batch["t"]]
    assert p2.max() < 1  # the weights are those of the error alone
    torch.testing.assert_close(weighted["bound"], losses["bound"])
    losses["loss"].backward()
    gradient = model.unet.conv_out.weight.grad
    assert gradient[:3].abs().sum() > 0
    assert gradient[3:].abs().sum() > 0


def test_the_variance_gets_no_gradient_from_the_error_nor_the_prediction_from_the_bound() -> None:
    z, eps, t = draw(2, 3, 4, 4, seed=1), draw(2, 3, 4, 4, seed=2), torch.tensor([5, 600])
    output, variance = draw(2, 3, 4, 4).requires_grad_(), torch.zeros(2, 3, 4, 4, requires_grad=True)
    variational_bound(SCHEDULE, z, SCHEDULE.add_noise(z, eps, t), t, output, variance).sum().backward()
    assert output.grad is None
    assert variance.grad is not None
    assert variance.grad.abs().sum() > 0


def test_mask_aware_losses_do_not_train_a_variance() -> None:
    model = {"kind": "scadm", "style": None, "learn_sigma": True}
    job = {
        "kind": "train",
        "faces": "f",
        "first_stage": "pixels-64",
        "model": model,
        "out": "o",
        "training": {"steps": 1},
    }
    with pytest.raises(ConfigError, match="mask_aware does not train the variance"):
        make_job({**job, "mask_aware": {"perceptual": 0, "face": 0, "latent": 0.5}})
