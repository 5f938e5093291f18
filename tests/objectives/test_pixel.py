import pytest
import torch
from torch import Tensor, nn

from study.grid.objectives import L1, Charbonnier
from study.objectives import OBJECTIVES
from study.objectives.objective import Batch


class Given(nn.Module):
    """Gives the same image, and keeps what it was called with."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image
        self.called: list[tuple[Tensor, ...]] = []

    def forward(self, lr: Tensor, keys: Tensor) -> Tensor:
        self.called.append((lr, keys))
        return self.image


def batch(hr: Tensor) -> Batch:
    return Batch(hr[..., ::2, ::2], hr, torch.arange(len(hr)), 0, 1)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sr, hr = (torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return sr, hr


def test_l1_is_the_mean_absolute_error() -> None:
    sr, hr = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.5, 0.25]]]])
    assert OBJECTIVES["l1"](L1())(Given(sr), batch(hr)).item() == pytest.approx(0.625)


def test_charbonnier_is_the_formula() -> None:
    sr, hr = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.3, 1.0]]]])
    loss = OBJECTIVES["charbonnier"](Charbonnier(epsilon=0.4))
    assert loss(Given(sr), batch(hr)).item() == pytest.approx((0.5 + 0.4) / 2)


def test_charbonnier_lies_between_l1_and_l1_plus_epsilon_and_is_smooth_at_zero() -> None:
    sr, hr = images()
    loss = OBJECTIVES["charbonnier"](Charbonnier(epsilon=0.01))
    l1 = OBJECTIVES["l1"](L1())(Given(sr), batch(hr))
    assert l1 < loss(Given(sr), batch(hr)) < l1 + 0.01
    same = hr.clone().requires_grad_()
    value = loss(Given(same), batch(hr))
    value.backward()
    assert value.item() == pytest.approx(0.01)
    assert same.grad is not None
    assert torch.equal(same.grad, torch.zeros_like(hr))


@pytest.mark.parametrize("declared", [L1(), Charbonnier()])
def test_the_network_is_given_lr_images_and_keys(declared: L1 | Charbonnier) -> None:
    sr, hr = images()
    network, samples = Given(sr.float()), batch(hr)
    loss = OBJECTIVES[declared.kind](declared)
    assert loss(network, samples).dtype == torch.float64
    [(lr, keys)] = network.called
    assert lr is samples.lr
    assert keys is samples.keys
    assert not loss.state_dict()
    assert loss.diagnostics() == {}
