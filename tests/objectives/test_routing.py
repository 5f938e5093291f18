"""The loss on the assignment against cases worked out by hand."""

import math

import pytest
import torch

from study.objectives.routing import routing_loss


def weights_to_logits(weights: list[float]) -> torch.Tensor:
    """Logits (1, 1, N, 1) whose dispatch weights are these."""
    return torch.tensor(weights, dtype=torch.float64).log()[None, None, :, None]


def test_a_case_by_hand() -> None:
    # mean 0.125: B = {0, 1, 2}; the top quarter of eight energies: Q = {2, 3}
    logits = weights_to_logits([0.3, 0.2, 0.15, 0.05, 0.1, 0.1, 0.05, 0.05])
    energy = torch.tensor([[0.0, 0.1, 2.0, 1.0, 0.2, 0.3, -1.0, -2.0]], dtype=torch.float64)
    expected = -math.log(0.15 / (0.3 + 0.2 + 0.15 + 0.05) + 1e-4)
    assert float(routing_loss(logits, energy)) == pytest.approx(expected)


def test_it_falls_as_dispatch_moves_to_high_frequency() -> None:
    energy = torch.tensor([[3.0, 3.0, 0, 0, 0, 0, 0, 0]])
    losses = [
        float(routing_loss(weights_to_logits([share / 2] * 2 + [(1 - share) / 6] * 6).float(), energy))
        for share in (0.3, 0.6, 0.9)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(-math.log(1 + 1e-4), abs=1e-4)


def test_images_without_an_answer_are_left_out() -> None:
    one = weights_to_logits([0.3, 0.2, 0.15, 0.05, 0.1, 0.1, 0.05, 0.05])
    energy = torch.tensor([0.0, 0.1, 2.0, 1.0, 0.2, 0.3, -1.0, -2.0], dtype=torch.float64)
    apart = energy.flip(0)  # B = {0, 1, 2}, Q = {4, 5}
    alone = routing_loss(one, energy[None])
    three = routing_loss(one.expand(3, -1, -1, -1), torch.stack([energy, torch.ones_like(energy), apart]))
    assert float(three) == pytest.approx(float(alone))
    flat = one.clone().requires_grad_()
    nothing = routing_loss(flat, torch.ones(1, 8, dtype=torch.float64))
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, flat)[0].abs().max() == 0


def test_gradient_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 12, 3, generator=generator, dtype=torch.float64).requires_grad_()
    energy = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda part: routing_loss(part, energy), logits)
