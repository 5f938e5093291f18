"""CATANet against its golden pairs, and what every arm must do."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from study.grid.models import CATANet as CATANetConfig
from study.models.catanet import CATANet, LocalAttention
from study.models.hard import HardAggregation
from study.models.layers import convolve_shuffled
from tests.golden import golden_image, golden_weights
from tests.shared import shared

TINY = {
    "width": 12,
    "blocks": 2,
    "qk_width": 8,
    "mlp_width": 16,
    "heads": 2,
    "windows": [8, 10],
    "prototypes": {"count": [5, 7]},
}
HARD = {"kind": "hard", "group_sizes": [32, 16]}
ARMS = {
    "hard": HARD,
    "similarity, masked, concat": HARD | {"tie_order": "similarity", "padding": "masked", "fusion": "concat"},
    "iasa, own group": HARD | {"fusion": "iasa", "attend_next": False},
    "irca": HARD | {"fusion": "irca"},
    "soft": {"kind": "soft"},
    "top 2": {"kind": "soft", "support": "topk", "top_k": 2},
    "sparsemax, attention": {"kind": "soft", "support": "sparsemax", "scatter": "attention"},
    "frequency": {"kind": "soft", "prior": {"kind": "frequency"}},
    "shuffled": {"kind": "soft", "prior": {"kind": "shuffled", "transform": "wavelet"}},
    "noise": {"kind": "soft", "prior": {"kind": "noise"}},
    "superpixel": {"kind": "superpixel", "sizes": [3, 5]},
    "soft moe": {"kind": "soft_moe", "slots": [4, 6], "experts": 2},
    "global": {"kind": "global"},
    "none": {"kind": "none"},
}


def network(scale: int = 2, assignment: dict | None = None, **config: Any) -> CATANet:
    torch.manual_seed(0)
    return CATANet(CATANetConfig.model_validate(TINY | {"assignment": assignment or HARD} | config), scale)


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def golden_network(scale: int, initted: bool = True) -> CATANet:
    return golden_weights(CATANet(CATANetConfig(), scale), initted=initted)


@pytest.mark.parametrize(("scale", "parameters"), [(2, 477_435), (3, 549_635), (4, 535_195)])
def test_state_is_the_published_layout(scale: int, parameters: int) -> None:
    model = CATANet(CATANetConfig(), scale)
    layout = json.loads(shared("golden/catanet_state_dict.json").read_text())[f"x{scale}"]
    assert {name: list(entry.shape) for name, entry in model.state_dict().items()} == layout
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_concatenated_fusion_has_the_published_number_of_parameters() -> None:
    model = CATANet(CATANetConfig.model_validate({"assignment": {"kind": "hard", "fusion": "concat"}}), 4)
    assert sum(parameter.numel() for parameter in model.parameters()) == 547_995


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("entry", ["x2_36x30", "x3_36x30", "x4_36x30", "x2_45x31", "x3_45x33"])
def test_golden_outputs(entry: str) -> None:
    expected = np.load(shared("golden/catanet.npz"))[f"eval_{entry}"]
    scale, (height, width) = int(entry[1]), map(int, entry[3:].split("x"))
    with torch.inference_mode():
        found = golden_network(scale).eval()(golden_image((1, 3, height, width), scale))[..., ::3, ::3].numpy()
    assert np.abs(found - expected).max() < 1e-5 * expected.std()


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("case", ["train_initted", "train_first"])
def test_golden_training_step(case: str) -> None:
    golden = np.load(shared("golden/catanet.npz"))
    norms = json.loads(shared("golden/catanet_grad_norms.json").read_text())[case]
    model = golden_network(2, initted=case == "train_initted").double().train()
    output = model(golden_image((2, 3, 32, 32), 7).double())
    loss = (output - golden_image((2, 3, 64, 64), 8).double()).abs().mean()
    loss.backward()
    np.testing.assert_allclose(output.detach()[..., ::3, ::3], golden[f"{case}_output"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(loss.item(), golden[f"{case}_loss"], rtol=1e-9)
    found = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    assert found == pytest.approx(norms, rel=1e-9)
    for index, module in enumerate(m for m in model.modules() if isinstance(m, HardAggregation)):
        assert bool(module.initted)
        np.testing.assert_allclose(module.means[:, ::5], golden[f"{case}_means_{index}"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 3])
def test_convolution_before_the_shuffle(factor: int) -> None:
    conv = torch.nn.Conv2d(5, 3, 3, padding=1).double()
    features = picture(2, 5 * factor**2, 6, 7).double()
    torch.testing.assert_close(convolve_shuffled(features, conv), conv(F.pixel_shuffle(features, factor)))


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_every_arm_trains_at_every_scale(arm: str, scale: int) -> None:
    model = network(scale, ARMS[arm]).train()
    output = model(picture(2, 3, 9, 12), torch.tensor([3, 4]))
    assert output.shape == (2, 3, 9 * scale, 12 * scale)
    output.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("side", range(8, 28))
def test_small_sides(side: int) -> None:
    model = CATANet(CATANetConfig.model_validate({"blocks": 4}), 2).eval()
    for shape in ((side, 8), (8, side), (side, side)):
        with torch.inference_mode():
            output = model(picture(1, 3, *shape))
        assert output.shape == (1, 3, 2 * shape[0], 2 * shape[1])
        assert torch.isfinite(output).all()


def test_smaller_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 x 8 pixels, got 7 x 20"):
        network()(picture(1, 3, 7, 20))


@pytest.mark.parametrize("arm", ["hard", "soft", "sparsemax, attention", "shuffled", "superpixel", "soft moe"])
def test_reruns_are_equal_to_the_bit(arm: str) -> None:
    def run() -> tuple[Tensor, list[Tensor]]:
        model = network(2, ARMS[arm]).train()
        for seed in range(2):
            output = model(picture(2, 3, 16, 18, seed=seed), torch.tensor([5, 6]))
            output.square().mean().backward()
        return output, [p.grad for p in model.parameters() if p.grad is not None]

    (first, gradients), (second, others) = run(), run()
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


@pytest.mark.parametrize("arm", ARMS)
def test_bf16_autocast(arm: str) -> None:
    model = network(2, ARMS[arm]).train()
    x = picture(2, 3, 16, 16)
    exact = copy.deepcopy(model)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
        loss = output.float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert (output.float() - exact).abs().mean() < 0.02
    assert all(value.dtype == torch.float32 for value in model.state_dict().values() if value.is_floating_point())


@pytest.mark.parametrize("arm", ARMS)
def test_shapes_are_known_without_computing(arm: str) -> None:
    with torch.device("meta"), torch.inference_mode():
        model = CATANet(CATANetConfig.model_validate(TINY | {"assignment": ARMS[arm]}), 4).eval()
        assert model(torch.empty(1, 3, 20, 24)).shape == (1, 3, 80, 96)


class Waiting(TorchDispatchMode):
    """Operations for which a GPU and its host would wait for each other: values read, and tensors made of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default):
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["as on a GPU"], indirect=True)
@pytest.mark.parametrize("arm", ARMS)
def test_no_step_but_the_first_waits(arm: str, layout: None) -> None:
    model = network(2, ARMS[arm]).train()
    x, keys = picture(2, 3, 9, 12), torch.tensor([1, 2])
    model(x, keys)
    with Waiting() as waiting:
        model(x, keys).square().mean().backward()
    assert not waiting.found


@pytest.mark.parametrize("arm", ["hard", "soft", "frequency", "superpixel", "soft moe", "global"])
def test_batches_do_not_mix_at_test(arm: str) -> None:
    model = network(2, ARMS[arm]).double().train()
    x, keys = picture(3, 3, 12, 14).double(), torch.tensor([1, 2, 3])
    model(x, keys)
    model.eval()
    torch.testing.assert_close(model(x, keys)[1:2], model(x[1:2], keys[1:2]))


def test_keys_change_what_draws_and_nothing_else() -> None:
    x = picture(1, 3, 12, 12)
    for arm, draws in (("shuffled", True), ("noise", True), ("frequency", False)):
        model = network(2, ARMS[arm]).eval()
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if name.endswith("guidance"):
                torch.nn.init.normal_(parameter)
        zero, one = model(x, torch.tensor([0])), model(x, torch.tensor([1]))
        assert torch.equal(model(x), zero)
        assert torch.equal(zero, one) is not draws


def test_guidance_starts_from_the_unguided_network() -> None:
    x, outputs = picture(1, 3, 12, 12), []
    for arm in ("soft", "frequency", "noise"):
        model = network(2, ARMS[arm])
        with torch.no_grad():
            for index, parameter in enumerate(p for n, p in model.named_parameters() if "guidance" not in n):
                parameter.copy_(0.3 * picture(*parameter.shape, seed=index) - 0.1)
        outputs.append(model.train()(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_priors_have_equal_parameters() -> None:
    kinds = (
        {"kind": "frequency"},
        {"kind": "shuffled", "transform": "laplacian"},
        {"kind": "noise"},
        {"kind": "variance"},
    )
    shapes = [
        {name: p.shape for name, p in network(2, {"kind": "soft", "prior": prior}).named_parameters()}
        for prior in kinds
    ]
    assert all(shape == shapes[0] for shape in shapes)
    assert sum(name.endswith("guidance") for name in shapes[0]) == 2


@pytest.mark.parametrize(
    ("arm", "counts"),
    [("hard", (5, 7)), ("top 2", (5, 7)), ("frequency", (5, 7)), ("superpixel", (12, 4)), ("soft moe", (4, 6))],
)
def test_assignment_maps_and_diagnostics(arm: str, counts: tuple[int, int]) -> None:
    model = network(2, ARMS[arm]).train()
    x = picture(2, 3, 10, 12)
    model(x)
    state = copy.deepcopy(model.state_dict())
    maps = model.assignment_maps(x)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [tuple(part.shape) for part in maps] == [(2, 10, 12)] * 2
    assert all(part.dtype == torch.int64 and part.max() < count for part, count in zip(maps, counts, strict=True))
    values = model.diagnostics()
    expected = {"dead_share", "load_entropy_nats"} | (set() if arm == "hard" else {"entropy_nats"})
    expected |= set() if arm in ("hard", "superpixel") else {"temperature"}
    assert set(values) == {f"{name}.{index}" for name in expected for index in (0, 1)}
    for index, (part, count) in enumerate(zip(maps, counts, strict=True)):
        assert 0 <= values[f"load_entropy_nats.{index}"] <= np.log(count) + 1e-9
        if arm == "hard":
            assert values[f"dead_share.{index}"] == pytest.approx(1 - len(part.unique()) / count)


@pytest.mark.parametrize("config", [{}, TINY, {"width": 24, "blocks": 2, "qk_width": 24, "mlp_width": 48}])
@pytest.mark.parametrize("kind", ["superpixel", "soft_moe", "global"])
def test_arms_are_as_large_as_the_hard_one(kind: str, config: dict) -> None:
    def size(kind: str) -> int:
        with torch.device("meta"):
            model = CATANet(CATANetConfig.model_validate({**config, "assignment": {"kind": kind}}), 4)
        return sum(parameter.numel() for parameter in model.parameters())

    assert size(kind) / size("hard") == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize("arm", ["none", "global"])
def test_no_assignment_has_nothing_to_say(arm: str) -> None:
    model = network(2, ARMS[arm])
    model(picture(1, 3, 8, 8))
    assert model.diagnostics() == {}
    assert model.assignment_maps(picture(1, 3, 8, 8)) == []


def test_lists_are_cycled_over_the_blocks() -> None:
    model = network(2, HARD, blocks=5)
    blocks = [module for module in model.modules() if isinstance(module, HardAggregation)]
    assert [block.group_size for block in blocks] == [32, 16, 32, 16, 32]
    assert [block.count for block in blocks] == [5, 7, 5, 7, 5]
    assert [module.window for module in model.modules() if isinstance(module, LocalAttention)] == [8, 10, 8, 10, 8]


def test_blend_matters_only_where_three_windows_meet() -> None:
    published, averaged = (network(windows=[8], blend=blend).eval() for blend in ("published", "averaged"))
    for side, equal in ((14, True), (15, False)):  # (15 - 8) mod 6 = 1
        x = picture(1, 3, side, 14)
        assert torch.equal(published(x), averaged(x)) is equal


def test_gradients_of_the_whole_network() -> None:
    model = network(blocks=1, windows=[6]).double().train()
    x = picture(1, 3, 9, 8).double()
    model(x)
    model.eval()
    # The clustering decides, so only what lies behind it may be moved a little.
    parameters = [p for name, p in model.named_parameters() if name.endswith(("layer.0.norm.bias", "last_conv.bias"))]
    assert len(parameters) == 2
    assert torch.autograd.gradcheck(lambda *_: model(x)[..., ::3, ::3], parameters)
