"""Distribution trajectory matching beside consistency training (CTMSR's second stage, arXiv 2503.20349)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from study.data.draws import derived
from study.grid.objectives import Trajectory as DeclaredTrajectory
from study.grid.schema import Optimisation
from study.objectives.consistency import Consistency, Path, drawn_index, frozen
from study.objectives.distances import Measure
from study.objectives.objective import Batch

_LEAST_ERROR = 1e-3


@dataclass(frozen=True)
class Views:
    """What the frozen network makes of noisy images, (B, 3, H, W) each; no gradient.

    Attributes:
        output: x^, the trained network's output.
        fake: from the path that begins at `output`.
        real: from the path that begins at the HR image; None where `sds` has no use for it.
    """

    output: Tensor
    fake: Tensor
    real: Tensor | None


class Trajectory(Consistency):
    """The consistency loss plus weight * mean_b[w_b * distance(x^, stopgrad(x^ - g))].

    x^ is the output at the consistency loss's later time, so matching costs two forwards of the frozen network and no
    gradient. `dtm`: g = phi(z_t) - phi(x_t) with z_t and x_t on paths of one y, t and noise that begin at x^ and at
    the HR image; the noise is not the one that x^ was made from, as phi learned to see noise that says nothing of the
    image (ours). `sds`: g = x^ - phi(z_t), score distillation's direction in terms of clean images (our reading).
    w_b = 1 / mean|x^ - x0| (at least 1e-3), or 1. phi is a copy of the network as it begins, refreshed from it.
    """

    config: DeclaredTrajectory

    def __init__(self, config: DeclaredTrajectory) -> None:
        super().__init__(config)

    def begin(self, network: nn.Module, optimisation: Optimisation) -> None:
        super().begin(network, optimisation)
        parameter = next(network.parameters())
        self.matching_distance = Measure(self.config.matching_distance, parameter.device, parameter.dtype)
        self.frozen = frozen(network)

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        path, points = self.path(batch, batch.keys), self.points(batch)
        index = drawn_index(batch.keys, "interval", range(points - 1))
        loss, output = self.consistency(network, path, index, points)
        when = self.time(drawn_index(batch.keys, "matching", self.config.times(points)), points, path)
        seen = self.path(batch, derived(batch.keys, "matching"))
        views = self.views(self.frozen, seen, output.detach(), when)
        matching = self.matching(output, path, self.direction(views))
        self.last |= {"consistency": loss.detach(), "matching": matching.detach(), "grid_points": points}
        return loss + self.config.matching_weight * matching

    @torch.no_grad()
    def views(self, fake: nn.Module, path: Path, output: Tensor, when: Tensor) -> Views:
        """What `fake` and the frozen network see at time `when` (B,) on the two paths."""
        noisy, noisy_real = path.at(when, output), path.at(when)
        if self.config.matching == "sds":
            return Views(output, fake(path.lr, at=(noisy, when)).to(output), None)
        if fake is not self.frozen:
            real = self.frozen(path.lr, at=(noisy_real, when))
            return Views(output, fake(path.lr, at=(noisy, when)).to(output), real.to(output))
        both = fake(torch.cat([path.lr, path.lr]), at=(torch.cat([noisy, noisy_real]), torch.cat([when, when])))
        return Views(output, *both.to(output).chunk(2))

    def direction(self, views: Views) -> Tensor:
        """g, and in the diagnostics its mean norm."""
        g = views.output - views.fake if views.real is None else views.fake - views.real
        self.last = {"direction_norm": norms(g).mean()}
        return g

    def matching(self, output: Tensor, path: Path, direction: Tensor) -> Tensor:
        """mean_b[w_b * distance(x^, stopgrad(x^ - g))]."""
        losses = self.matching_distance(output, output.detach() - direction)
        if self.config.weighting == "inverse_error":
            errors = (output.detach() - path.clean).abs().mean(dim=(1, 2, 3))
            losses = losses / errors.clamp(min=_LEAST_ERROR)
        return losses.mean()

    def settle(self, network: nn.Module, step: int) -> None:
        super().settle(network, step)
        if step % self.config.refresh_every == 0:
            self.frozen.load_state_dict(network.state_dict())


def norms(images: Tensor) -> Tensor:
    """Root mean square of each image, (B,)."""
    return images.square().mean(dim=(1, 2, 3)).sqrt()
