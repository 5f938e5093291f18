"""Figures from numbers: pure functions, frame in and matplotlib figure out.

A cell keeps its colour, marker and line style in every figure of a report, so that it is told apart in grey too.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from study.analysis.comparisons import CLAIM_NAMES, Comparison
from study.analysis.markup import cut, one_line
from study.analysis.results import Measure, Results
from study.analysis.statistics import mean_interval
from study.analysis.verdicts import coverage, decide, digits_of, signed

DECIDED = ("better", "worse", "equivalent")  # verdicts in bold
WIDTH_IN = 7.6
NAMED_IMAGES = 30  # more of them do not fit as labels
MOST_LOG_TICKS = 7
MUTED = "#8a8a93"

Style = dict[str, Any]


def cell_styles(results: Results) -> dict[str, Style]:
    """Colour, marker and line style of every cell; untrained ones are grey."""
    cycle = list(mpl.rcParams["axes.prop_cycle"])
    trained = [name for name in results.cells if name not in results.untrained]
    styles = {name: dict(cycle[i % len(cycle)]) for i, name in enumerate(trained)}
    # A second round through the palette is told from the first by hollow markers.
    for name in trained[len(cycle) :]:
        styles[name]["markerfacecolor"] = "none"
    return styles | {name: {"color": MUTED, "marker": "|", "linestyle": "-"} for name in results.untrained}


def draw_forest(comparisons: Sequence[Comparison], styles: Mapping[str, Style]) -> Figure:
    """Mean differences with the intervals of their claim's test; the margin is shaded, the verdict beside it."""
    labels = [wrap_label(comparison.label, 36) for comparison in comparisons]
    lines = len(labels) * max(2, *(1 + label.count("\n") for label in labels))
    figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.17 * lines))
    axes = figure.subplots()
    first = comparisons[0]
    if np.isfinite(first.margin):
        axes.axvspan(-first.margin, first.margin, color=MUTED, alpha=0.22, linewidth=0)
    axes.axvline(0, color=mpl.rcParams["axes.edgecolor"], linewidth=0.8)
    for y, comparison in enumerate(comparisons):
        _forest_row(axes, y, comparison, styles.get(comparison.cell, {"color": MUTED, "marker": "o"}))
    axes.set_yticks(range(len(comparisons)), labels)
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # labels have up to six characters
    unit = f" ({first.measure.unit})" if first.measure.unit else ""
    axes.set_xlabel(name_difference(first.measure, unit))
    claim = CLAIM_NAMES[first.claim]
    kind = "" if first.family else "exploratory, "
    margin = f"; shaded: ±{first.margin:g} {first.measure.unit}" if np.isfinite(first.margin) else ""
    title = f"{coverage(first.alpha)} interval ({kind}claim: {claim}){margin}"
    axes.set_title(title, fontsize=8.5, fontweight="normal")
    return figure


def _forest_row(axes: Axes, y: int, comparison: Comparison, style: Style) -> None:
    verdict, test = decide(comparison), comparison.test
    right = axes.get_yaxis_transform()
    drawn = comparison.deltas.values.size and comparison.comparable
    numbers = signed(comparison.estimate, comparison.measure.unit, digits_of(comparison)) if drawn else ""
    text = f"{numbers}  {verdict}" if comparison.family else numbers
    weight = "bold" if comparison.family and verdict in DECIDED else "normal"
    axes.text(1.02, y, text.strip(), transform=right, va="center", fontsize=8.5, fontweight=weight)
    if not drawn:
        return
    if np.isfinite([test.low, test.high]).all():
        axes.plot(
            [test.low, test.high], [y, y], color=style["color"], linewidth=2, marker="|", markersize=7, linestyle="-"
        )
    face = style["color"] if comparison.complete else "none"
    marker = {"color": style["color"], "marker": style["marker"], "markerfacecolor": face}
    axes.plot([test.estimate], [y], linestyle="none", markersize=7, **marker)


def few_log_ticks(axis: Axis) -> None:
    """Plain numbers on a log axis that often spans less than a decade."""
    low, high = axis.get_view_interval()
    ticks: list[float] = []
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**e for e in range(-8, 8) for m in steps if low <= m * 10.0**e <= high]
        if len(ticks) <= MOST_LOG_TICKS:
            break
    if len(ticks) < 2:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def place_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend below all panels."""
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns(labels))


def legend_columns(labels: Sequence[str]) -> int:
    """As many columns as fit, so far as characters tell."""
    longest = max((len(label) for label in labels), default=1)
    return max(1, min(len(labels), 95 // (longest + 7)))


def draw_images(comparisons: Sequence[Comparison], styles: Mapping[str, Style]) -> Figure:
    """Per-image differences: a dot for each seed, a large mark for their mean; images ordered by mean difference."""
    shown = [comparison for comparison in comparisons if comparison.deltas.values.size]
    order = order_images(shown)
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    named = len(order) <= NAMED_IMAGES
    height = 0.75 + (0.19 * len(order) if named else 4.2)
    figure = Figure(figsize=(WIDTH_IN, 0.3 + lines * height))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
    for axes, comparison in zip(grid.flat, shown, strict=False):
        draw_image_panel(axes, comparison, order, styles[comparison.cell])
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes in grid.flat[len(shown) - columns : len(shown)]:
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        ticks = range(len(order)) if named else [0, len(order) - 1]
        axes.set_yticks(ticks, [shorten(order[i]) for i in ticks])
        axes.set_ylim(-0.7, len(order) - 0.3)
    first = shown[0]
    unit = f" ({first.measure.unit})" if first.measure.unit else ""
    figure.supxlabel(name_difference(first.measure, unit), fontsize=9)
    return figure


def order_images(comparisons: Sequence[Comparison]) -> list[str]:
    """Names of all images of some comparisons, by mean difference over seeds and comparisons, the lowest first."""
    means = pd.DataFrame(
        {i: pd.Series(c.deltas.values.mean(axis=0), index=list(c.deltas.images)) for i, c in enumerate(comparisons)}
    )
    return [str(name) for name in means.mean(axis=1).sort_values(kind="stable").index]


def draw_image_panel(axes: Axes, comparison: Comparison, order: Sequence[str], style: Style) -> None:
    """One comparison's differences, its images in the given order from below."""
    place = {name: index for index, name in enumerate(order)}
    places = [place[name] for name in comparison.deltas.images]
    if np.isfinite(comparison.margin):
        axes.axvspan(-comparison.margin, comparison.margin, color=MUTED, alpha=0.22, linewidth=0)
    axes.axvline(0, color=mpl.rcParams["axes.edgecolor"], linewidth=0.8)
    size, small = (6, 2.6) if len(order) <= NAMED_IMAGES else (3.5, 1.4)
    dots = {"marker": "o", "markersize": small, "color": style["color"], "alpha": 0.5, "linestyle": "none"}
    seeds = comparison.deltas.values
    axes.plot(seeds.ravel(), np.tile(places, len(seeds)), rasterized=len(order) > NAMED_IMAGES, **dots)
    means = comparison.deltas.values.mean(axis=0)
    axes.plot(means, places, linestyle="none", marker=style["marker"], markersize=size, color=style["color"])
    axes.set_title(wrap_label(comparison.label, 28), fontsize=8)


def name_difference(measure: Measure, unit: str) -> str:
    """What an axis of differences shows; `unit` in parentheses after a space, or empty."""
    lower = ", below 0 is better" if measure.best == "low" else ""
    return f"difference in {measure.name} on {measure.dataset}{unit}{lower}"


def shorten(name: str) -> str:
    """An image's name as a label."""
    return cut(one_line(name), 18)


def wrap_label(label: str, width: int) -> str:
    """A comparison's label on several lines, the reference on one of its own; a name has two or three at most."""
    line = one_line(label)
    if len(line) <= width:
        return line
    sides = line.replace(" vs ", "\nvs ").split("\n")
    return "\n".join(textwrap.fill(cut(side, 2 * width), width) for side in sides)


def draw_counts(results: Results, measure: Measure) -> Figure | None:
    """The declared curve: the measure against the axis `analysis.curve`, a line per family of cells.

    Points are means over seeds with t intervals over seeds; one far from all others (a training that diverged, say) is
    marked at the edge with its value. None where no cell on the axis has values.
    """
    path = results.plan.grid.analysis.curve
    if path is None:
        return None
    on_axis = [cell for cell in results.plan.cells if path in cell.labels]
    labels = list(dict.fromkeys(cell.labels[path] for cell in on_axis))
    positions = _positions(labels)
    families: dict[str, list[tuple[float, float, float, float]]] = {}
    for cell in on_axis:
        means = results.means(cell.name, measure)
        if not len(means):
            continue
        rest = ", ".join(label for key, label in cell.labels.items() if key != path)
        point = (positions[cell.labels[path]], *mean_interval(means, results.plan.grid.analysis.alpha))
        families.setdefault(rest or path, []).append(point)
    if not families:
        return None
    figure = Figure(figsize=(WIDTH_IN, 3.4))
    axes = figure.subplots()
    _draw_families(axes, families)
    if _numbers(labels):
        axes.set_xscale("log", base=2)
    ticks = sorted(positions.items(), key=lambda item: item[1])
    axes.xaxis.set_major_locator(FixedLocator([place for _, place in ticks]))
    axes.xaxis.set_major_formatter(FixedFormatter([label for label, _ in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    unit = f" ({measure.unit})" if measure.unit else ""
    axes.set(xlabel=path, ylabel=f"{measure.name} on {measure.dataset}{unit}")
    levels = {
        name: float(results.means(name, measure).mean()) for name in results.untrained if results.has(name, measure)
    }
    for name, level in levels.items():
        axes.axhline(level, color=MUTED, linewidth=1, label=name)
    _mark_far_points(axes, families, list(levels.values()))
    place_legend(figure, *axes.get_legend_handles_labels())
    return figure


def _draw_families(axes: Axes, families: Mapping[str, list[tuple[float, float, float, float]]]) -> None:
    cycle = list(mpl.rcParams["axes.prop_cycle"])
    for index, (name, points) in enumerate(families.items()):
        style = cycle[index % len(cycle)]
        x, mean, low, high = np.array(sorted(points)).T
        shift = _shift(index, len(families))
        axes.plot(x * shift, mean, label=name, markersize=6, **{k: v for k, v in style.items() if k != "markersize"})
        axes.errorbar(
            x * shift, mean, [mean - low, high - mean], fmt="none", color=style["color"], capsize=3, linewidth=1
        )


def _shift(index: int, families: int) -> float:
    """Factor on a family's places: the intervals of two must not cover each other."""
    return 1 + 0.02 * (index - (families - 1) / 2)


def _mark_far_points(
    axes: Axes, families: Mapping[str, list[tuple[float, float, float, float]]], levels: Sequence[float]
) -> None:
    """Limits the axis to what lies within Tukey's outer fences, and says at its edge what lies beyond them."""
    rows = np.array([point for points in families.values() for point in points])
    lower, upper = np.quantile(rows[:, 1], [0.25, 0.75])
    fences = float(4 * lower - 3 * upper), float(4 * upper - 3 * lower)
    near = (rows[:, 1] >= fences[0]) & (rows[:, 1] <= fences[1])
    if near.all():
        return
    inside = [level for level in levels if fences[0] <= level <= fences[1]]
    shown = np.concatenate([np.clip(rows[near, 1:], *fences).ravel(), inside])
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))  # one seed has no interval
    low, high = low - 0.08 * (high - low), high + 0.08 * (high - low)
    axes.set_ylim(low, high)
    cycle, before = list(mpl.rcParams["axes.prop_cycle"]), dict.fromkeys(rows[:, 0].tolist(), 0)
    for index, points in enumerate(families.values()):
        color = cycle[index % len(cycle)]["color"]
        for x, mean, *_ in points:
            if not fences[0] <= mean <= fences[1]:
                edge, marker, inwards = (low, "v", 1) if mean < fences[0] else (high, "^", -1)
                place = x * _shift(index, len(families)), edge
                axes.plot(*place, marker=marker, color=color, markersize=7, clip_on=False, zorder=5, linestyle="none")
                text = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": color}
                axes.annotate(f"{mean:.4g}", (x, edge), (14, inwards * (6 + 9 * before[x])), **text)
                before[x] += 1


def _numbers(labels: Sequence[str]) -> bool:
    return all(label.replace(".", "", 1).isdigit() and float(label) > 0 for label in labels)


def _positions(labels: Sequence[str]) -> dict[str, float]:
    if _numbers(labels):
        return {label: float(label) for label in labels}
    return {label: float(index + 1) for index, label in enumerate(labels)}
