"""Overlapping windows of a map, and the map blended back from them (CATANet's local-region self-attention)."""

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Blend = Literal["published", "averaged"]
_OVERLAP_PX = 2


def cut(x: Tensor, window: int) -> Tensor:
    """Windows with stride `window - 2`, the last one of each axis pulled back to the border.

    Args:
        x: (B, H, W, C).
        window: side in pixels; an axis shorter than it is one window.

    Returns:
        (B, rows, columns, p, q, C) with p = min(window, H), q = min(window, W).
    """
    return _Cut.apply(x, window)


def blend(windows: Tensor, height: int, width: int, how: Blend) -> Tensor:
    """Sums windows of `cut` in place and weighs the seams; (B, rows, columns, p, q, C) -> (B, height, width, C).

    `published` halves, for each window after the first, the overlap with its predecessor, so that three windows that
    meet are summed and divided by four; `averaged` divides by the number of windows.
    """
    return _Blend.apply(windows, height, width, how)


def window_count(side: int, window: int) -> int:
    """Windows of `cut` along an axis of `side` pixels."""
    return -(-(side - window) // (window - _OVERLAP_PX)) + 1 if side > window else 1


def _cut(x: Tensor, window: int) -> Tensor:
    batch, height, width, channels = x.shape
    p, q = min(window, height), min(window, width)
    rows, columns = window_count(height, p), window_count(width, q)
    windows = x.new_empty(batch, rows, columns, p, q, channels)
    for regular_rows, part in _regular_and_last(x, 1, p):
        for regular_columns, piece in _regular_and_last(part, 2, q):
            target = windows[:, :-1] if regular_rows else windows[:, -1:]
            target = target[:, :, :-1] if regular_columns else target[:, :, -1:]
            views = piece.unfold(1, p, p - _OVERLAP_PX).unfold(2, q, q - _OVERLAP_PX)
            target.copy_(views.permute(0, 1, 2, 4, 5, 3))
    return windows


def _regular_and_last(x: Tensor, dim: int, window: int) -> list[tuple[bool, Tensor]]:
    """What all windows but the last cover, if there are such, and what the last covers."""
    side = x.shape[dim]
    last = (False, x.narrow(dim, side - window, window))
    count = window_count(side, window)
    if count == 1:
        return [last]
    return [(True, x.narrow(dim, 0, (count - 2) * (window - _OVERLAP_PX) + window)), last]


def _sum(windows: Tensor, height: int, width: int) -> Tensor:
    return _sum_axis(_sum_axis(windows.transpose(2, 3), 3, width), 1, height)


def _sum_axis(windows: Tensor, dim: int, side: int) -> Tensor:
    """Overlap-add along one axis: windows at `dim`, their pixels at `dim + 1`."""
    count, window = windows.shape[dim], windows.shape[dim + 1]
    if count == 1:
        return windows.squeeze(dim)
    shape = list(windows.shape)
    shape[dim : dim + 2] = [side]
    out = windows.new_empty(shape)
    step = window - _OVERLAP_PX
    regular, last = windows.narrow(dim, 0, count - 1), windows.select(dim, count - 1)
    tails = regular.narrow(dim + 1, step, _OVERLAP_PX)
    body = out.narrow(dim, 0, (count - 1) * step).unflatten(dim, (count - 1, step))
    body.copy_(regular.narrow(dim + 1, 0, step))
    body.narrow(dim, 1, count - 2).narrow(dim + 1, 0, _OVERLAP_PX).add_(tails.narrow(dim, 0, count - 2))
    end = (count - 1) * step + _OVERLAP_PX
    out.narrow(dim, end - _OVERLAP_PX, _OVERLAP_PX).copy_(tails.select(dim, count - 2))
    shared = end - (side - window)
    out.narrow(dim, side - window, shared).add_(last.narrow(dim, 0, shared))
    out.narrow(dim, end, side - end).copy_(last.narrow(dim, shared, window - shared))
    return out


def _weigh(x: Tensor, dim: int, window: int, how: Blend) -> None:
    """Weighs the seams along one axis, in place."""
    side = x.shape[dim]
    count = window_count(side, window)
    if count == 1:
        return
    step = window - _OVERLAP_PX
    body = x.narrow(dim, 0, (count - 1) * step).unflatten(dim, (count - 1, step))
    body.narrow(dim, 1, count - 2).narrow(dim + 1, 0, _OVERLAP_PX).mul_(0.5)
    start = side - window
    shared = (count - 1) * step + _OVERLAP_PX - start
    x.narrow(dim, start, shared).mul_(0.5)
    if how == "averaged" and shared > step and count > 2:
        x.narrow(dim, start, shared - step).mul_(4 / 3)


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, window: int) -> Tensor:
        ctx.size = x.shape[1:3]
        return _cut(x, window)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, *ctx.size), None


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, windows: Tensor, height: int, width: int, how: Blend) -> Tensor:
        ctx.sides, ctx.how = windows.shape[3:5], how
        out = _sum(windows, height, width).contiguous()
        for dim, window in zip((1, 2), ctx.sides, strict=True):
            _weigh(out, dim, window, how)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weighed = gradient.contiguous().clone()
        for dim, window in zip((1, 2), ctx.sides, strict=True):
            _weigh(weighed, dim, window, ctx.how)
        return _cut(weighed, max(ctx.sides)), None, None, None
