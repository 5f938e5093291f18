"""FINDINGS.md: every question of a study with its claim, effects, verdicts and limits, from stored results alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.style import context as style_context

from study import StudyError
from study.analysis.campaign import distance_table, lengths_table, order_agreement, throughput_table, weights_table
from study.analysis.comparisons import CLAIM_NAMES, Comparison, compare_declared
from study.analysis.figures import draw_forest
from study.analysis.pictures import Picture, save_figure
from study.analysis.published import load_published
from study.analysis.rendering import find_style, render
from study.analysis.results import Results
from study.analysis.tables import Column, Entry, Table
from study.analysis.verdicts import coverage, decide, digits_of, interval, p_text
from study.grid.fields import Declared
from study.records.store import replace


class Question(Declared):
    """What FINDINGS.md says of a grid besides its numbers; texts are Markdown.

    Attributes:
        grid: name of the grid file in ablations/.
        title: heading.
        claim: what was to be shown.
        reading: what the verdicts come to.
        limits: what the answer does not show.
        verdicts: of each declared comparison (`soft vs hard`), those that `reading` was written for.
        headline: comparisons that the README's figure shows.
    """

    grid: str
    title: str
    claim: str
    reading: str
    limits: str
    verdicts: dict[str, str] = {}
    headline: list[str] = []


class Page(Declared):
    """reports/findings.yaml: the words of FINDINGS.md.

    Attributes:
        budget: that the grids of the questions ran at.
        preamble: first paragraph.
        distance: why the numbers differ from the published ones.
        cost: what the table of throughput does not say.
        weights: grid of published weights.
        lengths: grid over variants and `optimisation.steps`, or nothing where it has not run.
        others: grids of which a report is written and nothing said, with their budgets.
        questions: in the order of the page.
    """

    budget: str
    preamble: str
    distance: str
    cost: str
    weights: str
    lengths: str | None = None
    others: dict[str, str | None] = {}
    questions: list[Question]

    def grids(self) -> dict[str, str | None]:
        """Every grid that the page rests on, with its budget."""
        named = [question.grid for question in self.questions] + ([self.lengths] if self.lengths else [])
        return {self.weights: None, **dict.fromkeys(named, self.budget), **self.others}


class FindingsError(StudyError):
    """What FINDINGS.md says is not what was measured; the message names the comparison."""


@dataclass(frozen=True)
class Finding:
    """A question with its declared comparisons, as numbers and as a table."""

    question: Question
    comparisons: Sequence[Comparison]
    table: Table


def write_findings(page: Page, studies: Mapping[str, Results], matrix_rate: float, out: Path) -> list[Path]:
    """Writes FINDINGS.md and the figure of the README.

    Args:
        page: what is said.
        studies: results of every grid that the page names, by its name.
        matrix_rate: of the machine that trained, one thread, FLOP/s.
        out: the repository.

    Raises:
        FindingsError: a verdict is not the one that a reading was written for.
    """
    findings = [_find(question, studies[question.grid]) for question in page.questions]
    numbers = load_published()
    lengths = studies[page.lengths] if page.lengths else None
    content = {
        "page": page,
        "findings": findings,
        "weights": weights_table(studies[page.weights], numbers),
        "lengths": lengths and lengths_table(lengths),
        "orders": order_agreement(lengths) if lengths else [],
        "distances": lengths and distance_table(lengths, numbers),
        "throughput": throughput_table(list(studies.values()), matrix_rate),
    }
    with mpl.rc_context(), style_context(["default", find_style("report")]):
        picture = _draw_headline(findings, out / "docs")
    replace(out / "FINDINGS.md", render("findings", "md", content))
    return [out / "FINDINGS.md", picture.paths["png"]]


def _find(question: Question, results: Results) -> Finding:
    comparisons = compare_declared(results)
    found = {one.label: decide(one) for one in comparisons}
    wrong = [
        f"{label}: {found.get(label, 'not declared')}, not {question.verdicts.get(label, 'mentioned')}"
        for label in dict.fromkeys([*question.verdicts, *found])
        if found.get(label) != question.verdicts.get(label)
    ]
    wrong += [f"headline: {label}: not declared" for label in question.headline if label not in found]
    if wrong:
        raise FindingsError(
            f"reports/findings.yaml, {question.grid}: its reading was written for other verdicts; found now: "
            + "; ".join(wrong)
        )
    return Finding(question, comparisons, effects_table(results, comparisons))


def effects_table(results: Results, comparisons: Sequence[Comparison]) -> Table:
    """Effect with interval, p, numbers of seeds and images, and verdict of every declared comparison."""
    analysis, unit = results.plan.grid.analysis, results.primary.unit
    digits = max((digits_of(comparison) for comparison in comparisons), default=3)
    columns = (
        Column("comparison"),
        Column("effect", unit, f"+.{digits}f"),
        Column(f"{coverage(analysis.alpha)} interval"),
        Column("p, corrected"),
        Column("seeds × images"),
        Column("finds", unit, f".{digits}f"),
        Column("verdict"),
    )
    rows = []
    for one in comparisons:
        values = one.deltas.values
        shape = f"{len(values)} × {values.shape[1]}" if values.size else "—"
        effect = one.estimate if values.size else None
        found = interval(one.test.low, one.test.high, digits)
        detectable = one.detectable if np.isfinite(one.detectable) else None
        rows.append((one.label, effect, found, p_text(one.p_corrected), shape, detectable, Entry(decide(one))))
    caption = f"{results.primary}; claim: {CLAIM_NAMES[analysis.claim]}; {len(rows)} declared comparisons."
    return Table("effects", caption, columns, tuple(rows))


def _draw_headline(findings: Sequence[Finding], folder: Path) -> Picture:
    cycle = list(mpl.rcParams["axes.prop_cycle"])
    shown: list[Comparison] = []
    styles: dict[str, dict[str, Any]] = {}
    for index, finding in enumerate(findings):
        kept = [one for one in finding.comparisons if one.label in finding.question.headline]
        shown += kept
        styles |= {one.cell: dict(cycle[index % len(cycle)]) for one in kept}
    return save_figure(draw_forest(shown, styles), folder, "findings", "")
