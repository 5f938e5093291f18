"""How far restored images are from natural ones, against how far each is from its original (Blau & Michaeli, 2018)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.comparisons import declared_pairs
from study.analysis.figures import WIDTH_IN, Style, legend_columns, place_legend
from study.analysis.metrics import stored_measures
from study.analysis.results import Measure, Results
from study.analysis.statistics import mean_interval
from study.analysis.verdicts import listed

REALISM = ("swd", "spectral_slope", "high_band", "lpips", "niqe", "clipiqa", "musiq", "maniqa")
COLUMNS = 3
Interval = tuple[float, float, float]


def realism_measures(results: Results) -> list[Measure]:
    """What is stored of `REALISM` on the primary dataset, in that order, each under one protocol."""
    stored: dict[str, Measure] = {}
    for measure in stored_measures(results):
        if measure.dataset == results.primary.dataset and measure.metric in REALISM:
            stored.setdefault(measure.metric, measure)
    return [stored[metric] for metric in REALISM if metric in stored]


def distance(results: Results, cell: str, measure: Measure) -> Interval | None:
    """Mean over a cell's seeds, with both ends of its t interval; None without finite values.

    Of a signed difference to HR the absolute value: its mean over images is taken first, since it is the images
    together that should look natural.
    """
    means = results.means(cell, measure)
    means = means[[math.isfinite(value) for value in means]]
    if not len(means):
        return None
    mean, low, high = mean_interval(means, results.plan.grid.analysis.alpha)
    if measure.best != "zero":
        return mean, low, high
    ends = abs(low), abs(high)
    return abs(mean), 0.0 if low < 0 < high else min(ends), max(ends)


def distortion_measure(results: Results) -> Measure:
    """The primary measure where it is one of distortion, else PSNR in its place."""
    primary = results.primary
    return primary if primary.metric in ("psnr", "ssim", "ssim_pyiqa") else replace(primary, metric="psnr")


def draw_plane(results: Results, styles: Mapping[str, Style], measures: Sequence[Measure]) -> Figure | None:
    """A panel per realism measure over the distortion measure, lower left is better on both; None without a point.

    Args:
        results: of the grid.
        styles: of the cells.
        measures: the panels.
    """
    distortion = distortion_measure(results)
    across = {cell: distance(results, cell, distortion) for cell in results.cells}
    cells = [cell for cell, x in across.items() if x and any(distance(results, cell, up) for up in measures)]
    if not cells:
        return None
    styles = {cell: _mark(styles[cell], cell in results.bicubic) for cell in cells}
    rows = -(-len(measures) // COLUMNS)
    columns = -(-len(measures) // rows)
    legend_in = 0.18 * -(-len(cells) // legend_columns(cells))
    figure = Figure(figsize=(WIDTH_IN, 0.35 + 2.5 * rows + legend_in))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes, measure in zip(panels.flat, measures, strict=False):
        for cell in cells:
            x, y = across[cell], distance(results, cell, measure)
            if x and y:
                _point(axes, x, y, cell, styles[cell])
        _zoom(axes, measure)
    panels[0, 0].set_xlim(*_room([x[0] for x in across.values() if x])[::-1])  # shared by all
    unit = f" ({distortion.unit})" if distortion.unit else ""
    for axes in panels.flat[len(measures) - columns : len(measures)]:  # the lowest of every column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(f"{distortion.name}{unit}, larger to the left")
    for axes in panels.flat[len(measures) :]:
        axes.set_visible(False)
    place_legend(figure, *_handles(panels.flat))
    return figure


def _mark(style: Style, bicubic: bool) -> Style:
    """A cell's marker, without its line; bicubic enlargement has one that nothing trained has."""
    own = {"marker": "+", "markersize": 10, "markeredgewidth": 1.8} if bicubic else {"markersize": 6}
    return {key: value for key, value in style.items() if key != "linestyle"} | own


def _point(axes: Axes, across: Interval, up: Interval, cell: str, style: Style) -> None:
    (x, left, right), (y, low, high) = across, up
    bars: dict[str, Any] = {"color": style["color"], "linewidth": 1, "linestyle": "-", "marker": "none"}
    if math.isfinite(left):
        axes.plot([left, right], [y, y], **bars)
    if math.isfinite(low):
        axes.plot([x, x], [low, high], **bars)
    axes.plot([x], [y], linestyle="none", label=cell, **style)


def _zoom(axes: Axes, measure: Measure) -> None:
    """Title and range of a panel: room around the marks, whatever the length of the bars of a few seeds."""
    unit = f" ({measure.unit})" if measure.unit else ""
    marks = axes.get_legend_handles_labels()[0]
    low, high = _room([float(mark.get_ydata()[0]) for mark in marks])  # pyright: ignore[reportAttributeAccessIssue]
    if measure.best == "high":
        axes.set_ylim(high, low)
        axes.set_title(f"{measure.name}{unit}, larger below")
    else:
        axes.set_ylim(max(low, 0), high)
        axes.set_title(f"|{measure.name}|{unit}" if measure.best == "zero" else f"{measure.name}{unit}")


def _room(values: Sequence[float]) -> tuple[float, float]:
    """Range of the values with as much again as they span, or a little where they do not differ."""
    low, high = min(values), max(values)
    margin = (high - low) / 2 or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _handles(panels: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """One legend entry for each cell that is in any panel."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def against_bicubic(results: Results, measures: Sequence[Measure]) -> list[str]:
    """A sentence for each cell of a declared comparison: where it beats bicubic enlargement, and at what distortion."""
    sentences = []
    declared = {cell for pair in declared_pairs(results) for cell in pair}
    for cell in [name for name in results.cells if name in declared]:
        scale = results.cells[cell].runs[0].scale
        reference = next((name for name in results.bicubic if results.cells[name].runs[0].scale == scale), None)
        if reference is not None and cell not in results.bicubic:
            text = _sentence(results, cell, reference, measures)
            sentences += [text] if text else []
    return sentences


def _sentence(results: Results, cell: str, reference: str, measures: Sequence[Measure]) -> str:
    """Nothing where the two have no realism measure in common; values that print alike count as equal."""
    parts: dict[str, list[str]] = {"better than bicubic on": [], "worse on": [], "equal on": []}
    for measure in measures:
        mine, other = results.mean(cell, measure), results.mean(reference, measure)
        if not (math.isfinite(mine) and math.isfinite(other)):
            continue
        one, two = _badness(measure, mine), _badness(measure, other)
        key = "equal on" if one == two else "better than bicubic on" if one < two else "worse on"
        value = measure.text(mine).removesuffix(measure.unit).strip()
        parts[key].append(f"{measure.name} ({value} against {measure.text(other)})")
    said = [f"{key} {listed(items)}" for key, items in parts.items() if items]
    if not said:
        return ""
    if not parts["better than bicubic on"]:
        said.insert(0, "better than bicubic on no measure")
    distortion = distortion_measure(results)
    deltas = results.deltas(cell, reference, distortion).values
    if deltas.size:
        said.append(_distortion(float(deltas.mean()), distortion))
    count = len(results.done(cell))
    n = "" if cell in results.untrained else f" ({count} {'seed' if count == 1 else 'seeds'})"
    return f"{cell}{n}: {'; '.join(said)}."


def _badness(measure: Measure, value: float) -> float:
    """The printed digits as a number that is smaller where the value is better."""
    printed = float(format(value, measure.format))
    return abs(printed) if measure.best == "zero" else -printed if measure.best == "high" else printed


def _distortion(delta: float, primary: Measure) -> str:
    size = primary.text(abs(delta)).replace("+", "")
    if size == primary.text(0.0).replace("+", ""):
        return f"{primary.name} equal"
    return f"{primary.name} {'higher' if delta > 0 else 'lower'} by {size}"
