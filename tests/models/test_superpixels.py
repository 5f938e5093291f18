"""The grid of superpixels, soft superpixels, and which pixels belong to them most, against dense computations."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from study.models.superpixels import (
    Grid,
    cut_cells,
    first_centres,
    grid,
    join_cells,
    labels,
    likeliest,
    neighbours,
    soft_superpixels,
    strongest,
    sum_neighbours,
    weighted_means,
)

SIZES = [(29, 53, 8), (24, 24, 6), (9, 30, 12), (8, 8, 12), (25, 26, 24)]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cells_of(height: int, width: int, size: int) -> Grid:
    return grid(height, width, size, torch.device("cpu"))


def dense(affinity: Tensor, cells: Grid) -> Tensor:
    """(B, K, 9, P) -> (B, K, N): row by superpixel, column by pixel."""
    batch, count = affinity.shape[:2]
    table = affinity.new_zeros(batch, count, cells.height * cells.width)
    for cell in range(count):
        real = cells.real[cell]
        for place in range(9):
            row, column = cell // cells.columns + place // 3 - 1, cell % cells.columns + place % 3 - 1
            if 0 <= row < cells.rows and 0 <= column < cells.columns:
                table[:, row * cells.columns + column, cells.pixels[cell, real]] = affinity[:, cell, place, real]
    return table


def naive_soft_superpixels(x: Tensor, size: int) -> Tensor:
    """The third affinity, (B, K, N)."""
    height, width = x.shape[1:3]
    rows, columns = max(1, height // size), max(1, width // size)
    own = F.interpolate(torch.arange(rows * columns).float().view(1, 1, rows, columns), size=(height, width))
    own, every = own.long().flatten(), torch.arange(rows * columns)[:, None]
    near = ((own // columns - every // columns).abs() <= 1) & ((own % columns - every % columns).abs() <= 1)
    centres = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (rows, columns)).flatten(2).transpose(1, 2)
    pixels, affinity = x.flatten(1, 2), torch.empty(0)
    for _ in range(3):
        distances = (centres[:, :, None] - pixels[:, None]).square().sum(dim=-1)
        affinity = (-distances).masked_fill(~near, -math.inf).softmax(dim=1)
        centres = affinity @ pixels / (affinity.sum(dim=-1, keepdim=True) + 1e-16)
    return affinity


def test_labels_are_those_of_nearest_upsampling() -> None:
    for side in (*range(8, 200), 339, 510):
        for size in (4, 5, 12, 16, 20, 24):
            cells = cells_of(side, 9, size)
            expected = F.interpolate(torch.arange(cells.rows).float().view(1, 1, -1), size=side)[0, 0].long()
            assert torch.equal(labels(cells)[:, 0] // cells.columns, expected), (side, size)


def test_the_last_few_grids_are_kept() -> None:
    first = cells_of(21, 22, 4)
    assert cells_of(21, 22, 4) is first
    for others in (cells_of(22, 21, 4), cells_of(21, 22, 5), grid(21, 22, 4, torch.device("meta"))):
        assert others is not first
    for side in range(30, 60):
        cells_of(side, side, 4)
    assert cells_of(21, 22, 4) is not first


@pytest.mark.parametrize("size", SIZES)
def test_cells_are_cut_and_joined(size: tuple[int, int, int]) -> None:
    cells, (height, width) = cells_of(*size), size[:2]
    x = numbers(2, height, width, 3)
    parts = cut_cells(x, cells)
    assert parts.shape == (2, cells.rows * cells.columns, cells.cell[0] * cells.cell[1], 3)
    assert torch.equal(join_cells(parts, cells), x)
    assert (parts[:, ~cells.real] == 0).all()
    assert int(cells.real.sum()) == height * width
    own = labels(cells).flatten()
    for cell in range(cells.rows * cells.columns):
        assert torch.equal(cells.pixels[cell, cells.real[cell]], (own == cell).nonzero()[:, 0])


def test_gradients_of_cutting_and_joining() -> None:
    cells = cells_of(9, 11, 4)
    x = numbers(2, 9, 11, 2).requires_grad_()
    parts = numbers(2, 4, math.prod(cells.cell), 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cut_cells(x, cells), x)
    assert torch.autograd.gradcheck(lambda parts: join_cells(parts, cells), parts)


def test_neighbours_and_their_adjoint() -> None:
    cells = cells_of(13, 22, 4)  # 3 x 5
    centres, parts = numbers(2, 15, 3), numbers(2, 15, 9, 3, seed=1)
    near = neighbours(centres, cells)
    assert torch.equal(near[:, 7], centres[:, [1, 2, 3, 6, 7, 8, 11, 12, 13]])
    assert torch.equal(near[:, 0, [4, 5, 7, 8]], centres[:, [0, 1, 5, 6]])
    assert (near[:, ~cells.inside] == 0).all()
    assert cells.inside[0].tolist() == [False] * 4 + [True] * 2 + [False] + [True] * 2
    torch.testing.assert_close((near * parts).sum(), (centres * sum_neighbours(parts, cells)).sum())


@pytest.mark.parametrize("size", SIZES)
def test_weighted_means_are_the_dense_ones(size: tuple[int, int, int]) -> None:
    cells, (height, width) = cells_of(*size), size[:2]
    x = numbers(2, height, width, 3)
    affinity = soft_superpixels(x, cells)
    table = dense(affinity, cells)
    expected = table @ x.flatten(1, 2) / (table.sum(dim=-1, keepdim=True) + 1e-16)
    torch.testing.assert_close(weighted_means(affinity, cut_cells(x, cells), cells), expected)


@pytest.mark.parametrize("spread", [0.1, 1, 30])
@pytest.mark.parametrize("size", SIZES)
def test_soft_superpixels_are_the_dense_ones(size: tuple[int, int, int], spread: float) -> None:
    cells, (height, width) = cells_of(*size), size[:2]
    x = (100 + spread * numbers(2, height, width, 5)).requires_grad_()  # an offset does not change distances
    affinity = soft_superpixels(x, cells)
    assert not affinity.requires_grad
    table = dense(affinity, cells)
    torch.testing.assert_close(table, naive_soft_superpixels(x.detach(), size[2]), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(table.sum(dim=1), torch.ones_like(table[:, 0]))
    assert torch.equal(likeliest(affinity, cells).flatten(1), table.argmax(dim=1))
    assert (affinity[:, :, :, 0][:, ~cells.inside] == 0).all()
    assert (affinity.transpose(2, 3)[:, ~cells.real] == 0).all()


def test_first_centres_pool() -> None:
    cells = cells_of(13, 22, 4)
    x = numbers(1, 13, 22, 2)
    expected = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (3, 5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(first_centres(x, cells), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", ["spread", "ties", "flat", "underflow"])
def test_strongest_is_a_stable_sort(size: tuple[int, int, int], case: str, dtype: torch.dtype) -> None:
    cells, (height, width) = cells_of(*size), size[:2]
    x = numbers(2, height, width, 5)
    x = {"spread": x, "ties": x.round(), "flat": 0 * x, "underflow": 300 * x}[case].to(dtype)
    affinity = soft_superpixels(x, cells)
    table = dense(affinity, cells)
    count = min(size[2] ** 2, height * width)
    found = strongest(affinity, cells, count).sort(dim=-1).values
    order = table.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    assert torch.equal(found, order.sort(dim=-1).values)
    if case == "underflow" and cells.rows * cells.columns > 4:
        assert (table.gather(2, order) == 0).any()  # lists were filled up


def test_strongest_of_a_diverged_network_has_the_shape() -> None:
    cells = cells_of(12, 12, 4)
    affinity = soft_superpixels(torch.full((1, 12, 12, 3), math.nan), cells)
    lists = strongest(affinity, cells, 16)
    assert lists.shape == (1, 9, 16)
    assert 0 <= int(lists.min()) <= int(lists.max()) < 144
