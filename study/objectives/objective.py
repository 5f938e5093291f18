"""What every objective is to the training loop."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from study.grid.schema import Optimisation


class Batch(NamedTuple):
    """Samples of one micro-batch, and when they are seen.

    Attributes:
        lr: (B, 3, h, w) in [0, 1].
        hr: (B, 3, sh, sw) in [0, 1].
        keys: int64 (B,), the seed of whatever is drawn for each sample.
        step: optimiser steps done before.
        steps: optimiser steps of the whole run.
    """

    lr: Tensor
    hr: Tensor
    keys: Tensor
    step: int
    steps: int


class Objective(nn.Module, ABC):
    """A loss of a network on a batch; one that keeps networks of its own has them in its state dict."""

    def begin(self, network: nn.Module, optimisation: Optimisation) -> None:
        """Called once, when the network has its first weights and is on its device."""

    @abstractmethod
    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss, a scalar of the type of `batch.hr`; `network` may be wrapped for several processes."""

    def settle(self, network: nn.Module, step: int) -> None:
        """Called with the bare network after optimiser step `step` (the first is 1)."""

    def diagnostics(self) -> dict[str, float]:
        """Values of the last batch for the training curve."""
        return {}
