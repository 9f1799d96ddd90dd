"""Settings without effect, and samplers that do not fit the model, are refused before anything runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raygen.commands.generate import GenerateJob
from raygen.commands.registry import make
from raygen.commands.sweep import SweepJob
from raygen.commands.train import TrainJob
from raygen.core.errors import ConfigError
from raygen.sampling.no_effect import SAMPLING
from raygen.sampling.worker import check_sampling
from raygen.store.run_store import open_input
from raygen.training.no_effect import TRAINING
from tests.drawn import drawn, quiet

AUTOENCODER = {"kind": "autoencoder", "image_size": 32}
LDM = {"kind": "ldm", "modalities": ["mask", "attributes"]}
TRAIN: dict[str, Any] = {"kind": "train", "faces": "faces", "training": {"steps": 1}, "out": "out"}
DENOISE: dict[str, Any] = {**TRAIN, "first_stage": "bundled", "model": LDM}
GENERATE: dict[str, Any] = {"kind": "generate", "conditions": "rows", "checkpoint": "bundled", "out": "out"}
SWEEP: dict[str, Any] = {
    "kind": "sweep",
    "conditions": "rows",
    "reference": "faces",
    "samplers": [{"name": "ddim", "steps": [2]}],
    "out": "out",
}


def stage(kind: str, **reconstruction: object) -> dict[str, Any]:
    return {**TRAIN, "model": {**AUTOENCODER, "stage": kind}, "reconstruction": reconstruction}


#: The setting -> a job in which it has no effect.
REFUSED: dict[str, dict[str, Any]] = {
    "first_stage": {**TRAIN, "model": AUTOENCODER, "first_stage": "bundled"},
    "latents": {**TRAIN, "model": AUTOENCODER, "latents": "latents"},
    "loss": {**TRAIN, "model": AUTOENCODER, "loss": {"kind": "simple"}},
    "dropout": {**TRAIN, "model": AUTOENCODER, "dropout": {"null": 0.2}},
    "dropout.only": {**DENOISE, "dropout": {"only": {"text": 0.1}}},
    "caption": {**DENOISE, "caption": "beard"},
    "reconstruction": {**DENOISE, "reconstruction": {"l1": 2.0}},
    "validation_split": {**DENOISE, "validation_split": "test"},
    "validation_pictures": {**DENOISE, "validation_pictures": 9},
    "reconstruction.kl": stage("vq", kl=0.1),
    "reconstruction.codebook": stage("kl", codebook=0.5),
    "reconstruction.codebook_form": stage("dc", codebook_form="released"),
    "training.sheet_every": {
        **TRAIN,
        "model": {"kind": "parser", "image_size": 32},
        "training": {"steps": 1, "sheet_every": 1},
    },
    "mask_aware": {**DENOISE, "mask_aware": {"below": 0, "face": 0.0}},
    "model.codes": {**TRAIN, "model": {**AUTOENCODER, "codes": 9}},
    "model.mid_attention": {**TRAIN, "model": {**AUTOENCODER, "stage": "dc", "mid_attention": False}},
    "model.latents_mean": {**TRAIN, "model": {**AUTOENCODER, "latents_mean": [0.0]}},
    "model.latents_std": {**TRAIN, "model": {**AUTOENCODER, "latents_std": [1.0]}},
    "model.head_dim": {**DENOISE, "model": {**LDM, "heads": 8, "head_dim": 8}},
    "model.mask_channels": {**DENOISE, "model": {**LDM, "mask_path": "tokens", "mask_channels": 8}},
    "model.mask_side": {**DENOISE, "model": {**LDM, "mask_side": 8}},
    "model.mask_class_embedding": {**DENOISE, "model": {**LDM, "mask_class_embedding": False}},
    "model.attribute_tokens": {**DENOISE, "model": {**LDM, "attribute_path": "vector", "attribute_tokens": 8}},
    "model.hint_channels": {**DENOISE, "model": {"kind": "control", "base": "base", "hint_channels": [8, 8]}},
    "model.gating": {**DENOISE, "model": {"kind": "scadm", "style": None, "gating": "paper"}},
    "guidance": {**GENERATE, "use_conditions": ["mask"], "guidance": {"attributes": 3.0}},
    "negative_keeps": {**GENERATE, "negative_keeps": ["mask"]},
    "guidance_interval": {**GENERATE, "guidance_interval": [0.5, 1.0]},
    "mixing.fading": {**GENERATE, "mixing": {"kind": "released", "schedule": "none", "fading": ["text"]}},
    "mixing.boost": {**GENERATE, "mixing": {"kind": "released", "boosted": [], "boost": 3.0}},
}


def check(document: dict[str, Any]) -> None:
    """What a job does before anything else."""
    job = make(document)
    if isinstance(job, GenerateJob):
        check_sampling(job.sampling(""))
    if isinstance(job, SweepJob):
        for cell in job.cells():
            check_sampling(cell.job.sampling(""))


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_without_effect_is_refused_by_name(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"{setting} has no effect: .+"):
        check(REFUSED[setting])


def test_pixels_have_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match=r"model\.stage=pixel has nothing to train"):
        make({**TRAIN, "model": {**AUTOENCODER, "stage": "pixel"}})


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({**TRAIN, "model": {"kind": "parser", "channels": [4, 8]}}, r"model.channels.0: .*multiple of 8 \(got 4\)"),
        ({**TRAIN, "model": {"kind": "classifier", "channels": [8, 12]}}, "model.channels.1: .*multiple of 8"),
        ({**TRAIN, "model": {"kind": "parser", "image_size": 33}}, "model.image_size: .*multiple of 2"),
        ({**DENOISE, "model": {**LDM, "channels": [-64, 96, 128]}}, "model.channels.0: .*greater than 0"),
        ({**DENOISE, "first_stage": "pixels-7"}, "pixels-7: image_size: .*greater than or equal to 8"),
    ],
)
def test_shapes_that_no_network_has_are_told_with_the_job(job: dict[str, Any], said: str) -> None:
    """They ended in a ValueError or RuntimeError of torch, some of them after the data was prepared."""
    with pytest.raises(ConfigError, match=said):
        make(job)


def test_levels_that_do_not_fit_are_told_by_dry_runs(world: Path, tmp_path: Path) -> None:
    deep = {**LDM, "modalities": [], "channels": [32] * 6, "attention": [False] * 6}
    job = make({**DENOISE, "model": deep, "faces": f"{world}/faces", "out": f"{tmp_path}/out"})
    for call in (job.estimate, lambda: job.run(quiet)):
        with pytest.raises(ConfigError, match=r"model\.channels: 6 levels halve latents of 16 x 16 too often"):
            call()
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_every_rule_is_tried() -> None:
    assert {rule.setting for rule in (*TRAINING, *SAMPLING)} == set(REFUSED)


@pytest.mark.parametrize(
    "job",
    [
        {**DENOISE, "model": {**LDM, "modalities": [], "mask_side": 8, "attribute_path": "vector"}},
        {**DENOISE, "dropout": {"only": {"mask": 0.1}}},
        stage("dc", kl=0.0),
        {**GENERATE, "guidance": 2.0, "negative_keeps": ["mask"]},
        {**GENERATE, "guidance": 0.0, "guidance_parametrization": "cfg_minus_one"},
        {**GENERATE, "guidance": 2.0, "use_conditions": ["mask"]},
        {**SWEEP, "guidance": [2.0, {"mask": 2.0}], "use_conditions": {"none": [], "attributes": ["attributes"]}},
        {**SWEEP, "guidance": [1.0, 2.0], "generate": {"negative_keeps": ["mask"], "guidance_interval": [0.5, 1.0]}},
    ],
)
def test_parts_that_are_switched_off_keep_their_settings(job: dict[str, Any]) -> None:
    check(job)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("world"), 4)


@pytest.mark.parametrize(
    ("sampler", "problem"),
    [
        ({"name": "unipc_karras", "steps": 12}, "unipc_karras: .*rescale_betas_zero_snr"),
        ({"name": "ddim", "steps": 5, "spacing": "leading"}, "begins at t = 801 .*works is 10"),
    ],
)
def test_a_sampler_that_does_not_fit_the_model_writes_nothing(
    world: Path, tmp_path: Path, sampler: dict[str, Any], problem: str
) -> None:
    where = {"conditions": f"{world}/rows", "checkpoint": "bundled", "sampler": sampler}
    line = {key: value for key, value in sampler.items() if key != "steps"} | {"steps": [sampler["steps"]]}
    sweep = {"conditions": f"{world}/rows", "reference": f"{world}/faces", "samplers": [line]}
    for job in (
        make({"kind": "generate", **where, "out": f"{tmp_path}/out"}),
        make({"kind": "sweep", **sweep, "out": f"{tmp_path}/out"}),
    ):
        with pytest.raises(ConfigError, match=problem):
            job.estimate()
        with pytest.raises(ConfigError, match=problem):
            job.run(quiet)
    assert not (tmp_path / "out").exists()


def test_flips_of_cached_latents_are_those_of_the_setting(world: Path, tmp_path: Path) -> None:
    """`horizontal_flip: false` trained on mirrored latents all the same, and `true` on none where there were none."""
    made = {}
    for flips in (True, False):
        encode = {"kind": "encode", "faces": f"{world}/faces", "checkpoint": "bundled", "horizontal_flips": flips}
        make({**encode, "out": f"{tmp_path}/{flips}"}).run(quiet)
        assert sum(t.num_rows for t in open_input(f"{tmp_path}/{flips}")[0].tables("latents")) == 4 * (1 + flips)
        made[flips] = f"{tmp_path}/{flips}"

    def job(latents: str, flip: bool) -> TrainJob:
        training = {"steps": 1, "horizontal_flip": flip}
        document = {**DENOISE, "faces": f"{world}/faces", "latents": latents, "training": training}
        document["cache"] = f"{tmp_path}/cache"
        parsed = make(document)
        assert isinstance(parsed, TrainJob)
        return parsed

    assert job(made[True], True).arrays().flipped.tolist() == [False, True] * 4
    plain = job(made[True], False).arrays()
    assert not plain.flipped.any()
    alone = job(made[False], False).arrays()
    rows, mirror = np.arange(4), np.zeros(4, dtype=bool)
    assert np.array_equal(plain.batch(rows, mirror)["moments"], alone.batch(rows, mirror)["moments"])
    with pytest.raises(ConfigError, match=r"training\.horizontal_flip: .* has no latents of mirrored pictures; encode"):
        job(made[False], True).arrays()
