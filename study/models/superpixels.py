"""Superpixels on a regular grid: every pixel is tied to the nine cells around the one it starts in.

Pixels are handled cell by cell, (B, K, P, d): all pixels of a cell share the same nine neighbours, so that distances to
neighbours and means over pixels are small matrix products, and nothing of size pixels x superpixels is ever stored.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from study.models.layers import Adjoint

NEIGHBOURS = 9
ROUNDS = 3
_LEAST_WEIGHT = 1e-16


@dataclass(frozen=True)
class Grid:
    """Cells of a map of N = height * width pixels; K = rows * columns.

    Attributes:
        height: of the map, px.
        width: of the map, px.
        rows: of cells.
        columns: of cells.
        pixels: int64 (K, P), row-major index of each cell's pixels; smaller cells are filled up with their last ones.
        real: bool (K, P), False where filled up.
        places: int64 (N,), where each pixel lies in the flattened cells.
        inside: bool (K, 9), whether the neighbour exists.
        cell: height and width, px, of the largest cell; their product is P.
    """

    height: int
    width: int
    rows: int
    columns: int
    pixels: Tensor
    real: Tensor
    places: Tensor
    inside: Tensor
    cell: tuple[int, int]

    @property
    def regular(self) -> bool:
        """Whether all cells are equally large."""
        return self.cell == (self.height // self.rows, self.width // self.columns) and (
            self.height % self.rows == self.width % self.columns == 0
        )


def grid(height: int, width: int, size: int, device: torch.device) -> Grid:
    """Cells about `size` pixels wide: at least one, at most side // size along each axis; not to be written to.

    A pixel's cell is that of nearest upsampling in float32, as `torch.nn.functional.interpolate` computes it.
    """
    return (_made if torch.compiler.is_compiling() else _kept)(height, width, size, device)


@lru_cache(maxsize=8)  # blocks of a network have few sizes, images of a test set many
def _kept(height: int, width: int, size: int, device: torch.device) -> Grid:
    with torch.inference_mode(False):  # training may need what an inference made
        return _made(height, width, size, device)


def _made(height: int, width: int, size: int, device: torch.device) -> Grid:
    rows, columns = max(1, height // size), max(1, width // size)
    vertical, horizontal = (_starts(side, count) for side, count in ((height, rows), (width, columns)))
    cell = _longest(vertical), _longest(horizontal)
    (y, real_y, place_y), (x, real_x, place_x) = (
        _axis(starts, extent, device) for starts, extent in zip((vertical, horizontal), cell, strict=True)
    )
    pixels = (y[:, None, :, None] * width + x[None, :, None, :]).flatten(2).flatten(0, 1)
    real = (real_y[:, None, :, None] & real_x[None, :, None, :]).flatten(2).flatten(0, 1)
    (row, inner_y), (column, inner_x) = place_y, place_x
    places = (row[:, None] * columns + column) * math.prod(cell) + inner_y[:, None] * cell[1] + inner_x
    exists = torch.ones(1, rows, columns, 1, dtype=torch.bool, device=device)
    inside = _shifted(exists).flatten(0, 1)[..., 0]
    return Grid(height, width, rows, columns, pixels, real, places.flatten(), inside.reshape(-1, NEIGHBOURS), cell)


def labels(cells: Grid) -> Tensor:
    """Each pixel's own cell, int64 (height, width)."""
    return (cells.places // math.prod(cells.cell)).view(cells.height, cells.width)


def cut_cells(x: Tensor, cells: Grid) -> Tensor:
    """Pixels by cell, zero where a cell is filled up; (B, H, W, d) -> (B, K, P, d)."""
    return Adjoint.apply(x, _cut, _join, cells)


def join_cells(parts: Tensor, cells: Grid) -> Tensor:
    """The map of `cut_cells`; (B, K, P, d) -> (B, H, W, d)."""
    return Adjoint.apply(parts, _join, _cut, cells)


def first_centres(x: Tensor, cells: Grid) -> Tensor:
    """Adaptive average pooling; (B, H, W, d) -> (B, K, d)."""
    pooled = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (cells.rows, cells.columns))
    return pooled.permute(0, 2, 3, 1).flatten(1, 2)


def neighbours(centres: Tensor, cells: Grid) -> Tensor:
    """The 3 x 3 superpixels around each, row by row, zero outside the grid; (B, K, d) -> (B, K, 9, d)."""
    return _shifted(centres.unflatten(1, (cells.rows, cells.columns))).flatten(1, 2)


def sum_neighbours(parts: Tensor, cells: Grid) -> Tensor:
    """Adjoint of `neighbours`: what the nine cells around a superpixel hold for it; (B, K, 9, d) -> (B, K, d)."""
    padded = F.pad(parts.unflatten(1, (cells.rows, cells.columns)), (0, 0, 0, 0, 1, 1, 1, 1))
    held = [
        padded[:, y : y + cells.rows, x : x + cells.columns, NEIGHBOURS - 1 - (3 * y + x)]
        for y in range(3)
        for x in range(3)
    ]
    return torch.stack(held).sum(dim=0).flatten(1, 2)


def weighted_means(affinity: Tensor, parts: Tensor, cells: Grid) -> Tensor:
    """Means over pixels by their affinities, denominator + 1e-16.

    Args:
        affinity: (B, K, 9, P), of each cell's pixels to the cell's neighbours; zero where a cell is filled up or the
            neighbour is missing.
        parts: (B, K, P, d), see `cut_cells`.
        cells: the grid.

    Returns:
        (B, K, d), one mean per superpixel.
    """
    totals = sum_neighbours(affinity @ parts, cells)
    return totals / (_weights(affinity, cells) + _LEAST_WEIGHT)


@torch.no_grad()
def soft_superpixels(x: Tensor, cells: Grid) -> Tensor:
    """Soft association of pixels with the superpixels around them (SPIN, section 3.2): three rounds, without gradient.

    Superpixels begin as the cells' means; each round takes the softmax of negative squared distances over the nine, and
    all but the last move the superpixels to their weighted means.

    Args:
        x: (B, H, W, d).
        cells: the grid.

    Returns:
        A, (B, K, 9, P): see `weighted_means`.
    """
    centres = first_centres(x, cells)
    parts = cut_cells(x, cells)
    # |x|^2 cancels in the softmax; measured from the cell's own first centre, little else is lost to rounding.
    origins = centres[:, :, None]
    parts.sub_(origins)
    affinity = _affinity(parts, neighbours(centres, cells) - origins, cells)
    for _ in range(ROUNDS - 1):
        totals = affinity @ parts + affinity.sum(dim=-1, keepdim=True) * origins
        centres = sum_neighbours(totals, cells) / (_weights(affinity, cells) + _LEAST_WEIGHT)
        affinity = _affinity(parts, neighbours(centres, cells) - origins, cells)
    return affinity


@torch.no_grad()
def likeliest(affinity: Tensor, cells: Grid) -> Tensor:
    """Row-major index of the superpixel each pixel is most akin to; (B, K, 9, P) -> int64 (B, H, W)."""
    nearest = affinity.argmax(dim=2).flatten(1)[:, cells.places].unflatten(1, (cells.height, cells.width))
    return labels(cells) + (nearest // 3 - 1) * cells.columns + nearest % 3 - 1


@torch.no_grad()
def strongest(affinity: Tensor, cells: Grid, count: int) -> Tensor:
    """The `count` pixels with the largest affinity to each superpixel; of equals, those that come first in the map.

    Only the nine cells around a superpixel hold pixels that may have an affinity to it. Where fewer than `count` have
    one (the others' weights underflow), the map's first pixels without any fill up.

    Args:
        affinity: (B, K, 9, P).
        cells: the grid.
        count: at most H * W.

    Returns:
        Row-major indices, int64 (B, K, count).
    """
    affinity = affinity.where(affinity > 0, -1)
    values = torch.cat([_first_pixels(affinity, cells, count), _around(affinity, cells)], dim=2)
    least = values.topk(count, dim=2, sorted=False).values.amin(dim=2, keepdim=True)
    above, equal = values > least, values == least
    # of the equals as many as are missing, from the front
    missing = count - above.sum(dim=2, keepdim=True, dtype=torch.int32)
    chosen = above | (equal & (equal.cumsum(dim=2, dtype=torch.int32) <= missing))
    found = chosen.to(torch.uint8).topk(count, dim=2, sorted=False).indices
    pixels = _around(cells.pixels[None, :, None].expand(-1, -1, NEIGHBOURS, -1), cells)
    first = torch.arange(count, device=pixels.device).expand(1, pixels.shape[1], -1)
    return torch.cat([first, pixels], dim=2).expand(len(found), -1, -1).gather(2, found)


def _affinity(parts: Tensor, near: Tensor, cells: Grid) -> Tensor:
    """Softmax of negative squared distances; pixels (B, K, P, d) and centres (B, K, 9, d) -> (B, K, 9, P)."""
    lengths = near.square().sum(dim=-1, keepdim=True).masked_fill_(~cells.inside[..., None], math.inf)
    pixels = parts.flatten(0, 1).transpose(1, 2)
    logits = torch.baddbmm(-lengths.flatten(0, 1), near.flatten(0, 1), pixels, alpha=2)
    affinity = logits.softmax(dim=1).unflatten(0, parts.shape[:2])
    return affinity if cells.regular else affinity.mul_(cells.real[:, None])


def _first_pixels(affinity: Tensor, cells: Grid, count: int) -> Tensor:
    """Zero for the map's first pixels without affinity to a superpixel, -1 for those with one; (B, K, count)."""
    places = cells.places[:count]
    own = places // affinity.shape[3]
    has_one = affinity.transpose(1, 2).flatten(2)[..., places] > 0
    steps = torch.arange(-1, 2, device=places.device)
    target = own + (steps[:, None] * cells.columns + steps).flatten()[:, None]
    target = target.where(cells.inside[own].T, affinity.shape[1])  # one more superpixel, for neighbours that are none
    marks = affinity.new_zeros(len(affinity), affinity.shape[1] + 1, count)
    return marks.scatter_(1, target.expand(len(affinity), -1, -1), -has_one.to(affinity.dtype))[:, :-1]


def _around(x: Tensor, cells: Grid) -> Tensor:
    """What the nine cells around each superpixel hold for it, in the map's order; (B, K, 9, P) -> (B, K, 9 * P)."""
    held = x.unflatten(1, (cells.rows, cells.columns)).unflatten(4, cells.cell)
    out = x.new_full((len(x), cells.rows, cells.columns, 3, cells.cell[0], 3, cells.cell[1]), -1)
    for down in range(3):
        to_rows, from_rows = _overlap(down - 1, cells.rows)
        for right in range(3):
            to_columns, from_columns = _overlap(right - 1, cells.columns)
            part = held[:, from_rows, from_columns, NEIGHBOURS - 1 - (3 * down + right)]
            out[:, to_rows, to_columns, down, :, right] = part
    return out.flatten(3).flatten(1, 2)


def _overlap(step: int, count: int) -> tuple[slice, slice]:
    """Those of `count` places that have another `step` further on, and these."""
    return slice(max(0, -step), count - max(0, step)), slice(max(0, step), count - max(0, -step))


def _weights(affinity: Tensor, cells: Grid) -> Tensor:
    return sum_neighbours(affinity.sum(dim=-1, keepdim=True), cells)


def _shifted(x: Tensor) -> Tensor:
    """(B, rows, columns, d) -> (B, rows, columns, 9, d), zero outside."""
    windows = F.pad(x, (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3, 4)


def _single(value: float) -> float:
    """The float32 next to a number, as a number."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 2**24), exponent - 24)


def _starts(side: int, count: int) -> list[int]:
    """First pixel of each cell along an axis, and `side`."""
    scale = _single(count / side)
    starts = [0]
    for index in range(1, count):
        start = index * side // count
        while _single(start * scale) < index:
            start += 1
        starts.append(start)
    return [*starts, side]


def _longest(starts: list[int]) -> int:
    return max(after - start for start, after in pairwise(starts))


def _axis(starts: list[int], extent: int, device: torch.device) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Along one axis: each cell's pixels, which of them are real, and each pixel's cell and place within."""
    bounds = torch.tensor(starts).to(device, non_blocking=True)  # made there, every block would wait for the GPU
    first, last = bounds[:-1, None], bounds[1:, None] - 1
    pixels = first + torch.arange(extent, device=device)
    every = torch.arange(starts[-1], device=device)
    own = torch.searchsorted(bounds, every, right=True) - 1
    return torch.minimum(pixels, last), pixels <= last, (own, every - bounds[own])


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Of each image the rows at `index`; (B, N, d) and (M,) -> (B, M, d)."""
    first = torch.arange(len(rows), device=rows.device)[:, None] * rows.shape[1]
    return rows.flatten(0, 1).index_select(0, (first + index).flatten()).unflatten(0, (len(rows), -1))


def _cut(x: Tensor, cells: Grid) -> Tensor:
    parts = _take(x.flatten(1, 2), cells.pixels.flatten()).unflatten(1, cells.pixels.shape)
    return parts if cells.regular else parts.mul_(cells.real[..., None])


def _join(parts: Tensor, cells: Grid) -> Tensor:
    return _take(parts.flatten(1, 2), cells.places).unflatten(1, (cells.height, cells.width))
