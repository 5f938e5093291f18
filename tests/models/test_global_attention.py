"""Full attention against its formula, and where it is refused."""

import math

import pytest
import torch
from torch import Tensor

from study.grid.models import CATANet
from study.models.global_attention import GlobalAggregation, value_width

WIDTH, HEADS = 8, 2


def block() -> GlobalAggregation:
    config = CATANet.model_validate(
        {"width": WIDTH, "qk_width": 6, "mlp_width": 10, "heads": HEADS, "assignment": {"kind": "global"}}
    )
    torch.manual_seed(0)
    return GlobalAggregation(config, 0).double()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_softmax_attention() -> None:
    module, x = block(), numbers(2, 4, 5, WIDTH)
    attention, tokens = module.attention, module.norm(x).flatten(1, 2)
    queries, keys, values = (part(tokens) for part in (attention.to_q, attention.to_k, attention.to_v))
    heads = []
    for head in range(HEADS):
        query, key = (part[..., 3 * head : 3 * head + 3] for part in (queries, keys))
        wide = values.shape[-1] // HEADS
        weights = (query @ key.transpose(1, 2) / math.sqrt(3)).exp()
        heads.append(weights / weights.sum(dim=2, keepdim=True) @ values[..., wide * head : wide * (head + 1)])
    mixed = attention.proj(torch.cat(heads, dim=2)).unflatten(1, (4, 5))
    expected = x + module.conv1x1(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), expected + module.mlp(expected))


def test_permuted_tokens_give_permuted_output() -> None:
    module, tokens = block(), numbers(2, 30, WIDTH)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(module.mix(tokens[:, order]), module.mix(tokens)[:, order])


def test_gradients() -> None:
    module, tokens = block(), numbers(2, 7, WIDTH).requires_grad_()
    inputs = (tokens, module.attention.to_q.weight, module.conv1x1.weight)
    assert torch.autograd.gradcheck(lambda tokens, *_: module.mix(tokens)[..., ::3], inputs)


def test_large_maps_are_refused() -> None:
    with torch.device("meta"):
        module = GlobalAggregation(CATANet(), 0)
    assert module(torch.empty(1, 64, 256, 40, device="meta")).shape == (1, 64, 256, 40)
    with pytest.raises(ValueError, match=r"at most 128 x 128 tokens, got 64 x 257: set evaluation\.tile_lr_px"):
        module(torch.empty(1, 64, 257, 40, device="meta"))


def test_width_of_the_values() -> None:
    assert value_width(CATANet()) == 76
    assert value_width(CATANet(width=12, qk_width=8, heads=2)) == 22
