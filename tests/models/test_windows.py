"""Windows against loops over windows, one at a time."""

import itertools

import pytest
import torch
from torch import Tensor

from study.models.windows import Blend, blend, cut


def starts(side: int, window: int) -> list[int]:
    if side <= window:
        return [0]
    regular = list(range(0, side - window, window - 2))
    return [*regular, side - window]


def seams(side: int, window: int, how: Blend) -> Tensor:
    """Weight of each pixel along one axis, by the published rule or by the true count."""
    first = starts(side, window)
    weight = torch.ones(side, dtype=torch.float64)
    if how == "averaged":
        count = torch.zeros(side, dtype=torch.float64)
        for start in first:
            count[start : start + window] += 1
        return 1 / count
    for before, start in itertools.pairwise(first):
        weight[start : before + window] /= 2
    return weight


def naive_blend(windows: Tensor, height: int, width: int, how: Blend) -> Tensor:
    _, rows, columns, p, q, _ = windows.shape
    out = torch.zeros(len(windows), height, width, windows.shape[-1], dtype=windows.dtype)
    for i, y in enumerate(starts(height, p)):
        for j, x in enumerate(starts(width, q)):
            out[:, y : y + p, x : x + q] += windows[:, i, j]
    assert (rows, columns) == (len(starts(height, p)), len(starts(width, q)))
    return out * seams(height, p, how)[:, None, None] * seams(width, q, how)[:, None]


SIZES = [(8, 8, 16), (15, 33, 16), (16, 17, 16), (17, 30, 16), (31, 44, 16), (45, 18, 16), (9, 12, 4), (8, 27, 5)]


@pytest.mark.parametrize(("height", "width", "window"), SIZES)
@pytest.mark.parametrize("how", ["published", "averaged"])
def test_windows_agree_with_loops(height: int, width: int, window: int, how: Blend) -> None:
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(2, height, width, 3, generator=generator, dtype=torch.float64)
    windows = cut(x, window)
    p, q = min(window, height), min(window, width)
    for i, y in enumerate(starts(height, p)):
        for j, left in enumerate(starts(width, q)):
            assert torch.equal(windows[:, i, j], x[:, y : y + p, left : left + q])
    other = torch.randn(windows.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(blend(other, height, width, how), naive_blend(other, height, width, how))


@pytest.mark.parametrize("side", range(8, 28))
def test_averaging_restores_the_map(side: int) -> None:
    x = torch.rand(1, side, 45, 2, dtype=torch.float64)
    torch.testing.assert_close(blend(cut(x, 10), side, 45, "averaged"), x)


def test_published_blend_weighs_three_windows_by_three_quarters() -> None:
    side, window = 45, 16  # (45 - 16) mod 14 = 1
    ones = torch.ones(1, side, window, 1)
    blended = blend(cut(ones, window), side, window, "published")[0, :, 0, 0]
    assert blended.eq(0.75).nonzero().flatten().tolist() == [29]
    assert blended.eq(1).sum() == side - 1


@pytest.mark.parametrize("how", ["published", "averaged"])
def test_gradients_across_seams(how: Blend) -> None:
    x = torch.rand(1, 9, 11, 1, dtype=torch.float64, requires_grad=True)
    weight = torch.rand_like(cut(x, 4)).detach()
    assert torch.autograd.gradcheck(lambda x: blend(cut(x, 4) * weight, 9, 11, how), (x,))
    assert torch.autograd.gradcheck(lambda x: blend(cut(x, 10) ** 2, 9, 11, how), (x,))
