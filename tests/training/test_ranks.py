"""A batch cut over ranks and parts: every loss and every recipe trains as one rank does with the whole batch."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raygen.extractors.bundled import BundledClassifier, BundledEmbedder, BundledParser
from raygen.extractors.config import (
    BundledClassifierConfig,
    BundledEmbedderConfig,
    BundledNetworkConfig,
    BundledParserConfig,
)
from raygen.extractors.perceptual import load_perceptual
from raygen.models.autoencoder import FirstStage
from raygen.models.checkpoint import build
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.models.config.ldm import LDMConfig
from raygen.models.config.scadm import SCADMConfig, StyleConfig
from raygen.training.config.loop import TrainConfig
from raygen.training.config.losses import (
    AttentionLoss,
    AutoencoderObjectiveConfig,
    DiscriminatorConfig,
    IdentityLoss,
    MaskAwareConfig,
    MinSNRLoss,
    P2Loss,
)
from raygen.training.data import TrainingData, order
from raygen.training.losses import (
    AutoencoderObjective,
    ClassifierObjective,
    DiffusionObjective,
    EmbedderObjective,
    MaskAwareObjective,
    Objective,
    ParserObjective,
)
from raygen.training.states import LocalStates
from raygen.training.trainer import DivergedError, Trainer, train

SIZE, BATCH, STEPS = 16, 8, 2


def data() -> TrainingData:
    """Faces whose masks and attributes are unequally known: parts of a batch differ in what they have."""
    random, n = np.random.default_rng(0), 12
    known = random.random(n) < 0.6
    mask = random.integers(0, 19, (n, SIZE, SIZE), dtype=np.uint8)
    mask[: n // 2, 4:] = 1
    return TrainingData(
        ids=pa.array([f"f{i}" for i in range(n)]),
        face=np.arange(n),
        flipped=np.zeros(n, dtype=bool),
        images=random.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8),
        mask=mask,
        attributes=np.where(random.random((n, 40)) < 0.1 * np.arange(n)[:, None], 1, 0).astype(np.int8),
        present={"mask": known, "attributes": np.ones(n, dtype=bool)},
        identity=np.arange(n) % 3,
        identities=3,
    )


def stage(kind: str = "kl") -> FirstStage:
    config = {"stage": kind, "image_size": SIZE, "channels": (8, 8), "codes": 8, "mid_attention": False}
    return FirstStage(AutoencoderConfig(**config))  # type: ignore[arg-type]


def reconstruction(kind: str, **fields: object) -> AutoencoderObjective:
    discriminator = DiscriminatorConfig(start=1, channels=8, layers=1, **fields)  # type: ignore[arg-type]
    return AutoencoderObjective(stage(kind), AutoencoderObjectiveConfig(discriminator=discriminator))


def denoiser() -> DiffusionObjective:
    config = LDMConfig(modalities=("mask",), channels=(32,), attention=(False,), mask_channels=4)
    return DiffusionObjective(build(config, stage(), seed=0), P2Loss())


def styles() -> DiffusionObjective:
    config = SCADMConfig(
        channels=(16, 32),
        layers_per_block=1,
        attention=(False, True),
        head_dim=8,
        spade_hidden=8,
        style=StyleConfig(base=1, downs=2, ups=1, width=8),
    )
    return DiffusionObjective(build(config, stage(), seed=0), MinSNRLoss(), attention=AttentionLoss(weight=1.0))


def mask_aware() -> MaskAwareObjective:
    config = LDMConfig(modalities=("mask",), channels=(32,), attention=(False,), mask_channels=4)
    terms = MaskAwareConfig(below=1000, face=0.0, latent=0.3, network=BundledNetworkConfig())
    perceptual = load_perceptual(terms.network)
    return MaskAwareObjective(build(config, stage(), seed=0), MinSNRLoss(), config=terms, perceptual=perceptual)


RECIPES: dict[str, Callable[[], Objective]] = {
    "denoiser": denoiser,
    "attention": styles,
    "mask_aware": mask_aware,
    "kl": lambda: reconstruction("kl"),
    "vq": lambda: reconstruction("vq"),
    "batch_norm": lambda: reconstruction("kl", norm="batch"),
    "parser": lambda: ParserObjective(BundledParser(BundledParserConfig(image_size=SIZE, channels=(8, 8)))),
    "classifier": lambda: ClassifierObjective(
        BundledClassifier(BundledClassifierConfig(image_size=SIZE, channels=(8, 8)))
    ),
    "embedder": lambda: EmbedderObjective(
        BundledEmbedder(BundledEmbedderConfig(image_size=SIZE, channels=(8, 8), width=8)), IdentityLoss(identities=3)
    ),
}
Trained = tuple[torch.Tensor, list[dict[str, float]]]


def trainer(name: str, ranks: int, parts: int, rank: int = 0, **fields: object) -> Trainer:
    torch.manual_seed(0)
    settings = {"steps": STEPS, "batch": BATCH, "lr": 1e-3, "warmup": 0, "ema": 0, "log_every": 1, **fields}
    config = TrainConfig(gradient_accumulation_steps=parts, **settings)  # type: ignore[arg-type]
    return Trainer(RECIPES[name](), config, rank=rank, world_size=ranks)


def weights(active: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in active.parameters.values()])


def trained(name: str, ranks: int, parts: int, rank: int = 0) -> Trained:
    """All weights after some steps, and the records of the steps."""
    active = trainer(name, ranks, parts, rank)
    records = [dict(step.losses) for step in train(active, data())]
    return weights(active), records


def _diverged(rank: int, folder: Path) -> str:
    """What a rank says of latents that are not finite and are another rank's."""
    random = np.random.default_rng(1)
    moments = random.standard_normal((12, 8, 4, 4)).astype(np.float16)
    moments[order(0, 12, range(BATCH))[BATCH - 1]] = np.nan
    active = trainer("denoiser", 2, 1, rank, save_every=1, log_every=10)
    try:
        list(train(active, replace(data(), images=None, moments=moments), folder))
    except DivergedError as error:
        return str(error)
    return ""


#: Of a training that is stopped after its third step and goes on from its state of the second.
SHARDED = {"steps": 4, "save_every": 2, "ema": 0.5, "keep": 2}


def _averages(active: Trainer) -> torch.Tensor:
    with active.averaged():
        return weights(active)


def _sharded(rank: int, folder: Path) -> dict[str, Any]:
    """What plain ranks train, and what ranks do that share their state, which rank 0 chooses after a restart."""
    plain = trainer("kl", 2, 1, rank, **SHARDED)
    facts: dict[str, Any] = {"plain": [step.loss for step in train(plain, data())], "averages": _averages(plain)}
    losses = []
    for steps in (3, 4):
        active = trainer("kl", 2, 1, rank, **SHARDED, sharding="zero1")
        with pytest.MonkeyPatch.context() as patched:
            if rank == 1:
                patched.setattr(LocalStates, "newest", lambda _: pytest.fail("rank 0 chooses"))
            running = zip(range(steps), train(active, data(), folder), strict=False)
            losses.append([step.loss for _, step in running])
    own = sum(value.numel() for value in active.averages.values.values())
    states = (values for optimizer in active.optimizers for values in optimizer.optim.state.values())  # type: ignore[attr-defined]
    moments = sum(values[name].numel() for values in states for name in ("exp_avg", "exp_avg_sq"))
    return {**facts, "losses": losses, "sharded": _averages(active), "own": own, "moments": moments}


def _rank(rank: int, folder: str) -> None:
    """All trainings that two processes share: starting the processes takes longer than training in them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results: dict[str, object] = {f"{name}-2": trained(name, 2, 2, rank) for name in RECIPES}
    results |= {f"{name}-1": trained(name, 2, 1, rank) for name in ("kl", "batch_norm")}
    results["diverged"] = _diverged(rank, Path(folder, "states"))
    results["sharded"] = _sharded(rank, Path(folder, "sharded"))
    dist.destroy_process_group()
    torch.save(results, Path(folder, f"{rank}.pt"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder, and what each of two processes trained, by recipe and number of parts."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, args=(str(folder),), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def equal(name: str, found: Trained, expected: Trained) -> None:
    """But for rounding, which Adam makes large in weights whose gradient is nearly 0."""
    for one, other in zip(found[1], expected[1], strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value == pytest.approx(other[key], rel=2e-5, abs=1e-6), key
    moved = (expected[0] - weights(trainer(name, 1, 1))).norm()
    assert (found[0] - expected[0]).norm() < 0.01 * moved


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "batch_norm"])
def test_two_ranks_of_two_parts_train_as_one(name: str, two_ranks: tuple[Path, list[dict[str, Trained]]]) -> None:
    one, other = (results[f"{name}-2"] for results in two_ranks[1])
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1], "a record is of all ranks"
    equal(name, one, trained(name, 1, 1))


@pytest.mark.slow
def test_ranks_without_parts_share_the_adaptive_weight(two_ranks: tuple[Path, list[dict[str, Trained]]]) -> None:
    equal("kl", two_ranks[1][0]["kl-1"], trained("kl", 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_batch_normalisation_is_over_the_ranks(parts: int, two_ranks: tuple[Path, list[dict[str, Trained]]]) -> None:
    """Of a part, whose pictures are the same for any number of ranks."""
    equal("batch_norm", two_ranks[1][0][f"batch_norm-{parts}"], trained("batch_norm", 1, parts))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_ends_all(two_ranks: tuple[Path, list[dict[str, str]]]) -> None:
    """Rank 0, which writes the states, has finite losses; its weights are not finite after the step."""
    folder, results = two_ranks
    assert all("not finite at step 0" in result["diverged"] for result in results)
    assert not list((folder / "states").glob("step-*"))


@pytest.mark.slow
def test_ranks_that_share_their_state_train_as_ranks_that_have_all(
    two_ranks: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Also after a restart, and a training without shards on one rank goes on from their state."""
    folder, results = two_ranks
    ranks = [result["sharded"] for result in results]
    for rank in ranks:
        first, second = rank["losses"]
        assert first == pytest.approx(rank["plain"][:3], rel=1e-6)
        assert second == pytest.approx(rank["plain"][2:], rel=1e-6)
        torch.testing.assert_close(rank["sharded"], rank["averages"], rtol=1e-6, atol=1e-7)
    elements = len(ranks[0]["averages"])
    for kept, whole in (("own", elements), ("moments", 2 * elements)):
        assert sum(rank[kept] for rank in ranks) == whole
        assert max(rank[kept] for rank in ranks) < 0.8 * whole, "a rank has its share"
    shutil.copytree(folder / "sharded" / "step-000000002", tmp_path / "step-000000002")
    alone = trainer("kl", 1, 1, **SHARDED)
    assert [step.loss for step in train(alone, data(), tmp_path)] == pytest.approx(ranks[0]["plain"][2:], rel=1e-4)
    moved = (ranks[0]["averages"] - weights(trainer("kl", 1, 1))).norm()
    assert (_averages(alone) - ranks[0]["averages"]).norm() < 0.01 * moved


def test_parts_change_only_rounding() -> None:
    for name in ("attention", "vq", "parser"):
        equal(name, trained(name, 1, 4), trained(name, 1, 1))
