"""Cells ranked over datasets: the scores that go into it, and the critical-difference diagram (Demšar, JMLR 2006).

The diagram is our own: that of scikit-posthocs joins the members of a Python set in the order of their hashes, so that
equal results give other bytes in every process, and leaves cells of equal rank in no fixed order.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.analysis.figures import WIDTH_IN, Style, cell_styles
from study.analysis.markup import cut, one_line
from study.analysis.results import Results
from study.analysis.statistics import Array, Ranking, rank_variants
from study.analysis.verdicts import p_text

LABEL_WIDTH = 26  # characters
LINE_IN = 0.15
BAR_IN = 0.09
ENOUGH = 11, 6  # datasets and variants from which the tests' approximations are good (Demšar 2006, section 3.2.2)


@dataclass(frozen=True)
class CellRanking:
    """Trained cells by mean rank on the primary metric, the best first.

    Attributes:
        cells: names.
        mean_ranks: one per cell, 1 is best.
        datasets: those that every trained cell has values on.
        alpha: declared level.
        test: Friedman's test and the critical difference; its own mean ranks are in declared order.
    """

    cells: tuple[str, ...]
    mean_ranks: Array
    datasets: tuple[str, ...]
    alpha: float
    test: Ranking

    @property
    def rough(self) -> bool:
        """Whether there are too few datasets or cells for the tests' approximations."""
        return len(self.datasets) < ENOUGH[0] or len(self.cells) < ENOUGH[1]


def rank_cells(results: Results) -> CellRanking | None:
    """Ranks of the trained cells.

    None with fewer than three of them, or two datasets that all have values on, or where their scales differ.
    """
    primary, alpha = results.primary, results.plan.grid.analysis.alpha
    trained = [cell for cell in results.cells if cell not in results.untrained]
    scores = {
        dataset: [results.mean(cell, replace(primary, dataset=dataset)) for cell in trained]
        for dataset in results.datasets
    }
    complete = {dataset: row for dataset, row in scores.items() if np.isfinite(row).all()}
    if len(trained) < 3 or len(complete) < 2 or len({results.scale(cell) for cell in trained}) > 1:
        return None
    sign = -1 if primary.best == "low" else 1
    test = rank_variants(sign * np.array(list(complete.values())), alpha)
    order = np.argsort(test.mean_ranks, kind="stable")
    return CellRanking(tuple(trained[i] for i in order), test.mean_ranks[order], tuple(complete), alpha, test)


def join_alike(ranking: CellRanking) -> list[tuple[int, int]]:
    """First and last cell of every longest row of cells that do not differ; all of them where Friedman finds nothing.

    Two cells differ where their mean ranks lie further apart than the critical difference.
    """
    ranks = ranking.mean_ranks
    if ranking.test.p > ranking.alpha:
        return [(0, len(ranks) - 1)]
    ends = np.searchsorted(ranks, ranks + ranking.test.critical_difference + 1e-9, side="right") - 1
    return [
        (first, int(last)) for first, last in enumerate(ends) if last > first and (first == 0 or last > ends[first - 1])
    ]


def ranking_caption(ranking: CellRanking) -> str:
    """What the diagram shows, and how far it can be trusted."""
    text = (
        f"Mean ranks over {len(ranking.datasets)} datasets ({', '.join(ranking.datasets)}), 1 is best. "
        f"Friedman: p = {p_text(ranking.test.p)}; a bar joins cells whose ranks lie no further apart than the critical "
        f"difference {ranking.test.critical_difference:.2f} (Nemenyi, α = {ranking.alpha:g}; Demšar 2006)"
    ).replace("= <", "<")
    if ranking.test.p > ranking.alpha:
        text += ", here all of them, since Friedman's test finds no difference"
    rough = " With so few datasets or cells both tests are rough." if ranking.rough else ""
    return (
        f"{text}. All datasets were scored with the same trained networks, so p and bars are about these weights, not "
        f"about retraining. Ranks say nothing of the size of a difference.{rough}"
    )


def draw_ranking(results: Results) -> Figure | None:
    """Critical-difference diagram of the trained cells; None where `rank_cells` is.

    The better half of the cells is named on the left, the other on the right.
    """
    ranking = rank_cells(results)
    if ranking is None:
        return None
    styles = cell_styles(results)
    bars = _stack(join_alike(ranking), ranking.mean_ranks)
    labels = [
        textwrap.fill(f"{cut(one_line(name), 3 * LABEL_WIDTH)} ({rank:.2f})", LABEL_WIDTH)
        for name, rank in zip(ranking.cells, ranking.mean_ranks, strict=True)
    ]
    half = (len(labels) + 1) // 2
    sides = [list(range(half)), list(range(len(labels) - 1, half - 1, -1))]
    depths = [_depths(side, labels, 0.14 + BAR_IN * len(bars)) for side in sides]
    depth = max(max(part.values()) for part in depths if part) + LINE_IN / 2
    figure = Figure(figsize=(WIDTH_IN, 0.6 + depth))
    axes = figure.subplots()
    low, high = 1.0, float(len(labels))
    pad = 0.03 * (high - low)
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(depth, -0.5)  # in inches below the axis
    for side, part, edge, towards in zip(sides, depths, (low - pad, high + pad), ("right", "left"), strict=True):
        for index in side:
            rank = float(ranking.mean_ranks[index])
            _draw_elbow(axes, (rank, part[index]), edge, towards, labels[index], styles[ranking.cells[index]])
    for level, row in enumerate(bars):
        for first, last in row:
            y = 0.1 + BAR_IN * level
            reach = [ranking.mean_ranks[first] - pad / 3, ranking.mean_ranks[last] + pad / 3]
            axes.plot(reach, [y, y], color=mpl.rcParams["text.color"], linewidth=3, linestyle="-", marker="", zorder=4)
    _draw_rule(axes, low, high, ranking.test.critical_difference)
    _label(axes, len(labels))
    return figure


def _stack(bars: Sequence[tuple[int, int]], ranks: Array) -> list[list[tuple[int, int]]]:
    """Bars on as few levels as they need so that none touches another; each begins later than those before it."""
    levels: list[list[tuple[int, int]]] = []
    for bar in bars:
        free = (level for level in levels if ranks[level[-1][1]] < ranks[bar[0]])
        level = next(free, None)
        if level is None:
            levels.append([bar])
        else:
            level.append(bar)
    return levels


def _depths(side: Sequence[int], labels: Sequence[str], start: float) -> dict[int, float]:
    """Cell -> how far below the axis the middle of its name is, in inches; from the outermost cell downwards."""
    depths, y = {}, start
    for index in side:
        height = LINE_IN * (1 + labels[index].count("\n")) + 0.04
        depths[index] = y + height / 2
        y += height
    return depths


def _draw_elbow(axes: Axes, corner: tuple[float, float], edge: float, towards: str, label: str, style: Style) -> None:
    rank, y = corner
    line = {"color": style["color"], "linewidth": 1, "linestyle": "-", "marker": ""}
    axes.plot([rank, rank, edge], [0, y, y], **line)
    dot = {"color": style["color"], "marker": style["marker"], "markersize": 6}
    dot |= {"markerfacecolor": style["markerfacecolor"]} if "markerfacecolor" in style else {}
    axes.plot(rank, 0, linestyle="none", clip_on=False, zorder=5, **dot)
    gap = -4 if towards == "right" else 4
    axes.annotate(
        label, (edge, y), xytext=(gap, 0), textcoords="offset points", ha=towards, va="center", fontsize=8,
        annotation_clip=False,
    )  # fmt: skip


def _draw_rule(axes: Axes, start: float, end: float, critical: float) -> None:
    """The critical difference to scale above the axis, where the axis is long enough."""
    text = f"critical difference {critical:.2f}"
    if start + critical > end:
        axes.text(start, -0.3, f"{text}, more than the whole axis", va="center", fontsize=8)
        return
    line = {"color": mpl.rcParams["text.color"], "linewidth": 1, "linestyle": "-", "marker": "|", "markersize": 5}
    axes.plot([start, start + critical], [-0.3, -0.3], **line)
    axes.text(start + critical / 2, -0.34, text, ha="center", va="bottom", fontsize=8)


def _label(axes: Axes, cells: int) -> None:
    axes.yaxis.set_visible(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.spines["top"].set_visible(True)
    axes.spines["top"].set_position(("data", 0))
    axes.xaxis.tick_top()
    axes.set_xticks(range(1, cells + 1, 1 if cells <= 12 else 2))
    axes.grid(visible=False)
