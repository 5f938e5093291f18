import pytest
import torch

from study.grid.schema import L1, Charbonnier
from study.objectives import OBJECTIVES


def test_l1_is_the_mean_absolute_error() -> None:
    sr, hr = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.5, 0.25]]]])
    assert OBJECTIVES["l1"](L1())(sr, hr).item() == pytest.approx(0.625)


def test_charbonnier_lies_between_l1_and_l1_plus_epsilon_and_is_smooth_at_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    sr, hr = (torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = OBJECTIVES["charbonnier"](Charbonnier(epsilon=0.01))
    l1 = OBJECTIVES["l1"](L1())(sr, hr)
    assert l1 < loss(sr, hr) < l1 + 0.01
    same = hr.clone().requires_grad_()
    value = loss(same, hr)
    value.backward()
    assert value.item() == pytest.approx(0.01)
    assert same.grad is not None
    assert torch.equal(same.grad, torch.zeros_like(hr))
