"""Token aggregation by full self-attention: every token attends every other, an upper anchor for small inputs."""

from torch import Tensor, nn
from torch.nn import functional as F

from study.grid.models import CATANet, Global
from study.models.layers import ConvFFN, PreNorm, SelfAttention


class GlobalAggregation(nn.Module):
    """Multi-head self-attention over all tokens of an image; map in, map out.

    Without positions, and as large as the hard block, see `value_width`. Time grows with the square of the tokens.
    """

    def __init__(self, config: CATANet, index: int) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, config.qk_width, value_width(config), config.heads)
        self.conv1x1 = nn.Conv2d(width, width, 1, bias=False)
        self.mlp = PreNorm(width, ConvFFN(width, config.mlp_width))

    def forward(self, x: Tensor, descriptor: Tensor | None = None) -> Tensor:
        """(B, H, W, d) -> (B, H, W, d); a prior's descriptor is of no use here.

        Raises:
            ValueError: more tokens than 128 x 128.
        """
        height, width = x.shape[1:3]
        side = Global.LARGEST_PX
        if height * width > side**2:
            raise ValueError(
                f"global attention takes at most {side} x {side} tokens, got {height} x {width}: "
                f"set evaluation.tile_lr_px (in training, data.lr_patch_px) to at most {side}"
            )
        x = x + self.mix(self.norm(x).flatten(1, 2)).unflatten(1, (height, width))
        return x + self.mlp(x)

    def products(self, height: int, width: int) -> int:
        """Multiply-adds of the attention, see `study.evaluation.complexity`."""
        return (height * width) ** 2 * self.attention.pair()

    def mix(self, normed: Tensor) -> Tensor:
        """The attention, before the residual; (B, N, d) -> (B, N, d)."""
        return F.linear(self.attention(normed), self.conv1x1.weight.flatten(1))


def value_width(config: CATANet) -> int:
    """Width of the values of one self-attention that is as large as all projections of the hard block."""
    # hard: 3 d (qk + d); self-attention: 2 d (qk + values)
    return (config.qk_width + 3 * config.width) // (2 * config.heads) * config.heads
