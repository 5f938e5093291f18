"""The hard aggregation against attention written group by group."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from study.grid.models import CATANet
from study.models.hard import HardAggregation
from study.models.prototypes import similarities

WIDTH, QK, HEADS, COUNT = 12, 8, 2, 5


def block(group: int = 8, update: str = "ema_kmeans", **hard: object) -> HardAggregation:
    config = CATANet.model_validate(
        {
            "width": WIDTH,
            "qk_width": QK,
            "mlp_width": 10,
            "heads": HEADS,
            "prototypes": {"count": [COUNT], "update": update},
            "assignment": {"kind": "hard", "group_sizes": [group], **hard},
        }
    )
    torch.manual_seed(0)
    return HardAggregation(config, 0).double()


def started(module: HardAggregation) -> HardAggregation:
    module.means.copy_(torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    module.initted.fill_(True)
    return module.eval()


def image(height: int, width: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(batch, height, width, WIDTH, generator=generator, dtype=torch.float64)


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Single image, (L, heads * e): one head after the other."""
    mixed = []
    for q, k, v in zip(queries.chunk(HEADS, 1), keys.chunk(HEADS, 1), values.chunk(HEADS, 1), strict=True):
        mixed.append((q @ k.T * (QK / HEADS) ** -0.5).softmax(dim=1) @ v)
    return torch.cat(mixed, dim=1)


def naive_forward(module: HardAggregation, x: Tensor) -> Tensor:
    """Before the feed-forward network, from the text of methods.md, one image at a time."""
    hard, out = module.hard, torch.empty_like(x)
    linear = {name.removesuffix(".weight").replace("_attn", ""): value for name, value in module.named_parameters()}
    for index, map_ in enumerate(x):
        tokens = module.norm(map_).flatten(0, 1)
        length = len(tokens)
        cosines = F.normalize(tokens, dim=1) @ F.normalize(module.means, dim=1).T
        nearest = [
            (int(row.argmax()), -float(row.detach().max()) if hard.tie_order == "similarity" else 0.0)
            for row in cosines
        ]
        order = sorted(range(length), key=lambda token: nearest[token])  # sorted is stable
        group = min(length, module.group_size)
        padding = -length % group
        bounce = order + order[::-1]
        padded = [bounce[k % (2 * length)] for k in range(length + padding + group)]
        mixed = torch.empty(length, linear["iasa.proj"].shape[1], dtype=x.dtype)
        for first in range(0, length + padding, group):
            last = first + (2 if hard.attend_next else 1) * group
            if hard.padding == "masked":
                last = min(last, length)
            chosen, others = tokens[padded[first : first + group]], tokens[padded[first:last]]
            queries = chosen @ linear["iasa.to_q"].T
            parts = []
            if hard.fusion != "irca":
                parts.append(attention(queries, others @ linear["iasa.to_k"].T, others @ linear["iasa.to_v"].T))
            if hard.fusion != "iasa":
                keys, values = (module.means @ linear[f"irca.{name}"].T for name in ("to_k", "to_v"))
                parts.append(attention(queries, keys, values))
            both = torch.cat(parts, dim=1) if hard.fusion == "concat" else torch.stack(parts).sum(dim=0)
            for row, token in zip(both, padded[first : min(first + group, length)], strict=False):
                mixed[token] = row
        mixed = mixed @ linear["iasa.proj"].T @ module.conv1x1.weight[..., 0, 0].T
        out[index] = map_ + mixed.view_as(map_)
    return out


SWITCHES = list(
    itertools.product(
        ("add", "concat", "iasa", "irca"), (True, False), ("mirrored", "masked"), ("stable", "similarity")
    )
)


@pytest.mark.parametrize(("fusion", "attend_next", "padding", "tie_order"), SWITCHES)
def test_every_switch_agrees_with_loops(fusion: str, attend_next: bool, padding: str, tie_order: str) -> None:
    module = started(
        block(fusion=fusion, attend_next=attend_next, padding=padding, tie_order=tie_order)  # 30 tokens: two of padding
    )
    x = image(5, 6)
    expected = naive_forward(module, x)
    torch.testing.assert_close(module(x), expected + module.mlp(expected))


@pytest.mark.parametrize(("group", "height", "width"), [(8, 4, 4), (16, 3, 3), (7, 2, 4), (9, 2, 5), (30, 5, 6)])
@pytest.mark.parametrize("padding", ["mirrored", "masked"])
def test_padding_beyond_the_image_bounces(group: int, height: int, width: int, padding: str) -> None:
    module = started(block(group, padding=padding))
    x = image(height, width)
    expected = naive_forward(module, x)
    torch.testing.assert_close(module(x), expected + module.mlp(expected))


def test_masking_changes_nothing_where_groups_divide_the_tokens() -> None:
    x = image(4, 8)
    mirrored, masked = started(block()), started(block(padding="masked"))
    torch.testing.assert_close(mirrored(x), masked(x))
    assert not torch.allclose(mirrored(image(5, 6)), masked(image(5, 6)))


def test_equal_tokens_keep_their_order() -> None:
    x = image(1, 1, batch=1).expand(2, 5, 6, WIDTH)
    for tie_order in ("stable", "similarity"):
        module = started(block(tie_order=tie_order))
        cosines, assignment = module._assign(module.norm(x).flatten(1, 2), module.means[None])
        assert module._order(cosines, assignment).tolist() == [list(range(30))] * 2


def test_similarity_sorts_within_a_cluster() -> None:
    module = started(block(tie_order="similarity"))
    tokens = module.norm(image(5, 6)).flatten(1, 2)
    cosines, assignment = module._assign(tokens, module.means[None])
    order = module._order(cosines, assignment)
    clusters, sorted_cosines = assignment.gather(1, order), cosines.gather(1, order)
    assert (clusters.diff(dim=1) >= 0).all()
    assert ((sorted_cosines.diff(dim=1) <= 0) | (clusters.diff(dim=1) > 0)).all()
    assert sorted_cosines.abs().max() <= 1 + 1e-12


@pytest.mark.parametrize("fusion", ["add", "concat", "iasa", "irca"])
@pytest.mark.parametrize("attend_next", [True, False])
def test_gradients_with_padded_queries(fusion: str, attend_next: bool) -> None:
    module = started(block(4, fusion=fusion, attend_next=attend_next))
    x = image(2, 3, batch=2).requires_grad_()
    prototypes = module.means[None].clone().requires_grad_(fusion != "iasa")
    order = similarities(x.detach().flatten(1, 2), module.means[None]).argmax(dim=-1).argsort(dim=1, stable=True)

    def mix(x: Tensor, prototypes: Tensor) -> Tensor:
        if fusion == "irca":
            return module._project(module._attend_prototypes(module._queries(x.flatten(1, 2)), prototypes))
        return module._mix(x.flatten(1, 2), prototypes, order)

    assert torch.autograd.gradcheck(mix, (x, prototypes))


def test_every_parameter_is_trained() -> None:
    for fusion in ("add", "concat", "iasa", "irca"):
        module = block(fusion=fusion).train()
        module(image(5, 6)).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_learned_prototypes_need_an_attention_that_trains_them() -> None:
    with pytest.raises(ValueError, match="iasa trains no prototype"):
        block(fusion="iasa", update="learned")
    module = block(update="learned").train()
    module(image(5, 6)).sum().backward()
    assert module.means.grad is not None
    assert module.means.grad.abs().sum() > 0


def test_measures_of_a_known_assignment() -> None:
    module = started(block())
    module.means.zero_()
    module.means[:, :COUNT] = torch.eye(COUNT, dtype=torch.float64)
    x = torch.zeros(1, 2, 2, WIDTH, dtype=torch.float64)
    for token, channel in enumerate((0, 0, 3, 3)):
        x[0, token // 2, token % 2, channel] = 1
    module(x)
    assert module.assignment().tolist() == [[0, 0, 3, 3]]
    measures = module.measures()
    assert float(measures["load_entropy_nats"]) == pytest.approx(math.log(2))
    assert float(measures["dead_share"]) == pytest.approx(0.6)
