"""CATANet (Liu et al., CVPR 2025, arXiv 2503.06896), with the hard or another assignment in its blocks."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from study.grid.models import CATANet as CATANetConfig
from study.models.global_attention import GlobalAggregation
from study.models.hard import HardAggregation
from study.models.layers import BlockNetwork, ConvFFN, PreNorm, SelfAttention
from study.models.prior import descriptor
from study.models.soft import SoftAggregation
from study.models.soft_moe import SoftMoEAggregation
from study.models.super_tokens import SuperTokenAggregation
from study.models.windows import Blend, blend, cut, window_count

_SMALLEST_PX = 8
_AGGREGATIONS = {
    "hard": HardAggregation,
    "soft": SoftAggregation,
    "superpixel": SuperTokenAggregation,
    "soft_moe": SoftMoEAggregation,
    "global": GlobalAggregation,
    "none": None,
}
_Assigning = HardAggregation | SoftAggregation | SuperTokenAggregation | SoftMoEAggregation


class LocalAttention(nn.Module):
    """Local-region self-attention in overlapping windows, then a feed-forward network; map in, map out."""

    def __init__(self, config: CATANetConfig, index: int) -> None:
        super().__init__()
        width = config.width
        self.window = config.windows[index % len(config.windows)]
        self.blend: Blend = config.blend
        attention = SelfAttention(width, config.qk_width, width, config.heads)
        self.layer = nn.ModuleList([PreNorm(width, attention), PreNorm(width, ConvFFN(width, config.mlp_width))])

    def forward(self, x: Tensor, descriptor: Tensor | None = None) -> Tensor:
        """(B, H, W, d) -> (B, H, W, d); a local window has no use for a prior's descriptor."""
        attention, mlp = self.layer
        windows = cut(x, self.window)
        tokens = windows.flatten(0, 2).flatten(1, 2)
        tokens = attention(tokens).add_(tokens)
        x = blend(tokens.view(windows.shape), x.shape[1], x.shape[2], self.blend)
        return mlp(x).add_(x)

    def places(self, height: int, width: int) -> dict[str, int]:
        """Where layers are not applied at every pixel, see `study.evaluation.complexity`."""
        return {"layer.0": self._tokens(height, width)}

    def products(self, height: int, width: int) -> int:
        """Multiply-adds of the attention, see `study.evaluation.complexity`."""
        attention: SelfAttention = self.layer[0].fn  # type: ignore[assignment]
        keys = min(self.window, height) * min(self.window, width)
        return self._tokens(height, width) * keys * attention.pair()

    def _tokens(self, height: int, width: int) -> int:
        """Tokens of all windows of a map, those in an overlap counted in each."""
        windows = [(side, min(self.window, side)) for side in (height, width)]
        return math.prod(window_count(side, window) * window for side, window in windows)


class Block(nn.Sequential):
    """Token aggregation, unless the assignment is `none`, then local attention; map in, map out."""

    def __init__(self, config: CATANetConfig, index: int) -> None:
        aggregation = _AGGREGATIONS[config.assignment.kind]
        # the local attention keeps its name where nothing comes before it, and so its initial weights (`models.build`)
        first = {} if aggregation is None else {"0": aggregation(config, index)}
        super().__init__(OrderedDict(first | {"1": LocalAttention(config, index)}))

    def forward(self, x: Tensor, descriptor: Tensor | None) -> Tensor:
        """(B, H, W, d) and the prior's descriptor, (B, H * W, bands) or None."""
        for part in self:
            x = part(x, descriptor)
        return x


class CATANet(BlockNetwork):
    """The network; names and shapes of its state are those of the published checkpoints."""

    def __init__(self, config: CATANetConfig, scale: int) -> None:
        super().__init__(config.width, scale, (Block(config, index) for index in range(config.blocks)))
        self.config = config
        prior = getattr(config.assignment, "prior", None)
        self._only_in_training = getattr(prior, "guidance", None) == "loss"
        self._energy: Tensor | None = None

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Enlarges images.

        Args:
            x: (B, 3, H, W), sides of at least 8 pixels.
            keys: int64 (B,), a seed per image, for priors that draw; zeros when absent.

        Returns:
            (B, 3, H * scale, W * scale).
        """
        return self.enlarge(x, self._features(x, keys))

    @torch.no_grad()
    def assignment_maps(self, x: Tensor, keys: Tensor | None = None) -> list[Tensor]:
        """Prototype (slot, super token) of each token at test, int64 (B, H, W), one map per block that assigns."""
        if not self._aggregations():
            return []
        was_training = self.training
        self.eval()
        try:
            self._features(x, keys)
            return [block.assignment().unflatten(1, x.shape[2:]) for block in self._aggregations()]
        finally:
            self.train(was_training)

    def diagnostics(self) -> dict[str, float]:
        """How the last forward used the prototypes: `name.block`, see `occupancy` and `SoftAggregation.measures`."""
        measures = {
            f"{name}.{index}": value
            for index, block in enumerate(self._aggregations())
            for name, value in block.measures().items()
        }
        values = torch.stack([value.double() for value in measures.values()]).tolist() if measures else []
        return dict(zip(measures, values, strict=True))

    def routing(self) -> tuple[Tensor, Tensor] | None:
        """What `study.objectives.routing` judges after a forward in training, where `guidance: loss` is declared.

        Returns:
            The last block's logits, (B, heads, N, M), and its tokens' descriptor in the highest band, (B, N).
        """
        last = next(self.blocks[-1].children())
        if not isinstance(last, SoftAggregation) or last.logits is None or self._energy is None:
            return None
        return last.logits, self._energy

    def _aggregations(self) -> list[_Assigning]:
        return [part for part in self.blocks.modules() if isinstance(part, _Assigning)]

    def _features(self, x: Tensor, keys: Tensor | None) -> Tensor:
        if min(x.shape[2:]) < _SMALLEST_PX:
            raise ValueError(f"CATANet needs images of at least 8 x 8 pixels, got {x.shape[2]} x {x.shape[3]}")
        shallow = self.first_conv(x.contiguous(memory_format=torch.channels_last))
        guidance = descriptor(self.config.assignment, x, keys) if self.training or not self._only_in_training else None
        self._energy = None if guidance is None else guidance[..., -1]
        features = shallow
        for block, mid_conv in zip(self.blocks, self.mid_convs, strict=True):
            mixed = block(features.permute(0, 2, 3, 1).contiguous(), guidance)
            features = mid_conv(mixed.permute(0, 3, 1, 2)).add_(features)
        return features + shallow
