"""SPIN (Zhang et al., ICCV 2023): attention between and within soft superpixels, then in local windows."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.grid.models import SPIN as SPINConfig
from study.models.attention import attend, project
from study.models.layers import Adjoint, BlockNetwork, full_precision
from study.models.superpixels import (
    NEIGHBOURS,
    ROUNDS,
    Grid,
    cut_cells,
    grid,
    likeliest,
    soft_superpixels,
    strongest,
    weighted_means,
)
from study.models.windows import blend, cut, window_count

_SMALLEST_PX = 8
_EPS = 1e-6


class ChannelNorm(nn.Module):
    """LayerNorm over channels, eps 1e-6; (..., d) -> (..., d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution, of channels that lie last; (..., d) -> (..., e)."""

    def __init__(self, width: int, out_width: int, bias: bool = True) -> None:
        super().__init__(width, out_width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class FeedForward(nn.Module):
    """`x` plus a feed-forward network on two weightings of its channels; (B, H, W, d) -> (B, H, W, d).

    One weighs channels, by their means (`ca`), the other pixels (`pa`).
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        narrow = width // 8
        self.norm = ChannelNorm(width)
        # the identity stands for the pooling, so that names are the published ones
        self.ca = nn.Sequential(
            nn.Identity(), Pointwise(width, narrow), nn.GELU(), Pointwise(narrow, width), nn.Sigmoid()
        )
        self.pa = nn.Sequential(Pointwise(width, narrow), nn.GELU(), Pointwise(narrow, 1), nn.Sigmoid())
        self.fc1 = Pointwise(2 * width, hidden)
        self.fc2 = Pointwise(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        assert self.fc1.bias is not None
        assert self.fc2.bias is not None
        n = self.norm(x).flatten(1, 2)
        # The weights of channels are the same for all pixels of an image, so they go into the weights of fc1.
        for_channels, for_pixels = self.fc1.weight.flatten(1).chunk(2, dim=1)
        weight = for_channels * self.ca(n.mean(dim=1))[:, None]
        # Sums are taken in place, biases among them: faster than the layers' own way, but autocast leaves them alone.
        hidden = F.linear(n * self.pa(n), for_pixels)
        hidden.baddbmm_(n.to(hidden.dtype), weight.to(hidden.dtype).transpose(1, 2)).add_(self.fc1.bias)
        out = (x.flatten(0, 2) + self.fc2.bias).to(hidden.dtype)
        out.addmm_(F.gelu(hidden).flatten(0, 1), self.fc2.weight.to(hidden.dtype).flatten(1).T)
        return out.view(x.shape)


class InterAttention(nn.Module):
    """Superpixel cross-attention (SPCA): pixels to superpixels and back."""

    def __init__(self, width: int, qk_width: int) -> None:
        super().__init__()
        self.scale = qk_width**-0.5
        self.norm = ChannelNorm(width)
        self.q = Pointwise(width, qk_width, bias=False)
        self.k = Pointwise(width, qk_width, bias=False)
        self.v = Pointwise(width, width, bias=False)
        self.sp = nn.Linear(width, qk_width, bias=False)

    def forward(self, x: Tensor, affinity: Tensor, cells: Grid) -> Tensor:
        """(B, H, W, d) and A, (B, K, 9, P) -> (B, H, W, d)."""
        n = self.norm(x)
        with full_precision(x):
            means = weighted_means(affinity, cut_cells(n.to(affinity.dtype), cells), cells)
        superpixels = _project(means, self.sp, self.scale)
        queries, keys, values = (_project(n.flatten(1, 2), part) for part in (self.q, self.k, self.v))
        gathered = attend(superpixels, keys, values)
        mixed = attend(queries, superpixels, gathered)
        return x + mixed.reshape(x.shape)


class IntraAttention(nn.Module):
    """Intra-superpixel attention (ISPA) among the pixels that are most akin to each superpixel."""

    def __init__(self, width: int, qk_width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.scale = qk_width**-0.5
        self.norm = ChannelNorm(width)
        self.q = Pointwise(width, qk_width, bias=False)
        self.k = Pointwise(width, qk_width, bias=False)
        self.v = Pointwise(width, width, bias=False)

    def forward(self, x: Tensor, affinity: Tensor, cells: Grid) -> Tensor:
        """(B, H, W, d) and A, (B, K, 9, P) -> (B, H, W, d)."""
        n = self.norm(x).flatten(1, 2)
        pixels, width = n.shape[1:]
        count = min(self.size**2, pixels)
        members = _members(strongest(affinity, cells, count), pixels)
        tokens = Adjoint.apply(n.flatten(0, 1), _gathered, _summed, members).view(-1, count, width)
        mixed = attend(_project(tokens, self.q, self.scale), _project(tokens, self.k), _project(tokens, self.v))
        own = self.v(n.flatten(0, 1))
        share = members.starts.diff().add_(1).to(n.dtype).reciprocal_()
        means = own.add_(Adjoint.apply(mixed.flatten(0, 2), _summed, _gathered, members)).mul_(share[:, None])
        return means.add_(x.flatten(0, 2)).view(x.shape)


class LocalSelfAttention(nn.Module):
    """Projections of the local attention; (B, L, d) -> (B, L, d)."""

    def __init__(self, width: int, qk_width: int) -> None:
        super().__init__()
        self.scale = qk_width**-0.5
        self.to_q = nn.Linear(width, qk_width, bias=False)
        self.to_k = nn.Linear(width, qk_width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return attend(_project(x, self.to_q, self.scale), _project(x, self.to_k), _project(x, self.to_v)).squeeze(1)


class LocalAttention(nn.Module):
    """Self-attention in overlapping windows, blended by their true count; (B, H, W, d) -> (B, H, W, d)."""

    def __init__(self, width: int, qk_width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.LayerNorm(width)
        self.attn = LocalSelfAttention(width, qk_width)

    def forward(self, x: Tensor) -> Tensor:
        windows = cut(self.norm(x), self.size)
        mixed = self.attn(windows.flatten(0, 2).flatten(1, 2))
        return x + blend(mixed.reshape(windows.shape), x.shape[1], x.shape[2], "averaged")


class Block(nn.Module):
    """Attention between superpixels, within them, and in windows, each with its feed-forward network."""

    def __init__(self, config: SPINConfig, index: int) -> None:
        super().__init__()
        width, qk_width, hidden = config.width, config.qk_width, config.mlp_width
        self.size = config.superpixels[index % len(config.superpixels)]
        self.inter_layer = nn.ModuleList([InterAttention(width, qk_width), FeedForward(width, hidden)])
        self.intra_layer = nn.ModuleList([IntraAttention(width, qk_width, self.size), FeedForward(width, hidden)])
        self.local_layer = nn.ModuleList([LocalAttention(width, qk_width, self.size), FeedForward(width, hidden)])

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """(B, H, W, d) -> (B, H, W, d); notes each pixel's likeliest superpixel in `maps`, int64 (B, H, W)."""
        cells = grid(x.shape[1], x.shape[2], self.size, x.device)
        with full_precision(x):
            affinity = soft_superpixels(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x, cells)
        if maps is not None:
            maps.append(likeliest(affinity, cells))
        for attention, mlp in (self.inter_layer, self.intra_layer):
            x = mlp(attention(x, affinity, cells))
        attention, mlp = self.local_layer
        return mlp(attention(x))

    def places(self, height: int, width: int) -> dict[str, int]:
        """Where layers are not applied at every pixel, see `study.evaluation.complexity`."""
        means = {f"{layer}.1.ca": 1 for layer in ("inter_layer", "intra_layer", "local_layer")}
        return means | {
            "inter_layer.0.sp": self._count(height, width),
            "local_layer.0.attn": self._windowed(height, width),
        }

    def products(self, height: int, width: int) -> int:
        """Multiply-adds of distances to the nine superpixels around, of means over them, and of the attentions.

        See `study.evaluation.complexity`.
        """
        inter: InterAttention = self.inter_layer[0]  # type: ignore[assignment]
        qk_width, channels = inter.q.out_channels, inter.q.in_channels
        pixels, superpixels = height * width, self._count(height, width)
        # distances in each round, means after all but the last, and the superpixels' tokens
        nine = 2 * ROUNDS * NEIGHBOURS * pixels * channels
        own = min(self.size**2, pixels)
        windows = self._windowed(height, width) * min(self.size, height) * min(self.size, width)
        pairs = 2 * superpixels * pixels + superpixels * own**2 + windows
        return nine + pairs * (qk_width + channels)

    def _count(self, height: int, width: int) -> int:
        return max(1, height // self.size) * max(1, width // self.size)

    def _windowed(self, height: int, width: int) -> int:
        """Tokens of all windows, those in an overlap counted in each."""
        sides = [(side, min(self.size, side)) for side in (height, width)]
        return math.prod(window_count(side, window) * window for side, window in sides)


class SPIN(BlockNetwork):
    """The network; names and shapes of its state are those of the published checkpoints."""

    def __init__(self, config: SPINConfig, scale: int) -> None:
        super().__init__(config.width, scale, (Block(config, index) for index in range(config.blocks)))
        self.config = config

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Enlarges images.

        Args:
            x: (B, 3, H, W), sides of at least 8 pixels.
            keys: not used; SPIN draws nothing.

        Returns:
            (B, 3, H * scale, W * scale).
        """
        return self.enlarge(x, self._features(x))

    @torch.no_grad()
    def assignment_maps(self, x: Tensor, keys: Tensor | None = None) -> list[Tensor]:
        """The superpixel each pixel is most akin to, row-major index, int64 (B, H, W), one map per block."""
        maps: list[Tensor] = []
        self._features(x, maps)
        return maps

    def _features(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        if min(x.shape[2:]) < _SMALLEST_PX:
            raise ValueError(f"SPIN needs images of at least 8 x 8 pixels, got {x.shape[2]} x {x.shape[3]}")
        features = self.first_conv(x.contiguous(memory_format=torch.channels_last))
        for block, mid_conv in zip(self.blocks, self.mid_convs, strict=True):
            tokens = features.permute(0, 2, 3, 1).contiguous()
            features = mid_conv(block(tokens, maps).permute(0, 3, 1, 2)).add_(features)
        return features


@dataclass(frozen=True)
class _Members:
    """Which pixels belong to which lists, for a batch of B images of N pixels and M list entries in all.

    Attributes:
        pixels: (M,), of each entry, in the batch's B * N pixels.
        entries: (M,), the entries sorted by their pixel.
        starts: (B * N + 1,), where each pixel's entries begin among the sorted ones.
    """

    pixels: Tensor
    entries: Tensor
    starts: Tensor


def _members(lists: Tensor, pixels: int) -> _Members:
    """Of the lists (B, K, T) of pixel indices of each image."""
    first = torch.arange(len(lists), device=lists.device)[:, None] * pixels
    flat = (lists.flatten(1) + first).flatten()
    counts = flat.new_zeros(len(lists) * pixels + 1).index_add_(0, flat + 1, torch.ones_like(flat))
    return _Members(flat, flat.argsort(stable=True), counts.cumsum(0))


def _gathered(rows: Tensor, members: _Members) -> Tensor:
    return rows.index_select(0, members.pixels)


def _summed(rows: Tensor, members: _Members) -> Tensor:
    # sums of sorted rows: the same on every run, where index_add is not on CUDA
    return F.embedding_bag(members.entries, rows.contiguous(), members.starts, mode="sum", include_last_offset=True)


def _project(x: Tensor, part: nn.Conv2d | nn.Linear, scale: float = 1.0) -> Tensor:
    """A linear map of channels without bias, as one head; (B, L, d) -> (B, 1, L, e)."""
    return project(x, part.weight.flatten(1) * scale, 1)
