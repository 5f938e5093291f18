"""Inference on whole images of any size: tiling and self-ensemble."""

from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from study.data.draws import derived

SMALLEST_SIDE_PX = 8
_ALIGNMENT_PX = 8


class Span(NamedTuple):
    """One tile along one axis, in LR pixels: what is read, and which part of its output is kept."""

    start: int
    stop: int
    keep_from: int
    keep_to: int


def super_resolve(
    model: nn.Module, lr: Tensor, *, tile_lr_px: int, overlap_lr_px: int, self_ensemble: bool, key: int
) -> Tensor:
    """Enlarges one image `lr` (1, 3, h, w) in [0, 1] to (1, 3, sh, sw), without clamping or rounding.

    Above `tile_lr_px` on the longer side the image is cut into overlapping tiles (`tiles`); each output pixel comes
    from one tile, the one in which it lies deeper: seams are cut in the middle of the overlap. So a network that
    looks no further than half the overlap gives exactly what it gives on the whole image.
    With `self_ensemble` the outputs of the eight flips and quarter turns are turned back and averaged.
    A network that has a method `noise(keys, height, width)` takes noise of the output's size as a third argument: it is
    drawn once for the whole image and each tile gets its part, so both sides of a seam see one field. Each of the eight
    views has noise of its own, which averages more of it away than one field turned with the view.

    Args:
        model: the network, in eval mode and on the device and in the type of `lr`.
        lr: the image.
        tile_lr_px: longest side that is not tiled, and of a tile.
        overlap_lr_px: least overlap of neighbouring tiles.
        self_ensemble: average the eight views.
        key: the image's seed for priors that draw, where every tile and every turn gets the same, and for noise.

    Raises:
        ValueError: a side is shorter than 8 px.
    """
    if min(lr.shape[-2:]) < SMALLEST_SIDE_PX:
        size = " x ".join(map(str, lr.shape[-2:]))
        raise ValueError(f"an LR image of {size} px is too small: every side must have at least {SMALLEST_SIDE_PX} px")
    keys = torch.tensor([key], dtype=torch.int64, device=lr.device)
    if not self_ensemble:
        return _tiled(model, lr, keys, _noise(model, lr, keys), tile_lr_px, overlap_lr_px)
    outputs = []
    for turns, mirrored in product(range(4), (False, True)):
        view = torch.rot90(lr.flip(-1) if mirrored else lr, turns, (-2, -1)).contiguous()
        noise = _noise(model, view, derived(keys, f"view {turns} {mirrored}"))
        output = torch.rot90(_tiled(model, view, keys, noise, tile_lr_px, overlap_lr_px), -turns, (-2, -1))
        outputs.append(output.flip(-1) if mirrored else output)
    return torch.stack(outputs).mean(dim=0)


def tiles(side: int, tile: int, overlap: int) -> list[Span]:
    """Spans that cover `side` pixels: as few as possible, no longer than `tile`, overlapping by at least `overlap`.

    All have one length and begin at multiples of 8 px, so that blocks and windows of a network fall on the same
    pixels as in the whole image. Every `tile` >= 64 above twice the overlap can be met. Tiles of 512 px that overlap by
    64 px are the published 'tile 512, stride 448'; where an image does not divide so, the stride is shorter.

    Raises:
        ValueError: no such tiles exist.
    """
    if side <= tile:
        return [Span(0, side, 0, side)]
    for count in range(2, side):
        # Lengths congruent to the side, so that the last tile begins at a multiple too; the shortest that will do.
        for length in range(side % _ALIGNMENT_PX, tile + 1, _ALIGNMENT_PX):
            units = (side - length) // _ALIGNMENT_PX
            starts = [_ALIGNMENT_PX * round(i * units / (count - 1)) for i in range(count)]
            gap = max(b - a for a, b in pairwise(starts))
            if length - gap >= overlap:
                seams = [(b + a + length) // 2 for a, b in pairwise(starts)]
                return [
                    Span(start, start + length, keep_from, keep_to)
                    for start, keep_from, keep_to in zip(starts, [0, *seams], [*seams, side], strict=True)
                ]
    raise ValueError(f"tiles of {tile} px cannot overlap by {overlap} px")


def draws_noise(model: nn.Module) -> bool:
    """Whether the network makes its output from noise too, so that one image has many."""
    return callable(getattr(model, "noise", None))


def _noise(model: nn.Module, lr: Tensor, keys: Tensor) -> Tensor | None:
    if not draws_noise(model):
        return None
    scale = int(model.scale)  # type: ignore[arg-type]
    return model.noise(keys, lr.shape[-2] * scale, lr.shape[-1] * scale)  # type: ignore[operator]


def _tiled(model: nn.Module, lr: Tensor, keys: Tensor, noise: Tensor | None, tile: int, overlap: int) -> Tensor:
    height, width = lr.shape[-2:]
    if max(height, width) <= tile:
        return model(lr, keys) if noise is None else model(lr, keys, noise)
    scale = int(model.scale)  # type: ignore[arg-type]
    sr = lr.new_empty(1, 3, height * scale, width * scale)
    for row, column in product(tiles(height, tile, overlap), tiles(width, tile, overlap)):
        part = lr[..., row.start : row.stop, column.start : column.stop].contiguous()
        output = model(part, keys) if noise is None else model(part, keys, _part(noise, row, column, scale))
        sr[..., _scaled(row, 0, scale), _scaled(column, 0, scale)] = output[
            ..., _scaled(row, row.start, scale), _scaled(column, column.start, scale)
        ]
    return sr


def _part(noise: Tensor, row: Span, column: Span, scale: int) -> Tensor:
    rows, columns = (slice(span.start * scale, span.stop * scale) for span in (row, column))
    return noise[..., rows, columns].contiguous()


def _scaled(span: Span, origin: int, scale: int) -> slice:
    return slice((span.keep_from - origin) * scale, (span.keep_to - origin) * scale)
