"""The kept crops of several cells side by side, with the assignment of tokens to prototypes."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from PIL import Image

from study.analysis.figures import WIDTH_IN
from study.analysis.markup import cut, one_line
from study.analysis.results import Measure, Results
from study.analysis.statistics import Array
from study.records.store import RecordError, read_json

COLUMNS = 6
MOST_PICTURED = 12  # cells of one figure
MOST_IMAGES = 8
GAP_IN, _LINE_IN = 0.08, 0.125
_GOLDEN = 0.618033988749895


@dataclass(frozen=True)
class Tile:
    """One picture of the figure: title, caption, (h, w, 3) pixels, and the (h, w) prototype map where there is one."""

    title: str
    caption: str
    pixels: np.ndarray
    map: np.ndarray | None = None


Tiles = dict[tuple[str, str], list[Tile]]


def picture_name(index: int) -> str:
    """File name, without ending, of the figure of the nth image of `read_tiles`."""
    return f"crops-{index:02d}"


def read_tiles(results: Results, runs: Path) -> Tiles:
    """(dataset, image) -> tiles: input, bicubic, each cell's first finished seed, truth.

    The image's name carries the scale where the grid has several: they share no picture but the truth.

    Raises:
        RecordError: where an index names a file that is absent or is no picture.
    """
    tiles: dict[tuple[str, str], list[Tile]] = {}
    truths: dict[tuple[str, str], Tile] = {}
    several = len({run.scale for cell in results.plan.cells for run in cell.runs}) > 1
    for cell in results.plan.cells:
        done = results.done(cell.name)
        if not done:
            continue
        folder = runs / results.ids[cell.name, done[0]] / "samples"
        index = folder / "index.json"
        for entry in read_json(index)["samples"] if index.exists() else ():
            place = entry["dataset"], entry["image"]
            scale = f"×{entry['scale']}"
            key = (place[0], f"{place[1]} {scale}") if several else place
            if key not in tiles:
                alike = [name for name in results.bicubic if results.cells[name].runs[0].scale == entry["scale"]]
                tiles[key] = [
                    Tile("LR", scale, _read(folder / entry["lr"])),
                    Tile("bicubic", _psnr(results, alike, place), _read(folder / entry["bicubic"])),
                ]
                truths[key] = Tile("HR", "", _read(folder / entry["hr"]))
            if cell.name in results.bicubic:
                continue
            map_ = _read(folder / entry["map"], colour=False) if entry.get("map") else None
            caption = _psnr(results, [cell.name], place, None if cell.name in results.untrained else done[0])
            tiles[key].append(Tile(cell.name, caption, _read(folder / entry["sr"]), map_))
    return {key: [*part, truths[key]] for key, part in tiles.items()}


def pick_tiles(results: Results, tiles: Tiles) -> tuple[Tiles, list[str]]:
    """The tiles to show, and sentences on what is not: a page that holds everything is one that nobody reads.

    Of more than `MOST_PICTURED` cells the baseline and the best ones, of more than `MOST_IMAGES` images the first of
    each dataset.

    Args:
        results: of the grid.
        tiles: of `read_tiles`: input, bicubic, cells, truth.
    """
    notes = []
    if len(tiles) > MOST_IMAGES:
        first = dict(reversed(tiles))
        kept = {key: part for key, part in tiles.items() if first[key[0]] == key[1]}
        notes.append(f"Pictured: the first image of every dataset, {len(kept)} of {len(tiles)} kept ones.")
        tiles = kept
    cells = list(dict.fromkeys(tile.title for part in tiles.values() for tile in part[2:-1]))
    if len(cells) > MOST_PICTURED:
        primary, baseline = results.primary, results.plan.grid.analysis.baseline
        sign = 1 if primary.best == "low" else -1

        def rank(name: str) -> tuple[bool, float]:
            value = sign * results.mean(name, primary)
            return name != baseline, value if np.isfinite(value) else np.inf

        chosen = set(sorted(cells, key=rank)[:MOST_PICTURED])
        tiles = {
            key: [*part[:2], *(tile for tile in part[2:-1] if tile.title in chosen), part[-1]]
            for key, part in tiles.items()
        }
        notes.append(f"Pictured: {MOST_PICTURED} of {len(cells)} networks, {baseline!r} and the best by {primary}.")
    return tiles, notes


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
    """One image's tiles in rows, each assignment map below its variant.

    All share one canvas in one axes: an axes for each takes a hundred times as long.
    """
    columns = -(-len(tiles) // -(-len(tiles) // COLUMNS))  # rows of about equal length
    pitch = WIDTH_IN / columns
    side = pitch - GAP_IN
    pictures: list[tuple[float, float, np.ndarray]] = []  # left and top
    titles: list[tuple[float, float, str]] = []  # centre and bottom
    top = 0.0
    for start in range(0, len(tiles), columns):
        band = tiles[start : start + columns]
        heads = [_lines(tile.title, tile.caption) for tile in band]
        top += GAP_IN + _LINE_IN * max(1 + head.count("\n") for head in heads)
        for place, (tile, head) in enumerate(zip(band, heads, strict=True)):
            pictures.append((place * pitch, top, tile.pixels))
            titles.append((place * pitch + side / 2, top, head))
        top += side
        maps = [(place * pitch, tile.map) for place, tile in enumerate(band) if tile.map is not None]
        if maps:
            top += GAP_IN + _LINE_IN
            titles += [(left + side / 2, top, "assignment") for left, _ in maps]
            pictures += [(left, top, colour_prototypes(map_)) for left, map_ in maps]
            top += side
    figure = Figure(figsize=(WIDTH_IN, top + GAP_IN), layout="none")  # pyright: ignore[reportArgumentType]
    axes = lay_pictures(figure, pictures, side)
    for centre, bottom, text in titles:
        axes.text(centre, bottom - GAP_IN / 2, text, fontsize=7.5, ha="center", va="bottom", linespacing=1.15)
    return figure


def lay_pictures(figure: Figure, pictures: Sequence[tuple[float, float, np.ndarray]], side: float) -> Axes:
    """One canvas with all pictures, on an axes that fills a figure and is measured in inches from its top left.

    Args:
        figure: without a layout engine.
        pictures: left and top in inches, and (h, w, 3) pixels, 0 to 255 or 0 to 1, enlarged without interpolation.
        side: of the square that the longer side of each picture fills, in inches.
    """
    width, height = figure.get_size_inches()
    scale = max((max(pixels.shape) for _, _, pixels in pictures), default=1) / side  # canvas pixels per inch
    canvas = np.zeros((round(height * scale), round(width * scale), 4), np.uint8)
    for left, top, pixels in pictures:
        colours = pixels if pixels.dtype == np.uint8 else np.rint(255 * pixels).astype(np.uint8)
        size = [round(side * scale * n / max(colours.shape[:2])) for n in colours.shape[:2]]
        rows, columns = (np.arange(n) * m // n for n, m in zip(size, colours.shape[:2], strict=True))
        y, x = round(top * scale), round(left * scale)
        part = canvas[y : y + size[0], x : x + size[1]]
        part[..., :3] = colours[rows[:, None], columns][: part.shape[0], : part.shape[1]]
        part[..., 3] = 255
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, extent=(0, canvas.shape[1] / scale, canvas.shape[0] / scale, 0), interpolation="none")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    return axes


def _lines(title: str, caption: str) -> str:
    """Title over caption; a long title is broken at its commas, a long part of it anywhere."""
    parts = title.replace(", ", ",\n").split("\n") if len(title) > 16 else [title]
    broken = "\n".join(textwrap.fill(cut(one_line(part), 54), 18) for part in parts)
    return "\n".join(part for part in (broken, caption) if part)
