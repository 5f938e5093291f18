"""Acceptance rate and relative performance over cases of degradation, between two lines; as table and figure.

After Zhang et al., 'SEAL' (2023, arXiv 2309.03020), our reading. Per case c a network's score q_c is compared with an
acceptance line a_c, a small baseline's score, and an excellence line e_c, a strong network's. Signs are flipped where
lower is better, so that more is better in what follows.

- Acceptance rate: share of the decided cases with q_c > a_c.
- Relative performance ratio: 1 / (1 + exp(-(q_c - a_c) / (e_c - a_c))), 0.5 on the acceptance line, 0.73 on the
  excellence line.
- A case is undecided where e_c - a_c is at most twice the noise. Where it is below minus twice the noise, the lines
  have changed places and the ratio would praise what is worse: that is undecided too, and counted as inverted (ours).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context as style_context
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.special import expit

from study import StudyError
from study.analysis.figures import MUTED, WIDTH_IN, place_legend
from study.analysis.rendering import REPORTS
from study.analysis.results import BEST, Measure
from study.analysis.statistics import Array
from study.analysis.tables import Column, Table
from study.grid.messages import nearest
from study.records.schemas import METRIC_UNITS

NOISE = {"psnr": 0.05}  # dB, of the mean over a test set; other metrics have none that was measured
ROLES = ("measured", "acceptance", "excellence")
VERDICTS = ("accepted", "rejected", "undecided", "inverted")
_MARKS = {"accepted": (2, "o"), "rejected": (3, "v"), "undecided": (7, "x"), "inverted": (7, "+")}


@dataclass(frozen=True)
class CaseScores:
    """A network between the lines on one image set.

    Attributes:
        measure: which number.
        measured: (cases,) scores of the network, means over images.
        acceptance: (cases,) scores of the acceptance line.
        excellence: (cases,) scores of the excellence line.
        noise: standard deviation of a score that means nothing, in the metric's unit.
    """

    measure: Measure
    measured: Array
    acceptance: Array
    excellence: Array
    noise: float

    @property
    def gain(self) -> Array:
        """The network over the acceptance line, positive where better."""
        return self.sign * (self.measured - self.acceptance)

    @property
    def span(self) -> Array:
        """The excellence line over the acceptance line, positive where better."""
        return self.sign * (self.excellence - self.acceptance)

    @property
    def decided(self) -> NDArray[np.bool_]:
        return self.span > 2 * self.noise

    @property
    def accepted(self) -> NDArray[np.bool_]:
        return self.decided & (self.gain > 0)

    @property
    def inverted(self) -> NDArray[np.bool_]:
        return self.span < -2 * self.noise

    @property
    def verdicts(self) -> list[str]:
        """One of `VERDICTS` for every case."""
        codes = np.select([self.accepted, self.decided, self.inverted], [0, 1, 3], 2)
        return [VERDICTS[code] for code in codes]

    @property
    def ratios(self) -> Array:
        """Relative performance ratio of every case, NaN where undecided."""
        ratios = np.full(len(self.measured), np.nan)
        ratios[self.decided] = expit(self.gain[self.decided] / self.span[self.decided])
        return ratios

    @property
    def sign(self) -> int:
        """-1 where lower is better."""
        return -1 if self.measure.best == "low" else 1

    def summary(self) -> dict[str, float | int | None]:
        """All that is reported of the cases; None where no case is decided, or accepted."""
        ratios = self.ratios[self.decided]
        low, high = np.quantile(ratios, [0.25, 0.75]).tolist() if len(ratios) else (None, None)
        return {
            "acceptance_rate": _mean(self.accepted[self.decided]),
            "rpr_accepted": _mean(self.ratios[self.accepted]),
            "rpr": _mean(ratios),
            "rpr_low_quartile": low,
            "rpr_high_quartile": high,
            "rpr_interquartile_range": None if low is None else high - low,
            "accepted": int(self.accepted.sum()),
            "decided": int(self.decided.sum()),
            "undecided": int((~self.decided).sum()),
            "inverted": int(self.inverted.sum()),
        }

    def per_case(self) -> list[dict[str, Any]]:
        """`{measured, acceptance, excellence, rpr, verdict}` of every case; rpr is None where undecided."""
        columns = zip(self.measured, self.acceptance, self.excellence, self.ratios, self.verdicts, strict=True)
        names = ("measured", "acceptance", "excellence", "rpr")
        return [
            {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}
            | {"verdict": verdict}
            for *values, verdict in columns
        ]


def case_scores(values: pd.DataFrame, protocol: str, metric: str, noise: float) -> list[CaseScores]:
    """One per `dataset` of a frame that has a column for each of `ROLES` and a row for every case of a dataset."""
    found = []
    for dataset, rows in values.groupby("dataset", sort=False):
        measured, acceptance, excellence = (rows[role].to_numpy(float) for role in ROLES)
        found.append(CaseScores(Measure(str(dataset), protocol, metric), measured, acceptance, excellence, noise))
    return found


def check_metric(metrics: Sequence[str], noise: float | None) -> tuple[str, float]:
    """The one metric, which has a better end, and its noise: the given one, or the known one.

    Raises:
        StudyError: there are several; it is unknown or has no better end; or its noise is not known, or negative.
    """
    if len(metrics) > 1:
        raise StudyError(f"--metric: {', '.join(metrics)}: --protocol seal takes one metric")
    (metric,) = metrics
    if metric not in METRIC_UNITS:
        raise StudyError(f"--metric: unknown metric {metric!r}; {nearest(metric, METRIC_UNITS)}")
    if BEST.get(metric, "high") not in ("high", "low"):
        raise StudyError(f"--metric: neither end of {metric} is best, so nothing lies above a line; take another")
    noise = NOISE.get(metric) if noise is None else noise
    if noise is None:
        raise StudyError(f"--noise: say how far {metric} can be off, in its own unit; it is known for psnr alone")
    if not 0 <= noise < np.inf:
        raise StudyError(f"--noise {noise}: must be a number from 0")
    return metric, noise


def cases_table(scores: Sequence[CaseScores]) -> Table:
    """Acceptance rate and relative performance ratio, a row for each image set."""
    first = scores[0]
    columns = (
        Column("image set"),
        Column("AR", "%", ".1f"),
        Column("RPR accepted", format=".3f"),
        Column("RPR", format=".3f"),
        Column("IQR", format=".3f"),
        Column("accepted"),
        Column("undecided"),
        Column("inverted"),
    )
    rows = []
    for one in scores:
        s = one.summary()
        rate = None if s["acceptance_rate"] is None else 100 * s["acceptance_rate"]
        ratios = s["rpr_accepted"], s["rpr"], s["rpr_interquartile_range"]
        counts = f"{s['accepted']} of {s['decided']}", str(s["undecided"]), str(s["inverted"])
        rows.append((one.measure.dataset, rate, *ratios, *counts))
    few = [one.measure.dataset for one in scores if 2 * one.decided.sum() < len(one.measured)]
    margin = Measure("", "", first.measure.metric).text(2 * first.noise)
    return Table(
        "seal",
        f"{first.measure.name} ({first.measure.protocol}) over {len(first.measured)} cases of degradation.",
        columns,
        tuple(rows),
        (
            "AR: share of decided cases above the acceptance line. RPR: 0.5 on that line, 0.73 on the excellence line; "
            "mean over accepted, over decided cases, and interquartile range.",
            f"Undecided: the excellence line is not more than {margin} better than the acceptance line; inverted, of "
            "these: it is worse by more than that.",
            *(
                [
                    f"Most cases are undecided ({', '.join(few)}): the excellence line needs a network trained on such "
                    "degradations."
                ]
                if few
                else []
            ),
        ),
    )


def draw_cases(scores: Sequence[CaseScores], names: tuple[str, str, str]) -> Figure:
    """Cases sorted by the acceptance line, worst first: scores and lines, and beside them how far above it they are.

    Args:
        scores: a row of panels for each.
        names: of the measured network, the acceptance line and the excellence line.
    """
    figure = Figure(figsize=(WIDTH_IN, 0.5 + 2.7 * len(scores)))
    panels = figure.subplots(len(scores), 2, squeeze=False)
    for (left, right), one in zip(panels, scores, strict=True):
        order = np.argsort(one.sign * one.acceptance, kind="stable")
        unit = f" ({one.measure.unit})" if one.measure.unit else ""
        _draw_cases(left, one, order, (one.acceptance, one.excellence, one.measured), names)
        left.set_title(f"{one.measure.name}{unit}{'' if one.sign > 0 else ', smaller is better'}")
        right.axhspan(-2 * one.noise, 2 * one.noise, color=MUTED, alpha=0.22, linewidth=0)
        _draw_cases(right, one, order, (np.zeros_like(one.gain), one.span, one.gain), names)
        right.set_title(f"better than {names[1]} by{unit}")
        left.set_ylabel(one.measure.dataset)
    for axes in panels[-1]:
        axes.set_xlabel(f"case, from the worst for {names[1]}")
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    place_legend(figure, list(handles.values()), list(handles))
    return figure


def _draw_cases(
    axes: Axes, scores: CaseScores, order: NDArray[np.intp], values: tuple[Array, Array, Array], names: Sequence[str]
) -> None:
    """Acceptance and excellence as lines, the measured network as one mark per case."""
    colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    acceptance, excellence, measured = (part[order] for part in values)
    places = np.arange(1, len(order) + 1)
    plain: dict[str, Any] = {"marker": "none", "linestyle": "-"}
    axes.step(places, excellence, where="mid", color=colours[1], linewidth=1, label=f"excellence: {names[2]}", **plain)
    axes.plot(places, acceptance, color=mpl.rcParams["axes.edgecolor"], label=f"acceptance: {names[1]}", **plain)
    verdicts = np.array(scores.verdicts)[order]
    for verdict, (colour, marker) in _MARKS.items():
        here = verdicts == verdict
        if here.any():
            label = f"{names[0]}, {verdict}"
            axes.plot(places[here], measured[here], marker, color=colours[colour], markersize=4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def save_cases(scores: Sequence[CaseScores], names: tuple[str, str, str], path: Path) -> None:
    """Draws the cases into a PNG file; see `check_figure`."""
    check_figure(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(), style_context(["default", REPORTS / "study.mplstyle"]):
        draw_cases(scores, names).savefig(path, dpi=200, bbox_inches="tight", metadata={"Software": None})


def check_figure(path: Path | None) -> None:
    """Refuses what could not be drawn when all is measured; None is not drawn.

    Raises:
        StudyError: the file's name does not end in .png, or the style is absent.
    """
    style = REPORTS / "study.mplstyle"
    if path is not None and path.suffix.lower() != ".png":
        raise StudyError(f"--figure {path}: the cases are drawn as PNG; give a name that ends in .png")
    if path is not None and not style.is_file():
        raise StudyError(f"{style} is missing: figures are drawn from a checkout that has its reports/ folder")


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None
