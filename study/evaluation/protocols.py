"""Protocols: how two images become the numbers that a metric compares."""

from collections.abc import Callable

import torch
from torch import Tensor

# BT.601 'studio' luma of R'G'B' in [0, 1], as MATLAB's rgb2ycbcr gives it.
_LUMA = (65.481, 128.553, 24.966)
_BLACK = 16.0


def luma(rgb: Tensor) -> Tensor:
    """BT.601 Y of `rgb` (B, 3, H, W) in [0, 1] as (B, 1, H, W); 16/255 is black, 235/255 white."""
    red, green, blue = (weight * channel for weight, channel in zip(_LUMA, rgb.split(1, dim=1), strict=True))
    return (red + green + blue + _BLACK) / 255


def round_8bit(image: Tensor) -> Tensor:
    """Clamps to [0, 1] and rounds half up to multiples of 1/255, as storing the image in 8 bits does."""
    return (image.clamp(0, 1) * 255 + 0.5).floor() / 255


PROTOCOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "uint8_y": lambda image: luma(round_8bit(image)),
    "matlab_y": lambda image: round_8bit(luma(round_8bit(image))),
    "clamped_y": lambda image: luma(image.clamp(0, 1)),
    "float_y": luma,
    "rgb": round_8bit,
}


def prepare(sr: Tensor, hr: Tensor, protocol: str, border_px: int) -> tuple[Tensor, Tensor]:
    """Crops `border_px` on every side and applies the preprocessing of `protocol` (protocols.md) to both images.

    Args:
        sr: (1, 3, H, W) as the network gave it; [0, 1] may be exceeded.
        hr: (1, 3, H, W) in [0, 1], of 8 bits.
        protocol: a key of `PROTOCOLS`.
        border_px: the scale, in every published table.

    Returns:
        Both as float64, (1, 1, h, w) for the protocols on Y and (1, 3, h, w) for `rgb`, in units of the full range.

    Raises:
        ValueError: the two differ in shape, or nothing is left inside the border.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"SR {tuple(sr.shape)} and HR {tuple(hr.shape)} differ in shape")
    height, width = (side - 2 * border_px for side in sr.shape[-2:])
    if min(height, width) < 1:
        raise ValueError(
            f"an image of {sr.shape[-2]} x {sr.shape[-1]} px has nothing inside a border of {border_px} px"
        )
    inside = (..., slice(border_px, border_px + height), slice(border_px, border_px + width))
    process = PROTOCOLS[protocol]
    # float64: 8-bit values and their Y are then exact enough that no rounding of Y depends on the device.
    return process(sr[inside].to(torch.float64)), process(hr[inside].to(torch.float64))
