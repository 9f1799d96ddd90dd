"""Published values of the schedule, conversions that invert each other, samplers by formula."""

import re
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from raygen.core.errors import ConfigError
from raygen.models import schedulers
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.sampler import SamplerConfig, SamplerName, Spacing
from raygen.models.schedulers import SAMPLERS, build_sampler, diffusers_scheduler

V = NoiseSchedule(prediction_type="v_prediction")
ZERO_SNR = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)


@pytest.mark.parametrize(
    ("t", "abar"),
    [
        (0, 0.9985),
        (1, 0.996994427),
        (100, 0.823117),
        (200, 0.614585),
        (499, 0.11584449),
        (500, 0.114922),
        (981, 0.000202),
        (999, 0.000142304),
    ],
)
def test_alphas_cumprod_are_those_of_the_released_models(t: int, abar: float) -> None:
    assert NoiseSchedule().alphas_cumprod()[t] == pytest.approx(abar, rel=5e-6, abs=5e-7)


@pytest.mark.parametrize(
    ("t", "snr"),
    [
        (0, 665.667),
        (1, 331.715),
        (21, 28.1818),
        (100, 4.65346),
        (200, 1.5946),
        (400, 0.306245),
        (500, 0.129844),
        (999, 1.42324e-4),
    ],
)
def test_signal_to_noise(t: int, snr: float) -> None:
    assert NoiseSchedule().snr()[t] == pytest.approx(snr, rel=5e-5)


@pytest.mark.parametrize("schedule", [NoiseSchedule(), V, ZERO_SNR, NoiseSchedule(beta_schedule="linear")])
def test_our_schedule_is_the_schedulers(schedule: NoiseSchedule) -> None:
    theirs = SAMPLERS["ddim"](schedule, SamplerConfig(name="ddim")).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(schedule.alphas_cumprod(), theirs, rtol=2e-4, atol=1e-6)


def test_zero_snr_ends_in_pure_noise_and_needs_v() -> None:
    assert ZERO_SNR.alphas_cumprod()[-1] == 0
    with pytest.raises(ValueError, match="v_prediction"):
        NoiseSchedule(rescale_betas_zero_snr=True)


@pytest.mark.parametrize("schedule", [NoiseSchedule(), V])
def test_target_gives_back_what_was_mixed(schedule: NoiseSchedule) -> None:
    z, eps = torch.randn(2, 5, 3, 4, 4)
    t = torch.tensor([0, 21, 100, 500, 800])
    zt = schedule.add_noise(z, eps, t)
    target = schedule.target(z, eps, t)
    torch.testing.assert_close(schedule.x0_from(target, zt, t), z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(schedule.eps_from(target, zt, t), eps, atol=1e-5, rtol=1e-5)


def test_v_says_what_eps_says() -> None:
    z, eps = torch.randn(2, 3, 3, 4, 4)
    t = torch.tensor([5, 500, 999])
    zt = V.add_noise(z, eps, t)
    v = V.target(z, eps, t)
    abar = torch.tensor(V.alphas_cumprod()[t.numpy()]).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(v, abar.sqrt() * eps - (1 - abar).sqrt() * z)
    torch.testing.assert_close(NoiseSchedule().eps_from(V.eps_from(v, zt, t), zt, t), eps, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_leading_ddim_is_the_latent_diffusion_sampler(eta: float) -> None:
    sampler = build_sampler(NoiseSchedule(), SamplerConfig(name="ddim", steps=50, eta=eta, spacing="leading"))
    assert sampler.timesteps == tuple(range(981, 0, -20))
    abar = NoiseSchedule().alphas_cumprod()
    generator = torch.Generator().manual_seed(3)
    ours = theirs = torch.randn(1, 3, 8, 8, generator=generator)
    trajectory = sampler.start()
    for i, t in enumerate(sampler.timesteps):
        noise = torch.randn(1, 3, 8, 8, generator=generator)
        eps = torch.tanh(ours * 1.3) + 0.1
        a = float(abar[t])
        a_prev = float(abar[sampler.timesteps[i + 1]] if i + 1 < 50 else abar[0])
        sigma = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        x0 = (ours - np.sqrt(1 - a) * eps) / np.sqrt(a)
        ours = np.sqrt(a_prev) * x0 + np.sqrt(1 - a_prev - sigma**2) * eps + sigma * noise
        theirs = trajectory.advance(theirs, torch.tanh(theirs * 1.3) + 0.1, noise)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)


def test_a_step_of_ddpm_is_the_posterior() -> None:
    sampler = build_sampler(NoiseSchedule(), SamplerConfig(name="ddpm", steps=1000))
    abar = NoiseSchedule().alphas_cumprod()
    t = 400
    step = sampler.steps[sampler.timesteps.index(t)]
    a, a_prev = abar[t], abar[t - 1]
    beta = 1 - a / a_prev
    of_x0, of_zt = np.sqrt(a_prev) * beta / (1 - a), np.sqrt(1 - beta) * (1 - a_prev) / (1 - a)
    assert step.zt == pytest.approx(of_zt + of_x0 / np.sqrt(a), rel=1e-5)
    assert step.x == pytest.approx(-of_x0 * np.sqrt((1 - a) / a), rel=2e-3)  # of a difference of float32 tables
    assert step.noise == pytest.approx(np.sqrt(beta * (1 - a_prev) / (1 - a)), rel=2e-3)
    assert sampler.steps[-1].noise == 0


# --- every sampler against diffusers --------------------------------------------------------------------------

#: Every sampler with every spacing that it takes.
LINES: list[tuple[SamplerName, Spacing | None]] = [
    (name, spacing)
    for name, spacing in product(SAMPLERS, (None, *get_args(Spacing)))
    if spacing is None or not name.endswith("_karras")
]
COUNTS = (1, 2, 3, 5, 10, 20, 50, 100, 250, 1000)


def network(zt: Tensor) -> Tensor:
    return torch.tanh(zt * 1.3) + 0.1


def diffusers_trajectory(
    schedule: NoiseSchedule, config: SamplerConfig, zt: Tensor, noise: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """zt after every step of diffusers' own class, its tables of float32 used in float64."""
    oracle = SAMPLERS[config.name](schedule, config)
    oracle.set_timesteps(config.steps)
    for table in ("alphas_cumprod", "alphas", "betas", "one", "sigmas"):
        if hasattr(oracle, table):
            setattr(oracle, table, getattr(oracle, table).double())
    drawn = iter(noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(drawn))
    made = []
    for i, t in enumerate(oracle.timesteps):
        options: dict[str, Any] = {}
        if isinstance(oracle, DDIMScheduler):
            # It takes T // steps off each t; this makes that the distance to the next t, whatever the spacing.
            after = int(oracle.timesteps[i + 1]) if i + 1 < config.steps else -1
            oracle.num_inference_steps = 1
            oracle.register_to_config(num_train_timesteps=int(t) - after)
            options = {"eta": config.eta, "variance_noise": noise[i]} if config.eta else {}
        zt = oracle.step(network(zt), int(t) if isinstance(oracle, DDPMScheduler) else t, zt, **options).prev_sample
        made.append(zt.double())
    return made


@pytest.mark.parametrize(("name", "spacing"), [line for line in LINES if line[1] or line[0].endswith("_karras")])
def test_every_sampler_is_that_of_diffusers_over_the_whole_trajectory(
    name: SamplerName, spacing: Spacing | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    zt, *noise = torch.randn(1001, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    counts = COUNTS[:7] if name.endswith("_karras") else COUNTS  # with more, two steps have one t
    compared = 0
    for schedule, eta, steps in product((NoiseSchedule(), V, ZERO_SNR), (0.0, 0.7), counts):
        config = SamplerConfig(name=name, steps=steps, spacing=spacing, eta=eta if name == "ddim" else 0.0)
        try:
            sampler = build_sampler(schedule, config)
        except ConfigError:
            continue
        if config.eta != eta or (steps > 100 and (schedule != NoiseSchedule() or eta)):
            continue  # the long ones once
        trajectory, ours = sampler.start(), zt
        for i, theirs in enumerate(diffusers_trajectory(schedule, config, zt, noise, monkeypatch)):
            ours = trajectory.advance(ours, network(ours), noise[i])
            error = float((ours - theirs).abs().max() / theirs.abs().max())
            assert error < 1e-5, (schedule, steps, i)
        compared += 1
    assert compared >= 6


#: Standard deviation of the Gaussian data of the next tests; what the network would say of it is known exactly.
DEVIATION = 0.5


def _end(name: str, steps: int, *, eta: float = 0.0, spacing: str | None = None, rows: int = 50_000) -> Tensor:
    """float64 [rows, 1]: what sampling ends in for z ~ N(0, DEVIATION²), with the best possible network."""
    config = SamplerConfig(name=name, steps=steps, eta=eta, spacing=spacing)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    zt, abar, sampler = torch.randn(rows, 1, generator=draw).double(), V.alphas_cumprod(), build_sampler(V, config)
    trajectory = sampler.start()
    for t in sampler.timesteps:
        a = abar[t]
        best = zt * (a**0.5 * DEVIATION**2 / (a * DEVIATION**2 + 1 - a))  # E[z | zt]
        v = a**0.5 * (zt - a**0.5 * best) / (1 - a) ** 0.5 - (1 - a) ** 0.5 * best
        noise = torch.randn(rows, 1, generator=draw).double() if sampler.noisy else None
        zt = trajectory.advance(zt, v, noise)
    return zt


@pytest.mark.parametrize("steps", [3, 12, 15, 60, 400, 501, 999])
def test_ddim_with_all_its_noise_is_ddpm_for_any_number_of_steps(steps: int) -> None:
    """Song et al. 2021, section 4.1; also where the number of steps does not divide the schedule."""
    rows = 1000
    torch.testing.assert_close(
        _end("ddim", steps, eta=1.0, rows=rows), _end("ddpm", steps, rows=rows), rtol=1e-4, atol=5e-5
    )


@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
@pytest.mark.parametrize("steps", [400, 501, 600, 750])
def test_many_steps_end_in_the_data_whether_they_divide_the_schedule_or_not(name: str, eta: float, steps: int) -> None:
    assert float(_end(name, steps, eta=eta).std()) == pytest.approx(DEVIATION, rel=0.04)


def test_more_steps_come_nearer_to_the_data() -> None:
    off = [abs(float(_end("ddim", steps).std()) - DEVIATION) for steps in (12, 15, 20, 60, 100, 130, 250, 400)]
    assert off == sorted(off, reverse=True)


@pytest.mark.parametrize(("name", "spacing"), LINES)
def test_every_number_of_steps_begins_in_noise_and_falls_or_is_refused(name: str, spacing: str | None) -> None:
    """All of 1..1000."""
    scheduler = SAMPLERS[name](NoiseSchedule(), SamplerConfig(name=name, spacing=spacing))  # type: ignore
    works, refused = set(), set()
    for steps in range(1, 1001):
        if schedulers._set_timesteps(scheduler, steps) is not None:
            refused.add(steps)
            continue
        works.add(steps)
        timesteps = scheduler.timesteps
        assert len(timesteps) == steps
        assert 900 <= timesteps[0] <= 999, steps
        assert timesteps[-1] >= 0, steps
        assert (timesteps.diff() < 0).all(), steps
    assert {10, 20, 50} <= works
    asked = [steps for steps in sorted(refused) if steps < 200 or not name.endswith("_karras")]  # others take seconds
    for steps in asked[:: max(1, len(asked) // 3)]:
        with pytest.raises(ConfigError, match=f"sampler {name} with {steps} ") as caught:
            build_sampler(NoiseSchedule(), SamplerConfig(name=name, steps=steps, spacing=spacing))  # type: ignore
        nearest = int(re.search(r"nearest number of steps that works is (\d+)", str(caught.value))[1])  # type: ignore
        build_sampler(NoiseSchedule(), SamplerConfig(name=name, steps=nearest, spacing=spacing))  # type: ignore
        assert abs(nearest - steps) == min(abs(n - steps) for n in works)


@pytest.mark.parametrize(
    ("name", "spacing", "steps", "problem"),
    [
        ("unipc", "leading", 1000, "begins at t = 0 "),
        ("dpmpp_2m", "leading", 500, "begins at t = 500 "),
        ("ddim", "leading", 1, "begins at t = 1 "),
        ("ddim", "leading", 2, "begins at t = 501 "),
        ("ddim", "leading", 5, "begins at t = 801 "),
        ("ddim", "leading", 600, "begins at t = 600 "),
        ("ddim", "leading", 1000, "needs t = 1000, and the schedule ends at 999"),
        ("ddpm", "linspace", 1, "begins at t = 0 "),
        ("unipc", "linspace", 1000, "visits t = 500 more than once"),
        ("dpmpp_2m_karras", None, 100, "more than once"),
    ],
)
def test_what_is_wrong_with_a_number_of_steps(name: str, spacing: str | None, steps: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build_sampler(NoiseSchedule(), SamplerConfig(name=name, steps=steps, spacing=spacing))  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "advised"), [(5, True), (201, False), (206, False), (600, True)])
def test_another_spacing_is_advised_only_where_it_works(steps: int, advised: bool) -> None:
    """The trailing timesteps of diffusers 0.42.1 are one too many for 62 of 1..1000 steps, such as 201."""
    leading = SamplerConfig(name="ddim", steps=steps, spacing="leading")
    with pytest.raises(ConfigError) as caught:
        build_sampler(NoiseSchedule(), leading)
    assert str(caught.value).endswith(", or use spacing 'trailing'") == advised
    trailing = leading.model_copy(update={"spacing": "trailing"})
    if advised:
        assert build_sampler(NoiseSchedule(), trailing).timesteps[0] == 999
    else:
        with pytest.raises(ConfigError):
            build_sampler(NoiseSchedule(), trailing)


@pytest.mark.parametrize("total", [2, 3, 10, 100, 5000])
def test_schedules_of_other_lengths_have_a_number_of_steps_that_works(total: int) -> None:
    schedule = NoiseSchedule(timesteps=total)
    for name, spacing in LINES[:-1]:
        config = SamplerConfig(name=name, steps=min(total + 1, 300), spacing=spacing)  # type: ignore[arg-type]
        try:
            timesteps = build_sampler(schedule, config).timesteps
        except ConfigError as error:
            steps = int(str(error).partition("works is ")[2].partition(",")[0])
            timesteps = build_sampler(schedule, config.model_copy(update={"steps": steps})).timesteps
        assert timesteps[0] >= total * 0.9 - 1


@pytest.mark.parametrize("name", ["unipc_karras", "dpmpp_2m_karras"])
def test_karras_noise_levels_are_refused_on_a_schedule_that_ends_in_pure_noise(name: str) -> None:
    """diffusers 0.42.1 puts 7 of 12 steps above t = 900 there, and from 32 steps on its loop ends in an
    AssertionError or IndexError: two sigmas near 4096 round to t = 999 (scheduling_unipc_multistep.py,
    `index_for_timestep` takes the second)."""
    config = SamplerConfig(name=name, steps=12)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"sampler {name}: .*rescale_betas_zero_snr.*use {name[:5]}"):
        build_sampler(ZERO_SNR, config)
    build_sampler(V, config)
    scheduler = SAMPLERS[config.name](ZERO_SNR, config)
    scheduler.set_timesteps(12)
    assert int((scheduler.timesteps > 900).sum()) == 7
    scheduler.set_timesteps(40)
    assert (scheduler.timesteps.diff() == 0).any()
    with pytest.raises(ValueError, match="spacing has no effect"):
        SamplerConfig(name=name, spacing="leading")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["unipc_karras", "dpmpp_2m_karras"])
def test_interpolated_timesteps_are_those_of_diffusers(name: str) -> None:
    ours = SAMPLERS[name](NoiseSchedule(), SamplerConfig(name=name))  # type: ignore
    theirs = diffusers_scheduler(NoiseSchedule(), SamplerConfig(name=name))  # type: ignore[arg-type]
    assert type(theirs) in (UniPCMultistepScheduler, DPMSolverMultistepScheduler)
    for steps in (1, 2, 12, 31, 61, 100):
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        assert torch.equal(ours.sigmas, theirs.sigmas)


def test_tables_made_while_sampling_can_be_trained_with() -> None:
    schedule = NoiseSchedule(beta_end=0.0199, prediction_type="v_prediction")  # nobody else's table
    t = torch.tensor([3])
    with torch.inference_mode():
        schedule.eps_from(torch.zeros(1, 1), torch.zeros(1, 1), t)
    output = torch.ones(1, 1, requires_grad=True)
    schedule.eps_from(output, torch.ones(1, 1), t).sum().backward()
    assert output.grad is not None


def test_step_noise_is_asked_for() -> None:
    assert not build_sampler(NoiseSchedule(), SamplerConfig()).noisy
    zt = torch.zeros(1, 1, 2, 2)
    for config in (SamplerConfig(name="ddpm"), SamplerConfig(name="ddim", eta=0.5)):
        sampler = build_sampler(NoiseSchedule(), config)
        assert sampler.noisy
        with pytest.raises(ValueError, match="noise"):
            sampler.start().advance(zt, zt)


def test_a_sampler_is_made_once_and_can_be_used_again() -> None:
    sampler = build_sampler(NoiseSchedule(), SamplerConfig(steps=4))
    assert build_sampler(NoiseSchedule(), SamplerConfig(steps=4)) is sampler
    zt, outputs = torch.ones(1, 2), torch.randn(4, 1, 2)

    def run() -> Tensor:
        trajectory, end = sampler.start(), zt
        for output in outputs:
            end = trajectory.advance(end, output)
        return end

    assert torch.equal(run(), run())


def test_a_timestep_beyond_the_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="trailing"):
        build_sampler(NoiseSchedule(), SamplerConfig(name="ddim", steps=1000, spacing="leading"))
    with pytest.raises(ValueError, match="ddim"):
        SamplerConfig(name="unipc", eta=0.5)


def test_a_word_stands_for_a_sampler() -> None:
    assert SamplerConfig.model_validate("fast") == SamplerConfig(name="unipc", steps=12)
    assert SamplerConfig.model_validate("ddim") == SamplerConfig(name="ddim")
    assert SamplerConfig.model_validate("published") == SamplerConfig(name="ddim", steps=50, spacing="leading")
    with pytest.raises(ValueError, match="did you mean 'fast'"):
        SamplerConfig.model_validate("fsat")
