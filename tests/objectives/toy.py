"""A Gaussian toy of which consistency training is known in closed form, and a small network that is trained like any.

HR = y + r, y the LR image's pixels repeated, r independent of it with N(0, s^2) in every pixel. So z_t = x_t - y is
(1 - t) r + t eps with variance v(t) = (1 - t)^2 s^2 + t^2, E[r | z_t] = (1 - t) s^2 z_t / v(t), and the PF-ODE
dz/dt = (z_t - E[r | z_t]) / t is z v' / (2 v): it keeps z / sqrt(v), and the consistency function
is y + s z_t / sqrt(v).
"""

import io
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.data.draws import derived, hashed, normal, uniform
from study.grid.schema import Optimisation, Run
from study.models import build
from study.objectives import OBJECTIVES
from study.objectives.objective import Batch, Objective

SCALE = 2
OPTIMISATION = Optimisation.model_validate({"optimiser": {"kind": "adamw", "lr": 1e-3, "betas": [0.9, 0.9]}})


class Table(nn.Module):
    """y + c(t) (x_t - y) with one learned c for each grid point but the first, where c is 1."""

    noise_level = 1.0

    def __init__(self, points: int) -> None:
        super().__init__()
        self.points = points
        self.table = nn.Parameter(torch.ones(points - 1, dtype=torch.float64))

    def upsampled(self, lr: Tensor) -> Tensor:
        return enlarged(lr)

    def forward(self, lr: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        x_t, t = at
        factors = torch.cat([torch.ones_like(self.table[:1]), self.table])
        factors = factors[(t * (self.points - 1)).round().long()]
        return enlarged(lr) + factors[:, None, None, None] * (x_t - enlarged(lr))


class Small(nn.Module):
    """Two convolutions of the noisy image, the LR image and the time, with dropout between; the identity at t = 0."""

    noise_level = 1.0

    def __init__(self, width: int = 8, dropout: float = 0.3, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(7, width, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        self.to(dtype)

    def upsampled(self, lr: Tensor) -> Tensor:
        return enlarged(lr)

    def forward(self, lr: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        x_t, t = at
        t = t[:, None, None, None]
        seen = torch.cat([x_t, enlarged(lr), t.expand_as(x_t[:, :1])], dim=1)
        return x_t + t * self.last(self.dropout(F.silu(self.first(seen))))


class Recorder(nn.Module):
    """Gives `of(x_t)` and keeps what it was called with: images and times."""

    noise_level = 1.0

    def __init__(self, of: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.of = of
        self.calls: list[tuple[Tensor, Tensor]] = []

    def upsampled(self, lr: Tensor) -> Tensor:
        return enlarged(lr)

    def forward(self, lr: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        self.calls.append(at)
        return self.gain * self.of(at[0])


def enlarged(lr: Tensor) -> Tensor:
    """Every pixel repeated, in [-1, 1]."""
    return 2 * lr.repeat_interleave(SCALE, dim=2).repeat_interleave(SCALE, dim=3) - 1


def toy_batch(
    count: int,
    spread: float = 0.5,
    side: int = 8,
    first: int = 0,
    step: int = 0,
    steps: int = 1,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Samples `first` to `first` + `count` - 1 of the toy, LR images of `side` pixels."""
    keys = hashed(torch.arange(first, first + count), 1)[:, 0]
    lr = uniform(hashed(derived(keys, "lr"), 3 * side * side)).unflatten(1, (3, side, side))
    rest = spread * normal(derived(keys, "rest"), (3, SCALE * side, SCALE * side), torch.float64)
    hr = (enlarged(lr) + rest + 1) / 2
    return Batch(lr.to(dtype), hr.to(dtype), keys, step, steps)


def begun(network: nn.Module, declared: Any) -> Any:
    """The declared objective, ready to train `network`; of type Any for the attributes of its class."""
    objective = OBJECTIVES[declared.kind](declared)
    objective.begin(network, OPTIMISATION)
    return objective


def train(
    network: nn.Module,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    batches: Iterator[Batch],
    anneal: bool = False,
) -> None:
    """One optimiser step for each batch, as the training loop takes them; `anneal` lowers the rate linearly to 0."""
    rates = [cast(float, group["lr"]) for group in optimiser.param_groups]
    for batch in batches:
        if anneal:
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - batch.step / batch.steps)
        torch.manual_seed(batch.step)
        objective(network, batch).backward()
        optimiser.step()
        optimiser.zero_grad()
        objective.settle(network, batch.step + 1)


def batches(count: int, steps: int, begin: int = 0, end: int | None = None, **settings: Any) -> Iterator[Batch]:
    """A fresh batch of `count` samples for each step from `begin` to `end`, of a run of `steps`."""
    for step in range(begin, steps if end is None else end):
        yield toy_batch(count, first=step * count, step=step, steps=steps, **settings)


def variance(t: Tensor, spread: float) -> Tensor:
    """v(t) of z_t."""
    return (1 - t) ** 2 * spread**2 + t**2


def exact(t: Tensor, spread: float) -> Tensor:
    """c(t) of the consistency function."""
    return spread / variance(t, spread).sqrt()


def discrete(points: int, spread: float) -> Tensor:
    """c at the grid points where no consistency loss has a gradient.

    Neighbours (z_k, z_k+1) are jointly Gaussian, so the regression of c_k z_k on z_k+1, which least squares and (by the
    symmetry of what is left) least absolute errors look for, is c_k cov(z_k, z_k+1) / v(t_k+1) times z_k+1.
    """
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    covariance = (1 - t[:-1]) * (1 - t[1:]) * spread**2 + t[:-1] * t[1:]
    steps = covariance / variance(t[1:], spread)
    return torch.cat([torch.ones(1, dtype=torch.float64), steps.cumprod(dim=0)])


def trains_the_u_net(declared: Any) -> None:
    """Asserts that the objective is finite on the smallest U-Net, and moves all of its parameters."""
    settings = {"width": 8, "multipliers": [1, 2], "blocks": 1, "window": 4, "attention_width": 8, "heads": 2}
    run = {"scale": SCALE, "model": {"kind": "unet", **settings}, "objective": {"kind": "consistency"}}
    network = build(Run.model_validate(run)).train()
    objective = begun(network, declared)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    train(network, objective, optimiser, batches(2, 3, dtype=torch.float32))
    assert all(map(math.isfinite, objective.diagnostics().values()))
    for name, parameter in network.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name


def resumes(declared: Any) -> None:
    """Asserts that training which is stopped, saved as runs are and taken up again ends with the same bits."""
    settings: dict[str, Any] = {"count": 3, "steps": 6, "dtype": torch.float32}

    def start() -> tuple[Small, Objective, torch.optim.Optimizer]:
        network = Small()
        return network, begun(network, declared), torch.optim.AdamW(network.parameters(), lr=1e-2)

    network, objective, optimiser = start()
    train(network, objective, optimiser, batches(**settings))
    first = start()
    train(*first, batches(end=3, **settings))
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in first], buffer)
    buffer.seek(0)
    second = start()
    for part, state in zip(second, torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*second, batches(begin=3, **settings))
    same(network, second[0])
    same(objective, second[1])
    assert objective.diagnostics() == second[1].diagnostics()


def same(one: nn.Module, other: nn.Module) -> None:
    """Asserts that two modules have the same parameters, to the bit."""
    mine, others = dict(one.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == others.keys()
    for name, parameter in mine.items():
        assert torch.equal(parameter, others[name]), name
