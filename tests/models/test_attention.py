"""Attention in blocks against the plain formula, and every way it can be laid out."""

import pytest
import torch
from torch import Tensor

from study.models import attention
from study.models.attention import attend, group, merge, project, ungroup


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (queries @ keys.mT).softmax(dim=-1) @ values


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("block", [64, 5_000, 1 << 18])
@pytest.mark.parametrize(("length", "span"), [(50, 70), (3, 1), (1, 40), (33, 33)])
def test_blocks_are_plain_attention(block: int, length: int, span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK", block)
    parts = [numbers(2, 3, length, 5), numbers(2, 3, span, 5, seed=1), numbers(2, 3, span, 4, seed=2)]
    own, reference = ([part.clone().requires_grad_() for part in parts] for _ in range(2))
    found, expected = attend(*own), plain(*reference)
    torch.testing.assert_close(found, expected)
    slopes = numbers(*expected.shape, seed=3)
    for mine, theirs in zip(
        torch.autograd.grad(found, own, slopes), torch.autograd.grad(expected, reference, slopes), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_gradients_by_finite_differences() -> None:
    parts = [numbers(1, 2, 6, 3, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(attend, parts)


@pytest.mark.parametrize("factor", [60.0, -60.0])
def test_sums_out_of_range_go_another_way(factor: float) -> None:
    queries = torch.full((1, 1, 4, 1), factor, dtype=torch.float64)
    keys, values = torch.ones(1, 1, 5, 1, dtype=torch.float64), numbers(1, 1, 5, 2)
    queries[..., 0, :] *= 20  # exp(1200) is not a number of this kind
    queries.requires_grad_()
    found = attend(queries, keys, values)
    torch.testing.assert_close(found, plain(queries, keys, values))
    assert torch.isfinite(torch.autograd.grad(found.sum(), queries)[0]).all()


def test_autocast_rounds_what_comes_in_and_what_goes_out() -> None:
    parts = [numbers(2, 2, 40, 5, seed=seed).bfloat16() for seed in range(3)]
    own = [part.clone().requires_grad_() for part in parts]
    reference = [part.double().requires_grad_() for part in parts]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*own)
    expected = plain(*reference)
    assert torch.equal(found, expected.float().bfloat16())
    gradients = torch.autograd.grad(found, own, torch.ones_like(found))
    for mine, theirs in zip(gradients, torch.autograd.grad(expected.sum(), reference), strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.double(), theirs, rtol=2**-8, atol=1e-5)


def test_not_a_number_stays_one() -> None:
    queries = torch.full((1, 1, 4, 1), float("nan"))
    assert attend(queries, torch.ones(1, 1, 5, 1), torch.ones(1, 1, 5, 2)).isnan().all()


def test_keys_that_are_not_real_have_no_weight() -> None:
    queries, keys, values = numbers(2, 2, 6, 3), numbers(2, 2, 5, 3, seed=1), numbers(2, 2, 5, 4, seed=2)
    real = torch.tensor([[True, True, False, True, False], [True] * 5])
    found = attend(queries, keys, values, real)
    kept = real[0].nonzero()[:, 0]
    torch.testing.assert_close(found[0], plain(queries[0], keys[0, :, kept], values[0, :, kept]))
    torch.testing.assert_close(found[1], plain(queries[1], keys[1], values[1]))


@pytest.mark.parametrize("compiling", [False, True])
def test_projections_and_merging(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both layouts: in blocks, and padded for the fused kernel."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    x = numbers(2, 7, 6).requires_grad_()
    weights = [numbers(4 * 3, 6, seed=1), numbers(4 * 3, 6, seed=2), numbers(4 * 5, 6, seed=3)]
    out = numbers(6, 4 * 5, seed=4)
    queries, keys, values = (project(x, weight, 4) for weight in weights)
    assert queries.shape[-1] == (4 if compiling else 3)
    found = merge(attend(queries, keys, values), out)
    split = [(x @ weight.T).unflatten(-1, (4, -1)).transpose(1, 2) for weight in weights]
    expected = plain(*split).transpose(1, 2).flatten(2) @ out.T
    torch.testing.assert_close(found, expected)
    slopes = numbers(2, 7, 6, seed=5)
    mine, theirs = (torch.autograd.grad(way, x, slopes)[0] for way in (found, expected))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("inner", ["tokens", "channels"])
@pytest.mark.parametrize(("step", "span"), [(4, 8), (4, 4)])
def test_spans(step: int, span: int, inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: inner == "channels")
    part = numbers(2, 3, 12 + span - step, 5)
    part = (part.mT.contiguous().mT if inner == "tokens" else part).requires_grad_()
    found = group(part, step, span)
    expected = torch.stack([part[:, :, start : start + span] for start in (0, 4, 8)], dim=1).flatten(0, 1)
    assert torch.equal(found, expected)
    slopes = numbers(*found.shape, seed=1)
    mine, theirs = (torch.autograd.grad(way, part, slopes)[0] for way in (found, expected))
    torch.testing.assert_close(mine, theirs)
    if span == step:
        assert torch.equal(ungroup(found, 2), part)


def test_one_result_whatever_the_number_of_matrices() -> None:
    parts = [torch.randn(6, 2, 40, 9, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    together = attend(*parts)
    alone = torch.cat([attend(*(part[index : index + 1] for part in parts)) for index in range(6)])
    assert torch.equal(together, alone)
