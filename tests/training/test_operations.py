"""Operations counted without weights are those of the same networks with weights, and dry runs say them."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raygen.commands.base import PreparedRun
from raygen.commands.counted import count_instead
from raygen.commands.registry import make
from raygen.core.errors import ConfigError
from raygen.models import checkpoint, checkpoint_folder
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.operations import hours_of, hours_text, operations_of_decoding
from raygen.sampling.config import SampleConfig
from raygen.sampling.operations import count_sampling, guidance_terms
from raygen.training.losses import AutoencoderObjective, DiffusionObjective
from raygen.training.operations import operations_a_picture, training_operations
from tests.papers import stable_diffusion

#: Attention as matrix products. The flash kernels of torch 2.15 compute the scores once more in their backward pass, so
#: they count 5 products where the plain form has 4.
PLAIN = partial(sdpa_kernel, SDPBackend.MATH)
STAGE = {"image_size": 32, "patch": 1, "channels": [16, 16], "layers_per_block": 1, "latent_channels": 4}
LDM = {
    "kind": "ldm",
    "latent": [4, 16, 16],
    "channels": [16, 32],
    "attention": [False, True],
    "head_dim": 16,
    "layers_per_block": 1,
}
SCADM = {
    "kind": "scadm",
    "latent": [4, 16, 16],
    "channels": [16, 32],
    "attention": [False, True],
    "head_dim": 16,
    "layers_per_block": 1,
    "spade_hidden": 8,
    "style": {"base": 2, "downs": 3, "ups": 2, "width": 8},
}
MODELS = {
    "tokens": {**LDM, "modalities": ["mask", "attributes"], "mask_path": "tokens", "mask_side": 8},
    "scadm": SCADM,
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage") / "stage"
    checkpoint.save(FirstStage(AutoencoderConfig(**STAGE)), folder)
    return folder


def recipe(stage: Path, model: dict[str, Any], **settings: Any) -> Any:
    training = {"steps": 10, "batch": 4, "warmup": 0, **settings.pop("training", {})}
    own = {} if model["kind"] == "autoencoder" else {"first_stage": str(stage), "latents": "latents"}
    return make(
        {"kind": "train", "faces": "faces", "model": model, "training": training, **own, **settings, "out": "x"}
    )


def real_batch(model: Any) -> dict[str, torch.Tensor]:
    latent = torch.zeros(1, *model.latent_shape)
    batch = {"t": torch.zeros(1, dtype=torch.int64), "noise": latent, "posterior": latent, "dropout": torch.ones(1)}
    batch |= {"mask": torch.ones(1, 32, 32, dtype=torch.uint8), "attributes": torch.ones(1, 40)}
    batch |= {"images": torch.zeros(1, 32, 32, 3, dtype=torch.uint8), "moments": torch.zeros(1, 8, 16, 16)}
    return batch | {f"present_{name}": torch.ones(1, dtype=torch.bool) for name in model.modalities}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_without_weights_counts_what_a_step_with_weights_does(stage: Path, name: str) -> None:
    job = recipe(stage, MODELS[name])
    model = checkpoint.build(job.model, checkpoint.load_first_stage(stage), seed=0)
    objective = DiffusionObjective(model, job.loss, job.dropout)
    with PLAIN(), FlopCounterMode(display=False) as counter:
        objective(real_batch(model))["loss"].backward()
    assert operations_a_picture(job) == counter.get_total_flops() > 1e6
    assert training_operations(job) == 40 * counter.get_total_flops()


def test_gradients_that_are_computed_again_cost_a_forward_pass(stage: Path) -> None:
    once = operations_a_picture(recipe(stage, LDM))
    again = operations_a_picture(recipe(stage, LDM, training={"gradient_checkpointing": True}))
    assert 1.3 * once < again < 1.4 * once  # a step is three forward passes


def test_a_first_stage_counts_its_discriminator_from_its_start_on(stage: Path) -> None:
    model = {"kind": "autoencoder", **STAGE}
    terms = {"perceptual": "none", "discriminator": {"start": 6, "norm": "batch"}}
    plain = operations_a_picture(recipe(stage, model, reconstruction={"perceptual": "none"}))
    job = recipe(stage, model, reconstruction=terms)
    objective = AutoencoderObjective(FirstStage(job.model), job.reconstruction)
    objective.step = 9
    batch = {"images": torch.zeros(1, 32, 32, 3, dtype=torch.uint8), "posterior": torch.zeros(1, 4, 16, 16)}
    with PLAIN(), FlopCounterMode(display=False) as counter:
        for phase in (0, 1):
            objective(batch, phase)["loss"].backward()
    assert operations_a_picture(job) == pytest.approx(0.6 * plain + 0.4 * counter.get_total_flops())


def test_lpips_is_counted_without_its_weights(stage: Path) -> None:
    model = {"kind": "autoencoder", **STAGE}
    terms = {"discriminator": None}
    plain, whole = (
        operations_a_picture(recipe(stage, model, reconstruction={"perceptual": perceptual, **terms}))
        for perceptual in ("none", {"weights": "hub"})
    )
    # 13 convolutions of VGG-16 have 15.3e9 multiplications at 224 px; two pictures forward, one backward.
    assert whole - plain == pytest.approx(3 * 2 * 15.35e9 * (32 / 224) ** 2, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"steps": None, "max_seconds": 5}}, "ends by time"),
        ({"first_stage": "nothing", "latents": None}, "no checkpoint here"),
    ],
)
def test_what_cannot_be_counted_is_said(stage: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training_operations(recipe(stage, LDM, **settings))


def test_sampling_is_its_steps_its_guidance_and_a_decoding(stage: Path, tmp_path: Path) -> None:
    job = recipe(stage, MODELS["tokens"])
    model = checkpoint.build(job.model, checkpoint.load_first_stage(stage), seed=0)
    checkpoint.save(model, tmp_path / "model")
    with torch.no_grad():
        with PLAIN(), FlopCounterMode(display=False) as conditions:
            ctx = model.prepare(model.embed(model.null(1)))
        with PLAIN(), FlopCounterMode(display=False) as step:
            model.predict(torch.zeros(1, 4, 16, 16), torch.zeros(1, dtype=torch.int64), ctx)
        with PLAIN(), FlopCounterMode(display=False) as decoding:
            model.first_stage.decode(torch.zeros(1, 4, 16, 16))
    once, each, end = (counter.get_total_flops() for counter in (conditions, step, decoding))

    def counted(**settings: Any) -> float:
        return count_sampling(
            SampleConfig(checkpoint=str(tmp_path / "model"), sampler={"steps": 10}, **settings)
        ).operations

    assert counted() == once + 10 * each + end
    assert counted(guidance=3.0) == 2 * (once + 10 * each) + end
    assert counted(guidance=3.0, guidance_interval=(0.0, 0.5)) == 3 * once + 15 * each + end
    assert [guidance_terms(w) for w in (0.0, 1.0, 2.0, {"mask": 2.0}, {"mask": 0.5, "text": 0.5})] == [1, 1, 2, 2, 2]
    assert guidance_terms({"mask": 2.0, "text": 0.0}) == 2, "a weight of 0 is left out"
    assert [guidance_terms(w, "cfg_minus_one") for w in (0.0, 1.0, -1.0)] == [1, 2, 1]


def test_hours() -> None:
    assert hours_of(0.4 * 989e12 * 3600) == pytest.approx(1)
    assert hours_text(130 * 0.4 * 989e12 * 3600) == (
        "1.9e+20 operations, 130 hours on one H100 at an assumed 40% of 989 TFLOP/s in dense bfloat16"
    )


def test_what_is_small_is_timed_and_errors_of_the_checkpoint_are_told() -> None:
    class Work:
        notes = ()

    from raygen.sampling.operations import Counted

    work: PreparedRun = Work()  # type: ignore[assignment]
    assert count_instead(work, lambda: Counted(1000, 1e6)) is None

    def fail() -> Counted:
        raise ConfigError("no checkpoint here")

    with pytest.raises(ConfigError, match="no checkpoint here"):
        count_instead(work, fail)


@pytest.mark.nightly
@pytest.mark.skipif("RAYGEN_NIGHTLY" not in os.environ, reason="counts at paper size; RAYGEN_NIGHTLY is not set")
def test_a_pretrained_text_encoder_and_the_mask_aware_terms_are_counted_from_documents(tmp_path: Path) -> None:
    stable_diffusion(tmp_path / "sd")
    model = {"kind": "control", "base": f"{tmp_path}/sd", "hint": "none"}
    job = {"kind": "train", "faces": "f", "first_stage": f"{tmp_path}/sd", "model": model, "out": "o"}
    job |= {"training": {"steps": 10, "batch": 2, "warmup": 0}}
    plain = operations_a_picture(make(job))
    terms = {"below": 100, "perceptual": 0.5, "face": 0.0}
    more = operations_a_picture(make(job | {"mask_aware": terms})) - plain
    with torch.device("meta"):
        stage = FirstStage(checkpoint_folder.first_stage_config(tmp_path / "sd"))
    vgg = 3 * 2 * 15.35e9 * (512 / 224) ** 2
    assert more == pytest.approx(0.1 * (3 * operations_of_decoding(stage) + vgg), rel=0.01)
    # 0.8 TFLOP of the UNet and 0.27 of the branch; the gradients of the decoder and the branch twice that.
    assert 1.5e12 < plain < 4e12
