"""The soft aggregation: what its weights and flows must satisfy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from study.evaluation.complexity import multiply_adds, parameters
from study.grid.models import CATANet
from study.grid.schema import Run
from study.models import build, catanet
from study.models.hard import HardAggregation
from study.models.prototypes import similarities
from study.models.soft import SoftAggregation, flow_widths
from study.objectives.routing import routing_loss
from tests.shared import shared

WIDTH, COUNT = 12, 5
SUPPORTS: list[dict[str, Any]] = [
    {"support": "dense"},
    {"support": "topk", "top_k": 1},
    {"support": "topk", "top_k": 3},
]
SUPPORTS += [{"support": "sparsemax"}]


def block(update: str = "ema_kmeans", heads: int = 2, **soft: Any) -> SoftAggregation:
    config = CATANet.model_validate(
        {
            "width": WIDTH,
            "qk_width": 8,
            "mlp_width": 10,
            "heads": heads,
            "prototypes": {"count": [COUNT], "update": update},
            "assignment": {"kind": "soft", **soft},
        }
    )
    torch.manual_seed(0)
    module = SoftAggregation(config, 0).double()
    if update in ("ema_kmeans", "frozen"):
        module.means.copy_(numbers(*module.means.shape, seed=1))
        module.initted.fill_(True)
    with torch.no_grad():
        module.log_temperature.fill_(math.log(0.2))
    return module.eval()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("soft", SUPPORTS)
def test_rows_sum_to_one(soft: dict) -> None:
    shares = block(**soft).shares(numbers(2, 20, WIDTH), numbers(1, COUNT, WIDTH, seed=1))
    assert shares.shape == (2, 2, 20, COUNT)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, 2, 20, dtype=torch.float64))
    assert shares.min() >= 0
    if soft.get("top_k"):
        assert ((shares > 0).sum(dim=-1) == soft["top_k"]).all()


def test_dense_shares_are_the_formula() -> None:
    module = block()
    tokens, prototypes, descriptor = numbers(1, 7, WIDTH), numbers(1, COUNT, WIDTH, seed=1), numbers(1, 7, 4, seed=2)
    guided = block(prior={"kind": "frequency"})
    assert guided.guidance is not None
    torch.nn.init.normal_(guided.guidance)
    for network, bias in ((module, 0), (guided, descriptor[0] @ guided.guidance.T)):
        for head, channels in enumerate((slice(0, 6), slice(6, 12))):
            cosines = F.cosine_similarity(tokens[0, :, None, channels], prototypes[0, None, :, channels], dim=-1)
            expected = (cosines / 0.2 + bias).softmax(dim=-1)
            torch.testing.assert_close(network.shares(tokens, prototypes, descriptor)[0, head], expected)


def test_top_one_is_the_hard_assignment() -> None:
    module = block(heads=1, support="topk", top_k=1)
    tokens = numbers(2, 50, WIDTH)
    shares = module.shares(tokens, module.means[None])[:, 0]
    nearest = similarities(tokens, module.means[None]).argmax(dim=-1)
    torch.testing.assert_close(shares, F.one_hot(nearest, COUNT).double())
    assert torch.equal(shares.argmax(dim=-1), nearest)


@pytest.mark.parametrize("training", [False, True])
def test_top_one_assigns_as_the_hard_block(training: bool) -> None:
    soft = block(heads=1, support="topk", top_k=1).train(training)
    config = CATANet(width=WIDTH, qk_width=8, mlp_width=10, heads=1, prototypes=soft.config)
    hard = HardAggregation(config, 0).double().train(training)
    torch.nn.init.normal_(soft.norm.weight)
    hard.load_state_dict({name: value for name, value in soft.state_dict().items() if "." not in name}, strict=False)
    hard.norm.load_state_dict(soft.norm.state_dict())
    x = numbers(2, 5, 8, WIDTH)
    soft(x)
    hard(x)
    torch.testing.assert_close(soft.means, hard.means)
    assert torch.equal(soft.assignment(), hard.assignment())
    assert len(hard.assignment().unique()) == COUNT


@pytest.mark.parametrize("soft", [*SUPPORTS, {"scatter": "attention"}, {"prior": {"kind": "frequency"}}])
@pytest.mark.parametrize("update", ["ema_kmeans", "learned"])
def test_permuted_tokens_give_permuted_output(soft: dict, update: str) -> None:
    module = block(update, **soft)
    if module.guidance is not None:
        torch.nn.init.normal_(module.guidance)
    tokens, descriptor = numbers(2, 30, WIDTH), numbers(2, 30, 4, seed=2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        module.mix(tokens[:, order], descriptor[:, order]), module.mix(tokens, descriptor)[:, order]
    )


@pytest.mark.parametrize("soft", [{"support": "topk", "top_k": 1}, {"support": "sparsemax"}])
def test_an_unused_prototype_is_harmless(soft: dict) -> None:
    module = block(**soft).train()
    tokens = numbers(1, 30, WIDTH)
    tokens[..., 0::6] = tokens[..., 0::6].abs() * 4 + 4  # in both heads
    tokens.requires_grad_()
    with torch.no_grad():
        module.means[2] = 0
        module.means[2, 0::6] = -1  # opposite to every token
    shares = module.shares(tokens, module.means[None])
    assert shares[..., 2].abs().sum() == 0
    assert module._gather(tokens, shares)[:, 2].abs().max() == 0
    module.mix(tokens).square().sum().backward()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    torch.testing.assert_close(F.normalize(module.means[2], dim=0)[0::6], torch.full((2,), -(0.5**0.5)).double())
    assert module.measures()["dead_share"] >= 0.2


@pytest.mark.parametrize("soft", SUPPORTS[1:])
def test_an_unused_prototype_reaches_tokens_through_the_others_only(soft: dict) -> None:
    module, tokens = block(**soft), numbers(1, 30, WIDTH)
    tokens[..., 0::6] = tokens[..., 0::6].abs() * 4 + 4

    @torch.no_grad()
    def output(prototype: Tensor) -> Tensor:
        module.means[2] = 0.1 * prototype
        module.means[2, 0::6] = -1
        assert module.shares(tokens, module.means[None])[..., 2].abs().sum() == 0
        return module.mix(tokens)

    first, second = numbers(WIDTH, seed=4), numbers(WIDTH, seed=5)
    assert not torch.equal(output(first), output(second))
    torch.nn.init.zeros_(module.among_prototypes.get_parameter("0.fn.proj.weight"))
    assert torch.equal(output(first), output(second))


@pytest.mark.parametrize(
    "soft", [{}, {"support": "sparsemax"}, {"support": "topk", "top_k": 3}, {"scatter": "attention"}]
)
@pytest.mark.parametrize("update", ["ema_kmeans", "learned", "per_image"])
def test_gradients(soft: dict, update: str) -> None:
    module = block(update, **soft, prior={"kind": "frequency"})
    assert module.guidance is not None
    torch.nn.init.normal_(module.guidance)
    tokens, descriptor = numbers(2, 9, WIDTH).requires_grad_(), numbers(2, 9, 4, seed=2)
    # Per-image prototypes have a gradient of their last step only, so there the tokens stay out.
    inputs = (tokens.detach() if update == "per_image" else tokens, module.log_temperature, module.guidance)
    assert torch.autograd.gradcheck(lambda tokens, *_: module.mix(tokens, descriptor), inputs)


def test_every_parameter_is_trained() -> None:
    attention: dict[str, Any] = {"scatter": "attention"}
    for soft in (*SUPPORTS, attention):
        for update in ("ema_kmeans", "frozen", "learned", "per_image"):
            module = block(update, **soft, prior={"kind": "frequency"}).train()
            module(numbers(2, 5, 6, WIDTH), numbers(2, 30, 4, seed=1)).square().sum().backward()
            silent = [n for n, p in module.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
            assert not silent


def size(assignment: dict, scale: int = 4, **config: Any) -> int:
    network = catanet.CATANet(CATANet.model_validate({"assignment": assignment, **config}), scale)
    return sum(parameter.numel() for parameter in network.parameters())


SMALL = {"width": 24, "blocks": 2, "qk_width": 24, "mlp_width": 48}


@pytest.mark.parametrize("config", [{}, SMALL, {"prototypes": {"update": "learned"}}, {**SMALL, "windows": [8]}])
@pytest.mark.parametrize("soft", [{}, {"scatter": "attention"}, {"prior": {"kind": "frequency"}}])
def test_parameters_match_the_hard_arm(config: dict, soft: dict) -> None:
    hard = size({"kind": "hard"}, **config)
    assert abs(size({"kind": "soft", **soft}, **config) / hard - 1) < 0.02
    shared = CATANet.model_validate({"assignment": {"kind": "soft", **soft}, **config})
    flow, hidden = flow_widths(shared)
    assert flow % shared.heads == 0
    assert hidden >= flow


@pytest.mark.parametrize("update", ["ema_kmeans", "frozen", "learned", "per_image"])
def test_entropy_begins_near_half_of_its_maximum(update: str) -> None:
    paths = sorted(shared("data/B100/HR").iterdir())[5::25]
    crops = [np.asarray(Image.open(path).convert("RGB").reduce(4))[8:56, 8:56] for path in paths]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    torch.manual_seed(3)
    config = {"assignment": {"kind": "soft"}, "prototypes": {"update": update}, "blocks": 4}
    network = catanet.CATANet(CATANet.model_validate(config), 2).train()
    with torch.no_grad():
        network(images)
    values = network.diagnostics()
    parts = [values[f"entropy_nats.{i}"] / math.log(count) for i, count in enumerate((16, 32, 64, 128))]
    # Eight images and two networks give 0.48 to 0.51; these few differ by what images differ.
    assert sum(parts) / 4 == pytest.approx(0.5, abs=0.2)


def test_measures_of_known_shares() -> None:
    module = block(heads=1)
    module.means.copy_(torch.eye(WIDTH, dtype=torch.float64)[:COUNT])
    tokens = torch.eye(WIDTH, dtype=torch.float64)[None, COUNT:]  # orthogonal to every prototype
    module.mix(tokens)
    measures = module.measures()
    assert float(measures["entropy_nats"]) == pytest.approx(math.log(COUNT))
    assert float(measures["load_entropy_nats"]) == pytest.approx(math.log(COUNT))
    assert float(measures["temperature"]) == pytest.approx(0.2)
    assert float(measures["dead_share"]) == 0


def test_assignment_is_the_largest_share() -> None:
    module = block(heads=1)
    tokens = numbers(2, 30, WIDTH)
    module.mix(tokens)
    assert torch.equal(module.assignment(), similarities(tokens, module.means[None]).argmax(dim=-1))


def test_a_guided_similarity_is_a_bias_over_the_temperature() -> None:
    tokens, descriptor = numbers(2, 30, WIDTH), numbers(2, 30, 4, seed=2)
    bias = block(prior={"kind": "frequency"})
    similarity = block(prior={"kind": "frequency", "guidance": "similarity"})
    assert bias.guidance is not None
    torch.nn.init.normal_(bias.guidance)
    similarity.load_state_dict(bias.state_dict())
    assert similarity.guidance is not None
    assert not torch.allclose(similarity.mix(tokens, descriptor), bias.mix(tokens, descriptor))
    with torch.no_grad():
        similarity.guidance.mul_(similarity.log_temperature.exp())
    torch.testing.assert_close(similarity.mix(tokens, descriptor), bias.mix(tokens, descriptor))


def test_channels_beside_without_weight_leave_the_model_unguided() -> None:
    tokens, descriptor = numbers(2, 30, WIDTH), numbers(2, 30, 4, seed=2)
    plain, guided = block(), block(prior={"kind": "frequency", "guidance": "feature"})
    assert guided.means.shape == (COUNT, WIDTH + 2 * 4)
    state = guided.state_dict() | {name: value for name, value in plain.state_dict().items() if name != "means"}
    guided.load_state_dict(state | {"means": F.pad(plain.means, (0, 8)), "beside.beta": torch.zeros(())})
    torch.testing.assert_close(guided.mix(tokens, descriptor), plain.mix(tokens))
    guided.load_state_dict(guided.state_dict() | {"beside.beta": torch.ones(())})
    assert not torch.allclose(guided.mix(tokens, descriptor), plain.mix(tokens))


def test_channels_beside_group_tokens_of_one_frequency() -> None:
    """Tokens that are alike but for their descriptor: the first head's similarity follows the descriptor alone."""
    module = block(prior={"kind": "frequency", "guidance": "feature", "bands": 2})
    assert module.beside is not None
    with torch.no_grad():
        module.beside.embed.weight.copy_(torch.eye(2, dtype=torch.float64).repeat(2, 1))
        module.means.zero_()
        module.means[:2, WIDTH : WIDTH + 2] = torch.eye(2, dtype=torch.float64)
        module.means[:2, WIDTH + 2 :] = torch.eye(2, dtype=torch.float64)
    descriptor = torch.tensor([[[3.0, 0.0], [0.0, 3.0], [2.0, 0.1]]], dtype=torch.float64)
    module.mix(torch.ones(1, 3, WIDTH, dtype=torch.float64), descriptor)
    assert module.assignment().tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("update", ["ema_kmeans", "frozen", "learned", "per_image"])
def test_channels_beside_learn(update: str) -> None:
    module = block(update, prior={"kind": "frequency", "guidance": "feature"}).train()
    module.mix(numbers(2, 30, WIDTH), numbers(2, 30, 4, seed=2)).square().sum().backward()
    assert module.beside is not None
    for parameter in module.beside.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("guidance", ["bias", "similarity", "feature", "loss"])
def test_controls_cost_what_the_prior_costs(guidance: str) -> None:
    sizes = set()
    for prior in ("frequency", "shuffled", "noise", "variance"):
        assignment = {"kind": "soft", "prior": {"kind": prior, "guidance": guidance}}
        run = Run.model_validate({"model": {"kind": "catanet", "assignment": assignment}})
        with torch.device("meta"):
            network = build(run)
        sizes.add((parameters(network), multiply_adds(run, (32, 32), products=True)))
    assert len(sizes) == 1


def test_the_last_block_alone_is_routed() -> None:
    config = {
        "width": WIDTH,
        "qk_width": 8,
        "mlp_width": 10,
        "heads": 2,
        "blocks": 2,
        "windows": [8],
        "prototypes": {"count": [COUNT]},
        "assignment": {"kind": "soft", "prior": {"kind": "frequency", "guidance": "loss"}},
    }
    network = catanet.CATANet(CATANet.model_validate(config), 2).train()
    image = torch.zeros(1, 3, 16, 32)
    image[..., 16:] = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    network(image)
    judged = network.routing()
    assert judged is not None
    logits, energy = judged
    assert logits.shape == (1, 2, 16 * 32, COUNT)
    assert energy.view(16, 32)[:, :8].max() < energy.view(16, 32)[:, 24:].min()  # the noise is on the right
    routing_loss(logits, energy).backward()
    gradients = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert "blocks.1.0.log_temperature" in gradients
    assert not any(name.startswith(("blocks.1.0.to_tokens", "upconv", "last_conv", "blocks.1.1")) for name in gradients)
    loads = [value for name, value in network.diagnostics().items() if name.startswith("load.")]
    assert len(loads) == COUNT
    assert sum(loads) == pytest.approx(1)
    network.eval()(image)
    assert network.routing() is None
