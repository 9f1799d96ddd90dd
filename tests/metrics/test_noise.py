"""Noise is told from pictures, however smooth it is; a set says what most of its pictures are."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from raygen.datasets.procedural.draw import draw
from raygen.metrics.noise import LIMIT, SIDE, check_noise, edge_kurtosis
from raygen.store.images import decode_image


def noise(cell: int, smooth: float, size: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray:
    """Normal noise in cells of some pixels, as a latent has it, each decoded smoothly, around grey."""
    random = np.random.default_rng(seed)
    grid = random.normal(size=(-(-size[0] // cell), -(-size[1] // cell), 3))
    pixels = np.kron(grid, np.ones((cell, cell, 1)))[: size[0], : size[1]]
    pixels = gaussian_filter(pixels, (smooth, smooth, 0)) if smooth else pixels
    return (128 + 40 * pixels / pixels.std()).clip(0, 255).astype(np.uint8)


def faces(n: int = 12, size: int = 64) -> list[np.ndarray]:
    return [draw(3, number, 0, size).pixels for number in range(n)]


def correlation(image: np.ndarray) -> float:
    grey = image.mean(axis=2)
    return float(np.corrcoef(grey[:, :-1].ravel(), grey[:, 1:].ravel())[0, 1])


@pytest.mark.parametrize(
    ("cell", "smooth", "size"),
    [
        (1, 0, (64, 64)),
        (1, 2, (64, 64)),
        (4, 0, (64, 64)),
        (4, 2, (64, 64)),
        (8, 0, (256, 256)),
        (8, 3, (512, 512)),
        (1, 0, (112, 92)),
    ],
)
def test_noise_is_noise_however_smooth(cell: int, smooth: float, size: tuple[int, int]) -> None:
    for seed in range(8):
        assert edge_kurtosis(noise(cell, smooth, size, seed)) == pytest.approx(3.0, abs=0.7)


def test_neighbours_of_smooth_noise_correlate_as_those_of_faces() -> None:
    """Why the correlation of neighbours is not the measure."""
    smooth = [noise(1, 2, seed=seed) for seed in range(8)]
    assert np.mean([correlation(image) for image in smooth]) > np.mean([correlation(face) for face in faces(8)])
    assert max(edge_kurtosis(image) or 0 for image in smooth) < LIMIT
    assert min(edge_kurtosis(face) or 0 for face in faces(8)) > LIMIT


@pytest.mark.parametrize("size", [SIDE, 64, 128, 200])
def test_faces_are_no_noise_at_any_size(size: int) -> None:
    found = check_noise(faces(8, size))
    assert found is not None
    assert (found.n, found.noise, found.flat, found.failed, found.sentence()) == (8, 0, 0, False, "")
    assert found.median > LIMIT + 0.9


def test_one_colour_is_told_from_noise() -> None:
    rng = np.random.default_rng(0)
    flat = [np.full((64, 64, 3), 120, np.uint8) + rng.integers(0, 2, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    found = check_noise(flat)
    assert found is not None
    assert (found.flat, found.noise, found.failed, found.what) == (4, 0, True, "one colour")
    assert found.sentence().startswith("4 images were looked at: 4 of one colour")


def test_a_set_says_what_most_of_it_is() -> None:
    some = check_noise([*faces(12), *(noise(4, 1, seed=seed) for seed in range(4))])
    assert some is not None
    assert not some.failed
    assert some.sentence().startswith("16 images were looked at: 4 with the statistics of noise")
    most = check_noise([*faces(4), *(noise(4, 1, seed=seed) for seed in range(12))])
    assert most is not None
    assert most.failed
    assert most.what == "noise"
    one = check_noise([*faces(40), noise(1, 0)])
    assert one is not None
    assert one.sentence() == "", "a single odd one of many is not worth a line"


def test_small_pictures_are_not_judged() -> None:
    assert check_noise([np.zeros((SIDE - 1, 64, 3), np.uint8)]) is None
    assert check_noise([]) is None


@pytest.mark.real
def test_photographs_are_no_noise(real_data: Path) -> None:
    found = check_noise(decode_image(path.read_bytes()) for path in sorted((real_data / "att-faces").rglob("*.pgm")))
    assert found is not None
    assert found.noise <= 0.02 * found.n
    assert not found.flat
    assert not found.sentence()
    assert found.median > LIMIT + 0.9
    photographs = sorted(path for path in (real_data / "celebamask-hq").glob("*.jpg"))
    assert all((edge_kurtosis(decode_image(path.read_bytes())) or 0) > LIMIT for path in photographs)
