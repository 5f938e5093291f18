"""Training curves, each run's after those of the run it starts from, and the diagnostics of matching objectives."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from study.analysis.figures import WIDTH_IN, Style, few_log_ticks, legend_columns, place_legend
from study.analysis.results import Results
from study.analysis.statistics import Array
from study.grid.schema import Run

COLUMNS = 3
LEAST_SHARE = 0.25  # of the axis for a stage, however short
LEAST_CURVES = 8  # on a panel that any may leave: where few are drawn, all can be seen
LETTER_SHARE = 0.033  # of a panel's width for a letter of a tick's label
LOSS, VALIDATION = "loss", "validation_psnr_y_db"
DIAGNOSTICS = {
    "direction_norm": "matching direction (rms)",
    "pull_norm": "pull (rms)",
    "push_norm": "push (rms)",
    "clipped_share": "clipped directions (share)",
    "advantage_std": "advantage (sd)",
    "forbidden_share": "forbidden zone (share)",
    "fake_loss": "loss of the fake network",
}
LINEAR = (VALIDATION, "clipped_share", "advantage_std", "forbidden_share")


@dataclass(frozen=True)
class Panel:
    """A title, rows of the scalars table with a column `cell`, and whether the values have a log axis."""

    title: str
    rows: pd.DataFrame
    logarithmic: bool


def steps_before(run: Run) -> int:
    """Optimiser steps that a run's weights have seen before its own first one."""
    return run.start.optimisation.steps + steps_before(run.start) if isinstance(run.start, Run) else 0


def staged(results: Results) -> tuple[pd.DataFrame, list[int]]:
    """The scalars with steps counted from the first stage on, and where the later stages of these rows begin."""
    scalars = results.rows("scalars")
    cells, stored = scalars["cell"].cat, scalars["cell"].unique()
    before = {name: steps_before(results.cells[name].runs[0]) for name in cells.categories}
    offsets = np.array([*before.values()], int)[cells.codes]
    return scalars.assign(step=scalars["step"] + offsets), sorted({before[name] for name in stored} - {0})


def training_panels(scalars: pd.DataFrame) -> list[Panel]:
    """Loss (of each cell its consistency part where that is stored), matching loss and validation, where stored."""
    parts = scalars.loc[scalars["name"] == "consistency"]
    whole = scalars.loc[scalars["name"].eq(LOSS) & ~scalars["cell"].isin(parts["cell"].unique())]
    loss = pd.concat([whole, parts])
    title = "training loss" if parts.empty else "consistency loss" if whole.empty else "loss or its consistency part"
    panels = [
        _panel(title, loss, LOSS),
        _panel("matching loss", scalars.loc[scalars["name"] == "matching"], "matching"),
        _panel("validation PSNR (dB)", scalars.loc[scalars["name"] == VALIDATION], VALIDATION),
    ]
    return [panel for panel in panels if len(panel.rows)]


def diagnostic_panels(scalars: pd.DataFrame) -> list[Panel]:
    """Whatever is stored of `DIAGNOSTICS`."""
    present = set(scalars["name"].unique())
    return [
        _panel(title, scalars.loc[scalars["name"] == name], name)
        for name, title in DIAGNOSTICS.items()
        if name in present
    ]


def _panel(title: str, rows: pd.DataFrame, name: str) -> Panel:
    values = rows["value"].to_numpy(float)
    return Panel(title, rows, name not in LINEAR and bool((values[np.isfinite(values)] > 0).all()))


def draw_curves(panels: Sequence[Panel], styles: Mapping[str, Style], stages: Sequence[int] = ()) -> Figure:
    """Curves against optimiser steps: mean over seeds, the band is their range, a thin line where a stage begins.

    Args:
        panels: rows with columns cell, seed, step, value.
        styles: of the cells.
        stages: steps at which a later stage begins.
    """
    cells = list(dict.fromkeys(cell for panel in panels for cell in panel.rows["cell"].unique()))
    lines = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // lines)
    height = 3.0 + 1.9 * (lines - 1) + 0.18 * -(-len(cells) // legend_columns(cells))
    end = max(panel.rows["step"].to_numpy().max() for panel in panels)
    figure = Figure(figsize=(WIDTH_IN, height))
    grid = figure.subplots(lines, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        for cell, rows in panel.rows.groupby("cell", sort=False):
            _curve(axes, rows, str(cell), styles[str(cell)])
        if panel.logarithmic:
            axes.set_yscale("log")
        _limit_axis(axes, panel)
        if panel.logarithmic:
            few_log_ticks(axes.yaxis)
        axes.set(xlabel="optimiser steps", title=panel.title)
        if stages:
            _lay_stages(axes, panel.rows["step"].to_numpy().min(), end, stages)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    place_legend(figure, list(handles.values()), list(handles))
    return figure


def outliers(panel: Panel) -> list[str]:
    """Cells whose curves end far from all others, beyond Tukey's outer fences: trainings that diverged, say."""
    rows = panel.rows.loc[np.isfinite(panel.rows["value"].to_numpy(float))]
    last = rows.sort_values("step").groupby(["cell", "seed"], observed=True)["value"].last()
    ends = pd.Series(last.groupby(level="cell", observed=True).mean())
    values = np.log(ends.to_numpy()) if panel.logarithmic else ends.to_numpy()
    if len(values) < LEAST_CURVES:
        return []
    lower, upper = np.quantile(values, [0.25, 0.75])
    room = 3 * (upper - lower)
    far = (values < lower - room) | (values > upper + room)
    return [str(cell) for cell in ends.index[far]]


def _limit_axis(axes: Axes, panel: Panel) -> None:
    """Limits the axis to curves that are no strays; those leave it."""
    far = outliers(panel)
    if far:
        values = panel.rows.loc[~panel.rows["cell"].isin(far), "value"].to_numpy(float)
        scale = axes.transData.transform
        ends = scale([(0, np.nanmin(values)), (0, np.nanmax(values))])[:, 1]
        margin = 0.05 * (ends[1] - ends[0])
        low, high = axes.transData.inverted().transform([(0, ends[0] - margin), (0, ends[1] + margin)])[:, 1]
        axes.set_ylim(low, high)


def _curve(axes: Axes, rows: pd.DataFrame, cell: str, style: Style) -> None:
    steps, values = _table(rows)
    every = max(1, len(steps) // 6)
    axes.plot(steps, _over_seeds(np.nanmean, values), label=cell, markevery=(every // 2, every), **style)
    if values.shape[1] > 1:
        low, high = _over_seeds(np.nanmin, values), _over_seeds(np.nanmax, values)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.16, linewidth=0)


def _table(rows: pd.DataFrame) -> tuple[NDArray[np.int_], Array]:
    """Steps, and values of (steps, seeds), NaN where a seed has none."""
    seeds, steps, values = (rows[name].to_numpy() for name in ("seed", "step", "value"))
    count = len(rows["seed"].unique())
    if len(rows) % count == 0 and not np.isnan(values).any():  # mostly: every seed with the same steps, in order
        first = steps.reshape(count, -1)[0]
        shape = count, len(first)
        in_turn = (np.diff(first) > 0).all() and (np.diff(seeds.reshape(shape)[:, 0]) > 0).all()
        if in_turn and (steps.reshape(shape) == first).all() and (seeds[:: len(first)] == seeds.reshape(shape).T).all():
            return first, values.reshape(shape).T
    table = rows.pivot_table(index="step", columns="seed", values="value", aggfunc="last")
    return table.index.to_numpy(), table.to_numpy(float)


def _over_seeds(reduce: Callable[..., Array], values: Array) -> Array:
    """Reduces (steps, seeds) over the seeds that have come so far; NaN, without a warning, where none has."""
    present = np.isfinite(values).any(axis=1)
    result = np.full(len(values), np.nan)
    result[present] = reduce(np.where(np.isfinite(values), values, np.nan)[present], axis=1)
    return result


def _lay_stages(axes: Axes, first: float, last: float, stages: Sequence[int]) -> None:
    """Gives every stage between two steps at least `LEAST_SHARE`: published, the second is 250 times shorter."""
    begin = max((stage for stage in (0, *stages) if stage < first), default=0)
    edges = np.array([begin, *(stage for stage in stages if begin < stage < last), last], float)
    for edge in edges[1:-1]:
        axes.axvline(edge, color=mpl.rcParams["axes.edgecolor"], linewidth=0.6)
    lengths = np.diff(edges)
    shares = np.maximum(lengths / lengths.sum(), min(LEAST_SHARE, 1 / len(lengths)))
    places = np.concatenate([[0.0], np.cumsum(shares / shares.sum())])
    ticks = _stage_ticks(edges, places)
    # room for the last marks
    edges[-1], places[-1] = edges[-1] + 0.06 * lengths[-1], places[-1] + 0.06 * (places[-1] - places[-2])
    axes.set_xscale(
        "function", functions=(lambda x: np.interp(x, edges, places), lambda place: np.interp(place, places, edges))
    )
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([_short(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def _stage_ticks(edges: Array, places: Array) -> list[float]:
    """The edges, and round numbers between them, each only where its label has room beside the others."""
    inside = [MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(*pair) for pair in itertools.pairwise(edges)]
    ticks: list[float] = []
    for tick in (*edges, *(tick for part in inside for tick in part if edges[0] < tick < edges[-1])):
        rooms = (0.035 + LETTER_SHARE * (len(_short(tick)) + len(_short(other))) / 2 for other in ticks)
        place, taken = np.interp(tick, edges, places), np.interp(ticks, edges, places)
        if all(abs(place - other) > room for other, room in zip(taken, rooms, strict=True)):
            ticks.append(float(tick))
    return sorted(ticks)


def _short(steps: float) -> str:
    return f"{steps:g}" if steps < 10_000 else f"{steps / 1000:g}k"
