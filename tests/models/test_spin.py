"""SPIN against its golden pairs and against dense attention written out here."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from study.evaluation.complexity import peak_memory
from study.grid.models import SPIN as SPINConfig
from study.grid.models import CATANet as CATANetConfig
from study.models.catanet import CATANet
from study.models.spin import SPIN
from study.models.weights import WeightsError, load_weights
from tests.golden import golden_image, golden_weights
from tests.models.test_catanet import Waiting, picture
from tests.models.test_superpixels import naive_soft_superpixels
from tests.shared import shared

TINY = {"width": 16, "blocks": 2, "qk_width": 6, "mlp_width": 10, "superpixels": [5, 8]}


def network(scale: int = 2, **config: Any) -> SPIN:
    torch.manual_seed(0)
    model = SPIN(SPINConfig.model_validate(TINY | config), scale)
    with torch.no_grad():
        model.first_conv.weight.mul_(5)  # affinities differ from pixel to pixel
    return model


def golden_network(scale: int) -> SPIN:
    return golden_weights(SPIN(SPINConfig(), scale))


@pytest.mark.parametrize(("scale", "parameters"), [(2, 497_275), (3, 569_475), (4, 555_035)])
def test_state_is_the_published_layout(scale: int, parameters: int) -> None:
    model = SPIN(SPINConfig(), scale)
    layout = json.loads(shared("golden/spin_state_dict.json").read_text())[f"x{scale}"]
    assert {name: list(entry.shape) for name, entry in model.state_dict().items()} == layout
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


# In block 6 of the x3 pair, the last pixel on a superpixel's list and the first one off it differ by 5e-7 of their
# affinity. Rounding in float32 leaves less of it: kernels decide which one is taken, so that pair is in float64 alone.
@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize(
    ("entry", "dtype"),
    [
        ("x2_48x60", torch.float32),
        ("x4_50x53", torch.float32),
        ("x2_48x60", torch.float64),
        ("x3_48x60", torch.float64),
        ("x4_50x53", torch.float64),
    ],
)
def test_golden_outputs(entry: str, dtype: torch.dtype) -> None:
    expected = np.load(shared("golden/spin.npz"))[f"eval_{entry}"]
    scale, (height, width) = int(entry[1]), map(int, entry[3:].split("x"))
    model, x = golden_network(scale).to(dtype).eval(), golden_image((1, 3, height, width), 20 + scale).to(dtype)
    with torch.inference_mode():
        found = 255 * model(x)[..., ::3, ::3].numpy()
    assert np.abs(found - expected).max() < 1e-5 * expected.std()


@pytest.mark.usefixtures("layout")
def test_golden_training_step() -> None:
    golden = np.load(shared("golden/spin.npz"))
    norms = json.loads(shared("golden/spin_grad_norms.json").read_text())["train"]
    model = golden_network(2).double().train()
    output = 255 * model(golden_image((2, 3, 48, 48), 27).double())
    loss = (output - 255 * golden_image((2, 3, 96, 96), 28).double()).abs().mean()
    loss.backward()
    np.testing.assert_allclose(output.detach()[..., ::3, ::3], golden["train_output"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(loss.item(), golden["train_loss"], rtol=1e-9)
    found = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    assert found == pytest.approx(norms, rel=1e-9)


class Naive:
    """The formulas of SPIN with all attention weights and affinities in full, over a network's own parameters."""

    def __init__(self, model: SPIN) -> None:
        self.model, self.weights = model, dict(model.named_parameters())
        self.scale = model.config.qk_width**-0.5

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"].flatten(1), self.weights.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def conv(self, name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], padding=1)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return (queries @ keys.transpose(-1, -2) * self.scale).softmax(dim=-1) @ values

    def mlp(self, name: str, x: Tensor) -> Tensor:
        n = self.norm(f"{name}.norm.norm", x)
        gates = []
        for gate, pooled, first, second in (("ca", n.mean(dim=1, keepdim=True), 1, 3), ("pa", n, 0, 2)):
            hidden = F.gelu(self.linear(f"{name}.{gate}.{first}", pooled))
            gates.append(self.linear(f"{name}.{gate}.{second}", hidden).sigmoid() * n)
        return self.linear(f"{name}.fc2", F.gelu(self.linear(f"{name}.fc1", torch.cat(gates, dim=-1))))

    def inter(self, name: str, x: Tensor, affinity: Tensor) -> Tensor:
        n = self.norm(f"{name}.norm.norm", x)
        tokens = self.linear(f"{name}.sp", affinity @ n / (affinity.sum(dim=-1, keepdim=True) + 1e-16))
        queries, keys, values = (self.linear(f"{name}.{part}", n) for part in "qkv")
        return self.attend(queries, tokens, self.attend(tokens, keys, values))

    def intra(self, name: str, x: Tensor, affinity: Tensor, size: int) -> Tensor:
        n = self.norm(f"{name}.norm.norm", x)
        queries, keys, values = (self.linear(f"{name}.{part}", n) for part in "qkv")
        order = affinity.sort(dim=-1, descending=True, stable=True).indices[..., : min(size**2, x.shape[1])]
        images = []
        for image, lists in enumerate(order):
            total, count = values[image], torch.ones_like(values[image])
            for own in lists:
                mixed = self.attend(queries[image, own], keys[image, own], values[image, own])
                total, count = total.index_add(0, own, mixed), count.index_add(0, own, torch.ones_like(mixed))
            images.append(total / count)
        return torch.stack(images)

    def local(self, name: str, x: Tensor, size: int, height: int, width: int) -> Tensor:
        n = self.norm(f"{name}.norm", x, 1e-5).unflatten(1, (height, width))
        total, count = torch.zeros_like(n), torch.zeros_like(n)
        for rows in windows(height, size):
            for columns in windows(width, size):
                tokens = n[:, rows, columns]
                parts = (self.linear(f"{name}.attn.to_{part}", tokens.flatten(1, 2)) for part in "qkv")
                pad = (0, 0, columns.start, width - columns.stop, rows.start, height - rows.stop)
                total = total + F.pad(self.attend(*parts).view(tokens.shape), pad)
                count = count + F.pad(torch.ones_like(tokens), pad)
        return (total / count).flatten(1, 2)

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        features = self.conv("first_conv", x)
        for index in range(self.model.config.blocks):
            size = self.model.config.superpixels[index % len(self.model.config.superpixels)]
            block, tokens = f"blocks.{index}", features.flatten(2).transpose(1, 2)
            with torch.no_grad():
                affinity = naive_soft_superpixels(tokens.unflatten(1, (height, width)), size)
            tokens = tokens + self.inter(f"{block}.inter_layer.0", tokens, affinity)
            tokens = tokens + self.mlp(f"{block}.inter_layer.1", tokens)
            tokens = tokens + self.intra(f"{block}.intra_layer.0", tokens, affinity, size)
            tokens = tokens + self.mlp(f"{block}.intra_layer.1", tokens)
            tokens = tokens + self.local(f"{block}.local_layer.0", tokens, size, height, width)
            tokens = tokens + self.mlp(f"{block}.local_layer.1", tokens)
            features = features + self.conv(f"mid_convs.{index}", tokens.transpose(1, 2).unflatten(2, (height, width)))
        return x + self.conv("last_conv", features)


def windows(side: int, size: int) -> list[slice]:
    size = min(size, side)
    return [slice(start, start + size) for start in sorted({*range(0, side - size, size - 2), side - size})]


@pytest.mark.parametrize("config", [{}, {"qk_width": 20}, {"width": 8, "superpixels": [4]}])
@pytest.mark.parametrize("size", [(17, 22), (8, 13), (15, 10)])
def test_output_and_gradients_are_those_of_dense_attention(size: tuple[int, int], config: dict) -> None:
    model = network(1, **config).double().train()
    found, expected = (picture(2, 3, *size).double().requires_grad_() for _ in range(2))
    weight = picture(2, 3, *size, seed=1).double()
    output, naive = model(found), Naive(model)(expected)
    torch.testing.assert_close(output, naive, rtol=1e-10, atol=1e-12)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad((output * weight).sum(), (found, *parameters))
    theirs = torch.autograd.grad((naive * weight).sum(), (expected, *parameters))
    for name, one, other in zip(("x", *names), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_of_the_whole_network() -> None:
    model = network(2, blocks=1, width=8, superpixels=[4]).double()
    x = picture(1, 3, 8, 9).double()
    # The superpixels have no gradient, so only what lies behind them may be moved a little.
    parameters = [
        p for name, p in model.named_parameters() if name.endswith(("0.norm.norm.bias", "pa.2.bias", "upconv.bias"))
    ]
    assert len(parameters) == 6
    assert torch.autograd.gradcheck(lambda *_: model(x)[..., ::3, ::3], parameters)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_every_parameter_is_trained_at_every_scale(scale: int) -> None:
    model = network(scale).train()
    output = model(picture(2, 3, 13, 18))
    assert output.shape == (2, 3, 13 * scale, 18 * scale)
    output.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("side", range(8, 28))
def test_small_sides(side: int) -> None:
    model = SPIN(SPINConfig(blocks=4, width=8), 2).eval()
    for shape in ((side, 8), (8, side), (side, side)):
        with torch.inference_mode():
            output = model(picture(1, 3, *shape))
        assert output.shape == (1, 3, 2 * shape[0], 2 * shape[1])
        assert torch.isfinite(output).all()


def test_smaller_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="SPIN needs images of at least 8 x 8 pixels, got 7 x 20"):
        network()(picture(1, 3, 7, 20))


def test_images_of_a_batch_do_not_mix() -> None:
    model, x = network().double(), picture(3, 3, 19, 24).double()
    together = model(x)
    for index in range(3):
        torch.testing.assert_close(model(x[index : index + 1])[0], together[index])


def test_reruns_are_equal_to_the_bit() -> None:
    def run() -> tuple[Tensor, list[Tensor]]:
        model = network().train()
        output = model(picture(2, 3, 21, 26))
        output.square().mean().backward()
        return output, [p.grad for p in model.parameters() if p.grad is not None]

    (first, gradients), (second, others) = run(), run()
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_bf16_autocast() -> None:
    model = network().train()
    x = picture(2, 3, 16, 20)
    exact = copy.deepcopy(model)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
        loss = output.float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert (output.float() - exact).abs().mean() < 0.02


def test_shapes_are_known_without_computing() -> None:
    with torch.device("meta"), torch.inference_mode():
        assert network(4)(torch.empty(1, 3, 20, 24)).shape == (1, 3, 80, 96)


@pytest.mark.parametrize("layout", ["as on a GPU"], indirect=True)
def test_no_step_but_the_first_waits(layout: None) -> None:
    model, x = network().train(), picture(2, 3, 13, 18)
    model(x)
    with Waiting() as waiting:
        model(x).square().mean().backward()
    assert not waiting.found


class Largest(TorchDispatchMode):
    """Values of the largest tensor that an operation returns."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.values = max([self.values, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result


def test_nothing_is_as_large_as_superpixels_times_pixels() -> None:
    model = network(1, superpixels=[4]).train()
    x = picture(1, 3, 80, 96)
    with Largest() as largest:
        model(x).square().mean().backward()
    pixels, superpixels = 80 * 96, 20 * 24
    assert 16 * pixels <= largest.values <= 70 * pixels < superpixels * pixels / 5


def test_memory_of_an_inference_is_at_most_twice_that_of_catanet() -> None:
    cpu = torch.device("cpu")
    spin, catanet = SPIN(SPINConfig(blocks=4), 4).eval(), CATANet(CATANetConfig(blocks=4), 4).eval()
    assert peak_memory(spin, 64, cpu) <= 2 * peak_memory(catanet, 64, cpu)


def test_assignment_maps() -> None:
    model, x = network().train(), picture(2, 3, 17, 22)
    maps = model.assignment_maps(x)
    assert model.training
    assert [(tuple(part.shape), part.dtype) for part in maps] == [((2, 17, 22), torch.int64)] * 2
    tokens = model.first_conv(x).permute(0, 2, 3, 1).detach()
    assert torch.equal(maps[0].flatten(1), naive_soft_superpixels(tokens, 5).argmax(dim=1))
    assert maps[1].max() < 2 * 2


def test_lists_are_cycled_over_the_blocks() -> None:
    assert [block.size for block in network(blocks=5).blocks] == [5, 8, 5, 8, 5]


def test_weights_of_another_scale_are_refused(tmp_path: Path) -> None:
    torch.save({"params": network(3).state_dict()}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="it looks like scale 3, the network is scale 2"):
        load_weights(network(2), tmp_path / "net.pth")
    model = network(3)
    load_weights(model, tmp_path / "net.pth")
