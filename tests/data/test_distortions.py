"""Each distortion against a closed form, or against what it must keep and change."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import chisquare, kstest, poisson

from study.data import distortions
from study.data.distortions import (
    INTERPOLATIONS,
    add_gaussian_noise,
    add_poisson_noise,
    blur,
    compress,
    gaussian_kernel,
    plateau_kernel,
    quantised,
    resize,
    sinc_kernel,
)

RNG = np.random.default_rng(0)
TEXTURE = gaussian_filter(RNG.normal(0, 1, (96, 120, 3)), (2, 2, 0))
TEXTURE = (128 + 40 * TEXTURE / TEXTURE.std()).astype(np.float32)
UNIFORMS = [2241052425, 1160483932, 308134362]
COUNTS = [201, 191, 1, 5, 0]


def flat(level: float, height: int = 200, width: int = 200) -> np.ndarray:
    return np.full((height, width, 3), level, np.float32)


def moments(kernel: np.ndarray) -> np.ndarray:
    """2 × 2 covariance in pixels^2, x first."""
    y, x = np.mgrid[: len(kernel), : len(kernel)] - len(kernel) // 2
    places = np.stack([x.ravel(), y.ravel()])
    return (places * kernel.ravel()) @ places.T


@pytest.mark.parametrize("side", [15, 21])
@pytest.mark.parametrize("family", [gaussian_kernel, plateau_kernel])
def test_bells_sum_to_one_and_are_symmetric_about_the_middle(family, side: int) -> None:
    for sigma, angle, beta in [((0.2, 0.2), 0.0, 1.0), ((0.2, 3.0), 0.7, 0.5), ((3.0, 1.1), 2.9, 4.0)]:
        kernel = family(side, sigma, angle, beta)
        assert kernel.shape == (side, side)
        assert kernel.sum() == pytest.approx(1, abs=1e-12)
        assert kernel.min() >= 0
        assert np.allclose(kernel, kernel[::-1, ::-1])
        assert kernel.argmax() == kernel.size // 2


def test_a_gaussian_kernel_has_the_covariance_of_its_widths_and_angle() -> None:
    for angle in (0.0, 0.6, np.pi / 2, 2.5):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        expected = turn @ np.diag([2.0**2, 1.0**2]) @ turn.T
        assert np.allclose(moments(gaussian_kernel(21, (2.0, 1.0), angle, 1.0)), expected, atol=2e-3)


def test_generalised_and_plateau_kernels_have_the_stated_profile() -> None:
    across = np.arange(11) / 1.7
    for beta in (0.5, 1.0, 2.5):
        wide = {"sigma_px": (1.7, 3.0), "angle": 0.0, "beta": beta}
        bell, plateau = (family(21, **wide)[10, 10:] for family in (gaussian_kernel, plateau_kernel))
        assert np.allclose(bell / bell[0], np.exp(-0.5 * across ** (2 * beta)))
        assert np.allclose(plateau / plateau[0], 1 / (1 + across ** (2 * beta)))


def test_isotropic_blur_is_the_gaussian_filter() -> None:
    for sigma in (0.5, 1.3, 2.4):
        ours = blur(TEXTURE, gaussian_kernel(21, (sigma, sigma), 0.0, 1.0))
        theirs = gaussian_filter(TEXTURE.astype(float), (sigma, sigma, 0), mode="mirror", radius=(10, 10, 0))
        assert np.abs(ours - theirs).max() < 0.01


def test_blur_follows_the_kernels_axes() -> None:
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 255
    kernel = gaussian_kernel(21, (3.0, 0.5), 0.5, 1.0)
    assert np.allclose(blur(point, kernel)[10:31, 10:31, 1], 255 * kernel, atol=1e-3)


def test_sinc_passes_below_its_cutoff_and_stops_above() -> None:
    for cutoff in (np.pi / 3, 2.0, 2.6):
        response = np.fft.fft2(np.fft.ifftshift(np.pad(sinc_kernel(21, cutoff), 54))).real[:, 0]
        frequency = np.abs(2 * np.pi * np.fft.fftfreq(len(response)))
        assert response[0] == pytest.approx(1)
        assert np.abs(response[frequency < cutoff - 0.4] - 1).max() < 0.12  # 0.4: the window's half transition
        assert np.abs(response[frequency > cutoff + 0.4]).max() < 0.12


def test_blur_and_resize_keep_constants() -> None:
    for kernel in (gaussian_kernel(21, (3.0, 0.3), 1.0, 0.5), plateau_kernel(15, (1.0, 1.0), 0, 2), sinc_kernel(21, 2)):
        assert np.abs(blur(flat(100, 30, 9), kernel) - 100).max() < 1e-3
    for name in INTERPOLATIONS:
        for height, width in ((11, 80), (30, 41), (7, 3), (1, 1)):
            resized = resize(flat(100, 30, 41), height, width, name)
            assert resized.shape == (height, width, 3)
            assert np.abs(resized - 100).max() < 1e-3


def test_resize_does_what_its_names_say() -> None:
    blocks = TEXTURE.reshape(24, 4, 30, 4, 3)
    assert np.allclose(resize(TEXTURE, 24, 30, "area"), blocks.mean((1, 3)), atol=1e-3)
    assert np.allclose(resize(TEXTURE, 24, 30, "bilinear"), blocks[:, 1:3, :, 1:3].mean((1, 3)), atol=1e-3)
    middle = np.array([-0.09375, 0.59375, 0.59375, -0.09375])  # cubic with a = -0.75, half-way between pixels
    inner = np.einsum("ijklc,j,l->ikc", blocks, middle, middle)
    assert np.allclose(resize(TEXTURE, 24, 30, "bicubic"), inner, atol=0.05)
    assert resize(TEXTURE, 96, 120, "bicubic") is TEXTURE


def test_gaussian_noise_has_its_deviation_and_is_normal() -> None:
    for sigma in (1.0, 12.0, 25.0):
        noise = (add_gaussian_noise(flat(128), sigma, grey=False, seed=3) - 128) / sigma
        n = noise.size
        assert abs(noise.mean()) < 3.3 / np.sqrt(n)
        assert abs(noise.std() - 1) < 3.3 / np.sqrt(2 * n)
        assert kstest(noise.ravel()[::7], "norm").pvalue > 1e-3
        for one, other in ((noise[1:], noise[:-1]), (noise[..., :1], noise[..., 1:2])):
            assert abs((one * other).mean()) < 3.5 / np.sqrt(one.size)


def test_poisson_noise_has_the_distribution_of_its_level() -> None:
    for level in (0, 1, 9, 140, 255):
        counts = distortions._poisson(np.full(40_001, level, np.float32), seed=level).astype(int)
        low, high = poisson.ppf([0.01, 0.99], level).astype(int)
        inside = np.bincount(np.clip(counts, low, high) - low, minlength=high - low + 1)
        chances = poisson.pmf(np.arange(low, high + 1), level)
        chances[0], chances[-1] = poisson.cdf(low, level), poisson.sf(high - 1, level)
        assert (level == 0 and not counts.any()) or chisquare(inside, chances * counts.size).pvalue > 1e-3


def test_poisson_variance_grows_with_intensity() -> None:
    for level, scale in ((16, 0.5), (64, 1.0), (128, 2.0), (100.4, 0.05)):
        noise = add_poisson_noise(flat(level), scale, grey=False, seed=1) - level
        expected = scale**2 * round(level)
        assert noise.var() == pytest.approx(expected, rel=3.3 * np.sqrt((2 + 1 / level) / noise.size))


def test_grey_noise_is_equal_in_all_channels() -> None:
    colour = np.broadcast_to(np.array([60, 120, 90], np.float32), (50, 50, 3))
    for add in (add_gaussian_noise, add_poisson_noise):
        noise = add(colour, 1.5, grey=True, seed=5) - colour
        assert np.ptp(noise, axis=2).max() < 1e-4
        assert noise.std() > 1
        assert np.ptp(add(colour, 1.5, grey=False, seed=5) - colour, axis=2).max() > 1
    grey = add_poisson_noise(colour, 1.0, grey=True, seed=5) - colour
    luma = 0.299 * 60 + 0.587 * 120 + 0.114 * 90
    assert grey[..., 0].var() == pytest.approx(luma, rel=3.3 * np.sqrt(2 / 2500))


def test_noise_is_clipped_and_depends_on_its_seed_alone() -> None:
    for add in (add_gaussian_noise, add_poisson_noise):
        noisy = add(flat(250), 2.5, grey=False, seed=8)
        assert noisy.max() == 255
        assert np.array_equal(noisy, add(flat(250), 2.5, grey=False, seed=8))
        assert not np.array_equal(noisy, add(flat(250), 2.5, grey=False, seed=9))
        assert noisy.dtype == np.float32


def test_noise_words_never_change() -> None:
    # Pinned: a change here needs a new degradation version.
    assert (distortions._uniforms(7, 3) * 2**32 - 0.5).tolist() == UNIFORMS
    assert distortions._poisson(np.array([200, 200, 3, 3, 0], np.float32), 7).tolist() == COUNTS


def test_lower_jpeg_quality_means_larger_errors() -> None:
    errors = [np.abs(compress(TEXTURE, quality) - TEXTURE).mean() for quality in (95, 75, 50, 30)]
    assert errors == sorted(errors)
    assert errors[-1] > 2 * errors[0]


def test_jpeg_leaves_steps_every_eight_pixels() -> None:
    steps = np.abs(np.diff(compress(TEXTURE, 30), axis=1)).mean((0, 2))
    inside = np.arange(1, len(steps) + 1) % 8 != 0
    before = np.abs(np.diff(TEXTURE, axis=1)).mean((0, 2))
    assert steps[~inside].mean() / steps[inside].mean() > 1.1 * before[~inside].mean() / before[inside].mean()


def test_jpeg_keeps_the_order_of_channels() -> None:
    red = flat(0, 16, 16)
    red[..., 0] = 220
    assert np.abs(compress(red, 95) - red).max() < 4
    coded = cv2.imencode(".jpg", quantised(TEXTURE)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    assert np.array_equal(compress(TEXTURE, 60), decoded[..., ::-1])


def test_quantised_rounds_and_clips() -> None:
    assert quantised(np.array([-3, 0.4, 0.6, 254.7, 300], np.float32)).tolist() == [0, 0, 1, 255, 255]
