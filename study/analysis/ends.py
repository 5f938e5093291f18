"""Per-image differences with the images at both ends shown: where a variant loses most, and where it gains most."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from study.analysis.comparisons import Comparison
from study.analysis.figures import (
    NAMED_IMAGES,
    WIDTH_IN,
    Style,
    draw_image_panel,
    draw_images,
    name_difference,
    order_images,
    shorten,
)
from study.analysis.results import Results
from study.analysis.verdicts import digits_of, signed
from study.records.store import RecordError, read_json

PICTURE_IN = 1.05, 1.05, 0.75  # room for one beside one, two or three columns of panels
NAME_WIDTH = 11  # characters above a picture
MOST_PANELS = 6

CAPTION = "Difference on every image: a dot for each seed, a large mark for their mean; shaded: the margin."
PICTURED = "From the best at the top to the worst, with the images at both ends and their mean differences."


def read_thumbnails(results: Results, runs: Path, dataset: str) -> dict[str, np.ndarray]:
    """Image name -> (h, w, 3) uint8 small picture, of a dataset of the grid.

    Finished runs name the image set by its fingerprint in their provenance.json; the pictures lie beside `runs`, in
    thumbnails/<fingerprint>/. Empty where no run names a set with pictures, as runs of older versions do not.

    Raises:
        RecordError: a picture cannot be read.
    """
    for _, _, run in results.runs():
        path = runs / run / "provenance.json"
        if results.state(run) != "done" or not path.exists():
            continue
        fingerprint = read_json(path).get("data", {}).get(f"evaluation.{dataset}")
        files = sorted((runs.parent / "thumbnails" / fingerprint).glob("*.jpg")) if fingerprint else []
        if files:
            return {file.stem: _read(file) for file in files}
    return {}


def _read(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise RecordError(f"{path} is not a readable picture: {error}") from None


def draw_ends(
    comparisons: Sequence[Comparison], styles: Mapping[str, Style], thumbnails: Mapping[str, np.ndarray]
) -> Figure | None:
    """A panel for each comparison, its images from the largest loss to the largest gain, both ends pictured.

    Args:
        comparisons: on one measure, see `panels_shown`.
        styles: of `cell_styles`.
        thumbnails: image name -> (h, w, 3) uint8; where empty, `draw_images` draws the differences alone.

    Returns:
        None where no comparison has values.
    """
    shown = panels_shown(comparisons)
    if not shown or not thumbnails:
        return draw_images(shown, styles) if shown else None
    most = max(len(comparison.deltas.images) for comparison in shown)
    columns = min(len(shown), 2 if most <= NAMED_IMAGES else 3)  # names need space
    lines = -(-len(shown) // columns)
    height = 0.6 + max(2.3, 0.17 * most if most <= NAMED_IMAGES else 0)
    figure = Figure(figsize=(WIDTH_IN, 0.3 + lines * height))
    picture = PICTURE_IN[columns - 1]
    grid = figure.add_gridspec(lines, 2 * columns, width_ratios=[WIDTH_IN / columns - picture, picture] * columns)
    panels: list[Axes] = []
    for index, comparison in enumerate(shown):
        line, column = divmod(index, columns)
        axes = figure.add_subplot(grid[line, 2 * column], sharex=panels[0] if panels else None)
        panels.append(axes)
        order = _order(comparison)
        draw_image_panel(axes, comparison, order, styles[comparison.cell])
        _label_images(axes, order)
        ends = grid[line, 2 * column + 1].subgridspec(2, 1)
        for row, place in ((0, len(order) - 1), (1, 0)) if len(order) > 1 else ((0, 0),):
            _draw_end(figure.add_subplot(ends[row]), axes, comparison, order, place, thumbnails)
    first = shown[0].measure
    figure.supxlabel(name_difference(first, f" ({first.unit})" if first.unit else ""), fontsize=9)
    return figure


def panels_shown(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those with values; of more than `MOST_PANELS` the ones with the largest mean differences, in their order."""
    valued = [comparison for comparison in comparisons if comparison.deltas.values.size and comparison.comparable]
    largest = sorted(range(len(valued)), key=lambda index: -abs(valued[index].mean))[:MOST_PANELS]
    return [valued[index] for index in sorted(largest)]


def ends_caption(comparisons: Sequence[Comparison], thumbnails: Mapping[str, np.ndarray]) -> str:
    """What `draw_ends` shows."""
    valued = sum(bool(comparison.deltas.values.size) and comparison.comparable for comparison in comparisons)
    part = f" {MOST_PANELS} of {valued} comparisons, those with the largest mean differences."
    return f"{CAPTION}{f' {PICTURED}' if thumbnails else ''}{part if valued > MOST_PANELS else ''}"


def _order(comparison: Comparison) -> list[str]:
    """Images from the largest loss to the largest gain."""
    order = order_images([comparison])
    return order[::-1] if comparison.measure.best == "low" else order


def _label_images(axes: Axes, order: Sequence[str]) -> None:
    axes.set_ylim(-0.7, len(order) - 0.3)
    if len(order) <= NAMED_IMAGES:
        axes.set_yticks(range(len(order)), [shorten(name) for name in order], fontsize=7)
        return
    axes.set_yticks([])
    axes.set_ylabel(f"{len(order)} images", fontsize=8)


def _draw_end(
    axes: Axes,
    panel: Axes,
    comparison: Comparison,
    order: Sequence[str],
    place: int,
    thumbnails: Mapping[str, np.ndarray],
) -> None:
    """The image at one end, its name and mean difference, and a line to its dot."""
    image, top = order[place], place == len(order) - 1
    delta = float(comparison.deltas.values[:, comparison.deltas.images.index(image)].mean())
    axes.set_axis_off()
    axes.set_anchor("N" if top else "S")
    pixels = thumbnails.get(image)
    if pixels is not None:
        axes.imshow(pixels, interpolation="none")
    gains = delta < 0 if comparison.measure.best == "low" else delta > 0
    words = ("largest" if gains == top else "smallest") + (" gain" if gains else " loss")
    value = signed(delta, comparison.measure.unit, digits_of(comparison))
    name = textwrap.fill(shorten(image), NAME_WIDTH)
    axes.set_title(f"{words}\n{name}\n{value}", fontsize=7, fontweight="normal", loc="center")
    panel.annotate(
        "", (1, place), (delta, place), xycoords=panel.get_yaxis_transform(), textcoords="data",
        arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": mpl.rcParams["text.color"], "linestyle": ":"},
    )  # fmt: skip
