"""The training loop: seeded, keyed, the same for any number of ranks, and not shaken by a kill."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raygen.core.documents import load_yaml
from raygen.core.errors import ConfigError, InputError, StorageError
from raygen.core.face_labels import ATTRIBUTES, flip_mask
from raygen.models.autoencoder import FirstStage
from raygen.models.checkpoint import build
from raygen.models.compiled import remove_broken_libraries
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.store import disk
from raygen.store.images import encode_image, encode_mask, picture
from raygen.store.schemas import FACES, LATENTS
from raygen.training.config.loop import TrainConfig
from raygen.training.config.losses import AutoencoderObjectiveConfig, DiscriminatorConfig, SimpleLoss
from raygen.training.data import TrainingData, draw, order
from raygen.training.loading import load_training_data
from raygen.training.losses import AutoencoderObjective, DiffusionObjective
from raygen.training.trainer import Trainer, latest_state, train
from raygen.training.window import DivergedError, TrainStep

N = 10


def faces(n: int = N) -> pa.Table:
    random = np.random.default_rng(0)
    made = [
        {
            "face_id": f"f{i}",
            "split": "train" if i else "test",
            "image": picture(encode_image(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))),
            "mask": picture(encode_mask(random.integers(0, 19, (16, 16), dtype=np.uint8))),
            "attributes": tuple(random.choice([-1, 1], 40).tolist()),
        }
        for i in range(n)
    ]
    return pa.Table.from_pylist(made, FACES)


def latents(ids: list[str], autoencoder: str = "ae") -> pa.Table:
    random = np.random.default_rng(1)
    made = [
        {
            "face_id": name,
            "transform": transform,
            "autoencoder": autoencoder,
            "moments": random.standard_normal(8 * 4 * 4).astype(np.float16),
            "shape": [8, 4, 4],
        }
        for transform in ("flip", "none")
        for name in reversed(ids)
    ]
    return pa.Table.from_pylist(made, LATENTS)


def arrays() -> TrainingData:
    table = faces()
    return load_training_data([table], size=16, modalities=["mask"], latents=[latents(table["face_id"].to_pylist())])


def objective() -> DiffusionObjective:
    torch.manual_seed(0)
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8)))
    config = LDMConfig(modalities=("mask",), channels=(32,), attention=(False,), mask_channels=4)
    return DiffusionObjective(build(config, stage, seed=0), SimpleLoss())


def settings(**fields: object) -> TrainConfig:
    base = {"steps": 6, "batch": 4, "lr": 1e-3, "warmup": 2, "ema": 0.9, "log_every": 1, "save_every": 2}
    return TrainConfig(**{**base, **fields})  # type: ignore[arg-type]


def trainer(rank: int = 0, world_size: int = 1, **fields: object) -> Trainer:
    return Trainer(objective(), settings(**fields), rank=rank, world_size=world_size)


# --- data ---------------------------------------------------------------------------------------------------


def test_arrays_of_pictures() -> None:
    table = faces()
    values = table.to_pylist()
    values[3]["image"] = picture(b"broken")
    made = load_training_data(
        [pa.Table.from_pylist(values[:5], FACES), pa.Table.from_pylist(values[5:], FACES)],
        size=16,
        modalities=["mask", "attributes"],
        split="train",
    )
    assert tuple(made.ids.to_pylist()) == ("f1", "f2", "f4", "f5", "f6", "f7", "f8", "f9")
    assert [line.split(":")[0] for line in made.left_out] == ["f3"]
    assert made.images is not None
    assert made.mask is not None
    batch = made.batch(np.array([0, 1]), np.array([False, True]))
    assert np.array_equal(batch["images"][0], made.images[0])
    assert np.array_equal(batch["images"][1], made.images[1][:, ::-1])
    assert np.array_equal(batch["mask"][1], flip_mask(made.mask[1]))
    assert batch["attributes"].shape == (2, 40)
    assert batch["present_mask"].all()


def test_a_label_out_of_range_leaves_its_face_out() -> None:
    values = faces().to_pylist()
    values[2]["mask"] = picture(encode_mask(np.full((16, 16), 19, dtype=np.uint8)))
    values[5]["attributes"] = dict.fromkeys(ATTRIBUTES, 3)
    made = load_training_data([pa.Table.from_pylist(values, FACES)], size=16, modalities=["mask", "attributes"])
    assert len(made) == N - 2
    assert [line.split(":")[:2] for line in made.left_out] == [["f2", " label"], ["f5", " attributes"]]


def test_latents_join_their_faces_and_flips_flip_masks() -> None:
    made = arrays()
    assert len(made) == 2 * N
    assert made.images is None
    assert made.mask is not None
    assert made.flipped.tolist() == [False, True] * N
    batch = made.batch(np.array([4, 5]), np.array([True, False]))
    assert np.array_equal(batch["mask"][0], made.mask[2])
    assert np.array_equal(batch["mask"][1], flip_mask(made.mask[2]))
    table = latents([f"f{i}" for i in range(N)])
    row = next(r for r in table.to_pylist() if r["face_id"] == "f2" and r["transform"] == "flip")
    assert batch["moments"][1].ravel().tolist() == [float(v) for v in row["moments"]]


def test_latents_of_another_first_stage_are_refused() -> None:
    with pytest.raises(InputError, match="another first stage"):
        load_training_data([faces()], size=16, latents=[latents(["f1"], "old")], autoencoder="new")
    with pytest.raises(InputError, match="empty"):
        load_training_data([faces()], size=16, latents=[latents(["unknown"])])
    with pytest.raises(InputError, match="duplicate"):
        load_training_data([faces(), faces()], size=16)
    with pytest.raises(InputError, match="empty"):
        load_training_data([faces()], size=16, split="val")


def test_every_epoch_has_every_row_once_in_its_own_order() -> None:
    epochs = order(5, 10, range(30)).reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert not np.array_equal(epochs, order(6, 10, range(30)).reshape(3, 10))


def test_draws_belong_to_their_position() -> None:
    whole = draw(3, range(8), (2, 4, 4), 1000)
    part = draw(3, range(5, 8), (2, 4, 4), 1000)
    assert all(np.array_equal(whole[name][5:], part[name]) for name in whole)
    assert not np.array_equal(whole["noise"][0], whole["noise"][1])
    assert not np.array_equal(whole["noise"], whole["posterior"])
    many = draw(3, range(4000), (1,), 1000)
    assert many["t"].min() >= 0
    assert many["t"].max() < 1000
    assert abs(many["t"].mean() - 500) < 20
    assert abs(many["mirror"].mean() - 0.5) < 0.03


# --- ranks --------------------------------------------------------------------------------------------------


def gradients(active: Trainer, step: int = 0) -> list[torch.Tensor]:
    active.objective.zero_grad()
    active.objective(active.batch(arrays(), step))["loss"].backward()
    return [p.grad.clone() for p in active.parameters.values() if p.grad is not None]


def test_slices_of_two_ranks_are_the_batch_of_one() -> None:
    whole = trainer().batch(arrays(), 3)
    parts = [trainer(rank, 2).batch(arrays(), 3) for rank in (0, 1)]
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([part[name] for part in parts])), name


def test_gradients_of_two_ranks_average_to_those_of_one() -> None:
    one = gradients(trainer())
    two = [gradients(trainer(rank, 2)) for rank in (0, 1)]
    for expected, a, b in zip(one, *two, strict=True):
        torch.testing.assert_close((a + b) / 2, expected, atol=1e-6, rtol=1e-4)


def test_accumulation_changes_only_rounding() -> None:
    whole, parts = list(train(trainer(), arrays())), list(train(trainer(gradient_accumulation_steps=2), arrays()))
    np.testing.assert_allclose([s.loss for s in whole], [s.loss for s in parts], rtol=1e-4)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="divide"):
        trainer(world_size=3)


# --- the loop -----------------------------------------------------------------------------------------------


def test_it_learns() -> None:
    steps = list(train(trainer(steps=60, lr=3e-3, log_every=20, schedule="constant"), arrays()))
    assert [s.step for s in steps] == [20, 40, 60]
    assert steps[-1].loss < 0.8 * steps[0].loss
    assert steps[-1].images_per_s > 0


def test_half_precision_arithmetic_trains_alike() -> None:
    full, half = (list(train(trainer(precision=p), arrays()))[-1].loss for p in ("float32", "bfloat16"))
    assert half == pytest.approx(full, rel=0.05)


def test_rates_warm_up_and_end_at_nothing() -> None:
    rates = [s.lr for s in train(trainer(steps=8, warmup=4, schedule="constant"), arrays())]
    np.testing.assert_allclose(rates, [2.5e-4, 5e-4, 7.5e-4, *[1e-3] * 5])
    cosine = [s.lr for s in train(trainer(steps=8, warmup=0), arrays())]
    np.testing.assert_allclose(cosine, [5e-4 * (1 + np.cos(np.pi * i / 8)) for i in range(8)])


def test_seconds_end_it() -> None:
    steps = list(train(trainer(steps=None, max_seconds=0.5), arrays()))
    assert 0.5 <= steps[-1].elapsed < 10
    with pytest.raises(ValueError, match="steps or max_seconds"):
        TrainConfig()


def test_averaged_weights_follow_the_formula() -> None:
    active = trainer(steps=4, ema=0.5)
    name, parameter = next(iter(active.parameters.items()))
    expected = parameter.detach().clone()
    for n, _ in enumerate(train(active, arrays())):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * parameter.detach()
    own = parameter.detach().clone()
    with active.averaged():
        torch.testing.assert_close(parameter.detach(), expected)
        assert torch.equal(dict(active.objective.module.named_parameters())[name.split(".", 1)[1]], parameter)
    assert torch.equal(parameter.detach(), own)


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    made = arrays()
    assert made.moments is not None
    made.moments[:] = np.nan
    with pytest.raises(DivergedError, match=r"step 0.*there is no earlier state"):
        list(train(trainer(save_every=1), made, tmp_path))
    assert latest_state(tmp_path) is None


def test_a_single_bad_face_is_named_with_its_step_and_the_way_back(tmp_path: Path) -> None:
    made = arrays()
    assert made.moments is not None
    place = next(i for i, row in enumerate(order(0, len(made), range(24))) if i >= 12)  # a row first met at step 3
    row = int(order(0, len(made), range(24))[place])
    made.moments[row if made.latent is None else made.latent[row]] = np.inf  # type: ignore[index]
    with pytest.raises(DivergedError) as caught:
        list(train(trainer(save_every=2, log_every=6), made, tmp_path))
    text = str(caught.value)
    assert "step 3" in text
    assert str(made.ids[made.face[row]]) in text
    assert "step-000000002" in text
    assert latest_state(tmp_path) == tmp_path / "step-000000002"


def test_a_disk_that_is_full_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    active = trainer()
    running = train(active, arrays(), tmp_path)
    for step in running:
        if step.step == 3:
            break
    while latest_state(tmp_path) is None:  # a thread writes the state of step 2
        time.sleep(0.01)

    def full(path: Path, data: bytes, *, once: bool) -> bool:
        path.write_bytes(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(StorageError, match=r"No space left.*step-000000002 is whole"):
        list(running)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000002"]


# --- phases -------------------------------------------------------------------------------------------------


def adversarial(**fields: object) -> Trainer:
    torch.manual_seed(0)
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8), mid_attention=False))
    config = AutoencoderObjectiveConfig(discriminator=DiscriminatorConfig(start=3, channels=8, layers=1))
    return Trainer(AutoencoderObjective(stage, config), settings(**fields))


def test_a_discriminator_waits_for_its_step() -> None:
    active = adversarial()
    assert active.objective.discriminator is not None  # type: ignore[union-attr]
    before = [p.detach().clone() for p in active.phases[1]]
    steps = []
    for step in train(active, load_training_data([faces()], size=16)):
        steps.append(step)
        same = all(torch.equal(a, b) for a, b in zip(before, active.phases[1], strict=True))
        assert same == (step.step <= 3)
    assert all("discriminator" not in s.losses for s in steps[:3])
    assert all({"discriminator", "adversarial", "adaptive_weight"} <= set(s.losses) for s in steps[3:])


def test_adversarial_training_resumes_exactly(tmp_path: Path) -> None:
    data = load_training_data([faces()], size=16)
    whole = [s.losses for s in train(adversarial(), data)]
    for step in train(adversarial(), data, tmp_path):
        if step.step == 5:
            break
    assert [s.losses for s in train(adversarial(), data, tmp_path)] == whole[4:]


@pytest.mark.parametrize("stage", ["kl", "ldm"])
def test_gradient_checkpointing_changes_memory_only(stage: str) -> None:
    data = load_training_data([faces()], size=16) if stage == "kl" else arrays()
    losses = []
    for on in (False, True):
        active = adversarial(gradient_checkpointing=on) if stage == "kl" else trainer(gradient_checkpointing=on)
        losses.append([s.loss for s in train(active, data)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


# --- compiling ----------------------------------------------------------------------------------------------


def test_without_a_compiler_training_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("no working C++ compiler\ndetails")

    monkeypatch.setattr(torch, "compile", broken)
    active = trainer(compile="max-autotune", steps=2)
    assert active.problem is not None
    assert active.problem.startswith("compile: max-autotune has no effect here")
    assert active.problem.endswith("no working C++ compiler")
    assert capsys.readouterr().err == f"{active.problem}\n"
    assert [s.loss for s in train(active, arrays())] == [s.loss for s in train(trainer(steps=2), arrays())]
    assert trainer().problem is None


def test_yaml_reads_off_as_false() -> None:
    """PyYAML 6.0.3 follows YAML 1.1: off, no and false are one value, and so are on, yes and true."""
    found = [settings(compile=load_yaml(word, "job")).compile for word in ("off", "on", "default")]
    assert found == ["off", "default", "default"]


def test_libraries_that_a_killed_linker_left_are_removed(tmp_path: Path) -> None:
    """torch 2.15.0 (`torch/_inductor/codecache.py`) asks only whether the file is there: it would fail for ever."""
    whole = Path(torch._C.__file__).read_bytes()
    for name, data in (("whole", whole), ("empty", b""), ("half", whole[: len(whole) // 2]), ("new", b"")):
        (tmp_path / "ab").mkdir(exist_ok=True)
        (tmp_path / "ab" / f"{name}.main.so").write_bytes(data)
        if name != "new":  # may be written at this moment
            os.utime(tmp_path / "ab" / f"{name}.main.so", (0, 0))
    remove_broken_libraries(tmp_path)
    assert sorted(path.name for path in (tmp_path / "ab").iterdir()) == ["new.main.so", "whole.main.so"]


@pytest.mark.nightly
@pytest.mark.skipif("RAYGEN_NIGHTLY" not in os.environ, reason="compiles; RAYGEN_NIGHTLY is not set")
def test_a_killed_compilation_does_not_stop_the_next(tmp_path: Path) -> None:
    """The first assertion is about torch alone: where it fails, `remove_broken_libraries` can go."""
    code = "import torch; torch.compile(lambda x: x * 2 + 1)(torch.ones(8))"

    def run() -> str:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_FX_GRAPH_CACHE": "0"}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stderr

    assert "Error" not in run()
    libraries = list(tmp_path.glob("**/*.main.so"))
    assert libraries
    for path in libraries:
        path.write_bytes(b"")
        os.utime(path, (0, 0))
    assert "file too short" in run()
    remove_broken_libraries(tmp_path)
    assert "Error" not in run()


@pytest.mark.nightly
@pytest.mark.skipif("RAYGEN_NIGHTLY" not in os.environ, reason="takes two minutes; RAYGEN_NIGHTLY is not set")
@pytest.mark.parametrize("made", [trainer, adversarial], ids=["denoiser", "first_stage"])
def test_compiled_blocks_train_alike(made: Callable[..., Trainer]) -> None:
    data = arrays() if made is trainer else load_training_data([faces()], size=16)
    plain, compiled = (list(train(made(compile=mode), data)) for mode in ("off", "default"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1, "something was compiled"
    np.testing.assert_allclose([s.loss for s in compiled], [s.loss for s in plain], rtol=1e-4)


# --- state --------------------------------------------------------------------------------------------------


def run(folder: Path | None, stop: int | None = None, **fields: object) -> tuple[list[float], Trainer]:
    active = trainer(**fields)
    losses = []
    for step in train(active, arrays(), folder):
        losses.append(step.loss)
        if step.step == stop:
            break
    return losses, active


def test_resume_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, whole_end = run(None)
    first, _ = run(tmp_path, stop=5)
    rest, rest_end = run(tmp_path)
    assert first == whole[:5]
    assert rest == whole[4:]
    for name, value in whole_end.averages.values.items():
        assert torch.equal(value, rest_end.averages.values[name])
    assert run(tmp_path)[0] == []


def test_a_record_is_there_before_the_state_that_skips_its_step(tmp_path: Path) -> None:
    for step in train(trainer(), arrays(), tmp_path):
        found = latest_state(tmp_path)  # a thread completes it, sooner or later
        assert found is None or found.name <= f"step-{(step.step - 1) // 2 * 2:09d}"
    assert latest_state(tmp_path) == tmp_path / "step-000000006"


def test_a_state_between_two_records_keeps_what_the_next_one_sums(tmp_path: Path) -> None:
    """States of steps 2 and 4, records of steps 3 and 6: the window of the second begins before the state."""

    def facts(step: TrainStep) -> tuple[object, ...]:
        return step.step, step.lr, list(step.losses.items())

    whole = [facts(step) for step in train(trainer(log_every=3), arrays())]
    killed = train(trainer(log_every=3), arrays(), tmp_path)
    assert [facts(next(killed)), facts(next(killed))] == whole
    killed.close()
    assert latest_state(tmp_path) == tmp_path / "step-000000004"
    assert [facts(step) for step in train(trainer(log_every=3), arrays(), tmp_path)] == whole[1:]


def test_what_a_killed_training_left_is_removed(tmp_path: Path) -> None:
    """Unfinished files and states; damaged states, which must not push out a good one; and those beyond `keep`."""
    run(tmp_path, steps=4)
    for name in (".tmp-here.1.f00-x/state.safetensors", "sheets/.tmp-here.1.f00-x", ".checkpoint/unet/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "step-000000009").mkdir()
    (tmp_path / "sheets/step-000000002.png").touch()
    run(tmp_path, steps=4, keep=1)
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.parent.name != "step-000000004")
    assert found == ["sheets", "sheets/step-000000002.png", "step-000000004"]
    (tmp_path / "step-000000009").mkdir()
    run(tmp_path, steps=6, keep=1)
    assert [p.name for p in sorted(tmp_path.glob("step-*"))] == ["step-000000006"]


def test_a_damaged_state_is_passed_over(tmp_path: Path) -> None:
    run(tmp_path)
    assert [p.name for p in sorted(tmp_path.glob("*"))] == ["step-000000004", "step-000000006"]
    newest = tmp_path / "step-000000006" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    assert latest_state(tmp_path) == tmp_path / "step-000000004"
    (tmp_path / "step-000000004" / "state.json").unlink()
    assert latest_state(tmp_path) is None


def test_other_settings_or_data_are_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    with pytest.raises(ConfigError, match="other settings"):
        run(tmp_path, lr=5e-4)
    active = trainer()
    with pytest.raises(ConfigError, match="or data"):
        next(train(active, load_training_data([faces(4)], size=16, modalities=["mask"]), tmp_path))
    assert len(run(tmp_path, steps=4)[0]) == 2
