"""The significance matrix: every declared pair on every dataset, the effect as colour and what was found as a mark."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation

from study.analysis.comparisons import CLAIM_NAMES, Comparison
from study.analysis.figures import MUTED, WIDTH_IN, Style, place_legend, wrap_label
from study.analysis.statistics import Array
from study.analysis.verdicts import decide, digits_of, p_text, signed

WORSE, NEITHER, BETTER = "#D55E00", "#f6f6f7", "#0173B2"  # vermilion and blue differ to every kind of colour vision
DARK, LIGHT = "#1b1b1f", "#ffffff"  # on a cell's colour, so neither follows the page's theme
MARKS = {"better": "^", "worse": "v", "equivalent": "s", "inconclusive": "o"}
LABEL_WIDTH = 34  # characters
TILE_HEIGHT_IN = 0.42
LINE_IN = 0.135
ROOMY = 6  # so many datasets leave space for the larger type

Pair = tuple[str, str]


def draw_significance(comparisons: Sequence[Comparison]) -> Figure | None:
    """Declared pairs in rows, datasets in columns; only the declared dataset's column has verdicts.

    Args:
        comparisons: the declared ones, and the exploratory ones, of which those under the declared claim are shown.

    Returns:
        None where nothing was declared, nothing has values, or there is a single dataset, which the forest shows.
    """
    shown = _select(comparisons)
    pairs = list(dict.fromkeys(pair for pair, _ in shown))
    datasets = list(dict.fromkeys(dataset for _, dataset in shown))
    means = [abs(comparison.estimate) for comparison in shown.values() if np.isfinite(comparison.estimate)]
    if len(datasets) < 2 or not means:
        return None
    first = next(iter(shown.values()))
    limit = max([*means, first.margin if np.isfinite(first.margin) else 0.0]) or 1.0
    scale = ScalarMappable(Normalize(-limit, limit), _colours(lower_is_better=first.measure.best == "low"))
    labels = [wrap_label(f"{cell} vs {other}", LABEL_WIDTH) for cell, other in pairs]
    lines = max(label.count("\n") + 1 for label in labels)
    height = max(TILE_HEIGHT_IN, 0.06 + LINE_IN * lines)
    figure = Figure(figsize=(WIDTH_IN, 1.15 + height * len(pairs)))
    axes = figure.subplots()
    for (pair, dataset), comparison in shown.items():
        place = datasets.index(dataset), pairs.index(pair)
        _draw_tile(axes, place, comparison, scale, small=len(datasets) > ROOMY)
    _label(axes, labels, datasets, first)
    _draw_scale(figure, axes, scale, first)
    _explain_marks(figure, list(shown.values()), first.alpha)
    return figure


def significance_caption(comparisons: Sequence[Comparison]) -> str:
    """How to read the matrix, for the comparisons that it was drawn from."""
    first = next(iter(_select(comparisons).values()))
    colours = "blue: the first is better, orange: it is worse"
    what = "Pseudo-median of the images' differences" if first.claim == "these_weights" else "Mean difference"
    lower = " (a difference below 0 is better)" if first.measure.best == "low" else ""
    return (
        f"{what} in {first.measure.name}, first minus second, on every dataset{lower}; {colours}. "
        f"Claim: {CLAIM_NAMES[first.claim]}. Framed, filled marks: the declared dataset ({first.measure.dataset}) and "
        "its verdict, corrected over the family. Hollow marks: exploratory; p is not corrected, and with so many "
        "cells some fall below α by chance. Hatched: no values; 'n too small': no value of the data could have shown "
        "a difference. *: preliminary, a declared seed or an image is missing."
    )


def _select(comparisons: Sequence[Comparison]) -> dict[tuple[Pair, str], Comparison]:
    """(pair, dataset) -> comparison under the declared claim; the declared dataset first."""
    declared = [comparison for comparison in comparisons if comparison.family]
    others = [c for c in comparisons if not c.family and declared and c.claim == declared[0].claim]
    return {((c.cell, c.reference), c.measure.dataset): c for c in (*declared, *others)}


def _colours(lower_is_better: bool) -> Colormap:
    ends = (BETTER, NEITHER, WORSE) if lower_is_better else (WORSE, NEITHER, BETTER)
    return LinearSegmentedColormap.from_list("verdict", ends, N=65)  # odd, so that zero has a colour of its own


def _draw_tile(axes: Axes, place: tuple[int, int], comparison: Comparison, scale: ScalarMappable, small: bool) -> None:
    x, y = place
    verdict = decide(comparison)
    if not np.isfinite(comparison.estimate):
        hatched = {"facecolor": "none", "edgecolor": MUTED, "hatch": "////", "linewidth": 0, "alpha": 0.45}
        axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, **hatched))
        axes.text(x, y, verdict, ha="center", va="center", fontsize=7.5, fontstyle="italic")
        return
    colour = scale.to_rgba(np.array([comparison.estimate]))[0]
    axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=colour, linewidth=0))
    style: Style = {"color": _ink(colour), "ha": "center", "va": "center"}
    text = signed(comparison.estimate, digits=digits_of(comparison)) + ("" if comparison.complete else "*")
    tested = verdict in MARKS
    below = verdict if comparison.family or not tested else f"p = {p_text(comparison.test.p)}".replace("= <", "<")
    slant = "normal" if tested else "italic"
    axes.text(x, y + 0.21, below, fontsize=6 if small else 7, fontstyle=slant, **style)
    size, right = 7 if small else 8.5, 5 if tested else 0  # in points; to the right, so that a mark stands before it
    style |= {"fontsize": size, "fontweight": "bold" if comparison.family else "normal"}
    axes.annotate(text, (x, y - 0.17), textcoords="offset points", xytext=(right, 0), **style)
    if tested:
        half = (0.35 if comparison.family else 0.32) * size * len(text)  # of the number's width, about
        _draw_mark(axes, (x, y - 0.17), right - half - 5, comparison, small)


def _draw_mark(axes: Axes, place: tuple[float, float], shift_pt: float, comparison: Comparison, small: bool) -> None:
    """The mark of a verdict, filled; hollow for an exploratory comparison."""
    ink = axes.texts[-1].get_color()
    moved = ScaledTranslation(shift_pt / 72, 0, axes.figure.dpi_scale_trans)
    style: Style = {"markeredgecolor": ink, "markerfacecolor": ink if comparison.family else "none"}
    style |= {"marker": MARKS[decide(comparison)], "markersize": 3.6 if small else 5, "linestyle": "none"}
    axes.plot(*place, transform=axes.transData + moved, **style)


def _ink(colour: Array) -> str:
    """Dark or light, whichever contrasts more with a colour (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return LIGHT if luminance < 0.18 else DARK


def _label(axes: Axes, labels: Sequence[str], datasets: Sequence[str], first: Comparison) -> None:
    axes.set_xlim(-0.5, len(datasets) - 0.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    width = max(8, 88 // len(datasets))
    names = [wrap_label(name, width) for name in datasets]
    kinds = ["declared" if name == first.measure.dataset else "exploratory" for name in datasets]
    axes.set_xticks(range(len(datasets)), [f"{name}\n{kind}" for name, kind in zip(names, kinds, strict=True)])
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0, labelsize=8 if len(datasets) <= ROOMY else 7)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    x = datasets.index(first.measure.dataset)
    frame = {"facecolor": "none", "edgecolor": mpl.rcParams["axes.edgecolor"], "linewidth": 1, "clip_on": False}
    axes.add_patch(Rectangle((x - 0.5, -0.5), 1, len(labels), **frame))


def _draw_scale(figure: Figure, axes: Axes, scale: ScalarMappable, first: Comparison) -> None:
    measure = first.measure
    bar = figure.colorbar(scale, ax=axes, fraction=0.04, pad=0.02, aspect=18)
    bar.outline.set_visible(False)  # type: ignore[operator]
    unit = f" ({measure.unit})" if measure.unit else ""
    bar.set_label(f"mean difference in {measure.name}{unit}", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    low, high = ("better", "worse") if measure.best == "low" else ("worse", "better")
    bar.ax.set_title(high, fontsize=7.5, fontweight="normal", loc="center")
    bar.ax.set_xlabel(low, fontsize=7.5)


def _explain_marks(figure: Figure, comparisons: Sequence[Comparison], alpha: float) -> None:
    words = {
        "better": f"exploratory: p ≤ {alpha:g}, better",
        "worse": f"exploratory: p ≤ {alpha:g}, worse",
        "equivalent": "exploratory: inside the margin",
        "inconclusive": "exploratory: neither",
    }
    found = {decide(comparison) for comparison in comparisons if not comparison.family}
    kinds = [verdict for verdict in MARKS if verdict in found]
    ink = mpl.rcParams["text.color"]
    handles = [
        Line2D([], [], linestyle="none", marker=MARKS[kind], markeredgecolor=ink, markerfacecolor="none")
        for kind in kinds
    ]
    if kinds:
        place_legend(figure, handles, [words[kind] for kind in kinds])
