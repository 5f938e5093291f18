"""Depthwise convolution against PyTorch's own."""

import pytest
import torch
from torch import Tensor, nn

from study.models import depthwise
from study.models.depthwise import DepthwiseConv2d

SHAPES = [(6, 3, 2, 7, 6), (6, 5, 2, 9, 7), (5, 9, 3, 8, 12), (4, 7, 1, 10, 9), (3, 5, 2, 3, 2), (3, 9, 1, 1, 20)]


def results(conv: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """Output, and gradients of input, kernel and bias."""
    x = x.clone().requires_grad_()
    out = conv(x)
    weights = torch.randn(out.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    assert conv.bias is not None
    return [out, *torch.autograd.grad((out * weights).sum(), (x, conv.weight, conv.bias))]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("width", "side", "batch", "height", "columns"), SHAPES)
def test_output_and_gradients(
    width: int, side: int, batch: int, height: int, columns: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    ours = DepthwiseConv2d(width, side).to(dtype)
    plain = nn.Conv2d(width, width, side, padding=side // 2, groups=width).to(dtype)
    plain.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, width, height, columns, dtype=dtype, generator=generator).contiguous(memory_format=layout)
    for one, other in zip(results(ours, x), results(plain, x), strict=True):
        torch.testing.assert_close(one, other)


def test_a_wide_kernel_is_taken_by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(
        depthwise, "_of_kernel", lambda g, x, side: called.append(side) or torch.zeros(3, 1, side, side)
    )
    for side in (3, 5, 9):
        results(DepthwiseConv2d(3, side), torch.rand(1, 3, 6, 6))
    assert called == [5, 9]


def test_autocast_leaves_the_gradient_of_the_kernel_in_full_precision() -> None:
    conv, x = DepthwiseConv2d(8, 5), torch.rand(2, 8, 16, 16)
    _, of_x, of_kernel, of_bias = results(conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = results(conv, x)
    assert rounded[0].dtype == torch.bfloat16
    assert [part.dtype for part in rounded[1:]] == [torch.float32] * 3
    torch.testing.assert_close(rounded[2], of_kernel, rtol=0, atol=0.01 * float(of_kernel.abs().max()))
    torch.testing.assert_close(rounded[1], of_x, rtol=0, atol=0.02 * float(of_x.abs().max()))
    torch.testing.assert_close(rounded[3], of_bias, rtol=0, atol=0.01 * float(of_bias.abs().max()))
