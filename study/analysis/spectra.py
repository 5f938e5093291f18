"""Power spectra of the kept crops against that of the truth: which frequencies a network restores, and which it makes.

Agrees with `study.evaluation.realism` where the two overlap: BT.601 luma in 8-bit levels, a symmetric Hann window in
both directions after the window's mean is taken off, power per pixel so that white noise has its variance, the same
floor, no crop below 32 px, and decibels averaged over images. `high_band` is the ratio of all that lies above 1/4
cycles per px, over whole images; here the ratio is seen ring by ring, over the crops. Definition ours.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.crops import Tile
from study.analysis.figures import MUTED, WIDTH_IN, Style, legend_columns, place_legend
from study.analysis.statistics import Array

SMALLEST_SIDE_PX = 32
FLOOR = 1e-3  # squared levels
LOWEST_DB = -40.0  # below it a line leaves the panel
_LUMA, _BLACK = (65.481, 128.553, 24.966), 16.0
BICUBIC = "bicubic"  # the tile's title


@dataclass(frozen=True)
class Spectra:
    """What a picture's lines show.

    Attributes:
        frequency: (rings,), cycles per px of the HR grid.
        ratio_db: title of a tile -> (rings,), power over that of the truth in dB, mean over its crops.
        crops: title of a tile -> number of crops in it.
    """

    frequency: Array
    ratio_db: Mapping[str, Array]
    crops: Mapping[str, int]


def radial_power(pixels: np.ndarray, rings: int) -> Array:
    """Radially averaged power spectrum of the luma in squared 8-bit levels, (rings,); white noise has its variance.

    Args:
        pixels: (h, w, 3), 0 to 255.
        rings: at most half the shorter side; ring k of 1 to `rings` holds the frequencies nearest to k / (2 rings)
            cycles per px.
    """
    y = pixels.astype(float) @ np.array(_LUMA) / 255 + _BLACK
    height, width = y.shape
    window = np.hanning(height)[:, None] * np.hanning(width)
    mean = (window * y).sum() / window.sum()
    power = np.abs(np.fft.fft2(window * (y - mean))) ** 2 / (window**2).sum()
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    ring = np.floor(frequency * 2 * rings + 0.5).astype(int).ravel()
    inside = (ring >= 1) & (ring <= rings)  # the corners lie beyond what both directions have
    count = np.bincount(ring[inside], minlength=rings + 1)[1:]
    total = np.bincount(ring[inside], power.ravel()[inside], minlength=rings + 1)[1:]
    return total / count


def ratios(tiles_by_image: Mapping[tuple[str, str], Sequence[Tile]]) -> Spectra:
    """Power of every picture but the input over that of the truth, mean of the dB over the crops.

    Args:
        tiles_by_image: as `study.analysis.crops.read_tiles` gives them, the input first and the truth last. A crop
            below 32 px, or of another size than its truth (a cell of another scale), is left out. All are averaged in
            the rings that the smallest crop can tell apart.
    """
    pairs = [
        (tile, tiles[-1])
        for tiles in tiles_by_image.values()
        for tile in tiles[1:-1]
        if tile.pixels.shape == tiles[-1].pixels.shape and min(tile.pixels.shape[:2]) >= SMALLEST_SIDE_PX
    ]
    if not pairs:
        return Spectra(np.empty(0), {}, {})
    rings = min(min(truth.pixels.shape[:2]) for _, truth in pairs) // 2
    sums: dict[str, Array] = {}
    for tile, truth in pairs:
        one, other = (np.maximum(radial_power(part.pixels, rings), FLOOR) for part in (tile, truth))
        sums[tile.title] = sums.get(tile.title, np.zeros(rings)) + 10 * np.log10(one / other)
    crops = Counter(tile.title for tile, _ in pairs)
    frequency = np.arange(1, rings + 1) / (2 * rings)
    return Spectra(frequency, {title: total / crops[title] for title, total in sums.items()}, crops)


def draw_spectra(
    tiles_by_image: Mapping[tuple[str, str], Sequence[Tile]], styles: Mapping[str, Style], scale: int
) -> Figure | None:
    """Power over that of the truth against spatial frequency, and how far each cell lies from the mean of all cells.

    Args:
        tiles_by_image: as `read_tiles` gives them.
        styles: of the cells.
        scale: of the crops; the LR grid holds nothing above 0.5 / scale cycles per px.

    Returns:
        None without a crop; one panel where there are not two cells to tell apart.
    """
    spectra = ratios(tiles_by_image)
    if not spectra.ratio_db:
        return None
    cells = [title for title in spectra.ratio_db if title != BICUBIC]
    lines = {title: spectra.ratio_db[title] for title in (*cells, BICUBIC) if title in spectra.ratio_db}
    legend_rows = -(-len(lines) // legend_columns(list(lines)))
    figure = Figure(figsize=(WIDTH_IN, 3.0 + 0.18 * legend_rows))
    row = figure.subplots(1, 2 if len(cells) > 1 else 1, squeeze=False)[0]
    _panel(row[0], spectra.frequency, lines, styles, scale)
    lowest = min(float(line.min()) for line in lines.values())
    if lowest < LOWEST_DB:
        row[0].set_ylim(bottom=LOWEST_DB)
    row[0].set(ylabel="power over that of HR (dB)", title="against HR")
    if len(cells) > 1:
        mean = np.mean([lines[cell] for cell in cells], axis=0)
        _panel(row[1], spectra.frequency, {cell: lines[cell] - mean for cell in cells}, styles, scale)
        row[1].set(ylabel="power over the cells' mean (dB)", title="against the mean of the cells")
    handles, labels = row[0].get_legend_handles_labels()
    place_legend(figure, handles, labels)
    return figure


def _panel(axes: Axes, frequency: Array, lines: Mapping[str, Array], styles: Mapping[str, Style], scale: int) -> None:
    nyquist = 0.5 / scale
    axes.axhline(0, color=mpl.rcParams["axes.edgecolor"], linewidth=0.8)
    axes.axvline(nyquist, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
    axes.text(
        nyquist + 0.006, 0.01, "LR Nyquist", rotation=90, va="bottom", fontsize=8, transform=axes.get_xaxis_transform()
    )
    every = max(1, len(frequency) // 5)
    for index, (title, values) in enumerate(lines.items()):
        style: Style = {"color": MUTED, "linestyle": "-", "marker": ""} if title == BICUBIC else styles[title]
        start = index * every // len(lines)  # marks of lines that lie on one another stand apart
        axes.plot(frequency, values, label=title, markevery=(start, every), **style)
    axes.set_xlim(0, 0.5)
    axes.set_xlabel("spatial frequency (cycles per HR px)")


def spectra_caption(tiles_by_image: Mapping[tuple[str, str], Sequence[Tile]], scale: int) -> str:
    """What the figure shows and how to read it."""
    count = max(ratios(tiles_by_image).crops.values(), default=0)
    return (
        f"Power spectra of the outputs' luma over that of HR, averaged over directions, then the dB over {count} kept "
        f"crop{'s' if count != 1 else ''} (Hann window; each cell's first finished seed). Below 0: too smooth there; "
        "above 0: energy that the truth has not. Neither says that the detail lies where it should. Dashed: the "
        f"highest frequency of the LR grid, {0.5 / scale:.3g} cycles per HR px; what lies beyond is inferred. A few "
        "crops, chosen for their detail, do not stand for a dataset."
    )
