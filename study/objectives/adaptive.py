"""Adaptive matching on top of trajectory matching (AMD, Bai et al. 2026, arXiv 2602.07345; our reading throughout).

AMD was defined for distribution matching of text-to-image models. What carries over: the direction is split into the
real teacher's pull and the fake teacher's push, and each sample leans on the push where a reward says that it is poor
(the forbidden zone), on the pull where it is good. The paper's own coefficients were not available.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn

from study.data.draws import derived
from study.evaluation.metrics import perceptual, require, score
from study.grid.objectives import Adaptive as DeclaredAdaptive
from study.grid.schema import Optimisation
from study.models.layers import full_precision
from study.objectives.consistency import Path, drawn_index, frozen, neighbours
from study.objectives.distances import charbonnier
from study.objectives.objective import Batch
from study.objectives.trajectory import Trajectory, Views, norms

_LEAST_SPREAD = 1e-4
_LONGEST = 2.0


class Adaptive(Trajectory):
    """Trajectory matching with three switches; with all of them off it is `Trajectory`, to the bit.

    With an advantage a in [-1, 1] of each of K draws of noise for one image (reward minus its mean over the draws, over
    their population deviation + 1e-4, clipped; the draws share their times):

    - split: g = (1 - s a) (phi_fake(z_t) - x^) - (1 + s a) (phi_real(x_t) - x^), no longer than twice the g of a = 0;
    - separate_fake: phi_fake is a copy that is trained, without dropout, by a consistency loss with the outputs x^ in
      the HR images' place, times and noise of its own (AdamW without decay, at the run's first learning rate: on
      its schedule, one_step with --budget reduced, seed 0, ended at 15.6 dB on B100 instead of 25.4);
    - sharpening: that loss weighs each sample by exp(-eta a), normalised to mean 1.

    Diagnostics: `advantage_std`, `forbidden_share` (of draws with a < 0), `pull_norm` and `push_norm` (root mean
    square of the two weighted terms), `clipped_share`, `fake_loss`.
    """

    config: DeclaredAdaptive

    def begin(self, network: nn.Module, optimisation: Optimisation) -> None:
        super().begin(network, optimisation)
        parameter = next(network.parameters())
        self.reward = Reward(self.config, parameter.device, parameter.dtype) if self.config.judged else None
        if self.config.separate_fake:
            self.fake = frozen(network).requires_grad_(True)
            chosen = optimisation.optimiser
            self.fake_optimiser = torch.optim.AdamW(
                self.fake.parameters(), lr=chosen.lr, betas=chosen.betas, weight_decay=0.0
            )

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        draws = self.config.draws if self.config.judged else 1
        shared = batch.keys.repeat_interleave(draws)  # of the times
        batch = _several(batch, draws)
        path, points = self.path(batch, batch.keys), self.points(batch)
        index = drawn_index(shared, "interval", range(points - 1))
        loss, output = self.consistency(network, path, index, points)
        when = self.time(drawn_index(shared, "matching", self.config.times(points)), points, path)
        fake = self.fake if self.config.separate_fake else self.frozen
        views = self.views(fake, self.path(batch, derived(batch.keys, "matching")), output.detach(), when)
        advantage = None if self.reward is None else advantages(self.reward(views.output, path.clean), draws)
        matching = self.matching(output, path, self._leaning(views, advantage))
        self.last |= {"consistency": loss.detach(), "matching": matching.detach(), "grid_points": points}
        total = loss + self.config.matching_weight * matching
        if self.config.separate_fake:
            # the path's own noise would give the output away: at t = 1 it is a function of it
            afresh = replace(self.path(batch, derived(batch.keys, "fake")), clean=views.output)
            total = total + self._fake_loss(
                afresh, drawn_index(shared, "fake interval", range(points - 1)), points, advantage
            )
        return total

    def _leaning(self, views: Views, advantage: Tensor | None) -> Tensor:
        """The direction g, (B, 3, H, W); its parts go to the diagnostics."""
        g = self.direction(views)
        if advantage is None:
            return g
        assert views.real is not None
        self.last |= {"advantage_std": advantage.std(correction=0), "forbidden_share": (advantage < 0).to(g).mean()}
        if not self.config.split:
            return g
        tilt = (self.config.strength * advantage)[:, None, None, None]
        push, pull = views.fake - views.output, views.real - views.output
        split = g - tilt * (push + pull)
        longest, length = _LONGEST * norms(g), norms(split)
        shrink = torch.where(length > longest, longest / length, 1.0)
        self.last |= {
            "push_norm": norms((1 - tilt) * push).mean(),
            "pull_norm": norms((1 + tilt) * pull).mean(),
            "clipped_share": (shrink < 1).to(g).mean(),
        }
        return split * shrink[:, None, None, None]

    def _fake_loss(self, path: Path, index: Tensor, points: int, advantage: Tensor | None) -> Tensor:
        """The consistency loss of the fake network on the outputs; its gradient meets no other parameter."""
        early, late = (self.time(index + shift, points, path) for shift in (0, 1))
        losses = self.distance(*neighbours(self.fake, self.fake, path, early, late))
        if self.config.sharpening and advantage is not None:
            weights = torch.exp(-self.config.sharpness * advantage)
            losses = losses * (weights / _everywhere(weights.mean()))
        self.last |= {"fake_loss": losses.mean().detach()}
        return losses.mean()

    def settle(self, network: nn.Module, step: int) -> None:
        super().settle(network, step)
        if not self.config.separate_fake:
            return
        for parameter in self.fake.parameters():
            if parameter.grad is not None:
                parameter.grad = _everywhere(parameter.grad)
        self.fake_optimiser.step()
        self.fake_optimiser.zero_grad()

    def get_extra_state(self) -> dict[str, Any]:
        """State of the fake network's optimiser."""
        return self.fake_optimiser.state_dict() if self.config.separate_fake else {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Puts it back."""
        if self.config.separate_fake:
            self.fake_optimiser.load_state_dict(state)


class Reward:
    """What ranks outputs, higher is better: (B, 3, H, W) in [-1, 1] twice -> (B,), no gradient.

    Raises:
        MetricUnavailable: the weights of the declared metric cannot be had.
    """

    def __init__(self, config: DeclaredAdaptive, device: torch.device, dtype: torch.dtype) -> None:
        self.kind = config.reward
        self.lpips = perceptual(device, dtype) if self.kind == "lpips" else None
        if self.kind not in ("lpips", "charbonnier"):
            require([self.kind], device)

    @torch.no_grad()
    def __call__(self, output: Tensor, clean: Tensor) -> Tensor:
        if self.kind == "charbonnier":
            return -charbonnier(output, clean)
        images, truth = (((part + 1) / 2).clamp(0, 1) for part in (output, clean))
        if self.lpips is not None:
            return -self.lpips(images, truth)
        sign = -1.0 if self.kind == "niqe" else 1.0
        with full_precision(output):  # bfloat16 is coarser than the draws differ
            values = [score(self.kind, image[None], image[None]) for image in images]
        return sign * torch.tensor(values, device=output.device, dtype=output.dtype)


def advantages(rewards: Tensor, draws: int) -> Tensor:
    """Each reward (B * draws,) against the other draws of its image, in [-1, 1]."""
    table = rewards.unflatten(0, (-1, draws))
    deviation, mean = torch.std_mean(table, dim=1, correction=0, keepdim=True)
    return ((table - mean) / (deviation + _LEAST_SPREAD)).clamp(-1, 1).flatten()


def _everywhere(value: Tensor) -> Tensor:
    """Mean over the processes that share a run."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value)
        value = value / distributed.get_world_size()
    return value


def _several(batch: Batch, draws: int) -> Batch:
    """Every sample `draws` times in a row, the first with its own key."""
    if draws == 1:
        return batch
    keys = torch.stack([batch.keys, *(derived(batch.keys, f"draw {k}") for k in range(1, draws))], dim=1).flatten()
    lr, hr = (part.repeat_interleave(draws, dim=0) for part in (batch.lr, batch.hr))
    return batch._replace(lr=lr, hr=hr, keys=keys)
