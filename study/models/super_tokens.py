"""Token aggregation by super token attention (Huang et al., CVPR 2023, arXiv 2211.11167)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.grid.models import CATANet, Superpixel
from study.models.global_attention import value_width
from study.models.layers import ConvFFN, PreNorm, SelfAttention, full_precision
from study.models.prototypes import occupancy
from study.models.superpixels import (
    Grid,
    cut_cells,
    grid,
    join_cells,
    labels,
    neighbours,
    sum_neighbours,
    weighted_means,
)


class SuperTokenAggregation(nn.Module):
    """Tokens to the super tokens around them, self-attention among these, and back; map in, map out.

    Super tokens begin as the means of their cells and are updated once; the gradient flows through the association and
    through the means it is computed from. The paper's convolutional position embedding, which stands before the
    attention, is left out. The values are as wide as makes the block as large as the hard one, see `value_width`.
    """

    def __init__(self, config: CATANet, index: int) -> None:
        super().__init__()
        superpixel = config.assignment
        assert isinstance(superpixel, Superpixel)
        width = config.width
        self.size = superpixel.sizes[index % len(superpixel.sizes)]
        self.norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, config.qk_width, value_width(config), config.heads)
        self.conv1x1 = nn.Conv2d(width, width, 1, bias=False)
        self.mlp = PreNorm(width, ConvFFN(width, config.mlp_width))
        self._seen: tuple[Tensor, Grid] | None = None

    def forward(self, x: Tensor, descriptor: Tensor | None = None) -> Tensor:
        """(B, H, W, d) -> (B, H, W, d); a prior's descriptor is of no use here."""
        x = x + self.mix(self.norm(x))
        return x + self.mlp(x)

    def mix(self, normed: Tensor) -> Tensor:
        """Super token attention, before the residual; (B, H, W, d) -> (B, H, W, d)."""
        cells = grid(normed.shape[1], normed.shape[2], self.size, normed.device)
        with full_precision(normed):
            tokens = normed.float() if normed.dtype in (torch.bfloat16, torch.float16) else normed
            parts = cut_cells(tokens, cells)
            shares = association(parts, cells)
            super_tokens = weighted_means(shares, parts, cells)
        self._seen = (shares.detach(), cells)
        attended = self.attention(super_tokens)
        # The convolution is linear and acts on channels only, so it may precede the mapping back, on fewer places.
        attended = F.linear(attended, self.conv1x1.weight.flatten(1))
        return join_cells(shares.transpose(2, 3) @ neighbours(attended, cells), cells)

    def places(self, height: int, width: int) -> dict[str, int]:
        """Where layers are not applied at every pixel, see `study.evaluation.complexity`."""
        return {"attention": self._count(height, width)}

    def products(self, height: int, width: int) -> int:
        """Multiply-adds of association, means, attention and mapping back, see `study.evaluation.complexity`."""
        nine = 9 * height * width * self.conv1x1.in_channels
        return 3 * nine + self._count(height, width) ** 2 * self.attention.pair()

    def _count(self, height: int, width: int) -> int:
        return max(1, height // self.size) * max(1, width // self.size)

    def assignment(self) -> Tensor:
        """Row-major index of the super token with the largest weight in the last forward; (B, N)."""
        shares, cells = self._last()
        nearest = shares.argmax(dim=2).flatten(1)[:, cells.places]
        return labels(cells).flatten() + (nearest // 3 - 1) * cells.columns + nearest % 3 - 1

    def measures(self) -> dict[str, Tensor]:
        """`occupancy` of the last forward and `entropy_nats` of the association, mean over tokens."""
        shares, cells = self._last()
        tokens = len(shares) * len(cells.places)
        load = sum_neighbours(shares.sum(dim=3, keepdim=True), cells)[..., 0].sum(dim=0) / tokens
        return {"entropy_nats": torch.special.entr(shares).sum() / tokens, **occupancy(load)}

    def _last(self) -> tuple[Tensor, Grid]:
        assert self._seen is not None, "no forward yet"
        return self._seen


def association(parts: Tensor, cells: Grid) -> Tensor:
    """Softmax over the nine super tokens around a token's cell of products with their first means, by d^(-1/2).

    Args:
        parts: normed tokens by cell, (B, K, P, d), see `cut_cells`.
        cells: their grid.

    Returns:
        (B, K, 9, P), zero for super tokens outside the grid and where a cell is filled up; each token's weights sum
        to 1.
    """
    means = parts.sum(dim=2) / cells.real.sum(dim=1)[:, None]
    logits = (neighbours(means, cells) * parts.shape[-1] ** -0.5) @ parts.transpose(2, 3)
    return logits.masked_fill(~cells.inside[..., None], -torch.inf).softmax(dim=2) * cells.real[:, None]
