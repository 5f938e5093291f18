"""What guides the soft assignment: a descriptor of each token's surroundings in the input image (methods.md section 4).

Descriptors have no parameters and no gradient, and are computed once per forward. Bands run from low to high
frequency.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from study.data.draws import hashed, uniform
from study.grid.fields import Declared
from study.grid.models import ControlPrior, FrequencyPrior, NoPrior, Soft
from study.models.layers import full_precision

_BLOCK = 8  # side of the DCT's blocks and of the variance's window, px
_FLOOR = 1e-6  # energy, about that of 8-bit rounding on the [0, 1] scale
_LEAST_VARIANCE = 1e-4  # of log energy over an image, so that rounding is not blown up where nothing varies
_LUMA = (0.299, 0.587, 0.114)


@torch.no_grad()
def descriptor(assignment: Declared, image: Tensor, keys: Tensor | None = None) -> Tensor | None:
    """The prior's descriptor of each token, (B, H * W, bands); None where nothing is guided.

    Args:
        assignment: of the network.
        image: (B, 3, H, W) in [0, 1].
        keys: int64 (B,), the seed of each image's draws (`shuffled`, `noise`); zeros when absent.
    """
    if not isinstance(assignment, Soft) or isinstance(assignment.prior, NoPrior):
        return None
    prior = assignment.prior
    if keys is None:
        keys = torch.zeros(len(image), dtype=torch.int64, device=image.device)
    with full_precision(image):
        wide = image.float() if image.dtype in (torch.bfloat16, torch.float16) else image
        if prior.kind == "noise":
            return gaussian(keys, image.shape[2] * image.shape[3], prior.bands).to(wide.dtype)
        luminance = _luminance(wide)
        energies = _energies(prior, luminance - luminance.mean(dim=(1, 2), keepdim=True))
        standard = standardised((energies + _FLOOR).log().flatten(2).transpose(1, 2))
    if prior.kind == "shuffled":
        order = hashed(keys, standard.shape[1]).argsort(dim=1, stable=True)
        return standard.gather(1, order[..., None].expand_as(standard))
    return standard


def _luminance(image: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H, W); weights are numbers, since a tensor of them would wait for the GPU."""
    red, green, blue = (weight * channel for weight, channel in zip(_LUMA, image.unbind(dim=1), strict=True))
    return red + green + blue


def standardised(values: Tensor) -> Tensor:
    """Zero mean and unit variance over the tokens of each image and band; (B, N, bands)."""
    variance, mean = torch.var_mean(values, dim=1, correction=0, keepdim=True)
    return (values - mean) / (variance + _LEAST_VARIANCE).sqrt()


def _energies(prior: FrequencyPrior | ControlPrior, luminance: Tensor) -> Tensor:
    if isinstance(prior, ControlPrior):
        return local_variance(luminance)[:, None].expand(-1, prior.bands, -1, -1)
    return {"dct": dct_energies, "wavelet": wavelet_energies, "laplacian": laplacian_energies}[prior.transform](
        luminance, prior.bands
    )


def dct_energies(luminance: Tensor, bands: int) -> Tensor:
    """Mean energy of the orthonormal 8 x 8 DCT around each pixel, in bands of its zigzag diagonals u + v.

    Four bands are octaves, [1], [2, 3], [4, 7] and [8, 14], of which the last holds oblique structure only; other
    numbers divide the same range in equal ratios.

    Args:
        luminance: (B, H, W).
        bands: 2 to 6.

    Returns:
        (B, bands, H, W).
    """
    position = torch.arange(_BLOCK, device=luminance.device, dtype=luminance.dtype)
    basis = math.sqrt(2 / _BLOCK) * torch.cos(math.pi / _BLOCK * position[:, None] * (position + 0.5))
    basis[0] = math.sqrt(1 / _BLOCK)
    # Products, not convolutions: those may run in TF32, where the mean leaks into every band.
    vertical = _around(luminance).unfold(1, _BLOCK, 1) @ basis.T
    coefficients = vertical.unfold(2, _BLOCK, 1) @ basis.T
    diagonal = position[:, None] + position
    edges = 2 ** (torch.arange(bands + 1, device=luminance.device) * (4 / bands))
    member = ((diagonal >= edges[:bands, None, None]) & (diagonal < edges[1:, None, None])).to(luminance.dtype)
    member /= member.sum(dim=(1, 2), keepdim=True)
    return (coefficients.square().flatten(3) @ member.flatten(1).T).permute(0, 3, 1, 2)


def wavelet_energies(luminance: Tensor, bands: int) -> Tensor:
    """Mean energy of the undecimated Haar details of each level, averaged over the level's support; (B, bands, H, W).

    The last band is level 1, between a quarter and half a cycle per pixel.
    """
    height, width = luminance.shape[1:]
    low, energies = luminance, []
    for level in range(bands):
        step = 2**level
        here = _repeat_border(low, before=0, after=step)
        a, b = here[:, :height], here[:, step:]
        rows = (a + b) / 2, (a - b) / 2
        (low, *details) = ((part[..., :width] + sign * part[..., step:]) / 2 for part in rows for sign in (1, -1))
        energy = torch.stack([detail.square() for detail in details]).mean(dim=0)
        padded = _repeat_border(energy, before=2 * step - 1, after=0)
        energies.insert(0, F.avg_pool2d(padded[:, None], 2 * step, stride=1)[:, 0])
    return torch.stack(energies, dim=1)


def laplacian_energies(luminance: Tensor, bands: int) -> Tensor:
    """Energy of a Laplacian pyramid's levels, averaged over 3 x 3, brought back to every pixel; (B, bands, H, W)."""
    size = luminance.shape[1:]
    level, energies = luminance[:, None], []
    for _ in range(bands):
        half = [-(-side // 2) for side in level.shape[2:]]
        below = F.interpolate(level, half, mode="bilinear", antialias=True, align_corners=False)
        detail = level - F.interpolate(below, level.shape[2:], mode="bilinear", align_corners=False)
        energy = F.avg_pool2d(detail.square(), 3, stride=1, padding=1, count_include_pad=False)
        energies.insert(0, F.interpolate(energy, size, mode="bilinear", align_corners=False)[:, 0])
        level = below
    return torch.stack(energies, dim=1)


def local_variance(luminance: Tensor) -> Tensor:
    """Variance in the 8 x 8 window around each pixel, (B, H, W)."""
    patches = _around(luminance).unfold(1, _BLOCK, 1).unfold(2, _BLOCK, 1)
    return patches.var(dim=(3, 4), correction=0)


def _around(luminance: Tensor) -> Tensor:
    """Reflected border, so that one window of `_BLOCK` lies around each pixel."""
    before = _BLOCK // 2 - 1
    return F.pad(luminance[:, None], (before, _BLOCK // 2, before, _BLOCK // 2), mode="reflect")[:, 0]


def _repeat_border(x: Tensor, *, before: int, after: int) -> Tensor:
    return F.pad(x[:, None], (before, after, before, after), mode="replicate")[:, 0]


def gaussian(keys: Tensor, tokens: int, bands: int) -> Tensor:
    """Standard normal float64 numbers from each key (Box and Muller), (B, tokens, bands)."""
    radius, angle = uniform(hashed(keys, 2 * tokens * bands)).chunk(2, dim=1)
    return ((-2 * radius.log()).sqrt() * torch.cos(2 * math.pi * angle)).unflatten(1, (tokens, bands))
