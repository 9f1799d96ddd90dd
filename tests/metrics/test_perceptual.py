"""PSNR and SSIM against closed forms."""

import numpy as np
import pytest

from raygen.metrics.perceptual import psnr, ssim


def constant(value: int, n: int = 1) -> np.ndarray:
    return np.full((n, 16, 16, 3), value, dtype=np.uint8)


def test_psnr_by_hand() -> None:
    assert psnr(constant(110), constant(100))[0] == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr(constant(7), constant(7))[0] == 100


def test_ssim_of_constants_is_its_first_factor() -> None:
    c1 = (0.01 * 255) ** 2
    a, b = 50.0, 90.0
    assert ssim(constant(50), constant(90))[0] == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))
    assert ssim(constant(50), constant(50))[0] == 1


def test_ssim_of_an_inverted_picture_is_negative() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    noisy = np.clip(pixels.astype(int) + random.integers(-20, 21, pixels.shape), 0, 255).astype(np.uint8)
    assert np.all(ssim(pixels, 255 - pixels) < -0.5)
    assert np.all((ssim(pixels, noisy) > 0.8) & (ssim(pixels, noisy) < 1))
    np.testing.assert_allclose(ssim(pixels, noisy), ssim(noisy, pixels))


def test_ssim_against_its_definition_at_one_place() -> None:
    random = np.random.default_rng(1)
    x, y = (random.integers(0, 256, (1, 11, 11, 1), dtype=np.uint8) for _ in range(2))
    places = np.arange(11) - 5
    kernel = np.exp(-(places**2) / 4.5)
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    a, b = (v[0, :, :, 0].astype(float) for v in (x, y))
    ma, mb = (window * a).sum(), (window * b).sum()
    va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
    cov = (window * (a - ma) * (b - mb)).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert ssim(x, y)[0] == pytest.approx(expected)


def test_small_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8))
