"""MATLAB-compatible bicubic resize: the way the field makes its LR images, and its oldest baseline."""

from functools import lru_cache, reduce
from operator import iadd

import numpy as np
import torch
from torch import Tensor

# Sums that end in exactly .5 in exact arithmetic must not be decided by the last bit of float64 (7 px to 5, say, where
# a flipped image would else not give the flipped result). Other sums are much further from a half than this.
_TIE = 1e-9


def imresize(image: Tensor, out_size: tuple[int, int]) -> Tensor:
    """Resizes by MATLAB's `imresize(image, out_size, 'bicubic')`.

    Cubic kernel with a = -0.5 (Keys 1981), widened by the factor when shrinking (antialiasing), symmetric edges;
    height first, then width, in float64. A uint8 image is clipped and rounded half up to 8 bits after each pass, as
    MATLAB does; a floating-point one (on any scale, differentiable) is neither clipped nor rounded. The same bits on
    every device.

    Args:
        image: (..., H, W), uint8 or floating point.
        out_size: height and width of the result in pixels.

    Returns:
        (..., *out_size), of the image's type and on its device.

    Raises:
        TypeError: the image is of another integer type.
        ValueError: a side of the image or of the result is empty.
    """
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"imresize takes uint8 or floating-point images, not {image.dtype}")
    if image.ndim < 2 or min(*image.shape[-2:], *out_size) < 1:
        raise ValueError(f"imresize cannot make {tuple(out_size)} px of an image of shape {tuple(image.shape)}")
    height, width = out_size
    tall = _resize_rows(image, height)
    return _resize_rows(tall.mT.contiguous(), width).mT.contiguous()


def _resize_rows(image: Tensor, out_px: int) -> Tensor:
    """Resizes the second-to-last axis of `image` to `out_px`."""
    in_px = image.shape[-2]
    if in_px == out_px:
        return image
    rounded = image.dtype == torch.uint8
    values = image.double()
    # One multiplication and one addition per tap, in a fixed order, never fused: the same bits on CPU and CUDA.
    total = reduce(
        iadd,
        (
            values.index_select(-2, rows.to(image.device)) * weights.to(image.device)
            for rows, weights in zip(*_taps(in_px, out_px), strict=True)
        ),
    )
    return (total + (0.5 + _TIE)).floor().clamp(0, 255).byte() if rounded else total.to(image.dtype)


@lru_cache(maxsize=256)
def _taps(in_px: int, out_px: int) -> tuple[Tensor, Tensor]:
    """Source rows (taps, out_px) int64 and their weights (taps, out_px, 1) float64: the non-zero band of the resize."""
    step = in_px / out_px
    stretch = max(step, 1.0)
    centre = (np.arange(out_px) + 0.5) * step - 0.5
    first = np.floor(centre - 2 * stretch).astype(np.int64)
    rows = first[:, None] + np.arange(int(np.ceil(4 * stretch)) + 2)
    weights = _cubic((centre[:, None] - rows) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    used = np.any(np.abs(weights) > 1e-12, axis=0)
    folded = rows % (2 * in_px)
    mirrored = np.where(folded < in_px, folded, 2 * in_px - 1 - folded)
    return torch.from_numpy(mirrored[:, used].T.copy()), torch.from_numpy(weights[:, used].T.copy()[..., None])


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
