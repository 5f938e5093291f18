"""The two sparse supports of a soft assignment."""

import math

import pytest
import torch
from torch import Tensor

from study.models import support
from study.models.support import sparsemax, threshold_by_search, threshold_by_sorting, top_softmax

COUNT = 5


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_top_one_passes_the_gradient_of_the_full_softmax() -> None:
    logits, weight = numbers(3, COUNT).requires_grad_(), numbers(3, COUNT, seed=1)
    (through,) = torch.autograd.grad((top_softmax(logits, 1) * weight).sum(), logits)
    (full,) = torch.autograd.grad((logits.softmax(dim=-1) * weight).sum(), logits)
    torch.testing.assert_close(through, full)


def test_top_k_of_equal_logits_keeps_k() -> None:
    assert ((top_softmax(torch.zeros(4, COUNT), 3) > 0).sum(dim=-1) == 3).all()


def test_sparsemax_known_values_and_gradient() -> None:
    logits = torch.tensor([[0.5, 0.0, -1.0], [3.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[0.75, 0.25, 0], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(sparsemax(logits), expected)
    assert sparsemax(torch.full((1, 3), math.nan)).isnan().all()
    assert torch.autograd.gradcheck(sparsemax, (numbers(6, COUNT).requires_grad_(),))


def test_sparsemax_is_the_nearest_point_of_the_simplex() -> None:
    logits = numbers(50, COUNT)
    others = torch.distributions.Dirichlet(torch.full((COUNT,), 0.5, dtype=torch.float64)).sample((200, 1))
    nearest = (logits - sparsemax(logits)).square().sum(dim=-1)
    assert (nearest <= (logits - others).square().sum(dim=-1) + 1e-12).all()


@pytest.mark.parametrize("spread", [1e-3, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("count", [1, 2, 128])
def test_search_finds_the_threshold_of_the_closed_form(spread: float, count: int) -> None:
    logits = spread * numbers(300, count)
    logits[::3] = logits[::3].round(decimals=1)  # with ties
    torch.testing.assert_close(threshold_by_search(logits), threshold_by_sorting(logits))
    rounding = count * torch.finfo(torch.float32).eps * max(1, float(logits.abs().max()))
    torch.testing.assert_close(sparsemax(logits.float()).sum(dim=-1), torch.ones(300), rtol=0, atol=rounding)


def test_search_does_not_mind_rows_that_are_no_numbers() -> None:
    logits = numbers(4, COUNT)
    logits[1] = math.nan
    logits[2, 0] = -math.inf
    shares = sparsemax(logits)
    assert shares[1].isnan().all()
    torch.testing.assert_close(shares[[0, 2, 3]].sum(dim=-1), torch.ones(3, dtype=torch.float64))


def test_sparsemax_in_blocks_is_sparsemax_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = numbers(2, 3, 7, COUNT).transpose(1, 2)
    whole = sparsemax(logits)
    monkeypatch.setattr(support, "_BLOCK", 4 * COUNT)
    assert torch.equal(sparsemax(logits), whole)
    assert whole.shape == logits.shape


@pytest.mark.parametrize("count", [2, 3, COUNT])
def test_top_softmax_is_the_softmax_of_the_largest(count: int) -> None:
    logits = 200 * numbers(40, COUNT)  # as far apart as a low temperature brings them
    values, indices = logits.topk(count, dim=-1)
    expected = torch.zeros_like(logits).scatter(-1, indices, values.softmax(dim=-1))
    torch.testing.assert_close(top_softmax(logits, count), expected)
    small = numbers(6, COUNT).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: top_softmax(x, count), (small,))
