"""Losses between a network's output and the HR image, pixel by pixel."""

import torch
from torch import Tensor, nn

from study.grid.objectives import L1 as DeclaredL1
from study.grid.objectives import Charbonnier as DeclaredCharbonnier
from study.objectives.objective import Batch, Objective


class L1(Objective):
    """Mean absolute error of images in [0, 1]."""

    def __init__(self, config: DeclaredL1) -> None:
        super().__init__()

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        return torch.mean(torch.abs(_difference(network, batch)))


class Charbonnier(Objective):
    """Mean of sqrt(d^2 + epsilon^2) of images in [0, 1] (Lai et al., LapSRN, 2017)."""

    def __init__(self, config: DeclaredCharbonnier) -> None:
        super().__init__()
        self.epsilon = config.epsilon

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        return torch.mean(torch.sqrt(_difference(network, batch) ** 2 + self.epsilon**2))


def _difference(network: nn.Module, batch: Batch) -> Tensor:
    return network(batch.lr, batch.keys).to(batch.hr) - batch.hr
