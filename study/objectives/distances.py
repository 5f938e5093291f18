"""Distances between images in [-1, 1], one number per sample."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from study.evaluation.metrics import perceptual
from study.grid.objectives import Distance

_EPSILON_SQUARED = 1e-12


class Measure:
    """The declared distance: (B, 3, H, W) twice -> (B,). No module, so that LPIPS stays out of state dicts.

    Raises:
        MetricUnavailable: LPIPS is part of it, and its weights cannot be had.
    """

    def __init__(self, config: Distance, device: torch.device, dtype: torch.dtype) -> None:
        self.kind, self.share = config.kind, config.lpips_share
        self.lpips: nn.Module | None = perceptual(device, dtype) if config.perceptual else None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if self.lpips is None:
            return PLAIN[self.kind](x, y)
        perceived = self.lpips((x + 1) / 2, (y + 1) / 2)
        return perceived if self.kind == "lpips" else self.share * perceived + (1 - self.share) * charbonnier(x, y)


def charbonnier(x: Tensor, y: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + 1e-12), (B,)."""
    return torch.sqrt((x - y) ** 2 + _EPSILON_SQUARED).mean(dim=(1, 2, 3))


def squared(x: Tensor, y: Tensor) -> Tensor:
    """Mean of d^2, (B,)."""
    return ((x - y) ** 2).mean(dim=(1, 2, 3))


PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"charbonnier": charbonnier, "squared": squared}
