"""Published values in the figure of quality against cost."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from study.analysis.figures import MUTED
from study.analysis.results import Measure

WIDEST_COST = 10.0  # times the largest measured cost, or below the smallest, that the axis is widened to
_INSET = 0.03  # share of the panel between its edge and the arrow of a point outside
_ARROWS = {(x, y): "<>"[x > 0] if y == 0 else "v^"[y > 0] for x in (-1, 0, 1) for y in (-1, 0, 1)}
_PANEL_IN = 2.6
_LETTER_IN = (0.125, 0.135)  # room for one, and between it and its mark
# Steps from a mark to its letter, the nearest first, and of those the ones beside it.
_STEPS = np.array(sorted(((x, y) for x in range(-6, 7) for y in range(-6, 7) if x or y),
                         key=lambda step: (step[0] ** 2 + 1.1 * step[1] ** 2, -step[0], -step[1])), float)  # fmt: skip


@dataclass(frozen=True)
class PublishedPoint:
    """A value that was published, with what the network costs.

    Attributes:
        label: the network.
        parameters: their number; None where it was not published.
        multiply_adds: for a 1280 x 720 output, without attention products, as those that are measured; None where that
            was not published (a count for another input is none).
        value: in the measure's unit.
        mark: how sure it is, such as `transcribed`.
    """

    label: str
    parameters: float | None
    multiply_adds: float | None
    value: float
    mark: str = ""


def has_place(point: PublishedPoint) -> bool:
    """Whether a point has a place on the axis of multiply-adds."""
    return (point.multiply_adds or 0) > 0 and bool(np.isfinite(point.value))


def draw_published(axes: Axes, published: Sequence[PublishedPoint], measure: Measure) -> list[Line2D]:
    """Hollow grey diamonds with letters, on axes that hold the measured points already.

    The axes are widened for a point within reach, so that the measured ones stay apart: the height to each side by at
    most the height that the measured values take, the cost to at most `WIDEST_COST` times theirs. A point farther off
    (a value after a hundred times the training, say) is an arrow at the panel's edge, and the key gives its numbers.

    Args:
        axes: multiply-adds (G), logarithmic, against the measure.
        published: points; those without multiply-adds are not drawn, see `has_place`.
        measure: what the values are of.

    Returns:
        Handles of the key, labelled.
    """
    points = [point for point in published if has_place(point)]
    if not points:
        return []
    at = np.array([(point.multiply_adds, point.value) for point in points], float) / (1e9, 1)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    height = high - low
    beside = _side(at[:, 0], left / WIDEST_COST, right * WIDEST_COST)
    beyond = _side(at[:, 1], low - height, high + height)
    inside = (beside == 0) & (beyond == 0)
    axes.set_xlim(min([left, *at[inside, 0] / 1.3]), max([right, *at[inside, 0] * 1.3]))
    axes.set_ylim(min([low, *at[inside, 1] - 0.05 * height]), max([high, *at[inside, 1] + 0.05 * height]))
    shares = axes.transAxes.inverted().transform(axes.transData.transform(at))
    places = np.clip(shares, _INSET, 1 - _INSET)
    handles = []
    for index, point in enumerate(points):
        marker = "D" if inside[index] else _ARROWS[int(beside[index]), int(beyond[index])]
        style: dict[str, Any] = {"marker": marker, "linestyle": "none", "color": MUTED, "markerfacecolor": "none"}
        where, frame = (at[index], axes.transData) if inside[index] else (places[index], axes.transAxes)
        axes.plot([where[0]], [where[1]], transform=frame, **style)
        text = f"{letter(index)}  {_described(point)}"
        if not inside[index]:
            text += f": {measure.text(point.value)} at {_cost(at[index, 0])}"
        handles.append(Line2D([], [], label=text, **style))
    _write_letters(axes, places)
    return handles


def letter(index: int) -> str:
    """From a to z, then a1 to z1, and so on."""
    return string.ascii_lowercase[index % 26] + (str(index // 26) if index >= 26 else "")


def key_columns(key: Sequence[Line2D]) -> int:
    """As many columns as fit below the panels, so far as characters tell."""
    longest = max(len(str(handle.get_label())) for handle in key)
    return max(1, min(len(key), 110 // (longest + 7)))


def published_caption(published: Sequence[PublishedPoint]) -> str:
    """What the figure's caption must add; nothing where there is no point."""
    if not published:
        return ""
    without = "; ".join(point.label for point in published if not has_place(point))
    left_out = f" Published without multiply-adds at this output, so not drawn: {without}." if without else ""
    if not any(has_place(point) for point in published):
        return left_out.strip()
    return (
        "Hollow grey diamonds: published values, of other training and other code, so no comparison of methods; an "
        "arrow at the edge: a published value outside the panel, its numbers in the key. Latencies are compared only "
        f"where they were measured side by side.{left_out}"
    )


def _side(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """-1 below, 1 above, 0 within."""
    return (values > high).astype(int) - (values < low)


def _described(point: PublishedPoint) -> str:
    size = ""
    if point.parameters:
        size = f"{point.parameters / 1e6:.2f} M" if point.parameters >= 1e6 else f"{point.parameters / 1e3:.0f} K"
    about = ", ".join(part for part in (size, point.mark) if part)
    return f"{point.label} ({about})" if about else point.label


def _cost(multiply_adds_g: float) -> str:
    return f"{multiply_adds_g:,.0f} G" if multiply_adds_g >= 100 else f"{multiply_adds_g:.3g} G"


def _write_letters(axes: Axes, places: np.ndarray) -> None:
    """A letter beside each place (n, 2), in shares of the panel, where no mark and no other letter stands."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    panel_in = np.array([_PANEL_IN, figure.get_figheight() - 0.7])  # nearly; the layout comes later
    step = np.array(_LETTER_IN)
    measured = [axes.transData.transform(np.asarray(part.get_offsets())) for part in axes.collections]
    marks = [axes.transAxes.inverted().transform(part) * panel_in for part in measured]
    taken = np.concatenate([*marks, places * panel_in])
    for index, place in enumerate(places * panel_in):
        letters_at = place + _STEPS * step
        within = ((letters_at > 0) & (letters_at < panel_in)).all(axis=1)
        free = (np.abs(letters_at[:, None] - taken) >= 0.95 * step).any(axis=2).all(axis=1)
        chosen = int(np.argmax(2 * free + within))  # the nearest of the best
        taken = np.concatenate([taken, letters_at[[chosen]]])
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            letter(index),
            tuple(place / panel_in),
            tuple(letters_at[chosen] / panel_in),
            xycoords="axes fraction",
            textcoords="axes fraction",
            ha="center",
            va="center",
            fontsize=8,
            arrowprops=line if np.abs(_STEPS[chosen]).max() > 1 else None,
        )
