"""FINDINGS.md: every question of a study with its claim, effects, verdicts and limits, from stored results alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.style import context as style_context
from scipy import stats

from study.analysis.comparisons import Comparison, compare_declared
from study.analysis.figures import draw_forest
from study.analysis.pictures import Picture, save_figure
from study.analysis.published import Cited, load_published
from study.analysis.rendering import find_style, render
from study.analysis.reproduction import METHODS, TONES, cite, reproduce_weights
from study.analysis.results import Measure, Results
from study.analysis.statistics import Array
from study.analysis.tables import Column, Entry, Table, Value
from study.analysis.verdicts import decide, digits_of, interval, p_text
from study.grid.fields import Declared
from study.records.store import replace

PRINTED = ("psnr", "ssim")
LENGTH = "optimisation.steps"


class Question(Declared):
    """What FINDINGS.md says of a grid besides its numbers.

    Attributes:
        grid: name of the grid file in ablations/.
        title: heading.
        claim: what was to be shown.
        limits: what the answer does not show.
        headline: labels of comparisons (`soft vs hard`) that the README's figure shows.
    """

    grid: str
    title: str
    claim: str
    limits: str
    headline: list[str] = []


@dataclass(frozen=True)
class Finding:
    """A question with its results."""

    question: Question
    results: Results
    comparisons: Sequence[Comparison]

    @property
    def table(self) -> Table:
        return effects_table(self.comparisons, self.question.grid)


def write_findings(
    questions: Iterable[tuple[Question, Results]],
    weights: Results,
    lengths: Results,
    matrix_rate: float,
    out: Path,
) -> list[Path]:
    """Writes FINDINGS.md and the figure of the README.

    Args:
        questions: in the order of the page, with the results of each grid.
        weights: results of published weights.
        lengths: results of a grid over variants and `optimisation.steps`.
        matrix_rate: of the machine that trained, one thread, FLOP/s.
        out: the repository.
    """
    findings = [Finding(question, results, compare_declared(results)) for question, results in questions]
    numbers = load_published()
    content = {
        "weights": weights_table(weights, numbers),
        "findings": findings,
        "lengths": lengths_table(lengths),
        "orders": order_agreement(lengths),
        "distances": distance_table(lengths, numbers),
        "throughput": throughput_table([*(one.results for one in findings), lengths], matrix_rate),
    }
    with mpl.rc_context(), style_context(["default", find_style("report")]):
        picture = _headline(findings, out / "docs")
    pages = {out / "FINDINGS.md": render("findings", "md", content)}
    for path, page in pages.items():
        replace(path, page)
    return [*pages, picture.paths["png"]]


def effects_table(comparisons: Sequence[Comparison], name: str) -> Table:
    """Effect with interval, p, numbers of seeds and images, and verdict of every declared comparison."""
    unit = comparisons[0].measure.unit if comparisons else ""
    digits = max((digits_of(comparison) for comparison in comparisons), default=3)
    columns = (
        Column("comparison"), Column("effect", unit, f"+.{digits}f"), Column("95% interval"), Column("p, corrected"),
        Column("seeds × images"), Column("finds", unit, f".{digits}f"), Column("verdict"),
    )  # fmt: skip
    rows = []
    for one in comparisons:
        values = one.deltas.values
        shape = f"{len(values)} × {values.shape[1]}" if values.size else "—"
        effect = one.estimate if values.size else None
        found = interval(one.test.low, one.test.high, digits)
        detectable = one.detectable if np.isfinite(one.detectable) else None
        rows.append((one.label, effect, found, p_text(one.p_corrected), shape, detectable, decide(one)))
    return Table(name, "", columns, tuple(rows))


def weights_table(results: Results, numbers: Sequence[Cited]) -> Table:
    """Published weights on every data set: measured, printed, and whether the last digit is the same."""
    columns = (Column("network"), Column("data set"), Column("metric"), Column("measured"), Column("printed"))
    protocol = results.plan.grid.analysis.protocol
    rows = []
    for cell in results.plan.cells:
        for dataset in results.datasets:
            for metric in PRINTED:
                measure = Measure(dataset, protocol, metric)
                values = results.values(cell.name, measure)
                found = reproduce_weights(
                    cell.runs[0], dataset, protocol, metric, results.mean(cell.name, measure), values.shape[1], numbers
                )
                if found is not None and found.cited is not None:
                    digits = found.cited.digits + (2 if found.verdict != "reproduced" else 0)
                    shown = f"{found.mean:.{digits}f}"
                    verdict = Entry(found.verdict, tone=TONES.get(found.verdict, ""))
                    rows.append((cell.name, dataset, measure.name, shown, found.cited.value, verdict))
    return Table("weights", "", (*columns, Column("verdict")), tuple(rows))


def lengths_table(results: Results) -> Table:
    """Mean of each network at each length of its training."""
    means = _by_length(results)
    measure = results.primary
    columns = [Column("network"), *(Column(f"{steps:,} steps", measure.unit, measure.format) for steps in means)]
    rows = [(str(network), *map(float, row)) for network, row in zip(means.index, means.to_numpy(), strict=True)]
    return Table("lengths", "", tuple(columns), tuple(rows))


def order_agreement(results: Results) -> list[dict[str, Any]]:
    """Kendall's rank correlation of the networks' means at each shorter training with those at the longest."""
    means = _by_length(results)
    longest = means.columns[-1]
    found = []
    for steps in means.columns[:-1]:
        tau = stats.kendalltau(means[steps], means[longest]).statistic
        swapped = [
            f"{one} and {other}"
            for i, one in enumerate(means.index)
            for other in means.index[i + 1 :]
            if (means.at[one, steps] - means.at[other, steps]) * (means.at[one, longest] - means.at[other, longest]) < 0
        ]
        found.append({"steps": int(steps), "longest": int(longest), "tau": float(tau), "swapped": swapped})
    return found


def distance_table(results: Results, numbers: Sequence[Cited]) -> Table:
    """Measured minus published of the networks that a paper has, at each length, on every data set."""
    protocol = results.plan.grid.analysis.protocol
    lengths = _by_length(results).columns
    columns = [Column("network"), Column("data set"), Column("published", "dB", ".2f")]
    columns += [Column(f"{steps:,} steps", "dB", "+.2f") for steps in lengths]
    rows = []
    for network, cells in _lengths(results).items():
        run = results.cells[cells[lengths[-1]]].runs[0]
        if getattr(getattr(run.model, "assignment", None), "kind", "hard") != "hard":
            continue
        for dataset in results.datasets:
            cited = cite(numbers, METHODS[run.model.kind], run.scale, dataset, "psnr")
            if cited is not None:
                means = [results.mean(cells[steps], Measure(dataset, protocol, "psnr")) for steps in lengths]
                rows.append((network, dataset, cited.number, *(mean - cited.number for mean in means)))
    return Table("distances", "", tuple(columns), tuple(rows))


def throughput_table(studies: Sequence[Results], matrix_rate: float) -> Table:
    """Steps per second of every kind of network, its share of the floor, and the device time of all its runs.

    The floor is twice the multiply-adds, attention products included, three times for a training step, over the
    matrix rate; multiply-adds are those of a 1280 × 720 output in proportion to the batch's pixels.
    """
    kinds: dict[str, dict[str, tuple[float, float, float]]] = {}
    for results in studies:
        costs = {str(run): dict(zip(rows["name"], rows["value"], strict=True)) for run, rows in _costs(results)}
        for cell, seed, run_id in results.runs():
            run = next(run for run in cell.runs if run.seed == seed)
            cost = costs.get(run_id)
            if cost is None or not run.trains or results.state(run_id) != "done":
                continue
            seconds = cost["training"] - cost["training_validation"]
            pixels = run.optimisation.batch * (run.data.lr_patch_px * run.scale) ** 2
            operations = 6 * (cost["multiply_adds_720p"] + cost["multiply_adds_products_720p"]) * pixels / (1280 * 720)
            rate = run.optimisation.steps / seconds
            share = operations * rate / matrix_rate if run.objective.kind in ("l1", "charbonnier") else np.nan
            total = cost["training"] + cost["evaluation"]
            kinds.setdefault(_kind(run.model, run.scale), {})[run_id] = (rate, share, total)
    columns = (
        Column("network"), Column("runs", "", "d"), Column("training", "steps/s", ".2f"),
        Column("share of the floor's rate", "", ".0%"), Column("all of it", "core hours", ".2f"),
    )  # fmt: skip
    rows: list[tuple[Value, ...]] = []
    for kind, runs in kinds.items():
        rates, shares, totals = (np.array(column) for column in zip(*runs.values(), strict=True))
        share = float(np.median(shares))
        hours = float(totals.sum() / 3600)
        rows.append((kind, len(runs), float(np.median(rates)), None if np.isnan(share) else share, hours))
    whole = {run: values for runs in kinds.values() for run, values in runs.items()}
    rows.append(("all", len(whole), None, None, sum(total for _, _, total in whole.values()) / 3600))
    return Table("throughput", "", columns, tuple(rows))


def _kind(model: Any, scale: int) -> str:
    assignment = getattr(model, "assignment", None)
    name = METHODS.get(model.kind, model.kind)
    return f"{name}{f', {assignment.kind}' if assignment else ''}, x{scale}"


def _costs(results: Results) -> Iterable[tuple[Any, pd.DataFrame]]:
    return results.records.costs.groupby("run", observed=True)


def _lengths(results: Results) -> Mapping[str, Mapping[int, str]]:
    """Network -> steps -> cell."""
    found: dict[str, dict[int, str]] = {}
    for cell in results.plan.cells:
        if LENGTH in cell.labels:
            found.setdefault(cell.labels["variant"], {})[cell.runs[0].optimisation.steps] = cell.name
    return found


def _by_length(results: Results) -> pd.DataFrame:
    """Means on the primary measure: networks as rows, steps as columns, in rising order."""
    table = {
        network: {steps: results.mean(cell, results.primary) for steps, cell in sorted(cells.items())}
        for network, cells in _lengths(results).items()
    }
    return pd.DataFrame(table).T


def _headline(findings: Sequence[Finding], folder: Path) -> Picture:
    shown: list[Comparison] = []
    styles: dict[str, dict[str, Any]] = {}
    cycle = list(mpl.rcParams["axes.prop_cycle"])
    for index, one in enumerate(findings):
        kept = [c for c in one.comparisons if c.label in one.question.headline and c.deltas.values.size]
        shown += kept
        styles |= {c.cell: dict(cycle[index % len(cycle)]) for c in kept}
    return save_figure(draw_forest(shown, styles), folder, "findings", "")


def median_rate(rates: Array) -> float:
    """The middle of measured matrix rates, FLOP/s."""
    return float(np.median(rates))
