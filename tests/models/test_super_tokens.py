"""Super token attention against a dense one, pixel by pixel and super token by super token."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from study.grid.models import CATANet
from study.models.super_tokens import SuperTokenAggregation

WIDTH = 8
SIZES = [(6, 9, 3), (7, 11, 3), (10, 8, 4), (5, 4, 6), (9, 3, 2), (4, 4, 1)]  # height, width, side of a cell


def block(size: int) -> SuperTokenAggregation:
    config = CATANet.model_validate(
        {
            "width": WIDTH,
            "qk_width": 6,
            "mlp_width": 10,
            "heads": 2,
            "assignment": {"kind": "superpixel", "sizes": [size]},
        }
    )
    torch.manual_seed(0)
    return SuperTokenAggregation(config, 0).double()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cells(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """Row and column of each token's cell."""
    rows, columns = max(1, height // size), max(1, width // size)
    return [(y * rows // height, x * columns // width) for y in range(height) for x in range(width)]


def dense_association(tokens: Tensor, height: int, width: int, size: int) -> Tensor:
    """Weights of one image's tokens (N, d) over all super tokens, (N, K)."""
    home = cells(height, width, size)
    every = sorted(set(home))
    member = torch.tensor([[float(cell == other) for other in every] for cell in home], dtype=torch.float64)
    means = (member / member.sum(dim=0)).T @ tokens
    near = torch.tensor([[max(abs(a - c), abs(b - d)) <= 1 for c, d in every] for a, b in home])
    return (tokens @ means.T / math.sqrt(tokens.shape[1])).masked_fill(~near, -torch.inf).softmax(dim=1)


def dense(module: SuperTokenAggregation, x: Tensor) -> Tensor:
    """The block's output for one image (H, W, d)."""
    height, width = x.shape[:2]
    tokens = module.norm(x).flatten(0, 1)
    association = dense_association(tokens, height, width, module.size)
    super_tokens = (association / association.sum(dim=0)).T @ tokens
    attention = module.attention
    queries, keys, values = (
        part(super_tokens).unflatten(1, (2, -1)).transpose(0, 1)
        for part in (attention.to_q, attention.to_k, attention.to_v)
    )
    weights = (queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[2])).softmax(dim=2)
    attended = attention.proj((weights @ values).transpose(0, 1).flatten(1))
    mixed = (association @ attended).unflatten(0, (height, width))
    x = x + module.conv1x1(mixed.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    return x + module.mlp(x[None])[0]


def expanded(module: SuperTokenAggregation) -> Tensor:
    """Association of the last forward over all super tokens, and those outside the grid as one; (B, N, K + 1)."""
    assert module._seen is not None
    shares, layout = module._seen
    count = layout.rows * layout.columns
    padded = torch.full((layout.rows + 2, layout.columns + 2), count)
    padded[1:-1, 1:-1] = torch.arange(count).view(layout.rows, layout.columns)
    around = padded.unfold(0, 3, 1).unfold(1, 3, 1).reshape(count, 9, 1).expand(shares.shape)
    whole = shares.new_zeros(len(shares), count, count + 1, shares.shape[3]).scatter_add(2, around, shares)
    return whole.transpose(2, 3).flatten(1, 2)[:, layout.places]


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_equals_the_dense_computation(height: int, width: int, size: int) -> None:
    module = block(size)
    torch.nn.init.normal_(module.norm.weight)
    x = numbers(2, height, width, WIDTH)
    expected = torch.stack([dense(module, image) for image in x])
    torch.testing.assert_close(module(x), expected)
    found = expanded(module)
    association = [dense_association(module.norm(image).flatten(0, 1), height, width, size) for image in x]
    torch.testing.assert_close(found[..., :-1], torch.stack(association))
    assert found[..., -1].abs().max() == 0  # outside the grid
    torch.testing.assert_close(found.sum(dim=2), torch.ones(2, height * width, dtype=torch.float64))


@pytest.mark.parametrize(("y", "x"), [(0, 0), (6, 7), (12, 4)])
def test_association_reaches_only_the_neighbours(y: int, x: int) -> None:
    height, width, size = 13, 16, 3
    module, home, map_ = block(size), cells(height, width, size), numbers(height * width, WIDTH)

    @torch.no_grad()
    def own(tokens: Tensor) -> Tensor:
        module.mix(tokens.view(1, height, width, WIDTH))
        return expanded(module)[0, y * width + x]

    before, (row, column) = own(map_), home[y * width + x]
    for cell in sorted(set(home)):
        moved = map_ + numbers(WIDTH, seed=1) * torch.tensor([[cell == other] for other in home])
        near = abs(cell[0] - row) <= 1 and abs(cell[1] - column) <= 1
        assert torch.equal(own(moved), before) is not near


@pytest.mark.parametrize(("height", "width", "size"), [(5, 7, 2), (4, 4, 2), (3, 5, 4)])
def test_gradients(height: int, width: int, size: int) -> None:
    module = block(size)
    tokens = numbers(2, height, width, WIDTH).requires_grad_()
    weight = module.attention.to_q.weight
    assert torch.autograd.gradcheck(lambda tokens, _: module.mix(tokens)[..., ::3], (tokens, weight))


def test_training_goes_on_with_the_grid_of_an_inference() -> None:
    module, x = block(3), numbers(1, 11, 19, WIDTH)  # a size of its own, for which no grid is kept yet
    with torch.inference_mode():
        module(x)
    module(x).sum().backward()
    assert module.norm.weight.grad is not None


def test_a_super_token_nobody_uses_is_harmless() -> None:
    module = block(2)
    sign = torch.tensor([1, 1, 1, -1, -1, -1])[:, None]  # the middle one of three cells has a mean of zero
    x = (100 * sign * numbers(WIDTH)).expand(1, 2, 6, WIDTH).clone().requires_grad_()
    mixed = module.mix(x)
    assert (expanded(module)[0].sum(dim=0) > 0).tolist() == [True, False, True, False]
    mixed.square().sum().backward()
    assert torch.isfinite(mixed).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_assignment_and_measures() -> None:
    module = block(3)
    x = numbers(2, 10, 7, WIDTH)
    module(x)
    association = expanded(module)[..., :-1]
    assert torch.equal(module.assignment(), association.argmax(dim=2))
    measures = module.measures()
    load = association.mean(dim=(0, 1))
    assert float(measures["entropy_nats"]) == pytest.approx(float(torch.special.entr(association).sum(dim=2).mean()))
    assert float(measures["load_entropy_nats"]) == pytest.approx(float(torch.special.entr(load).sum()))
    assert float(measures["dead_share"]) == 0


def test_equal_tokens_are_shared_evenly() -> None:
    module = block(2)
    module.mix(numbers(WIDTH).expand(1, 8, 8, WIDTH))
    shares = expanded(module)[0].view(8, 8, -1).amax(dim=2)
    assert float(shares[0, 0]) == pytest.approx(1 / 4)
    assert float(shares[0, 3]) == pytest.approx(1 / 6)
    assert float(shares[3, 3]) == pytest.approx(1 / 9)


class _Largest(TorchDispatchMode):
    """Number of values of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else [out]:
            if isinstance(part, Tensor):
                self.values = max(self.values, part.numel())
        return out


def test_no_tensor_of_tokens_times_super_tokens_is_made() -> None:
    module = block(3)
    x = numbers(1, 31, 30, WIDTH).requires_grad_()
    with _Largest() as largest:
        module.mix(x).sum().backward()
    super_tokens, places = 10 * 10, 4 * 3
    among_super_tokens = module.attention.heads * super_tokens * (super_tokens + 16)
    assert largest.values <= max(9 * places * super_tokens, among_super_tokens) < 31 * 30 * super_tokens


def test_the_last_cell_of_a_list_is_followed_by_the_first() -> None:
    config = CATANet.model_validate({"assignment": {"kind": "superpixel", "sizes": [5, 9]}})
    assert [SuperTokenAggregation(config, index).size for index in range(3)] == [5, 9, 5]


def test_half_precision_keeps_the_association() -> None:
    module = block(3).float()
    x = numbers(1, 9, 9, WIDTH).float()
    module(x)
    exact = expanded(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x)
    found = expanded(module)
    assert found.dtype == torch.float32
    assert F.l1_loss(found, exact) < 1e-3
    torch.testing.assert_close(found.sum(dim=2), torch.ones(1, 81))
