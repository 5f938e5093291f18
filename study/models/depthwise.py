"""Depthwise convolution whose kernel's gradient is not slower on a CPU than all else of its step together."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_TAPS = 3  # columns of a kernel whose gradient oneDNN computes at full speed; for wider ones it takes ten times as long


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution with an odd side that keeps the size; (B, C, H, W) -> (B, C, H, W), channels last.

    On a CPU the gradient of a kernel wider than three columns is taken three columns at a time, and in full precision
    under autocast, too.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__(width, width, side, padding=side // 2, groups=width)

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.shape[3] <= _TAPS or not _by_columns(input):
            return super().forward(input)
        return _Depthwise.apply(input.contiguous(memory_format=torch.channels_last), self.weight, self.bias)


def _by_columns(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[3] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        like = gradient.dtype  # that of autocast where there was one
        of_x, _, _ = _backward(gradient, x.to(like), weight.to(like), weight.shape[3] // 2, (True, False, False))
        gradient = gradient.to(weight.dtype)
        return of_x.to(x.dtype), _of_kernel(gradient, x, weight.shape[3]), gradient.sum(dim=(0, 2, 3))


def _of_kernel(gradient: Tensor, x: Tensor, side: int) -> Tensor:
    """The kernel's gradient, (C, 1, side, side), from the output's and the input, (B, C, H, W), channels last.

    Some columns of the kernel see the input as much further to the right as they are. Where rows lie in memory one
    after the other, that is the same memory read from a later point on; what then comes in from the next row meets
    zeros, which the gradient is widened by.
    """
    batch, channels, height, width = x.shape
    margin = side // 2
    rows, columns = height + 2 * margin, width + 2 * margin
    held = gradient.new_zeros(batch * rows * columns * channels + (side - 1) * channels)
    shape = batch, channels, rows, columns
    strides = rows * columns * channels, 1, columns * channels, channels
    held.as_strided(shape, strides)[:, :, margin:-margin, margin:-margin] = x
    wide = F.pad(gradient, (0, columns - width - (_TAPS - 1)))
    kernel = gradient.new_empty(channels, 1, side, _TAPS)
    parts = [
        _backward(wide, held.as_strided(shape, strides, first * channels), kernel, 0, (False, True, False))[1]
        for first in range(0, side, _TAPS)
    ]
    return torch.cat(parts, dim=3)[..., :side]


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, margin: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], [margin, margin], [1, 1], False, [0, 0], len(weight), wanted
    )
