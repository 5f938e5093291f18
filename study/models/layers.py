"""Parts shared by CATANet and SPIN; maps inside their blocks are (B, H, W, d) and contiguous: tokens are a view."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from study.models import attention
from study.models.depthwise import DepthwiseConv2d

_SLOPE = 0.1


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution as a linear layer; (B, C, H, W) -> (B, D, H, W), channels last.

    On a CPU PyTorch has no fast one for every size and number of threads; a linear layer always is one product.
    """
    return F.linear(x.permute(0, 2, 3, 1), conv.weight[:, :, 0, 0], conv.bias).permute(0, 3, 1, 2)


class Pointwise(nn.Conv2d):
    """1 x 1 convolution, see `pointwise`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        return pointwise(self, input)


class SelfAttention(nn.Module):
    """Multi-head self-attention without biases; (B, L, d) -> (B, L, d)."""

    def __init__(self, width: int, qk_width: int, value_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (qk_width // heads) ** -0.5
        self.to_q = nn.Linear(width, qk_width, bias=False)
        self.to_k = nn.Linear(width, qk_width, bias=False)
        self.to_v = nn.Linear(width, value_width, bias=False)
        self.proj = nn.Linear(value_width, width, bias=False)

    def pair(self) -> int:
        """Multiply-adds of one query with one key and its value, at declared widths."""
        return self.to_q.out_features + self.to_v.out_features

    def forward(self, x: Tensor) -> Tensor:
        queries = attention.project(x, self.to_q.weight * self.scale, self.heads)
        keys, values = (attention.project(x, part.weight, self.heads) for part in (self.to_k, self.to_v))
        return attention.merge(attention.attend(queries, keys, values), self.proj.weight)


class DepthwiseConv(nn.Module):
    """5 x 5 depthwise convolution and GELU, added to its input; (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Sequential(DepthwiseConv2d(width, 5), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        planes = x.permute(0, 3, 1, 2)
        # added before it is seen as a view: autograd copies where a view is changed in place
        return self.depthwise_conv(planes).add_(planes).permute(0, 2, 3, 1)


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise convolution beside its activation; (B, H, W, d) -> (B, H, W, d)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dwconv(F.gelu(self.fc1(x))))


class MLP(nn.Module):
    """Linear, GELU, Linear; (..., d) -> (..., d)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PreNorm(nn.Module):
    """`fn(LayerNorm(x))`; the residual is the caller's."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


def full_precision(x: Tensor) -> AbstractContextManager:
    """No autocast on the tensor's device: for cosines and the softmax over prototypes."""
    if x.is_meta:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class BlockNetwork(nn.Module):
    """What CATANet and SPIN share: a first convolution, blocks with one convolution each, an upsampler, a last one.

    Names of the parameters are those of the published checkpoints of both.
    """

    def __init__(self, width: int, scale: int, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.scale = scale
        self.first_conv = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(blocks)
        self.mid_convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in self.blocks)
        if scale == 4:
            self.upconv1 = nn.Conv2d(width, width * 4, 3, padding=1)
            self.upconv2 = nn.Conv2d(width, width * 4, 3, padding=1)
        elif scale > 1:
            self.upconv = nn.Conv2d(width, width * scale**2, 3, padding=1)
        self.last_conv = nn.Conv2d(width, 3, 3, padding=1)

    def enlarge(self, x: Tensor, features: Tensor) -> Tensor:
        """The image (B, 3, H, W), enlarged bilinearly, plus what the features (B, d, H, W) add; scale 1 restores."""
        if self.scale == 1:
            return x + self.last_conv(features)
        if self.scale == 4:
            features = F.leaky_relu(F.pixel_shuffle(self.upconv1(features), 2), _SLOPE, inplace=True)
        last = self.upconv2 if self.scale == 4 else self.upconv
        residual = convolve_shuffled(F.leaky_relu(last(features), _SLOPE, inplace=True), self.last_conv)
        return F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False) + residual

    def places(self, height: int, width: int) -> dict[str, int]:
        """Where layers are not applied at every pixel of the input, see `study.evaluation.complexity`."""
        return {"upconv2": 4 * height * width, "last_conv": self.scale**2 * height * width}


def convolve_shuffled(features: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv(pixel_shuffle(features))` for a 3 x 3 `conv`, computed before the shuffle, which then moves few channels.

    Each of the f * f phases of the output gets the kernel's taps where the shuffle would have brought them, on the
    coarse grid's 3 x 3 neighbours.

    Args:
        features: (B, d * f * f, H, W).
        conv: d -> c channels.

    Returns:
        (B, c, H * f, W * f).
    """
    out_channels, in_channels = conv.weight.shape[:2]
    factor = math.isqrt(features.shape[1] // in_channels)
    phases = [
        F.pad(conv.weight, (factor + x - 1, 2 * factor - x - 2, factor + y - 1, 2 * factor - y - 2))
        for y in range(factor)
        for x in range(factor)
    ]
    fine = torch.stack(phases, dim=1).unflatten(4, (3, factor)).unflatten(3, (3, factor))
    weight = fine.permute(0, 1, 2, 4, 6, 3, 5).reshape(out_channels * factor**2, features.shape[1], 3, 3)
    assert conv.bias is not None
    bias = conv.bias.repeat_interleave(factor**2)
    return F.pixel_shuffle(F.conv2d(features, weight, bias, padding=1), factor)


class Adjoint(torch.autograd.Function):
    """A linear map of a tensor whose gradient is given as the map that goes back, where autograd would scatter."""

    @staticmethod
    def forward(ctx, x: Tensor, there: Callable[..., Tensor], back: Callable[..., Tensor], places: Any) -> Tensor:
        ctx.back, ctx.places = back, places
        return there(x, places)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradient, ctx.places), None, None, None
