import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.data.resize import imresize
from study.evaluation.complexity import Operations, operations, parameters
from study.grid.models import UNet as Config
from study.grid.schema import Run
from study.models import build
from study.models.unet import UNet
from study.models.weights import WeightsError, load_weights
from study.models.window_attention import WindowAttention, group_norm

TINY: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1, "window": 4, "attention_width": 8, "heads": 2}
SMALL: dict[str, Any] = {**TINY, "width": 16, "attention_width": 16}
LARGER: dict[str, Any] = {"width": 64, "multipliers": (1, 2, 2), "blocks": 2, "attention_width": 64, "heads": 4}

CONSISTENCY = {"objective": {"kind": "consistency"}}


def config(**changes: Any) -> Config:
    return Config.model_validate({**TINY, **changes})


def network(scale: int = 2, **changes: Any) -> UNet:
    """In float64 and eval mode, with random values where the untrained network has zeros or nearly so."""
    torch.manual_seed(0)
    model = UNet(config(**changes), scale).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def on_meta(model: dict[str, Any], scale: int = 4) -> nn.Module:
    with torch.device("meta"):
        return build(Run.model_validate({"scale": scale, "model": {"kind": "unet", **model}, **CONSISTENCY})).eval()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("sizes", "count"), [({}, 170_442_369), (SMALL, 244_317), (LARGER, 8_627_051)], ids=["published", "small", "larger"]
)
def test_parameter_counts(sizes: dict[str, Any], count: int) -> None:
    assert parameters(on_meta(sizes)) == count


@torch.no_grad()
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (13, 22)])
def test_any_size_and_scale(scale: int, size: tuple[int, int]) -> None:
    model, lr = network(scale), images(2, 3, *size)
    out = model(lr, torch.tensor([3, 5]))
    assert out.shape == (2, 3, size[0] * scale, size[1] * scale)
    torch.testing.assert_close(model(lr[1:], torch.tensor([5]))[0], out[1])


def test_images_below_eight_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 x 8 pixels, got 7 x 20"):
        network()(torch.zeros(1, 3, 7, 20, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_time_zero_it_is_the_identity(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    lr, x = images(2, 3, 9, 12).to(dtype), 3 * numbers(2, 3, 18, 24).to(dtype)
    assert torch.equal(model(lr, at=(x, torch.zeros(2, dtype=dtype))), x)


@torch.no_grad()
def test_untrained_it_gives_a_share_of_what_it_is_given() -> None:
    model = build(Run.model_validate({"scale": 2, "model": {"kind": "unet", **SMALL}, **CONSISTENCY})).eval()
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0.01, 0.2, 1.0])
    u = (t / 0.1).view(3, 1, 1, 1)
    difference = model(torch.rand(3, 3, 8, 8), at=(x, t)) - 0.25 / (u**2 + 0.25) * x
    assert 0 < difference.abs().max() < 1e-3


@torch.no_grad()
def test_each_sample_has_its_own_time() -> None:
    model, lr, x, t = network(), images(2, 3, 8, 8), numbers(2, 3, 16, 16), times(0.1, 0.7)
    together = model(lr, at=(x, t))
    for index in range(2):
        one = slice(index, index + 1)
        torch.testing.assert_close(model(lr[one], at=(x[one], t[one])), together[one])
    swapped = model(lr, at=(x, t.flip(0)))
    assert (swapped - together).abs().amax(dim=(1, 2, 3)).min() > 1e-2
    # beyond the preconditioning, the network itself sees the time
    features = [model._features(lr, x, model.embedding(numbers(2, TINY["width"], seed=seed))) for seed in (1, 2)]
    assert (features[0] - features[1]).abs().max() > 1e-2


@torch.no_grad()
def test_one_step_is_one_denoising_at_time_one() -> None:
    model, lr, noise = network(), images(2, 3, 9, 10), numbers(2, 3, 18, 20)
    y = model.upsampled(lr)
    inside = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(y[inside], 2 * imresize(lr, (18, 20))[inside] - 1)
    torch.testing.assert_close(model(lr, noise=noise), (model(lr, at=(y + noise, times(1, 1))) + 1) / 2)


@torch.no_grad()
def test_several_steps_by_hand() -> None:
    model, lr, noise = network(inference_steps=3), images(2, 3, 8, 10), numbers(2, 9, 16, 20)
    y = model.upsampled(lr)
    x = model(lr, at=(y + noise[:, :3], times(1, 1)))
    x = model(lr, at=(x + 2 / 3 * (y - x) + 2 / 3 * noise[:, 3:6], times(2 / 3, 2 / 3)))
    x = model(lr, at=(x + 1 / 3 * (y - x) + 1 / 3 * noise[:, 6:], times(1 / 3, 1 / 3)))
    torch.testing.assert_close(model(lr, noise=noise), (x + 1) / 2)
    with pytest.raises(RuntimeError):
        model(lr, noise=noise[:, :3])


def test_noise_depends_on_the_keys_alone() -> None:
    keys = torch.tensor([7, -3, 7])
    one, two = network(), network(inference_steps=2)
    noise = two.noise(keys, 64, 48)
    assert noise.shape == (3, 6, 64, 48)
    assert noise.dtype == torch.float64
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(two.noise(keys[1:2], 64, 48)[0], noise[1])
    assert torch.equal(one.noise(keys, 64, 48), noise[:, :3])
    assert one.float().noise(keys, 8, 8).dtype == torch.float32
    rows = noise[:2].flatten(2).flatten(0, 1)
    assert (rows.corrcoef() - torch.eye(12)).abs().max() < 0.1
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(12, dtype=torch.float64), rtol=0, atol=0.1)
    torch.testing.assert_close(rows.std(dim=1), torch.ones(12, dtype=torch.float64), rtol=0, atol=0.1)


@torch.no_grad()
def test_inference_draws_its_noise_from_the_keys() -> None:
    model, lr, keys = network(inference_steps=2), images(1, 3, 8, 8).expand(2, -1, -1, -1), torch.tensor([0, 4])
    out = model(lr, keys)
    torch.testing.assert_close(out, model(lr, noise=model.noise(keys, 16, 16)))
    torch.testing.assert_close(model(lr)[1], out[0])
    assert (out[0] - out[1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("size", [(20, 29), (8, 8)])
def test_sides_are_padded_by_reflection_that_bounces(size: tuple[int, int]) -> None:
    model, padded = network(window=8, multipliers=(1, 1, 2)), 32  # 8 px bounce three times in 32
    lr, x, t = images(1, 3, *size), numbers(1, 3, 2 * size[0], 2 * size[1]), times(0.6)
    larger = lr
    while larger.shape[2:] != (padded, padded):
        missing = [min(padded - side, side - 1) for side in larger.shape[2:]]
        larger = F.pad(larger, [0, missing[1], 0, missing[0]], mode="reflect")
    # the noisy image about the same centres, pixel by pixel
    noisy = torch.empty(1, 3, 2 * padded, 2 * padded, dtype=torch.float64)
    for row, column in product(range(2 * padded), repeat=2):
        noisy[..., row, column] = x[..., mirrored(row, size[0]), mirrored(column, size[1])]
    expected = model(larger, at=(noisy, t))[..., : 2 * size[0], : 2 * size[1]]
    torch.testing.assert_close(model(lr, at=(x, t)), expected)


def mirrored(place: int, side: int) -> int:
    """Index in 2 * side HR pixels, reflected at the centres of the LR pixels at the ends, which stay whole."""
    period = 4 * (side - 1)
    return place % period if place % period < 2 * side else period + 1 - place % period


@torch.no_grad()
def test_a_flat_image_is_padded_by_its_own_value() -> None:
    model = network(window=8)
    lr, x = torch.full((1, 3, 11, 14), 0.3, dtype=torch.float64), torch.full((1, 3, 22, 28), -0.2, dtype=torch.float64)
    whole = model(F.pad(lr, [0, 2, 0, 5], mode="replicate"), at=(F.pad(x, [0, 4, 0, 10], mode="replicate"), times(0.5)))
    torch.testing.assert_close(model(lr, at=(x, times(0.5))), whole[..., :22, :28])


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = UNet(config(), 4).double()  # as it begins: faint convolutions pass little, but pass it
    out = model(images(2, 3, 8, 8), at=(numbers(2, 3, 32, 32), times(0.3, 1)))
    (out * numbers(*out.shape, seed=1)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_acts_in_training_alone() -> None:
    model, lr, at = network(dropout=0.5), images(1, 3, 8, 8), (numbers(1, 3, 16, 16), times(0.5))
    with torch.no_grad():
        assert torch.equal(model(lr, at=at), model(lr, at=at))
        model.train()
        assert (model(lr, at=at) - model(lr, at=at)).abs().max() > 1e-3


@torch.no_grad()
def test_window_attention_is_masked_dense_attention() -> None:
    window, heads, width, (height, columns) = 3, 2, 8, (6, 9)
    torch.manual_seed(0)
    module = WindowAttention(16, width, heads, window, 2).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = numbers(2, 16, height, columns)
    row, column = (
        axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(columns), indexing="ij")
    )
    offsets = [(axis[:, None] - axis[None]).clamp(1 - window, window - 1) + window - 1 for axis in (row, column)]
    apart = (row[:, None] // window != row // window) | (column[:, None] // window != column // window)
    bias = module.position_bias[:, offsets[0], offsets[1]].masked_fill(apart, -math.inf)

    inner = module.first(x)
    tokens = module.norm1(inner).flatten(2).mT
    qkv = tokens @ module.qkv.weight[:, :, 0, 0].T + module.qkv.bias
    queries, keys, values = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    weights = (queries @ keys.mT / math.sqrt(width // heads) + bias).softmax(dim=-1)
    mixed = (weights @ values).transpose(1, 2).flatten(2).mT.reshape(2, width, height, columns)
    inner = inner + module.proj(mixed)
    inner = inner + module.mlp(module.norm2(inner))
    expected = x + F.conv2d(inner, module.last.weight, module.last.bias, padding=1)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 2), (24, 6), (72, 18), (128, 32), (136, 17), (144, 24), (576, 32)]
)
def test_groups_divide(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


class Opaque(nn.Module):
    """A network that declares nothing, so that it is counted from what runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize(
    ("scale", "steps", "size"), [(1, 1, (9, 9)), (2, 1, (13, 18)), (3, 2, (8, 16)), (4, 1, (16, 32))]
)
def test_the_declared_operations_are_those_that_run(scale: int, steps: int, size: tuple[int, int]) -> None:
    model = on_meta({**SMALL, "inference_steps": steps}, scale)
    assert operations(model, size) == operations(Opaque(model), size)


def test_operations_by_hand() -> None:
    model = on_meta({**TINY, "multipliers": (1,), "window": 8, "inference_steps": 2}, 1)
    width, pixels = 8, 16 * 16  # of a padded 9 x 16 px input
    attention = 2 * 9 * width**2 + (3 + 1 + 2 * 4) * width**2
    same, joined = 18 * width**2, (18 + 9 + 2) * width**2
    layers = pixels * (54 * width + 3 * same + 2 * joined + 3 * attention + 9 * width**2 + 27 * width)
    layers += 5 * 4 * width**2 + 4 * width**2 + 16 * width**2
    counted = operations(model, (9, 16))
    assert counted == Operations(2 * layers, 2 * 3 * pixels * 64 * 2 * width, counted.activations)


@torch.no_grad()
def test_autocast_keeps_the_image_in_full_precision() -> None:
    model = network().float()
    lr, at = images(1, 3, 8, 8).float(), (numbers(1, 3, 16, 16).float(), torch.tensor([0.5]))
    exact = model(lr, at=at)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(lr, at=at)
    assert out.dtype == torch.float32
    assert 0 < (out - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_denoising_is_one_graph() -> None:
    model, lr, at = network(), images(1, 3, 9, 8), (numbers(1, 3, 18, 16), times(0.5))
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(lr, at=at), model(lr, at=at))


def test_weights_load_and_another_scale_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source, target = UNet(config(), 4), network(4)
    torch.save(source.state_dict(), tmp_path / "net.pth")
    load_weights(target, tmp_path / "net.pth")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value.double()), name
    with pytest.raises(WeightsError, match="it looks like scale 4, the network is scale 2"):
        load_weights(network(2), tmp_path / "net.pth")


@torch.no_grad()
def test_a_bicubic_base_adds_the_enlarged_image_to_what_the_network_makes() -> None:
    plain, based = network(), network(base="bicubic")
    based.load_state_dict(plain.state_dict())
    lr, x = images(2, 3, 9, 10), numbers(2, 3, 18, 20)
    t = times(0.25, 1)
    u = (t / 0.1)[:, None, None, None]
    added = (1 - 0.25 / (u.square() + 0.25)) * based.upsampled(lr)
    torch.testing.assert_close(based(lr, at=(x, t)), plain(lr, at=(x, t)) + added)
    assert torch.equal(based(lr, at=(x, times(0, 0))), x)
