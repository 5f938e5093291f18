"""Losses between a network's output and the HR image, pixel by pixel."""

import torch
from torch import Tensor, nn

from study.grid.schema import L1 as DeclaredL1
from study.grid.schema import Charbonnier as DeclaredCharbonnier


class L1(nn.Module):
    """Mean absolute error of images in [0, 1]: (B, 3, H, W) twice -> scalar."""

    def __init__(self, config: DeclaredL1) -> None:
        super().__init__()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return torch.mean(torch.abs(sr - hr))


class Charbonnier(nn.Module):
    """Mean of sqrt(d^2 + epsilon^2) of images in [0, 1]: (B, 3, H, W) twice -> scalar (Lai et al., LapSRN, 2017)."""

    def __init__(self, config: DeclaredCharbonnier) -> None:
        super().__init__()
        self.epsilon = config.epsilon

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return torch.mean(torch.sqrt((sr - hr) ** 2 + self.epsilon**2))
