"""Window attention of the U-Net, and the layers that the two share; maps are (B, C, H, W)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.models.layers import pointwise


class Conv(nn.Conv2d):
    """3 x 3 or 1 x 1 convolution that keeps the size; at first Xavier uniform without biases, as in EDM."""

    gain = 1.0

    def __init__(self, in_channels: int, out_channels: int, side: int = 3) -> None:
        super().__init__(in_channels, out_channels, side, padding=side // 2)

    def reset_parameters(self) -> None:
        assert self.bias is not None
        nn.init.xavier_uniform_(self.weight, self.gain)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == (1, 1):
            return super().forward(x)
        return pointwise(self, x)


class FaintConv(Conv):
    """The last convolution of a branch, which begins near zero, so that the branch does."""

    gain = 1e-5


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least 4 channels and at most 32 of them, as in EDM; fewer where that many do not divide (ours)."""
    groups = next(count for count in range(min(32, channels // 4), 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


class WindowAttention(nn.Module):
    """One Swin block (Liu et al., ICCV 2021) without shift between two convolutions, added to its input (CTMSR).

    Group normalisation of the whole map replaces Swin's layer normalisation. The published count of parameters does
    not say how large the convolutions are; here they are 3 x 3. No factor on the sum, and a last convolution that
    begins near zero, are ours.
    """

    def __init__(self, channels: int, width: int, heads: int, window: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.first = Conv(channels, width)
        self.norm1 = group_norm(width)
        self.qkv = Conv(width, 3 * width, 1)
        self.position_bias = nn.Parameter(torch.empty(heads, 2 * window - 1, 2 * window - 1))
        self.proj = Conv(width, width, 1)
        self.norm2 = group_norm(width)
        self.mlp = nn.Sequential(Conv(width, mlp_ratio * width, 1), nn.GELU(), Conv(mlp_ratio * width, width, 1))
        self.last = FaintConv(width, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.position_bias, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); sides are multiples of the window's."""
        inner = self.first(x)
        inner = inner + self.proj(self._attend(self.qkv(self.norm1(inner))))
        inner = inner + self.mlp(self.norm2(inner))
        return x + self.last(inner)

    def pair(self) -> int:
        """Multiply-adds of one query with one key and its value."""
        return 2 * self.proj.out_channels

    def _attend(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values, (B, 3 * width, H, W) -> (B, width, H, W)."""
        batch, _, height, width = qkv.shape
        rows, columns = height // self.window, width // self.window
        parts = qkv.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).unflatten(1, (3, self.heads, -1))
        # the heads' channels innermost: what the fused kernels take, and how a map with channels last has them
        parts = parts.permute(1, 0, 4, 6, 2, 5, 7, 3).flatten(5, 6).flatten(1, 3)
        queries, keys, values = parts.unbind()
        bias = self._bias().to(queries.dtype)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias[None])
        mixed = mixed.unflatten(2, (self.window, -1)).unflatten(0, (batch, rows, columns))
        return mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    def _bias(self) -> Tensor:
        """What the offset from key to query adds to the logit, (heads, window ** 2, window ** 2)."""
        # element (row, column, k, l) of the views is that of the offsets row + k and column + l
        views = self.position_bias.unfold(1, self.window, 1).unfold(2, self.window, 1)
        return views.flip(3, 4).flatten(3, 4).flatten(1, 2)
