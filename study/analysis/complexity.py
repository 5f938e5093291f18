"""What the networks cost, at equal input: the table, and quality against cost."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from study.analysis.figures import MUTED, WIDTH_IN, Style, few_log_ticks
from study.analysis.published_points import PublishedPoint, draw_published, key_columns
from study.analysis.results import Results
from study.analysis.statistics import Array, mean_interval
from study.analysis.tables import Column, Entry, Table, Value
from study.records.store import read_json

# Stored names of a network's own costs; any other cost is its run's.
COUNTED = {
    "parameters": "parameters",
    "multiply_adds_720p": "multiply-adds",
    "multiply_adds_products_720p": "with products",
    "activations_720p": "activations",
}
LATENCY = ("latency_low_quartile", "latency_median", "latency_high_quartile")
MEASURED = ("cost_lr_px", "inference_peak_memory", *LATENCY, "throughput_batch", "throughput")
NAMES = (*COUNTED, *MEASURED)
_OUTPUT = "1280 × 720 output"
_LARGEST_MARK = 130.0  # points²
_LABEL_IN, _LABEL_CHARACTERS = 0.165, 30


Latencies = Mapping[str, tuple[float, float, float]]  # cell -> low quartile, median, high quartile, ms


def network_costs(results: Results, latencies: Latencies | None = None) -> dict[str, Array]:
    """For every stored name of `NAMES` one number per cell: the median over the cell's runs, NaN where absent.

    Args:
        results: of the grid.
        latencies: of cells that were timed in turn, which take the place of what their runs measured.
    """
    rows = results.rows("costs")
    groups = rows.astype({"value": float}).groupby(["name", "cell"])["value"]
    medians = {key: float(np.median(values.to_numpy())) for key, values in groups}
    for cell, quartiles in (latencies or {}).items():
        medians |= {(name, cell): value for name, value in zip(LATENCY, quartiles, strict=True)}
    return {name: np.array([medians.get((name, cell), np.nan) for cell in results.cells]) for name in NAMES}


def devices(results: Results, runs: Path) -> str:
    """The devices that the runs' provenance files name, in words; nothing where there is no file."""
    paths = [runs / run / "provenance.json" for _, _, run in results.runs() if run]
    named = [str(read_json(path).get("device", "")).partition(";")[0] for path in paths if path.exists()]
    return " and ".join(dict.fromkeys(name for name in named if name))


def complexity_table(results: Results, device: str, latencies: Latencies | None = None) -> Table:
    """Every cell at equal input; without rows where nothing is stored, and without the columns that no run has.

    Args:
        results: of the grid.
        device: what time and memory were measured on.
        latencies: as for `network_costs`.
    """
    costs = network_costs(results, latencies)
    kept = [i for i in range(len(results.cells)) if any(np.isfinite(values[i]) for values in costs.values())]
    costs = {name: values[kept] for name, values in costs.items()}
    columns = [Column("cell")]
    values: list[list[Value]] = [[list(results.cells)[i] for i in kept]]
    for name, heading in COUNTED.items():
        if np.isfinite(costs[name]).any():
            prefix, scaled, form = _readable(costs[name])
            columns.append(Column(heading, prefix, form, group="" if name == "parameters" else _OUTPUT))
            values.append(scaled)
    notes = [
        "Multiply-adds: convolutions and linear layers; with products: attention and assignment too, at declared "
        "widths. Activations: numbers that convolutions and linear layers put out."
    ]
    where = ""
    if all(np.isfinite(costs[name]).any() for name in ("latency_median", "throughput")):
        more, theirs = _measured(costs)
        columns += more
        values += theirs
        alone = "each run's median (quartiles) after warm-up, median over seeds"
        notes.append(
            f"Time and memory: fp32. Latency: batch 1, {'as in the next table (quartiles)' if latencies else alone}. "
            f"Throughput: output pixels at batch {np.nanmax(costs['throughput_batch']):.0f}, median over seeds. "
            "Memory: most held at once, beyond weights and input. Runs that shared a machine were timed side by side"
            f"{', so that latency and throughput need not agree' if latencies else ''}."
        )
        where = f"; {'throughput' if latencies else 'time'} and memory on {device}" if device else ""
    caption = f"What each network costs at equal input{where}."
    return Table("complexity", caption, tuple(columns), tuple(zip(*values, strict=True)), tuple(notes))


def _measured(costs: Mapping[str, Array]) -> tuple[list[Column], list[list[Value]]]:
    size = _input(costs)
    group = size or "square input"
    memory_prefix, memory, memory_form = _readable(costs["inference_peak_memory"])
    form = _digits(costs["latency_median"])
    quartiles = zip(costs["latency_median"], costs["latency_low_quartile"], costs["latency_high_quartile"], strict=True)
    columns = [
        Column("memory", f"{memory_prefix}B", memory_form, group=group),
        Column("latency", "ms", form, group=group),
        Column("throughput", "Mpx/s", _digits(costs["throughput"]), group=group),
    ]
    values = [
        memory,
        [_latency(middle, low, high, form) for middle, low, high in quartiles],
        _entries(costs["throughput"]),
    ]
    if not size:
        columns.insert(0, Column("side", "px", ".0f", group=group))
        values.insert(0, _entries(costs["cost_lr_px"]))
    return columns, values


def _input(costs: Mapping[str, Array]) -> str:
    """The input that all were measured with; nothing where they differ."""
    sides = np.unique(costs["cost_lr_px"][np.isfinite(costs["cost_lr_px"])])
    return f"{sides[0]:.0f} × {sides[0]:.0f} input" if len(sides) == 1 else ""


def _latency(middle: float, low: float, high: float, form: str) -> Entry:
    return Entry(None) if math.isnan(middle) else Entry(float(middle), f"({low:{form}}–{high:{form}})")


def _readable(values: Array) -> tuple[str, list[Value], str]:
    """Prefix, values in it, and their format."""
    largest = np.nanmax(values)
    prefix, divisor = next(((p, d) for p, d in (("G", 1e9), ("M", 1e6), ("K", 1e3)) if largest >= d), ("", 1.0))
    return prefix, _entries(values / divisor), _digits(values / divisor)


def _entries(values: Array) -> list[Value]:
    return [None if math.isnan(value) else float(value) for value in values]


def _digits(values: Array) -> str:
    """As many decimals, at most two, as show three digits of the smallest value."""
    smallest = min((float(value) for value in values if value > 0), default=100.0)
    return f",.{min(2, max(0, 2 - math.floor(math.log10(smallest))))}f"


def draw_quality(
    results: Results,
    styles: Mapping[str, Style],
    published: Sequence[PublishedPoint] = (),
    latencies: Latencies | None = None,
) -> Figure | None:
    """The primary measure against multiply-adds and against latency; None where no network has both stored.

    Points are means over seeds with t intervals over seeds; their area is proportional to the parameters. A line to
    the right of a point reaches to its multiply-adds with products, and one through it spans the quartiles of its
    latency. Labels stand in a column, each as near to its point's height as the others leave room for. Published
    values are drawn over multiply-adds alone, see `draw_published`; `latencies` as for `network_costs`.
    """
    costs, panels = network_costs(results, latencies), []
    layers, latency = costs["multiply_adds_720p"] / 1e9, costs["latency_median"]
    panels.append((layers, layers, costs["multiply_adds_products_720p"] / 1e9, f"multiply-adds (G), {_OUTPUT}"))
    seconds = ", ".join(part for part in ("latency (ms)", _input(costs)) if part)
    panels.append((latency, costs["latency_low_quartile"], costs["latency_high_quartile"], seconds))
    points = {
        index: (cell, mean_interval(means, results.plan.grid.analysis.alpha))
        for index, cell in enumerate(results.cells)
        if len(means := results.means(cell, results.primary)) and np.isfinite(means).all()
    }
    panels = [panel for panel in panels if (panel[0][list(points)] > 0).any()]
    if not panels:
        return None
    labels = {cell: _label(cell, costs["parameters"][index]) for index, (cell, _) in points.items()}
    lines = sum(1 + label.count("\n") for label in labels.values())
    figure = Figure(figsize=(WIDTH_IN, max(3.0, 0.8 + 1.15 * _LABEL_IN * lines)))
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    areas = _LARGEST_MARK * np.nan_to_num(costs["parameters"]) / max(1.0, *np.nan_to_num(costs["parameters"]))
    for axes, (at, low, high, label) in zip(row, panels, strict=True):
        for index, (cell, interval) in points.items():
            _point(axes, (at[index], low[index], high[index]), interval, areas[index], styles[cell])
        _log_axis(axes, np.concatenate([part[list(points)] for part in (at, low, high)]))
        axes.set_xlabel(label)
    counted = panels[0][0] is layers
    key = draw_published(row[0], published, results.primary) if counted else []
    few_log_ticks(row[0].xaxis)
    unit = f" ({results.primary.unit})" if results.primary.unit else ""
    row[0].set_ylabel(f"{results.primary.name} on {results.primary.dataset}{unit}")
    ends = {cell: (panels[-1][0][index], point[0]) for index, (cell, point) in points.items()}
    _label_column(row[-1], ends, labels, styles)
    if key:
        columns = key_columns(key)
        figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(key) // columns))
        figure.legend(handles=key, loc="outside lower center", ncols=columns, fontsize=8)
    return figure


def _label(cell: str, parameters: float) -> str:
    size = f" ({parameters / 1e6:.2f} M)" if parameters >= 1e6 else f" ({parameters / 1e3:.0f} K)"
    return textwrap.fill(cell + (size if parameters > 0 else ""), _LABEL_CHARACTERS)


def _point(
    axes: Axes, across: tuple[float, float, float], up: tuple[float, float, float], area: float, style: Style
) -> None:
    """One cell: (position, low, high) on both axes; a level over the whole width where it has no place on the first."""
    (x, left, right), (y, low, high) = across, up
    color = style["color"]
    if not x > 0:
        axes.axhline(y, color=color, linewidth=1)
        return
    bars: dict[str, Any] = {"color": color, "linewidth": 1, "linestyle": "-", "marker": "none"}
    if np.isfinite([low, high]).all():
        axes.plot([x, x], [low, high], **bars)
    if np.isfinite([left, right]).all():
        axes.plot([left, right], [y, y], **bars)
    if style["marker"] == "|":  # has no area
        axes.plot([x], [y], marker="|", color=color)
        return
    hollow = style.get("markerfacecolor") == "none" or not area > 0
    face = "none" if hollow else to_rgba(color, 0.55)  # marks may lie on one another
    axes.scatter([x], [y], s=area if area > 0 else 40, marker=style["marker"], facecolor=face, edgecolor=color)


def _log_axis(axes: Axes, values: Array) -> None:
    positive = values[values > 0]
    axes.set_xscale("log")
    axes.set_xlim(positive.min() / 1.3, positive.max() * 1.3)
    few_log_ticks(axes.xaxis)


def _label_column(
    axes: Axes, ends: Mapping[str, tuple[float, float]], labels: Mapping[str, str], styles: Mapping[str, Style]
) -> None:
    """Labels right of the axes with their cell's mark, in the order of their points, and a line to each point.

    Args:
        axes: the last panel.
        ends: cell -> position of its point there.
        labels: cell -> text.
        styles: of the cells.
    """
    low, high = axes.get_ylim()
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    room = figure.get_figheight() - 0.6
    cells = sorted(ends, key=lambda cell: ends[cell][1])
    sizes = [_LABEL_IN / room * (1 + labels[cell].count("\n")) for cell in cells]
    wanted = [(ends[cell][1] - low) / (high - low) for cell in cells]
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0}
    for cell, place in zip(cells, _spread(wanted, sizes), strict=True):
        if ends[cell][0] > 0:
            axes.annotate("", ends[cell], (1.03, place), textcoords="axes fraction", arrowprops=line)
        mark = {key: value for key, value in styles[cell].items() if key != "linestyle"}
        axes.plot([1.06], [place], linestyle="none", transform=axes.transAxes, clip_on=False, **mark)
        axes.text(1.09, place, labels[cell], transform=axes.transAxes, va="center", fontsize=8)


def _spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Places in [0, 1] for labels of these sizes, in ascending order, none on another, each near where it is wanted."""
    places: list[float] = []
    for place, size in zip(wanted, sizes, strict=True):
        floor = places[-1] + (size + sizes[len(places) - 1]) / 2 if places else size / 2
        places.append(max(place, floor))
    ceiling = 1.0
    for index in reversed(range(len(places))):
        places[index] = min(places[index], ceiling - sizes[index] / 2)
        ceiling = places[index] - sizes[index] / 2
    return places
