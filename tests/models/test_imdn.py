import pytest
import torch

from study.grid.models import IMDN as Config
from study.models.imdn import IMDN, ContrastAttention


@pytest.mark.parametrize(("scale", "parameters"), [(2, 694_404), (3, 703_059), (4, 715_176)])
def test_published_parameter_counts(scale, parameters):
    assert sum(p.numel() for p in IMDN(Config(), scale).parameters()) == parameters


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (13, 22)])
def test_any_size_and_scale(scale, size):
    torch.manual_seed(0)
    model = IMDN(Config(width=16, blocks=2), scale)
    x = torch.rand(2, 3, *size)
    out = model(x, torch.zeros(2, dtype=torch.int64))
    assert out.shape == (2, 3, size[0] * scale, size[1] * scale)
    torch.testing.assert_close(model(x[1:])[0], out[1], rtol=1e-4, atol=1e-6)


def test_attention_gate_uses_population_std_plus_mean():
    torch.manual_seed(0)
    attention = ContrastAttention(32).double()
    x = torch.rand(1, 32, 5, 7, dtype=torch.float64)
    contrast = x.std(dim=(2, 3), correction=0, keepdim=True) + x.mean(dim=(2, 3), keepdim=True)
    hidden = torch.relu(attention.conv_du[0](contrast))
    torch.testing.assert_close(attention(x), x * torch.sigmoid(attention.conv_du[2](hidden)), rtol=1e-9, atol=1e-9)


def test_gradients_are_finite_on_a_flat_image_and_reach_everything():
    torch.manual_seed(0)
    model = IMDN(Config(width=64, blocks=2), 2)
    model(torch.cat([torch.full((1, 3, 8, 8), 0.5), torch.rand(1, 3, 8, 8)])).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_gradient_is_finite_where_a_channel_is_constant():
    torch.manual_seed(0)
    attention = ContrastAttention(16)
    x = torch.ones(1, 16, 4, 4, requires_grad=True)
    attention(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_gradient_is_finite_in_half_precision_where_a_map_is_nearly_flat():
    torch.manual_seed(0)
    attention = ContrastAttention(16)
    x = (0.5 + 1e-4 * torch.randn(1, 16, 8, 8)).half().requires_grad_()
    with torch.autocast("cpu", torch.float16):
        attention(x).float().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
