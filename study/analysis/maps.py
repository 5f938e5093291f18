"""Where the tokens of a crop go: assignment maps, the most used prototypes, and how evenly all are used."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from study.analysis.crops import GAP_IN, Tile, colour_prototypes, lay_pictures
from study.analysis.figures import MUTED, WIDTH_IN
from study.analysis.results import Results
from study.analysis.statistics import Array
from study.analysis.tables import Column, Table, Value

SHOWN = 4  # prototypes with a picture of their own
MOST_CELLS = 8  # of one figure, which a page must hold
_SIDE_IN, _TICKS_IN = 0.97, 0.36
_ROW_IN, _ABOVE_IN = 1.64, 0.41  # of which above the pictures
_NAME_CHARACTERS = 52
_PALE, _INKED = 0.2, 0.55  # contrast of the tokens of other prototypes, and of a prototype's own


@dataclass(frozen=True)
class Occupancy:
    """How the tokens of one map spread over prototypes.

    Attributes:
        prototypes: (used,), indices, the most used first.
        shares: (used,), share of the tokens that each holds.
    """

    prototypes: np.ndarray
    shares: Array

    @property
    def effective(self) -> float:
        """Effective number of prototypes: exp of the Shannon entropy of the shares; 1 where one holds every token.

        The prototypes that, used evenly, would have the same entropy (Hill number of order 1; Hill, Ecology 1973).
        """
        return float(np.exp(-(self.shares * np.log(self.shares)).sum()))


def occupancy(indices: np.ndarray) -> Occupancy:
    """Shares of a map (h, w) of prototype indices; equal shares in ascending order of the index."""
    prototypes, counts = np.unique(indices, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return Occupancy(prototypes[order], counts[order] / indices.size)


def prototype_counts(results: Results) -> dict[str, int]:
    """Cell -> prototypes (slots) of its last block, which the maps show; only cells that declare such a number."""
    counts = {}
    for name, cell in results.cells.items():
        model: Any = cell.runs[0].model
        declared = {
            "hard": lambda model: model.prototypes.count,
            "soft": lambda model: model.prototypes.count,
            "soft_moe": lambda model: model.assignment.slots,
        }.get(getattr(getattr(model, "assignment", None), "kind", ""))
        if declared is not None:
            numbers = declared(model)
            counts[name] = numbers[(model.blocks - 1) % len(numbers)]  # cycled over the blocks
    return counts


def mapped(tiles: Sequence[Tile]) -> list[Tile]:
    """The tiles that have an assignment map."""
    return [tile for tile in tiles if tile.map is not None and tile.map.size]


def draw_maps(tiles: Sequence[Tile], counts: Mapping[str, int] | None = None) -> Figure | None:
    """A row per cell: output, assignment, the most used prototypes' tokens, and every prototype's share.

    Args:
        tiles: of one image, as `study.analysis.crops.read_tiles` gives them; the first `MOST_CELLS` with a map are
            drawn.
        counts: prototypes of the cells, see `prototype_counts`; without one the unused are not seen in the bars.

    Returns:
        None where no tile has a map.
    """
    shown = mapped(tiles)[:MOST_CELLS]
    if not shown:
        return None
    height = len(shown) * _ROW_IN
    figure = Figure(figsize=(WIDTH_IN, height), layout="none")  # pyright: ignore[reportArgumentType]
    spreads = [occupancy(tile.map) for tile in shown if tile.map is not None]
    rows = [_row_pictures(tile, spread) for tile, spread in zip(shown, spreads, strict=True)]
    laid = [
        (place * (_SIDE_IN + GAP_IN), index * _ROW_IN + _ABOVE_IN, picture)
        for index, row in enumerate(rows)
        for place, picture in enumerate(row)
    ]
    axes = lay_pictures(figure, [(left, top, picture.pixels) for left, top, picture in laid], _SIDE_IN)
    for left, top, picture in laid:
        axes.text(left, top - 0.04, picture.title, fontsize=7.5, va="bottom")
        if picture.frame is not None:
            axes.add_patch(
                Rectangle((left, top), _SIDE_IN, _SIDE_IN, fill=False, edgecolor=picture.frame, linewidth=2.2)
            )
    for index, (tile, spread) in enumerate(zip(shown, spreads, strict=True)):
        count = (counts or {}).get(tile.title)
        axes.text(0, index * _ROW_IN + _ABOVE_IN / 2, _heading(tile.title, spread, count), va="bottom", fontsize=8.5)
        left = (2 + SHOWN) * (_SIDE_IN + GAP_IN) + _TICKS_IN
        bottom = height - index * _ROW_IN - _ABOVE_IN - _SIDE_IN
        box = (left / WIDTH_IN, bottom / height, 1 - left / WIDTH_IN, _SIDE_IN / height)
        _draw_shares(figure.add_axes(box), spread, count)
    return figure


@dataclass(frozen=True)
class _Picture:
    """A title, (h, w, 3) pixels, and the colour of a frame."""

    title: str
    pixels: np.ndarray
    frame: Array | None = None


def _heading(title: str, spread: Occupancy, count: int | None) -> str:
    name = textwrap.shorten(title, _NAME_CHARACTERS, placeholder=" …")
    used = f"{len(spread.shares)}" + ("" if count is None else f" of {count}")
    return f"{name}: prototypes used here {used}, effective number {spread.effective:.1f}"


def _row_pictures(tile: Tile, spread: Occupancy) -> list[_Picture]:
    """Output, assignment, and the tokens of the most used prototypes, each in its colour."""
    assert tile.map is not None
    tokens = _at_tokens(tile.pixels, tile.map.shape)
    row = [_Picture("output", tile.pixels), _Picture("assignment", colour_prototypes(tile.map))]
    for prototype, share in list(zip(spread.prototypes, spread.shares, strict=True))[:SHOWN]:
        colour = colour_prototypes(np.array([[prototype]]))[0, 0]
        lit = _lit(tokens, tile.map == prototype, colour)
        row.append(_Picture(f"#{prototype}: {_percent(share)}", lit, colour))
    return row


def _draw_shares(axes: Axes, spread: Occupancy, count: int | None) -> None:
    """Bars in the prototypes' colours, the most used first; the dashed line is an even share."""
    rank = np.arange(1, len(spread.shares) + 1)
    half = 0.43 if len(rank) <= 32 else 0.5
    heights = 100 * spread.shares
    corners = [np.stack([rank + dx * half, heights * top], axis=1) for dx, top in ((-1, 0), (-1, 1), (1, 1), (1, 0))]
    bars = np.stack(corners, axis=1)  # (bars, corners, 2)
    axes.add_collection(PolyCollection(list(bars), facecolors=colour_prototypes(spread.prototypes[None])[0]))
    last = max(count or 0, len(rank))
    if count:
        axes.axhline(100 / count, color=mpl.rcParams["axes.edgecolor"], linewidth=0.9, linestyle=(0, (3, 2)))
    axes.axvline(0.5 + spread.effective, color=MUTED, linewidth=1)
    axes.set_xlim(0.5, last + 0.5)
    axes.set_ylim(0, 108 * spread.shares[0])
    axes.set_xticks([1, last] if last > 1 else [1])
    axes.locator_params(axis="y", nbins=3)
    axes.tick_params(labelsize=7)
    axes.grid(axis="x", visible=False)
    axes.set_title("share by rank (%)", fontsize=7.5, fontweight="normal")


def _at_tokens(pixels: np.ndarray, shape: tuple[int, ...]) -> Array:
    """(h, w, 3) means, 0 to 1, of the pixels that each token of a map covers."""
    rows, columns = (np.arange(large) * small // large for large, small in zip(pixels.shape, shape, strict=False))
    place = (rows[:, None] * shape[1] + columns).ravel()
    sums = [np.bincount(place, channel.ravel(), minlength=shape[0] * shape[1]) for channel in pixels.T.swapaxes(1, 2)]
    return (np.stack(sums, axis=-1) / np.bincount(place)[:, None] / 255).reshape(*shape, 3)


def _lit(tokens: Array, members: np.ndarray, colour: Array) -> Array:
    """The crop in pale grey, the members in the prototype's colour, so that white and black ones are seen as well."""
    grey = tokens.mean(axis=-1, keepdims=True)
    return np.where(members[..., None], colour * (1 - _INKED * (1 - grey)), 1 - _PALE * (1 - grey))


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def maps_caption(dataset: str, image: str, tiles: Sequence[Tile]) -> str:
    """What the figure of one image shows and how to read it."""
    left_out = "; ".join(tile.title for tile in mapped(tiles)[MOST_CELLS:])
    return (
        f"{dataset}, {image}: where the tokens of the kept crop go in the last block that assigns, first finished "
        f"seed; a soft assignment is drawn as its largest weight. From the left: output; assignment, one colour per "
        f"prototype, numbered apart in every network; the tokens of the {SHOWN} most used prototypes; every "
        "prototype's share, largest first, dashed: an even share, grey: the effective number of prototypes, exp of the "
        "shares' Shannon entropy. One crop may need few prototypes; few in every crop are a collapse."
        f"{f' Not drawn: {left_out}.' if left_out else ''}"
    )


def occupancy_table(
    tiles_by_image: Mapping[tuple[str, str], Sequence[Tile]], counts: Mapping[str, int] | None = None
) -> Table | None:
    """Use of prototypes by every cell over all kept crops: means of the crops' numbers; None where there is no map."""
    spreads: dict[str, list[Occupancy]] = {}
    for tiles in tiles_by_image.values():
        for tile in mapped(tiles):
            assert tile.map is not None
            spreads.setdefault(tile.title, []).append(occupancy(tile.map))
    if not spreads:
        return None
    rows: list[tuple[Value, ...]] = []
    for cell, parts in spreads.items():
        numbers = ([len(part.shares) for part in parts], [part.effective for part in parts])
        largest = [100 * part.shares[0] for part in parts]
        count = (counts or {}).get(cell)
        means = [float(np.mean(values)) for values in (*numbers, largest)]
        rows.append((cell, None if count is None else float(count), *means, float(len(parts))))
    columns = (
        Column("cell"),
        Column("prototypes", format=".0f"),
        Column("used", format=".1f", group="mean over crops"),
        Column("effective", format=".1f", group="mean over crops"),
        Column("largest share", "%", ".0f", group="mean over crops"),
        Column("crops", format=".0f"),
    )
    note = (
        "Of the last block that assigns, first finished seed; a soft assignment counts by its largest weight. "
        "Effective: exp of the Shannon entropy of the shares."
    )
    return Table("occupancy", "How evenly the kept crops' tokens use the prototypes.", columns, tuple(rows), (note,))
