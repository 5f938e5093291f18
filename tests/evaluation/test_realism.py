import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import convolve1d, gaussian_filter
from scipy.stats import wasserstein_distance
from torch import Tensor

from study.data.decoding import decode
from study.data.draws import normal
from study.data.resize import imresize
from study.data.sources import BUNDLED, find_bundled
from study.evaluation import realism
from study.evaluation.metrics import require, score
from study.evaluation.protocols import luma, prepare
from study.evaluation.realism import FLOOR, PLACES, high_band, spectral_slope, swd

MEASURES = [swd, spectral_slope, high_band]
WHITE = 219 / 255  # of the range that grey images take in luma


def grey(pixels: np.ndarray) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float64).expand(1, 3, *pixels.shape)


def field(exponent: float, height: int = 160, width: int = 168, contrast: float = 0.1) -> Tensor:
    """Noise whose power falls as frequency**exponent; all exponents share their phases."""
    white = np.random.default_rng(0).normal(size=(height, width))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = np.inf if exponent < 0 else 1
    noise = np.fft.ifft2(np.fft.fft2(white) * frequency ** (exponent / 2)).real
    return grey(0.5 + contrast * noise / noise.std())


def grating(cycles_per_px: float, amplitude: float, side: int = 96) -> np.ndarray:
    return amplitude * np.cos(2 * np.pi * cycles_per_px * np.arange(side))[None] * np.ones((side, 1))


def photograph(name: str, split: str = "test") -> Tensor:
    path = find_bundled(split)[name]
    return torch.tensor(decode(path.read_bytes(), name)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_images_have_0(measure):
    assert measure(field(-2), field(-2)) == 0
    flat = grey(np.full((40, 50), 0.3))
    assert measure(flat, flat) == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_the_same_value_every_time_and_whatever_the_random_state(measure):
    torch.manual_seed(1)
    first = measure(field(-3), field(-2))
    torch.manual_seed(2)
    assert measure(field(-3), field(-2)) == first != 0


@pytest.mark.parametrize(("one", "other"), [(-2, 0), (-3, -2), (-2, -2.5), (0, -3)])
def test_slopes_of_power_laws(one, other):
    assert spectral_slope(field(one), field(other)) == pytest.approx(one - other, abs=0.1)


def test_the_slope_does_not_see_contrast():
    assert spectral_slope(field(-2, contrast=0.02), field(-2, contrast=0.2)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2])
def test_high_band_of_a_scaled_grating(factor):
    coarse, fine = 0.5 + grating(1 / 16, 0.2), grating(3 / 8, 0.02)
    found = high_band(grey(coarse + factor * fine), grey(coarse + fine))
    assert found == pytest.approx(20 * math.log10(factor), abs=1e-3)


def test_high_band_sees_nothing_below_a_quarter_cycle():
    coarse = grating(3 / 16, 0.1)
    fine = 0.5 + grating(3 / 8, 0.02)
    assert high_band(grey(fine + coarse), grey(fine)) == pytest.approx(0, abs=1e-3)


def test_high_band_of_a_flat_image_is_that_of_the_floor():
    amplitude = 255 * WHITE * 0.1
    high = 1 - math.pi * 0.25**2  # share of the frequencies
    expected = 10 * math.log10(FLOOR / (amplitude**2 / 2 / high))
    flat = grey(np.full((96, 96), 0.5))
    assert high_band(flat, grey(0.5 + grating(3 / 8, 0.1))) == pytest.approx(expected, abs=0.1)


def test_swd_of_a_shift():
    """Only the coarsest of three levels moves, each projection by the sum of its direction."""
    directions = normal(torch.zeros(1, dtype=torch.int64), (128, 49), torch.float64)[0]
    directions /= directions.norm(dim=1, keepdim=True)
    mean = directions.sum(dim=1).abs().mean().item()
    assert mean == pytest.approx(math.sqrt(2 / math.pi), rel=0.15)  # of the sum of a uniform direction
    hr = field(-2)
    assert swd(hr + 10 / 255, hr) == pytest.approx(10 * WHITE * mean / 3, abs=1e-9)


def pyramid(image: np.ndarray) -> list[np.ndarray]:
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    levels = []
    for _ in range(2):
        smaller = convolve1d(convolve1d(image, kernel, 0, mode="mirror"), kernel, 1, mode="mirror")[::2, ::2]
        spread = np.zeros_like(image)
        spread[::2, ::2] = smaller
        levels.append(image - 4 * convolve1d(convolve1d(spread, kernel, 0, mode="mirror"), kernel, 1, mode="mirror"))
        image = smaller
    return [*levels, image]


@pytest.mark.parametrize("size", [(40, 44), (33, 50)])
def test_swd_equals_scipy_on_the_projections_of_all_patches(size):
    images = [255 * luma(field(exponent, *size))[0, 0].numpy() for exponent in (-2, -3)]
    directions = normal(torch.zeros(1, dtype=torch.int64), (128, 49), torch.float64)[0].numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    distances = [
        [
            wasserstein_distance(a, b)
            for a, b in zip(*(directions @ sliding_window_view(x, (7, 7)).reshape(-1, 49).T for x in pair), strict=True)
        ]
        for pair in zip(*map(pyramid, images), strict=True)
    ]
    assert swd(field(-2, *size), field(-3, *size)) == pytest.approx(np.mean(distances), rel=1e-9)


def test_swd_is_symmetric_and_grows_with_the_difference():
    hr, slight, strong = field(-2), field(-2.2), field(-3)
    assert swd(hr, slight) == swd(slight, hr)
    assert 0 < swd(slight, hr) < swd(strong, hr)


def test_swd_looks_for_texture_and_not_for_its_place():
    hr = field(-2, 88, 92)  # periodic, and small enough for all its patches
    moved = torch.roll(hr, (12, 20), (-2, -1))
    smooth = torch.tensor(gaussian_filter(hr.numpy(), (0, 0, 1, 1)))
    assert (moved - hr).square().mean() > 5 * (smooth - hr).square().mean()
    assert swd(moved, hr) < 0.5 * swd(smooth, hr)


def test_patches_of_a_large_image_meet_every_phase_and_hardly_one_place_twice():
    coordinates = torch.arange(300.0)[:, None] * 1000 + torch.arange(280.0)
    corners = realism._patches(coordinates[None])[0, :, 0].long()
    assert len(corners) == PLACES
    assert len(corners.unique()) > 0.95 * PLACES
    assert (corners // 1000).max() == 300 - 7
    phases = (corners // 1000 % 4) * 4 + corners % 1000 % 4
    assert torch.bincount(phases, minlength=16).tolist() == pytest.approx([PLACES / 16] * 16, rel=0.05)


@pytest.mark.parametrize("name", [name.split(".")[0] for name in BUNDLED["test"]])
def test_bicubic_enlargement_is_too_smooth(name):
    hr = photograph(name)
    height, width = (side // 4 * 4 for side in hr.shape[-2:])
    hr = hr[..., :height, :width]
    sr = imresize(imresize(hr[0], (height // 4, width // 4)), (height, width))[None]
    pair = prepare(sr.double() / 255, hr.double() / 255, "rgb", 4)
    assert spectral_slope(*pair) < -1
    assert high_band(*pair) < -10


def test_blur_is_too_smooth_and_noise_too_rough():
    hr = field(-2)
    blurred = torch.tensor(gaussian_filter(hr.numpy(), (0, 0, 0.7, 0.7)))
    noisy = hr + 0.05 * (field(0) - 0.5) / 0.1
    for measure in (spectral_slope, high_band):
        assert measure(blurred, hr) < -0.5
        assert measure(noisy, hr) > 0.5


@pytest.mark.parametrize("measure", MEASURES)
def test_an_image_below_32_px_is_refused(measure):
    small = grey(np.random.default_rng(0).random((31, 90)))
    with pytest.raises(ValueError, match=f"{measure.__name__} needs at least 32 x 32 px .* this image has 31 x 90"):
        measure(small, small)
    fine = grey(np.random.default_rng(0).random((32, 32)))
    assert math.isfinite(measure(0.5 * fine, fine))


@pytest.mark.parametrize("measure", MEASURES)
def test_the_measures_are_metrics_that_need_nothing(measure):
    require([measure.__name__], torch.device("cpu"))
    assert score(measure.__name__, field(-3), field(-2)) == measure(field(-3), field(-2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("measure", MEASURES)
def test_a_gpu_gives_the_same_values(measure):
    here, there = measure(field(-3), field(-2)), measure(field(-3).cuda(), field(-2).cuda())
    assert there == pytest.approx(here, rel=1e-9)
