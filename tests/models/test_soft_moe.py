"""Soft mixtures of experts against their formulas."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from study.grid.models import CATANet
from study.models.soft_moe import Experts, SoftMoEAggregation, expert_width

WIDTH = 8


def block(slots: int = 6, experts: int = 3) -> SoftMoEAggregation:
    config = CATANet.model_validate(
        {
            "width": WIDTH,
            "qk_width": 6,
            "mlp_width": 10,
            "heads": 2,
            "assignment": {"kind": "soft_moe", "slots": [slots], "experts": experts},
        }
    )
    torch.manual_seed(0)
    return SoftMoEAggregation(config, 0).double()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expert(experts: Experts, index: int, x: Tensor) -> Tensor:
    hidden = F.gelu(x @ experts.weight1[index] + experts.bias1[index])
    return hidden @ experts.weight2[index] + experts.bias2[index]


@pytest.mark.parametrize(("slots", "experts"), [(6, 3), (4, 4), (5, 1)])
def test_equals_the_formula(slots: int, experts: int) -> None:
    module, x = block(slots, experts), numbers(2, 3, 5, WIDTH)
    with torch.no_grad():
        module.factor.fill_(7)
    expected = []
    for image in x:
        tokens = module.norm(image).flatten(0, 1)
        cosines = F.cosine_similarity(tokens[:, None], module.slots[None], dim=2)
        exponentials = (7 * cosines).exp()
        dispatch, combine = exponentials / exponentials.sum(dim=0), exponentials / exponentials.sum(dim=1)[:, None]
        inputs = dispatch.T @ tokens
        outputs = torch.cat([expert(module.experts, i * experts // slots, row) for i, row in enumerate(inputs)])
        mixed = (combine @ outputs).unflatten(0, (3, 5)).permute(2, 0, 1)
        image = image + module.conv1x1(mixed[None])[0].permute(1, 2, 0)
        expected.append(image + module.mlp(image[None])[0])
    torch.testing.assert_close(module(x), torch.stack(expected))


def test_weights_sum_to_one() -> None:
    dispatch, combine = block().weights(numbers(2, 20, WIDTH))
    assert dispatch.shape == combine.shape == (2, 20, 6)
    torch.testing.assert_close(dispatch.sum(dim=1), torch.ones(2, 6, dtype=torch.float64))
    torch.testing.assert_close(combine.sum(dim=2), torch.ones(2, 20, dtype=torch.float64))
    assert dispatch.min() > 0
    assert combine.min() > 0


def test_lengths_of_tokens_and_slots_do_not_count() -> None:
    module, tokens = block(), numbers(1, 9, WIDTH)
    before = module.weights(tokens)
    with torch.no_grad():
        module.slots.mul_(torch.arange(1, 7)[:, None])
    for weights, others in zip(before, module.weights(3 * tokens), strict=True):
        torch.testing.assert_close(weights, others)


def test_permuted_tokens_give_permuted_output() -> None:
    module, tokens = block(), numbers(2, 30, WIDTH)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(module.mix(tokens[:, order]), module.mix(tokens)[:, order])


def test_a_slot_nobody_uses_is_harmless() -> None:
    module = block(4, 4)
    tokens = numbers(1, 15, WIDTH)
    tokens[..., 0] = tokens[..., 0].abs() + 1
    tokens.requires_grad_()
    with torch.no_grad():
        module.slots[2] = -torch.eye(WIDTH)[0]  # away from every token
        module.slots[3] = torch.eye(WIDTH)[0]
        module.factor.fill_(1e5)
    assert module.weights(tokens)[1][..., 2].max() == 0
    mixed = module.mix(tokens)
    mixed.square().sum().backward()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    with torch.no_grad():
        module.experts.bias2[2] += 100
    assert torch.equal(module.mix(tokens), mixed)


def test_gradients() -> None:
    module, tokens = block(), numbers(2, 7, WIDTH).requires_grad_()
    inputs = (tokens, module.slots, module.factor, module.experts.weight1, module.experts.bias2)
    assert torch.autograd.gradcheck(lambda tokens, *_: module.mix(tokens)[..., ::3], inputs)


def test_measures() -> None:
    module = block(4, 2)
    with torch.no_grad():
        module.slots.copy_(torch.eye(WIDTH)[:4])
    module.mix(torch.eye(WIDTH, dtype=torch.float64)[None, 4:])  # orthogonal to every slot
    measures = {name: float(value) for name, value in module.measures().items()}
    temperature = WIDTH**-0.5
    expected = {"entropy_nats": math.log(4), "load_entropy_nats": math.log(4), "dead_share": 0}
    assert measures == pytest.approx(expected | {"temperature": temperature})
    module.mix(module.slots.detach()[None, [1, 3, 0, 0]])
    assert module.assignment().tolist() == [[1, 3, 0, 0]]


def test_experts_begin_as_linear_layers() -> None:
    experts = Experts(2, 50, 80)
    torch.manual_seed(0)
    experts.reset_parameters()
    for weight, bias in ((experts.weight1, experts.bias1), (experts.weight2, experts.bias2)):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[2])
        for ours, theirs in ((weight, linear.weight), (bias, linear.bias)):
            assert float(ours.detach().abs().max()) == pytest.approx(float(theirs.detach().abs().max()), rel=0.05)
            assert float(ours.detach().std()) == pytest.approx(float(theirs.detach().std()), rel=0.2)


@pytest.mark.parametrize(("settings", "width"), [({}, 26), ({"slots": [128]}, 12), ({"slots": [1024]}, 1)])
def test_width_of_the_experts(settings: dict[str, Any], width: int) -> None:
    config = CATANet.model_validate({"assignment": {"kind": "soft_moe", **settings}})
    assert isinstance(SoftMoEAggregation(config, 0).experts, Experts)
    assert SoftMoEAggregation(config, 0).experts.weight1.shape == (4, 40, width)
    assert expert_width(config, settings.get("slots", [16])[0]) == width
