"""Keyed noise, guidance, samplers against diffusers' own loop, and a worker whose rows stand alone."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from torch import Tensor

from raygen.core.errors import ConfigError
from raygen.models import checkpoint, compiled
from raygen.models.autoencoder import FirstStage
from raygen.models.base import Model
from raygen.models.conditions import Conditions, Shapes
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.noise import NoiseSchedule
from raygen.models.config.sampler import SamplerConfig
from raygen.models.schedulers import build_sampler
from raygen.sampling.config import SampleConfig
from raygen.sampling.guidance import build_guidance
from raygen.sampling.noise import KeyedNoise, noise_key
from raygen.sampling.worker import SampleWorker, denoise
from raygen.store.images import decode_image, encode_mask, picture
from raygen.store.schemas import CONDITIONS, SAMPLES

EPS = NoiseSchedule()
ZERO_SNR = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)


def tiny(noise: NoiseSchedule = EPS, modalities: tuple[str, ...] = ("mask", "attributes")) -> Model:
    torch.manual_seed(0)
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8)))
    stage.calibrate(torch.randn(32, 8, 4, 4) * 0.5)
    config = LDMConfig(
        modalities=modalities,  # type: ignore[arg-type]
        channels=(32, 32),
        attention=(False, True),
        token_width=16,
        mask_channels=4,
        noise=noise,
    )
    model = checkpoint.build(config, stage, seed=1).eval()
    _wake(model)
    return model


def _wake(model: Model) -> None:
    """Random weights where an untrained model has zeros, as if it had been trained."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)


def rows(n: int, *, first: int = 0) -> pa.Table:
    random = np.random.default_rng(7)
    made = [
        {
            "sample_id": f"s{i:03d}",
            "plan": "test",
            "seed": 3,
            "group_id": f"g{i // 2}",
            "mask": picture(encode_mask(random.integers(0, 19, (16, 16), dtype=np.uint8))),
            "attributes": tuple(random.choice([-1, 1], 40).tolist()),
        }
        for i in range(first + n)
    ]
    return pa.Table.from_pylist(made[first:], CONDITIONS)


def images(table: pa.Table) -> list[np.ndarray | None]:
    return [None if v is None else decode_image(v["bytes"]) for v in table["image"].to_pylist()]


# --- guidance -----------------------------------------------------------------------------------------------


def terms(model: Model, conditions: Conditions, zt: Tensor, t: Tensor) -> dict[str, Tensor]:
    parts = {"all": conditions, "null": model.null(conditions.n)}
    parts |= {name: conditions.keep({name}) for name in model.modalities}
    return {name: model.predict(zt, t, model.prepare(model.embed(c))) for name, c in parts.items()}


@torch.no_grad()
def test_guidance_formulas() -> None:
    model = tiny()
    conditions, _ = Conditions.from_rows(rows(2), model.modalities, shapes=Shapes(16))
    zt, t = torch.randn(2, *model.latent_shape), torch.tensor([500, 20])
    e = terms(model, conditions, zt, t)
    for w in (0.0, 1.0, 3.5):
        found = build_guidance(model, conditions, w)(model, zt, t)
        torch.testing.assert_close(found, e["null"] + w * (e["all"] - e["null"]), atol=1e-5, rtol=1e-4)
    found = build_guidance(model, conditions, {"mask": 2.0, "attributes": 1.5})(model, zt, t)
    expected = e["null"] + 2.0 * (e["mask"] - e["null"]) + 1.5 * (e["attributes"] - e["null"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_terms_that_count_nothing_are_not_evaluated() -> None:
    model = tiny()
    conditions, _ = Conditions.from_rows(rows(2), model.modalities, shapes=Shapes(16))
    count = {str(g): len(build_guidance(model, conditions, g).weights) for g in (1.0, 0.0, 2.0)}
    assert count == {"1.0": 1, "0.0": 1, "2.0": 2}
    assert len(build_guidance(model, conditions, {"mask": 1.0}).weights) == 1
    assert len(build_guidance(model, conditions, {"mask": 0.5, "attributes": 0.5}).weights) == 2
    assert len(build_guidance(model, conditions, {"mask": 2.0, "attributes": 2.0}).weights) == 3
    assert build_guidance(tiny(modalities=()), model.null(2).keep(()), 1.0).weights == (1.0,)
    with pytest.raises(ConfigError, match="guidance: 4 has no effect: the model takes no conditions"):
        build_guidance(tiny(modalities=()), model.null(2).keep(()), 4.0)
    with pytest.raises(ConfigError, match="text"):
        build_guidance(model, conditions, {"text": 2.0})


@torch.no_grad()
def test_guidance_interval_counts_its_steps() -> None:
    model = tiny()
    conditions, _ = Conditions.from_rows(rows(1), model.modalities, shapes=Shapes(16))
    strong, plain = build_guidance(model, conditions, 5.0), build_guidance(model, conditions, 1.0)
    sampler = SamplerConfig(name="ddim", steps=10)
    zt = torch.randn(1, *model.latent_shape)

    def run(interval: tuple[float, float]) -> list[Tensor]:
        return list(denoise(model, strong, zt, build_sampler(EPS, sampler), unguided=plain, interval=interval))

    guided, partly = run((0.0, 1.0)), run((0.0, 0.3))
    bare = list(denoise(model, plain, zt, build_sampler(EPS, sampler)))
    assert all(torch.equal(a, b) for a, b in zip(guided[:3], partly[:3], strict=True))
    assert not torch.equal(guided[3], partly[3])
    assert all(torch.equal(a, b) for a, b in zip(run((2.0, 3.0)), bare, strict=True))


# --- samplers against diffusers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "noise", "kind"), [("unipc", EPS, UniPCMultistepScheduler), ("ddim", ZERO_SNR, DDIMScheduler)]
)
@torch.no_grad()
def test_the_loop_is_diffusers_own_loop(name: str, noise: NoiseSchedule, kind: Any) -> None:
    """With a network, in float32; see `tests/models/test_schedulers.py` for every sampler, spacing and step count."""
    model = tiny(noise)
    conditions, _ = Conditions.from_rows(rows(2), model.modalities, shapes=Shapes(16))
    zt = torch.randn(2, *model.latent_shape)
    sampler = SamplerConfig(name=name, steps=8)  # type: ignore[arg-type]
    *_, ours = denoise(model, build_guidance(model, conditions, 1.0), zt, build_sampler(noise, sampler))
    oracle = kind(**noise.scheduler_config(), timestep_spacing="trailing")
    if kind is DDIMScheduler:
        oracle.register_to_config(clip_sample=False)
    oracle.set_timesteps(8)
    ctx = model.prepare(model.embed(conditions))
    theirs = zt * oracle.init_noise_sigma
    for t in oracle.timesteps:
        output = model.predict(oracle.scale_model_input(theirs, t), torch.full((2,), int(t)), ctx)
        theirs = oracle.step(output, t, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# --- the worker ---------------------------------------------------------------------------------------------


def worker(model: Model, **fields: object) -> SampleWorker:
    config = {"checkpoint": "given", "batch": 8, "sampler": SamplerConfig(steps=4), "device": "cpu", **fields}
    return SampleWorker(SampleConfig(**config), model=model)  # type: ignore[arg-type]


def test_a_batch_is_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    sampler = SamplerConfig(name="ddim", steps=5, eta=1.0)
    drawn: list[Tensor] = []
    real = KeyedNoise.__call__

    def spy(noise: KeyedNoise, stream: int) -> Tensor:
        drawn.append(real(noise, stream))
        return drawn[-1]

    monkeypatch.setattr(KeyedNoise, "__call__", spy)
    together = worker(model, batch=8, sampler=sampler, guidance=2.0)(rows(8))["samples"]
    noise, drawn[:] = list(drawn), []
    alone = worker(model, batch=1, sampler=sampler, guidance=2.0)
    one_by_one = pa.concat_tables([alone(rows(1, first=i))["samples"] for i in range(8)])
    assert len(noise) == 6
    for step in range(6):
        assert torch.equal(noise[step], torch.cat(drawn[step::6]))
    for a, b in zip(images(together), images(one_by_one), strict=True):
        assert a is not None
        assert b is not None
        assert np.abs(a.astype(int) - b).max() <= 1
    assert together.drop_columns(["image", "image_sha256"]) == one_by_one.drop_columns(["image", "image_sha256"])


def test_rows_carry_everything(tmp_path: Path) -> None:
    digest = checkpoint.save(tiny(), tmp_path / "m")
    config = SampleConfig(
        checkpoint=str(tmp_path / "m"),
        sampler=SamplerConfig(name="dpmpp_2m", steps=3),
        guidance={"mask": 1.5},
        attempt=2,
        batch=4,
        run_id="run",
        codec="png",
        device="cpu",
    )
    table = SampleWorker(config)(rows(3))["samples"]
    assert table.schema.equals(SAMPLES)
    first = table.to_pylist()[0]
    assert {k: first[k] for k in ("sample_id", "attempt", "run_id", "checkpoint", "sampler", "steps")} == {
        "sample_id": "s000",
        "attempt": 2,
        "run_id": "run",
        "checkpoint": digest,
        "sampler": "dpmpp_2m",
        "steps": 3,
    }
    assert {k: v for k, v in first["guidance"].items() if v} == {"mask": 1.5}
    assert first["group_id"] == "g0"
    assert first["mask"]["bytes"] == rows(1)["mask"][0].as_py()["bytes"]
    assert first["error"] is None
    image = decode_image(first["image"]["bytes"])
    assert image.shape == (16, 16, 3)
    assert len(first["image_sha256"]) == 64


def test_attempts_and_seeds_have_other_noise() -> None:
    model = tiny()
    made = [images(worker(model, **fields)(rows(1))["samples"])[0] for fields in ({}, {"attempt": 1}, {"seed": 1}, {})]
    assert all(m is not None for m in made)
    assert np.array_equal(made[0], made[3])  # type: ignore[arg-type]
    assert not np.array_equal(made[0], made[1])  # type: ignore[arg-type]
    assert not np.array_equal(made[0], made[2])  # type: ignore[arg-type]


def test_the_first_stage_decodes_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = tiny(), []
    real = model.first_stage.decode
    monkeypatch.setattr(model.first_stage, "decode", lambda z: (sizes.append(len(z)), real(z))[1])
    whole, parts = (images(worker(model, decode_batch=size)(rows(8))["samples"]) for size in (8, 3))
    assert sizes == [8, 3, 3, 2]
    for a, b in zip(whole, parts, strict=True):
        assert a is not None
        assert b is not None
        assert np.abs(a.astype(int) - b).max() <= 1


def test_padding_changes_no_row() -> None:
    model = tiny()
    full, part = (worker(model)(rows(n))["samples"] for n in (8, 3))
    assert full.slice(0, 3) == part


def test_a_bad_row_and_a_nan_leave_their_neighbours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    clean = worker(model)(rows(6))["samples"]
    values = rows(6).to_pylist()
    values[1]["mask"]["bytes"] = values[1]["mask"]["bytes"][:-20]
    values[4]["attributes"]["Male"] = 5
    poisoned = noise_key(0, "s002", 0)
    real = KeyedNoise.__call__

    def poison(noise: KeyedNoise, stream: int) -> Tensor:
        return (
            real(noise, stream)
            * torch.tensor([torch.nan if key == poisoned else 1 for key in noise.keys])[:, None, None, None]
        )

    monkeypatch.setattr(KeyedNoise, "__call__", poison)
    seen: list[tuple[int, list[str]]] = []

    def observe(pictures: np.ndarray, kept: pa.Table) -> pa.Table:
        seen.append((len(pictures), kept["sample_id"].to_pylist()))
        n = kept.num_rows
        columns = {"sample_id": kept["sample_id"], "attempt": pa.array([0] * n, pa.int32())}
        return pa.table({**columns, "metric": ["seen"] * n, "run_id": ["r"] * n})

    active = worker(model)
    active.observe = observe
    tables = active(pa.Table.from_pylist(values, CONDITIONS))
    dirty = tables["samples"]
    errors = dirty["error"].to_pylist()
    assert errors[1].split(":")[0] in ("truncated", "corrupt")
    assert errors[2].startswith("nonfinite")
    assert errors[4].startswith("attributes")
    assert [i for i, e in enumerate(errors) if e is None] == [0, 3, 5]
    for i in (0, 3, 5):
        assert dirty.slice(i, 1) == clean.slice(i, 1)
    for i in (1, 2, 4):
        assert dirty["image"][i].as_py() is None
        assert dirty["image_sha256"][i].as_py() is None
    assert seen == [(3, ["s000", "s003", "s005"])]
    assert tables["scores"].num_rows == 3


def test_start_does_the_work_and_the_rest_can_wait() -> None:
    active = worker(tiny())
    thunks = [active.start(rows(2)), active.start(rows(2, first=2))]
    later = pa.concat_tables([thunk()["samples"] for thunk in thunks])
    assert later == pa.concat_tables([active(rows(2))["samples"], active(rows(2, first=2))["samples"]])


def test_out_of_memory_is_not_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()

    def fail(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "predict", fail)
    with pytest.raises(torch.OutOfMemoryError):
        worker(model)(rows(2))


def test_an_unconditional_model_ignores_conditions() -> None:
    model = tiny(modalities=())
    made = worker(model)(rows(2))["samples"]
    assert made["error"].null_count == 2
    bare = rows(2).set_column(rows(2).column_names.index("mask"), "mask", pa.nulls(2, rows(2)["mask"].type))
    assert worker(model)(bare)["samples"]["image_sha256"] == made["image_sha256"]


@pytest.mark.nightly
@pytest.mark.skipif("RAYGEN_NIGHTLY" not in os.environ, reason="compiles for a minute; RAYGEN_NIGHTLY is not set")
def test_compiled_blocks_make_the_same_pictures() -> None:
    torch._dynamo.reset()
    active = worker(tiny(), compile="default", batch=2)
    assert active.environment()["compile"] == "default"
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 1
    made = images(active(rows(2))["samples"])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "all was compiled when the worker was made"
    for a, b in zip(made, images(worker(tiny(), batch=2)(rows(2))["samples"]), strict=True):
        assert a is not None
        assert b is not None
        assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize("fails", ["the compiler", "the network"])
def test_without_a_compiler_pictures_are_made_and_it_is_said(
    fails: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no working C++ compiler\ndetails")

    if fails == "the compiler":
        monkeypatch.setattr(torch, "compile", broken)
    else:
        monkeypatch.setattr(compiled, "compiler_problem", lambda _: None)
        monkeypatch.setattr(
            torch.nn.Module, "compile", lambda block, **_: setattr(block, "_compiled_call_impl", broken)
        )
    made = worker(tiny(), compile="max-autotune", batch=2)
    said = capsys.readouterr().err
    assert said.startswith("compile: max-autotune ")
    assert said.endswith("no working C++ compiler\n")
    assert made.environment()["compile"] == f"off: {said.strip()}"
    assert made(rows(2))["samples"].equals(worker(tiny(), batch=2)(rows(2))["samples"])
    assert worker(tiny()).environment()["compile"] == "off"


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_half_precision_pictures_are_close(precision: str) -> None:
    exact = images(worker(tiny())(rows(4))["samples"])
    rough = images(worker(tiny(), precision=precision)(rows(4))["samples"])
    for a, b in zip(exact, rough, strict=True):
        assert a is not None
        assert b is not None
        assert np.abs(a.astype(int) - b).mean() < 4
