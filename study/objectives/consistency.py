"""Consistency training along the path from the LR to the HR image (CTMSR, You et al., ICCV 2025, arXiv 2503.20349).

Images are in [-1, 1]: x0 the HR image, y the LR image enlarged, and x_t = x0 + t (y - x0) + t eps for t in [0, 1], with
eps normal of the network's noise level.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from study.data.draws import derived, hashed, normal
from study.grid.objectives import Consistency as DeclaredConsistency
from study.grid.schema import Optimisation
from study.objectives.distances import Measure
from study.objectives.objective import Batch, Objective


@dataclass(frozen=True)
class Path:
    """From HR to LR images with one noise for each; all tensors (B, 3, H, W).

    Attributes:
        lr: what the network is conditioned on, (B, 3, h, w) in [0, 1].
        clean: its end at t = 0.
        low: y, where it leads but for the noise.
        noise: normal, of the network's noise level.
    """

    lr: Tensor
    clean: Tensor
    low: Tensor
    noise: Tensor

    def at(self, times: Tensor, clean: Tensor | None = None) -> Tensor:
        """x_t at each sample's time (B,); with `clean` that of the path which begins there instead."""
        begin = self.clean if clean is None else clean
        return begin + times[:, None, None, None] * (self.low - begin + self.noise)


class Consistency(Objective):
    """distance(f(x_t'), stopgrad f'(x_t)) at neighbouring times t < t' of a grid, with the same noise.

    The target f' is the current network or its moving average, sees the same dropout, and is exact at t = 0. The grid's
    points t_i = (i / (n - 1))^rho (Karras et al., 2022) change linearly in number over training, rounded.
    """

    def __init__(self, config: DeclaredConsistency) -> None:
        super().__init__()
        self.config = config
        self.target: nn.Module | None = None
        self.last: dict[str, Tensor | float] = {}

    def begin(self, network: nn.Module, optimisation: Optimisation) -> None:
        self._bare = (network,)  # in a tuple, so that it is no part of this module
        parameter = next(network.parameters())
        self.distance = Measure(self.config.distance, parameter.device, parameter.dtype)
        if self.config.target_ema:
            self.target = frozen(network).train()  # its dropout is the network's

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        path, points = self.path(batch, batch.keys), self.points(batch)
        loss, _ = self.consistency(network, path, drawn_index(batch.keys, "interval", range(points - 1)), points)
        self.last = {"consistency": loss.detach(), "grid_points": points}
        return loss

    def points(self, batch: Batch) -> int:
        """Grid points at this step."""
        first, last = self.config.grid_points
        return round(first + (last - first) * batch.step / max(batch.steps - 1, 1))

    def path(self, batch: Batch, keys: Tensor) -> Path:
        """The batch's path, with the noise of `keys`."""
        low = self._bare[0].upsampled(batch.lr).to(batch.hr)  # pyright: ignore[reportCallIssue]
        noise = normal(derived(keys, "path"), tuple(batch.hr.shape[1:]), batch.hr.dtype)
        return Path(batch.lr, 2 * batch.hr - 1, low, self._bare[0].noise_level * noise)  # pyright: ignore[reportOperatorIssue]

    def consistency(self, network: nn.Module, path: Path, index: Tensor, points: int) -> tuple[Tensor, Tensor]:
        """Loss between grid points `index` and `index` + 1, and the network's output at the later one."""
        target = self.target if self.target is not None else self._bare[0]
        output, aim = neighbours(network, target, path, *(self.time(index + shift, points, path) for shift in (0, 1)))
        return self.distance(output, aim).mean(), output

    def time(self, index: Tensor, points: int, path: Path) -> Tensor:
        """Times of grid points, (B,)."""
        return (index.to(path.clean.dtype) / (points - 1)) ** self.config.rho

    @torch.no_grad()
    def settle(self, network: nn.Module, step: int) -> None:
        if self.target is not None:
            for mine, current in zip(self.target.parameters(), network.parameters(), strict=True):
                mine.lerp_(current, 1 - self.config.target_ema)

    def diagnostics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.last.items()}


def neighbours(network: nn.Module, target: nn.Module, path: Path, early: Tensor, late: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (B, 3, H, W) of `network` at times `late` (B,), and of `target`, without gradient, at `early`."""
    devices = [path.clean.device] if path.clean.device.type == "cuda" else []
    # the generators are put back, so that both networks drop the same
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        aim = target(path.lr, at=(path.at(early), early)).to(path.clean)
    torch.clear_autocast_cache()  # some versions of torch keep weights that were cast without gradient
    return network(path.lr, at=(path.at(late), late)).to(path.clean), aim


def frozen(network: nn.Module) -> nn.Module:
    """A copy that takes no gradient, in eval mode."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def drawn_index(keys: Tensor, purpose: str, among: range) -> Tensor:
    """One of `among` for each key, int64 (B,)."""
    return among.start + hashed(derived(keys, purpose), 1)[:, 0] % len(among)
