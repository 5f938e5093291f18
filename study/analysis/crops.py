"""The kept crops of several cells side by side, with the assignment of tokens to prototypes."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from PIL import Image

from study.analysis.figures import WIDTH_IN
from study.analysis.markup import cut, one_line
from study.analysis.results import Measure, Results
from study.analysis.statistics import Array
from study.records.store import RecordError, read_json

COLUMNS = 6
_GOLDEN = 0.618033988749895


@dataclass(frozen=True)
class Tile:
    """One picture of the figure: title, caption, (h, w, 3) pixels, and the (h, w) prototype map where there is one."""

    title: str
    caption: str
    pixels: np.ndarray
    map: np.ndarray | None = None


def picture_name(index: int) -> str:
    """File name, without ending, of the figure of the nth image of `read_tiles`."""
    return f"crops-{index:02d}"


def read_tiles(results: Results, runs: Path) -> dict[tuple[str, str], list[Tile]]:
    """(dataset, image) -> tiles: input, bicubic, each cell's first finished seed, truth.

    Raises:
        RecordError: where an index names a file that is absent or is no picture.
    """
    tiles: dict[tuple[str, str], list[Tile]] = {}
    truths: dict[tuple[str, str], Tile] = {}
    for cell in results.plan.cells:
        done = results.done(cell.name)
        if not done:
            continue
        folder = runs / results.ids[cell.name, done[0]] / "samples"
        index = folder / "index.json"
        for entry in read_json(index)["samples"] if index.exists() else ():
            key = entry["dataset"], entry["image"]
            if key not in tiles:
                tiles[key] = [
                    Tile("LR", f"×{entry['scale']}", _read(folder / entry["lr"])),
                    Tile("bicubic", _psnr(results, results.bicubic, key), _read(folder / entry["bicubic"])),
                ]
                truths[key] = Tile("HR", "", _read(folder / entry["hr"]))
            if cell.name in results.bicubic:
                continue
            map_ = _read(folder / entry["map"], colour=False) if entry.get("map") else None
            caption = _psnr(results, [cell.name], key, None if cell.name in results.untrained else done[0])
            tiles[key].append(Tile(cell.name, caption, _read(folder / entry["sr"]), map_))
    return {key: [*part, truths[key]] for key, part in tiles.items()}


def _read(path: Path, colour: bool = True) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB") if colour else image)
    except OSError as error:
        raise RecordError(f"{path} is not a readable picture: {error}") from None


def _psnr(results: Results, cells: Sequence[str], key: tuple[str, str], seed: int | None = None) -> str:
    """PSNR of the whole image, from the stored values."""
    measure = Measure(key[0], results.plan.grid.analysis.protocol, "psnr")
    for cell in cells:
        table = results.values(cell, measure)
        if len(table) and key[1] in table:
            return f"{table[key[1]].iloc[0] if seed is None else table.loc[seed, key[1]]:.2f} dB"
    return ""


def colour_prototypes(indices: np.ndarray) -> Array:
    """(h, w) prototype indices -> (h, w, 3) colours, neighbours in number far apart in hue and lightness."""
    index = indices.astype(float)
    hue = (index * _GOLDEN) % 1
    value = 0.45 + 0.5 * ((index * _GOLDEN * _GOLDEN + 0.3) % 1)
    return hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.62), value], axis=-1))


def draw_crops(tiles: Sequence[Tile]) -> Figure:
    """One image's tiles in rows, each assignment map below its variant."""
    columns = -(-len(tiles) // -(-len(tiles) // COLUMNS))  # rows of about equal length
    bands = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    rows: list[list[tuple[str, str, Any] | None]] = []
    for band in bands:
        rows.append([(tile.title, tile.caption, tile.pixels) for tile in band])
        if any(tile.map is not None for tile in band):
            rows.append([_map_of(tile) for tile in band])
    side = WIDTH_IN / columns
    figure = Figure(figsize=(WIDTH_IN, sum(side + (0.3 if any(t and t[0] for t in row) else 0.05) for row in rows)))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, row in zip(grid, rows, strict=True):
        for axes, tile in zip(line, row, strict=False):
            if tile is None:
                continue
            title, caption, pixels = tile
            axes.imshow(pixels)
            axes.set_title(_lines(title, caption), fontsize=7.5, loc="center", fontweight="normal")
    return figure


def _map_of(tile: Tile) -> tuple[str, str, Any] | None:
    return None if tile.map is None else ("", "assignment", colour_prototypes(tile.map))


def _lines(title: str, caption: str) -> str:
    """Title over caption; a long title is broken at its commas, a long part of it anywhere."""
    parts = title.replace(", ", ",\n").split("\n") if len(title) > 16 else [title]
    broken = "\n".join(textwrap.fill(cut(one_line(part), 54), 18) for part in parts)
    return "\n".join(part for part in (broken, caption) if part)
