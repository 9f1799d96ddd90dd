"""Nearest neighbours and radii against all pairs measured one by one, with ties, offsets and rounding."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from raygen.metrics.neighbors import blocks, nearest

Array = npt.NDArray[Any]


def cloud(n: int, seed: int, width: int = 16, offset: float = 0.0) -> Array:
    return (np.random.default_rng(seed).normal(size=(n, width)) + offset).astype(np.float32)


def lattice(n: int, seed: int) -> Array:
    """Few values, so that distances are equal everywhere, and rows too."""
    return np.random.default_rng(seed).integers(0, 3, size=(n, 4)) / 10


def every_pair(x: Array, y: Array) -> npt.NDArray[np.float64]:
    return np.asarray(np.sqrt(((x.astype(np.float64)[:, None] - y.astype(np.float64)[None]) ** 2).sum(-1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("block", [1, 7, 1024])
def test_nearest_is_that_of_all_pairs(block: int, offset: float, dtype: torch.dtype) -> None:
    x, y = cloud(90, 1, offset=offset), cloud(130, 2, offset=offset)
    far, index = nearest(x, y, 5, block=block, dtype=dtype)
    whole = every_pair(x, y)
    order = np.argsort(whole, axis=1, kind="stable")[:, :5]
    assert (index == order).all()
    np.testing.assert_allclose(far, np.take_along_axis(whole, order, 1), rtol=1e-12)
    assert far.dtype == np.float64
    assert index.dtype == np.int64


@pytest.mark.parametrize("block", [3, 64])
def test_equal_distances_are_equal_and_a_copy_is_a_neighbour(block: int) -> None:
    x = lattice(100, 3)
    far, index = nearest(x, x, 4, exclude_self=True, block=block)
    whole = every_pair(x, x)
    np.fill_diagonal(whole, np.inf)
    assert (index != np.arange(100)[:, None]).all()
    np.testing.assert_array_equal(far, np.sort(whole, axis=1)[:, :4])
    copies = (x[:, None] == x[None]).all(-1).sum(1) > 1
    assert copies.any()
    assert (far[copies, 0] == 0).all()
    assert (far[~copies, 0] > 0).all()


def test_blocks_do_not_change_bits_and_rows_may_be_permuted() -> None:
    x, y = cloud(70, 4), cloud(80, 5)
    far, index = nearest(x, y, 3, block=70)
    for block in (1, 9, 33):
        other_far, other = nearest(x, y, 3, block=block)
        assert other_far.tobytes() == far.tobytes()
        assert (other == index).all()
    turn = np.random.default_rng(6).permutation(80)
    other_far, other = nearest(x, y[turn], 3)
    assert other_far.tobytes() == far.tobytes()
    assert (turn[other] == index).all()


def test_distance_is_exact_where_the_product_cannot_be() -> None:
    """Close pairs far out: in float32 |x|² + |y|² - 2 x.y has no digit left."""
    x = cloud(40, 7) * 1e-3 + np.float32(50) * cloud(40, 8)
    y = x + np.float32(1e-4)
    far, index = nearest(x, y, 1)
    assert (index[:, 0] == np.arange(40)).all()
    np.testing.assert_array_equal(far[:, 0], np.diag(every_pair(x, y)))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("make", [lattice, cloud])
def test_within_is_that_of_all_pairs(make: Callable[[int, int], Array], strict: bool) -> None:
    x, y = make(60, 9), make(75, 10)
    whole = every_pair(x, y)
    rows, columns = whole[:, 7:8].copy(), whole[11:12].copy()  # radii that are met exactly
    found = [part.within(rows[part.rows], strict=strict) for part in blocks(x, y, block=13)]
    other = [part.within(columns, strict=strict) for part in blocks(x, y, block=13)]
    compare = np.less if strict else np.less_equal
    assert (torch.cat(found).numpy() == compare(whole, rows)).all()
    assert (torch.cat(other).numpy() == compare(whole, columns)).all()
    assert (np.less(whole, rows) != np.less_equal(whole, rows)).any()


def test_within_leaves_itself_out() -> None:
    x = lattice(30, 11)
    part = next(blocks(x, x, exclude_self=True))
    inside = part.within(np.full((1, 1), 100.0), strict=False).numpy()
    assert (inside == ~np.eye(30, dtype=bool)).all()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_scale_does_not_matter(scale: float) -> None:
    x = cloud(30, 12).astype(np.float64)
    far, index = nearest(x, x, 2, exclude_self=True)
    scaled_far, scaled = nearest(x * scale, x * scale, 2, exclude_self=True)
    assert (index == scaled).all()
    np.testing.assert_allclose(scaled_far, far * scale, rtol=1e-12)


def test_products_are_whole_float32_whatever_was_set() -> None:
    before = torch.get_float32_matmul_precision()
    x = cloud(50, 13, width=512)
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            squared = next(blocks(x, x)).squared
        assert torch.get_float32_matmul_precision() == "highest"  # for good: see raygen/core/precision.py
    finally:
        torch.set_float32_matmul_precision(before)
    assert squared.dtype == torch.float32
    np.testing.assert_allclose(next(blocks(x, x)).squared.numpy(), squared.numpy(), atol=1e-2)


def test_bounded_memory_of_a_block() -> None:
    part = next(blocks(cloud(500, 14), cloud(300, 15), block=100))
    assert part.squared.shape == (100, 300)
    assert part.squared.dtype == torch.float32
    assert part.rows == slice(0, 100)


@pytest.mark.parametrize(
    "call",
    [
        lambda: nearest(cloud(5, 0), cloud(5, 0), 6),
        lambda: nearest(cloud(5, 0), cloud(5, 0), 5, exclude_self=True),
        lambda: nearest(cloud(5, 0), cloud(5, 0), 0),
        lambda: nearest(cloud(5, 0), cloud(6, 0), 1, exclude_self=True),
        lambda: nearest(cloud(5, 0), cloud(5, 0, 3), 1),
        lambda: nearest(cloud(5, 0), cloud(5, 0) * np.nan, 1),
        lambda: nearest(np.zeros((0, 3)), cloud(5, 0, 3), 1),
        lambda: nearest(np.zeros(3), cloud(5, 0, 3), 1),
        lambda: blocks(cloud(5, 0), cloud(5, 0), block=0),
    ],
)
def test_what_has_no_neighbours_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()
