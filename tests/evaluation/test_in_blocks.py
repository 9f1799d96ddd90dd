"""Features that are read in blocks from a file: the numbers of features in memory, and memory that does not grow."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from raygen.core.errors import StorageError
from raygen.evaluation import feature_metrics, gather
from raygen.evaluation.aggregate import aggregate, gather_scores
from raygen.evaluation.feature_metrics import FeatureMetricsConfig, Grouping
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.evaluation.slices import select_ids
from raygen.metrics import kid as kid_module
from raygen.metrics import neighbors
from raygen.metrics.frechet import FactoredReference, frechet_of_features
from raygen.metrics.frechet_jackknife import blocks_of, margin
from raygen.metrics.memorization import duplicates, memorization
from raygen.store.schemas import SCORES, cast
from raygen.store.vector_file import VectorFile

NAME = "features:net"


def scores(n: int, width: int, seed: int, *, shard: int = 500, name: str = NAME) -> Iterator[pa.Table]:
    """SCORES of correlated features; ids are not in order."""
    mixing = np.random.default_rng(9).standard_normal((width, width)) / width**0.5
    ids = np.random.default_rng(seed).permutation(n)
    for start in range(0, n, shard):
        part = ids[start : start + shard]
        values = np.random.default_rng((seed, start)).standard_normal((len(part), width)) @ mixing + seed / 10
        offsets = pa.array(range(0, values.size + 1, width), pa.int32())
        vectors = pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.float32).ravel()))
        columns = {
            "sample_id": [f"s{i:06d}" for i in part],
            "attempt": pa.array([0] * len(part), pa.int32()),
            "metric": [name] * len(part),
            "run_id": ["r"] * len(part),
            "vector": vectors,
        }
        yield cast(pa.table(columns), SCORES)


def both(monkeypatch: pytest.MonkeyPatch, n: int, width: int, seed: int, name: str = NAME) -> tuple[ScoreMatrix, ...]:
    """The same features in memory and in a file."""
    memory = gather_scores(scores(n, width, seed, name=name))[name]
    with monkeypatch.context() as patch:
        patch.setattr(gather, "IN_MEMORY", 0)
        file = gather_scores(scores(n, width, seed, name=name))[name]
    assert isinstance(memory.vectors, np.ndarray)
    assert isinstance(file.vectors, VectorFile)
    return memory, file


def test_all_metrics_of_features_in_a_file_are_those_of_features_in_memory(monkeypatch):
    """Tiles and blocks are smaller than the sets, so that their edges are passed."""
    monkeypatch.setattr(neighbors, "TILE", 300)
    monkeypatch.setattr(kid_module, "TILE", 300)
    monkeypatch.setattr(feature_metrics, "SUBSET", 50)
    monkeypatch.setattr(neighbors, "SQUARED_BYTES", 400_000)
    made, real = both(monkeypatch, 1203, 24, 1), both(monkeypatch, 1100, 24, 2)
    logits = both(monkeypatch, 1203, 24, 1, "logits:net")
    config = FeatureMetricsConfig(kid=True, kid_subsets=True, knn=3, fid_infinity=True)
    groups = {f"s{i:06d}": f"g{i // 3}" for i in range(1203)}
    tables = [
        aggregate(
            {"all": {NAME: made[i], "logits:net": logits[i]}, "reference": {NAME: real[i]}},
            run_id="r",
            reference="f",
            protocols={},
            frechet_name="fd",
            compare=config,
            grouping=Grouping(people=groups),
        ).to_pylist()
        for i in (0, 1)
    ]
    names = [row["metric"] for row in tables[0]]
    assert {"fd", "kid", "kid_subsets", "precision", "coverage", "fd_infinity", "inception_score"} <= set(names)
    for one, other in zip(*tables, strict=True):
        for key in ("value", "ci_low", "ci_high"):
            assert other[key] == (None if one[key] is None else pytest.approx(one[key], rel=1e-9)), one["metric"]
    for function in (
        lambda i: memorization(made[i].vectors, real[i].vectors, real[i].vectors, q=0.1),
        lambda i: duplicates(made[i].vectors, real[i].vectors, q=0.1),
    ):
        one, other = function(0), function(1)
        assert (one.share, one.threshold, one.closest) == (other.share, other.threshold, other.closest)


def test_a_file_gives_the_rows_of_an_array(monkeypatch):
    memory, file = both(monkeypatch, 700, 5, 1)
    assert file.ids == memory.ids == tuple(sorted(memory.ids))
    for rows in (slice(None), slice(3, 90), slice(690, 800), slice(5, 5), np.array([9, 2, 2, 699]), np.zeros(0, int)):
        assert np.array_equal(file.vectors[rows], memory.vectors[rows])
    assert file.vectors.shape == memory.vectors.shape
    assert np.array_equal(np.asarray(file.vectors), memory.vectors)
    ids = frozenset(memory.ids[10:600:7])
    one, other = (select_ids({NAME: matrix}, ids)[NAME] for matrix in (memory, file))
    assert isinstance(other.vectors, VectorFile)
    assert one.ids == other.ids
    assert np.array_equal(one.vectors, other.vectors[:])


def test_memory_of_an_evaluation_does_not_grow_with_the_vectors(monkeypatch):
    """Twice the rows: the vectors need 4 MB more, ids and indices less than half of it."""
    monkeypatch.setattr(gather, "IN_MEMORY", 1 << 19)
    width, peaks = 128, []
    reference = {NAME: gather_scores(scores(600, width, 2))[NAME]}
    for n in (8192, 16384):
        tracemalloc.start()
        sets = {"all": gather_scores(scores(n, width, 1)), "reference": reference}
        table = aggregate(sets, run_id="r", reference="f", protocols={}, frechet_name="fd")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert table["ci_low"].null_count == 0
        assert table["n"].to_pylist() == [n]
    assert peaks[1] - peaks[0] < 8192 * width * 4 / 2


def test_the_interval_is_that_of_distances_without_each_block():
    """The jackknife by its definition: the distance is computed anew without the rows of each block."""
    random = np.random.default_rng(5)
    x, y = random.standard_normal((900, 12)), random.standard_normal((500, 12)) * 1.1
    for most in (12, 100):  # blocks of more rows than values, and of fewer
        blocks = blocks_of(random.integers(0, 1 << 60, 900).astype(np.uint64), most)
        left = np.array([frechet_of_features(np.delete(x, rows, axis=0), y).value for rows in blocks])
        spread = np.sqrt((len(blocks) - 1) / len(blocks) * ((left - left.mean()) ** 2).sum())
        assert margin(x, FactoredReference.of_features(y), blocks) == pytest.approx(
            stats.t.ppf(0.975, len(blocks) - 1) * spread, rel=1e-9
        )


def test_a_full_disk_for_temporary_files_says_what_to_do(monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    file = VectorFile(4)
    monkeypatch.setattr(file, "_file", open("/dev/full", "wb", buffering=0))  # noqa: SIM115 - closed with `file`
    with pytest.raises(StorageError, match="set TMPDIR to a folder on a larger disk"):
        file.append(np.zeros((3, 4)))
