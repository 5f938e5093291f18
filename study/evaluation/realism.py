"""Measures of realism that need no trained weights: does the output have the texture of the truth, wherever it lies?

All three compare the BT.601 luma of an output and of its own HR image, in 8-bit levels and float64. None asks for
agreement pixel by pixel, so they see what PSNR hides: an output that is too smooth, or sharp in the wrong way. They are
means to compare networks on the same images, not scales of beauty.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from study.data.draws import normal
from study.evaluation.protocols import luma

SMALLEST_SIDE_PX = 32
LEVELS = 3  # the two octaves that factors up to 4 lose, and the rest
PATCH_PX = 7
PROJECTIONS = 128
PLACES = 8192  # patches per level at most
BINS = 12  # of a quarter octave, nearly
LOWEST, HIGHEST = 1 / 16, 7 / 16  # cycles per px, of the fitted spectrum
HIGH = 1 / 4  # cycles per px, where the high band begins
FLOOR = 1e-3  # squared levels; rounding to 8 bits alone leaves 1/12
_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_PLASTIC = 1.324717957244746  # x**3 = x + 1


def swd(sr: Tensor, hr: Tensor) -> float:
    """Sliced Wasserstein distance between the patches of two images' Laplacian pyramids, in 8-bit levels; 0 is best.

    After Karras et al. (ICLR 2018, section 5), with details of our own. The pyramid has three levels: what lies above
    about 1/4 and above about 1/8 cycles per px, and the rest. From each come patches of 7 x 7, at all places or at
    8,192, the same in both images; they are not standardised, since the energy they lack is what is looked for. Both
    sets are projected on the same 128 directions of unit length, where the distance between two sets of numbers is the
    mean difference of the sorted ones. The value is the mean over directions and levels. Symmetric.

    Args:
        sr: (1, 3, H, W) in [0, 1].
        hr: the same.

    Raises:
        ValueError: a side is shorter than 32 px.
    """
    images = torch.cat([_levels(sr, "swd"), _levels(hr, "swd")])
    directions = normal(torch.zeros(1, dtype=torch.int64), (PROJECTIONS, PATCH_PX**2), torch.float64)[0]
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(images.device)
    distances = []
    for level in _pyramid(images):
        projected = directions @ _patches(level).transpose(1, 2)
        one, other = projected.sort(dim=-1).values
        distances.append((one - other).abs().mean())
    return torch.stack(distances).mean().item()


def spectral_slope(sr: Tensor, hr: Tensor) -> float:
    """Slope of the output's power spectrum minus that of the truth; 0 is best, and negative is too smooth.

    The slope is the exponent of a power law: least squares of the logarithm of power against that of frequency, from
    1/16 to 7/16 cycles per px, over 12 bins of equal ratio that each hold the mean power of a ring. The image is
    windowed (Hann in both directions) first. Power below 1e-3 squared levels counts as that, so a flat image has
    slope 0. Definition ours.

    Args:
        sr: (1, 3, H, W) in [0, 1].
        hr: the same.

    Raises:
        ValueError: a side is shorter than 32 px.
    """
    one, other = (_slope(*_spectrum(_levels(image, "spectral_slope"))) for image in (sr, hr))
    return one - other


def high_band(sr: Tensor, hr: Tensor) -> float:
    """Energy of the output above 1/4 cycles per px over that of the truth, dB; 0 is best, and negative is too smooth.

    The image is windowed (Hann in both directions). A mean power below 1e-3 squared levels counts as that, so flat
    images have a value too. Definition ours.

    Args:
        sr: (1, 3, H, W) in [0, 1].
        hr: the same.

    Raises:
        ValueError: a side is shorter than 32 px.
    """
    one, other = (_energy(*_spectrum(_levels(image, "high_band"))) for image in (sr, hr))
    return 10 * math.log10(one / other)


def _levels(image: Tensor, metric: str) -> Tensor:
    """Luma of one image in 8-bit levels, (1, H, W)."""
    if min(image.shape[-2:]) < SMALLEST_SIDE_PX:
        size, least = " x ".join(map(str, image.shape[-2:])), f"{SMALLEST_SIDE_PX} x {SMALLEST_SIDE_PX}"
        raise ValueError(f"{metric} needs at least {least} px inside the border, this image has {size}")
    return 255 * luma(image.to(torch.float64))[:, 0]


def _pyramid(images: Tensor) -> list[Tensor]:
    """Laplacian pyramid of `images` (n, H, W), the finest level first (Burt and Adelson, 1983)."""
    levels = []
    for _ in range(LEVELS - 1):
        smaller = _filtered(images)[:, ::2, ::2]
        spread = torch.zeros_like(images)
        spread[:, ::2, ::2] = 4 * smaller
        levels.append(images - _filtered(spread))
        images = smaller
    return [*levels, images]


def _filtered(images: Tensor) -> Tensor:
    kernel = images.new_tensor(_KERNEL)
    padded = F.pad(images[:, None], (2, 2, 2, 2), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, 5)), kernel.view(1, 1, 5, 1))[:, 0]


def _patches(images: Tensor) -> Tensor:
    """Patches of `images` (n, H, W) at the same places in each, (n, places, 49).

    Where there are too many, the places follow a sequence of irrational steps: it covers the image evenly, and meets
    every phase of a periodic pattern, as the artefacts of an upsampler are.
    """
    height, width = (side - PATCH_PX + 1 for side in images.shape[-2:])
    if height * width <= PLACES:
        place = torch.arange(height * width, device=images.device)
        rows, columns = place // width, place % width
    else:
        step = torch.arange(PLACES, dtype=torch.float64, device=images.device)
        rows = (step / _PLASTIC % 1 * height).long()
        columns = (step / _PLASTIC**2 % 1 * width).long()
    offset = torch.arange(PATCH_PX, device=images.device)
    return images[:, rows[:, None, None] + offset[:, None], columns[:, None, None] + offset].flatten(2)


def _spectrum(image: Tensor) -> tuple[Tensor, Tensor]:
    """Power of `image` (1, H, W) and its frequency in cycles per px, both (H, W); white noise has its variance."""
    height, width = image.shape[-2:]
    across, down = (
        torch.hann_window(side, periodic=False, dtype=image.dtype, device=image.device) for side in (width, height)
    )
    window = down[:, None] * across
    mean = (window * image[0]).sum() / window.sum()  # what is left of it would leak into the lowest bin
    power = torch.fft.fft2(window * (image[0] - mean)).abs().square() / window.square().sum()
    across, down = (torch.fft.fftfreq(side, dtype=image.dtype, device=image.device) for side in (width, height))
    return power, torch.hypot(down[:, None], across)


def _slope(power: Tensor, frequency: Tensor) -> float:
    edges = [LOWEST * (HIGHEST / LOWEST) ** (k / BINS) for k in range(BINS + 1)]
    points = []
    for low, high in pairwise(edges):
        ring = (frequency >= low) & (frequency < high)
        if ring.any():  # a small image has too few frequencies for every bin
            points.append((frequency[ring].log().mean(), power[ring].mean().clamp_min(FLOOR).log()))
    x, y = torch.tensor(points, dtype=torch.float64).unbind(dim=1)
    x = x - x.mean()
    return ((x * y).sum() / x.square().sum()).item()


def _energy(power: Tensor, frequency: Tensor) -> float:
    return max(power[frequency > HIGH].mean().item(), FLOOR)
