"""Metrics from committed SCORES: the same over any number of shards in any order."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raygen.commands.registry import make
from raygen.core.errors import InputError
from raygen.core.face_labels import CLASSES
from raygen.evaluation.aggregate import aggregate, gather_scores, write_metrics
from raygen.evaluation.config import FeatureMetricsConfig
from raygen.metrics.attributes import codes
from raygen.metrics.frechet import ROWS, Moments, frechet
from raygen.metrics.segmentation import Counts
from raygen.store.filesystem import FileStore
from raygen.store.parquet import from_parquet
from raygen.store.schemas import SCORES

ROWS_MADE, WIDTH = 90, 6
NETWORK = "raygen-parser"


def scores(seed: int, shift: float = 0.0, n: int = ROWS_MADE) -> pa.Table:
    """Rows of every kind that becomes a number, of pictures whose ids are in no order."""
    random = np.random.default_rng(seed)
    target = random.multinomial(1024, np.ones(19) / 19, n)
    both = random.binomial(target, 0.7)
    counts = np.concatenate([both, target, np.roll(target - both, 1, axis=1) + both], axis=1)
    wanted = random.integers(-1, 2, (n, 40)).astype(np.int8)
    found = {
        f"features:{NETWORK}": random.normal(shift, 1, (n, WIDTH)),
        f"features:{NETWORK}@face": random.normal(shift / 2, 1, (n, WIDTH)),
        f"segmentation:{NETWORK}": counts,
        f"condition:{NETWORK}@32": counts,
        "attributes:raygen-attributes": codes(wanted, random.random((n, 40)) < 0.5),
        "ssim:source": random.random((n, 1)),
        "psnr:source": random.normal(20, 4, (n, 1)),
        "lpips:source:vgg": random.random((n, 1)),
        "clip:small": random.normal(0.2, 0.1, (n, 1)),
        "change": random.random((n, 4)) * 100,
    }
    ids = [f"r{i:03}" for i in random.permutation(n)]
    rows = [
        {"sample_id": one, "attempt": 0, "metric": name, "run_id": "r", "vector": vector}
        for name, vectors in found.items()
        for one, vector in zip(ids, np.asarray(vectors, np.float32).tolist(), strict=True)
    ]
    return pa.Table.from_pylist(rows, SCORES)


def shards(table: pa.Table, seed: int) -> list[pa.Table]:
    """The rows dealt out at random to some shards, some of them perhaps of one row, in a random order."""
    random = np.random.default_rng(seed)
    order = random.permutation(table.num_rows)
    cuts = np.sort(random.choice(np.arange(1, table.num_rows), random.integers(0, 40), replace=False))
    return [table.take(part) for part in np.split(order, cuts)]


def numbers(made: list[pa.Table], real: list[pa.Table]) -> dict[tuple[str, str], tuple[float, ...]]:
    found = aggregate(
        {"all": gather_scores(made), "reference": gather_scores(real)},
        run_id="r",
        reference="x",
        protocols={},
        frechet_name=f"fd:{NETWORK}",
        compare=FeatureMetricsConfig(knn=3, fid_infinity=True),
    )
    return {
        (row["metric"], row["slice"]): tuple(
            float("nan") if row[name] is None else row[name] for name in ("value", "n", "ci_low", "ci_high")
        )
        for row in found.to_pylist()
    }


@pytest.mark.parametrize("seed", range(12))
def test_any_cut_of_the_rows_gives_the_same_table(seed: int) -> None:
    made, real = scores(1, 0.4), scores(2)
    whole, cut = numbers([made], [real]), numbers(shards(made, seed), shards(real, 100 + seed))
    assert cut.keys() == whole.keys()
    kinds = {metric.partition(":")[0].partition("@")[0] for metric, _ in whole}
    assert kinds >= {
        "fd",
        "kid",
        "recall",
        "fd_infinity",
        "miou",
        "iou",
        "mask_accuracy",
        "attribute_balanced",
        "ssim",
        "psnr",
        "lpips",
        "clip_score",
        "leakage",
    }
    for key, values in whole.items():
        np.testing.assert_allclose(cut[key], values, rtol=1e-6, atol=1e-9, err_msg=str(key))


def test_one_row_less_is_another_table() -> None:
    """What the test above would not see if it could not fail."""
    made, real = scores(1, 0.4), scores(2)
    whole = numbers([made], [real])
    less = numbers([made.filter(pa.array([one != "r007" for one in made["sample_id"].to_pylist()]))], [real])
    moved = [key for key in whole if less[key][0] != pytest.approx(whole[key][0], rel=1e-6)]
    assert {metric.partition(":")[0].partition("@")[0] for metric, _ in moved} >= {"fd", "kid", "miou", "psnr"}


@pytest.mark.parametrize("seed", range(6))
def test_statistics_merge_over_any_cut(seed: int) -> None:
    """Moments and counts merge without the rows: what a shard could send in their place."""
    random = np.random.default_rng(seed)
    rows = random.normal(3, 2, (400, 16)).astype(np.float32)
    other = Moments.of(random.normal(2.5, 2, (300, 16)))
    cuts = np.sort(random.choice(np.arange(1, 400), random.integers(1, 30), replace=False))
    parts = [Moments.of(part) for part in np.split(rows[random.permutation(400)], cuts)]
    merged = Moments.merge_all([parts[i] for i in random.permutation(len(parts))])
    assert frechet(merged, other).value == pytest.approx(frechet(Moments.of(rows), other).value, abs=1e-9)
    vectors = random.integers(0, 4000, (60, 3 * len(CLASSES)))
    totals = [Counts.from_vectors(part).total() for part in np.split(vectors[random.permutation(60)], [7, 8, 30])]
    merged_counts = Counts(*(sum(getattr(t, name) for t in totals) for name in ("both", "wanted", "predicted")))
    assert merged_counts.scores() == Counts.from_vectors(vectors).total().scores()


def test_moments_of_many_rows_are_those_of_numpy() -> None:
    """They are taken in blocks."""
    rows = np.random.default_rng(0).normal(100, 1, (2 * ROWS + 37, 5)).astype(np.float32)
    found = Moments.of(rows)
    assert found.n == len(rows)
    np.testing.assert_allclose(found.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)
    rows[ROWS + 5, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Moments.of(rows)


def test_vectors_of_two_widths_are_refused() -> None:
    rows = [
        {"sample_id": f"r{i}", "attempt": 0, "metric": "features:x", "run_id": "x", "vector": [1.0] * width}
        for i, width in enumerate((3, 4))
    ]
    with pytest.raises(InputError, match="vectors of 4 and of 3 values"):
        gather_scores([pa.Table.from_pylist(rows[i : i + 1], SCORES) for i in (0, 1)])


def test_stores_of_other_shards_give_the_same_numbers(tmp_path: Path) -> None:
    """Scored and committed in one shard, in three, and in six: the batch is the same, nothing else is."""
    data = {"kind": "procedural", "identities": 24, "pictures": 1, "size": 64, "seed": 5}
    make({"kind": "ingest", "data": data, "out": f"{tmp_path}/faces"}).run(lambda _: None)
    found = []
    for shard_rows in (32, 8, 4):
        out = tmp_path / str(shard_rows)
        what = {"reference": f"{tmp_path}/faces", "batch": 4, "shard_rows": shard_rows}
        make({"kind": "evaluate", **what, "out": str(out)}).run(lambda _: None)
        assert len(list((out / "scores/reference/attempt-00/commits").iterdir())) == -(-24 // shard_rows)
        rows = json.loads((out / "metrics/metrics.json").read_text())
        found.append({(r["metric"], r["slice"]): (r["value"], r["ci_low"] or 0, r["ci_high"] or 0) for r in rows})
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, values in found[0].items():
            assert other[key] == pytest.approx(values, rel=1e-6), key


def test_damaged_metrics_are_written_again(tmp_path: Path) -> None:
    row = {"run_id": "r", "metric": "miou", "slice": "all", "value": 0.5, "n": 1, "protocol": "{}"}
    path = tmp_path / "metrics.parquet"
    write_metrics(FileStore(tmp_path), [{**row, "created": datetime(2026, 1, 1, tzinfo=UTC)}])
    data = path.read_bytes()
    write_metrics(FileStore(tmp_path), [{**row, "created": datetime(2026, 1, 2, tzinfo=UTC)}])
    assert path.read_bytes() == data
    path.write_bytes(data[:-9])
    write_metrics(FileStore(tmp_path), [{**row, "created": datetime(2026, 1, 3, tzinfo=UTC)}])
    (found,) = from_parquet(path.read_bytes()).to_pylist()
    assert (found["value"], found["created"].day) == (0.5, 3)
