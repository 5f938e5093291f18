import pytest
import torch
from torch.nn import functional as F

from study.grid.models import CFSR as Config
from study.models.cfsr import CFSR, Block, EdgeConv

SMALL = Config(width=12, layers=2, blocks=1, mlp_width=16)


def trained_like(scale: int = 2, config: Config = SMALL) -> CFSR:
    """A network whose every parameter matters: at initialisation the residuals are scaled by 1e-6."""
    torch.manual_seed(0)
    model = CFSR(config, scale)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_published_parameter_count_is_the_merged_form():
    model = CFSR(Config(), 4)
    assert sum(p.numel() for p in model.merged().parameters()) == 306_912
    assert sum(p.numel() for p in model.parameters()) == 306_912 + 12 * 3 * 96


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (11, 21)])
def test_merged_equals_training_form(scale, size):
    model = trained_like(scale)
    x = torch.rand(2, 3, *size)
    out = model(x, torch.zeros(2, dtype=torch.int64))
    assert out.shape == (2, 3, size[0] * scale, size[1] * scale)
    torch.testing.assert_close(model.merged()(x), out, rtol=0, atol=1e-5)


def test_merging_leaves_the_training_form_alone():
    model = trained_like()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = model.merged()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any("edge" in name for name in merged.state_dict())
    assert any("edge_scales" in name for name in before)


def test_edge_branches_are_parallel_convolutions():
    torch.manual_seed(0)
    conv = EdgeConv(5).double()
    torch.nn.init.normal_(conv.edge_scales)
    x = torch.rand(2, 5, 9, 9, dtype=torch.float64)
    expected = F.conv2d(x, conv.weight, conv.bias, padding=1, groups=5)
    sobel_x = torch.tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    laplacian = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    for scales, mask in zip(conv.edge_scales, (sobel_x, sobel_x.T, laplacian), strict=True):
        kernel = mask.double().expand(5, 1, 3, 3)
        expected = expected + scales.view(1, -1, 1, 1) * F.conv2d(x, kernel, padding=1, groups=5)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)


def test_a_flat_image_excites_no_edge_branch():
    conv = EdgeConv(4)
    torch.nn.init.normal_(conv.edge_scales)
    x = torch.full((1, 4, 9, 9), 0.7)
    with_edges = conv(x)[..., 1:-1, 1:-1]
    torch.nn.init.zeros_(conv.edge_scales)
    torch.testing.assert_close(with_edges, conv(x)[..., 1:-1, 1:-1])


def test_gradients_reach_every_parameter():
    model = trained_like()
    model(torch.rand(1, 3, 10, 9)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_reset_restores_what_a_fresh_network_has():
    torch.manual_seed(5)
    fresh = EdgeConv(6)
    torch.manual_seed(5)
    fresh.reset_parameters()
    again = EdgeConv(6)
    torch.manual_seed(5)
    again.reset_parameters()
    assert torch.equal(fresh.edge_scales, again.edge_scales)
    assert torch.equal(fresh.weight, again.weight)
    assert 0 < fresh.edge_scales.abs().max() < 1e-2
    block = trained_like().get_submodule("layers.0.blocks.0")
    assert isinstance(block, Block)
    block.reset_parameters()
    assert torch.equal(block.layer_scale_1, torch.full((12,), 1e-6))


def test_a_merged_state_loads_with_branches_at_zero():
    merged = trained_like().merged()
    model = CFSR(SMALL, 2)
    state = merged.state_dict()
    entries = len(state)
    model.load_state_dict(state)
    assert len(state) == entries  # the caller's state dict is not touched
    x = torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(model(x), merged(x), rtol=0, atol=1e-6)
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("edge_scales"))
