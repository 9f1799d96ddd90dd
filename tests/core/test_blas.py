"""Threads of OpenBLAS: one for narrow matrices, and what there was before it afterwards."""

import threading

import numpy as np
import pytest
from scipy import linalg

from raygen.core import blas
from raygen.metrics import frechet_jackknife
from raygen.metrics.frechet import FactoredReference


def numbers() -> list[int]:
    return [read() for read, _ in blas._controls()]


@pytest.fixture(autouse=True)
def several_threads():
    """numpy and scipy wheels bring an OpenBLAS each; a Python whose numpy uses another library has none to set."""
    if len(blas._controls()) < 2:
        pytest.skip("numpy or scipy uses another library than the OpenBLAS of its wheel")
    before = numbers()
    for _, write in blas._controls():
        write(3)
    yield
    for (_, write), number in zip(blas._controls(), before, strict=True):
        write(number)


def test_one_thread_for_narrow_matrices_until_the_last_block_ends():
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with blas.threads_for(8):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with blas.threads_for(blas.NARROW):
        assert numbers() == [1, 1]
        thread.start()
        assert inside.wait(10)
    assert numbers() == [1, 1], "another thread is still in its block"
    leave.set()
    thread.join()
    assert numbers() == [3, 3]


def test_wide_matrices_have_all_threads_and_an_error_gives_them_back():
    with blas.threads_for(blas.NARROW + 1):
        assert numbers() == [3, 3]
    with pytest.raises(ZeroDivisionError), blas.threads_for(8):
        raise ZeroDivisionError
    assert numbers() == [3, 3]


def test_the_spectra_of_an_interval_are_computed_by_one_thread(monkeypatch):
    seen, spectrum = [], linalg.eigvalsh
    monkeypatch.setattr(linalg, "eigvalsh", lambda *a, **k: seen.append(numbers()) or spectrum(*a, **k))
    features = np.random.default_rng(0).standard_normal((200, 4))
    blocks = frechet_jackknife.blocks_of(np.arange(200, dtype=np.uint64), 10)
    assert frechet_jackknife.margin(features, FactoredReference.of_features(features[:100]), blocks) > 0
    assert seen == [[1, 1]] * 10
    assert numbers() == [3, 3]
