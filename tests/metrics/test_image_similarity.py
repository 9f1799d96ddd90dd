"""PSNR and SSIM against closed forms, and against scikit-image."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from raygen.metrics.image_similarity import psnr, ssim


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


# --- against scikit-image -----------------------------------------------------------------------------------


def couples(height: int, width: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of pictures uint8 [3, H, W, 3] of every kind that such numbers meet."""
    random = np.random.default_rng(height * 1000 + width)
    shape = (3, height, width, 3)
    noise, other = (random.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
    waves = np.sin(np.arange(width) / 7)[None, None, :, None] + np.cos(np.arange(height) / 5)[None, :, None, None]
    smooth = (np.broadcast_to(waves, shape) * 50 + 120).astype(np.uint8)
    near = smooth.copy()
    near[0, height // 2, width // 2, 1] += 1  # the smallest difference there is
    near[1:] += random.integers(0, 2, (2, height, width, 3), dtype=np.uint8)
    grey, white = np.full(shape, 120, np.uint8), np.full(shape, 255, np.uint8)
    return {
        "random": (noise, other),
        "inverted": (noise, 255 - noise),
        "nearly equal": (smooth, near),
        "noisy": (smooth, smooth + other // 8),
        "constant": (grey, grey + 1),
        "farthest": (np.zeros(shape, np.uint8), white),
        "constant and not": (grey, noise),
        "equal but for one": (np.stack([noise[0], smooth[0], grey[0]]), np.stack([noise[0], smooth[0], white[0]])),
    }


@pytest.mark.parametrize("size", [(11, 11), (16, 16), (64, 64), (37, 53), (11, 200)])
def test_ssim_is_that_of_scikit_image(size: tuple[int, int]) -> None:
    """With the window, constants, range and border that `SSIM` states."""
    for name, (one, other) in couples(*size).items():
        expected = [
            structural_similarity(
                x,
                y,
                data_range=255,
                channel_axis=-1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                K1=0.01,
                K2=0.03,
            )
            for x, y in zip(one, other, strict=True)
        ]
        np.testing.assert_allclose(ssim(one, other), expected, rtol=0, atol=1e-10, err_msg=f"{name}, {size}")


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (64, 64), (37, 53)])
def test_psnr_is_that_of_scikit_image(size: tuple[int, int]) -> None:
    for name, (one, other) in couples(*size).items():
        with np.errstate(divide="ignore"):
            found = [
                peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(one, other, strict=True)
            ]  # infinite where nothing differs: ours is said to be at most 100
        np.testing.assert_allclose(psnr(one, other), np.minimum(found, 100), rtol=1e-12, err_msg=f"{name}, {size}")


def test_the_comparison_would_notice_another_window() -> None:
    one, other = couples(64, 64)["noisy"]
    uniform = structural_similarity(one[0], other[0], data_range=255, channel_axis=-1)
    assert abs(uniform - ssim(one, other)[0]) > 1e-4
