"""FINDINGS.md and docs/findings.md: every question of a study with its claim, effects, verdicts and limits, from stored
results alone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.style import context as style_context

from study import StudyError
from study.analysis.campaign import distance_table, lengths_table, order_agreement, throughput_table, weights_table
from study.analysis.comparisons import CLAIM_NAMES, Comparison
from study.analysis.figures import draw_forest
from study.analysis.pictures import save_figure
from study.analysis.published import load_published
from study.analysis.rendering import find_style, render
from study.analysis.results import Results
from study.analysis.scepticism import Scrutiny, examine, overturned
from study.analysis.summaries import noise_table, spread_interval
from study.analysis.tables import Column, Entry, Table
from study.analysis.verdicts import VERDICTS, coverage, decide, digits_of, interval, listed, p_text, signed
from study.analysis.words import Words
from study.grid.fields import Declared
from study.grid.schema import Run
from study.records.store import replace

PAGES = {"FINDINGS.md": "findings", "docs/findings.md": "findings_in_full"}  # and their templates


class Question(Declared):
    """What the findings say of a grid besides its tables; texts are Markdown, see `words.Words` for their numbers.

    Attributes:
        grid: name of the grid file in ablations/.
        title: heading.
        claim: what was to be shown.
        reading: what the verdicts come to.
        limits: what the answer does not show.
        brief: the most important of the limits, in a clause.
        verdicts: of each declared comparison (`soft vs hard`), those that `reading` was written for; the first one's
            numbers stand in FINDINGS.md.
        headline: comparisons that the README's figure shows.
    """

    grid: str
    title: str
    claim: str
    reading: str
    limits: str
    brief: str
    verdicts: dict[str, str] = {}
    headline: list[str] = []


class Page(Declared):
    """reports/findings.yaml: the words of FINDINGS.md, docs/findings.md, and some of the README's.

    Attributes:
        budget: that the grids of the questions ran at.
        summary: what was found, in a few sentences, for the README.
        preamble: first paragraph.
        weights_note: on published weights that do not give their printed numbers.
        distance: why the numbers differ from the published ones.
        cost: what the table of throughput does not say.
        weights: grid of published weights.
        lengths: grid over variants and `optimisation.steps`, or nothing where it has not run.
        pilots: grids that settled the budget, of which a report is written and nothing said, with their own budgets.
        full_scale: grids that the README says how to run at full scale.
        questions: in the order of the page.
        open: what is not answered yet.
    """

    budget: str
    summary: list[str]
    preamble: str
    weights_note: str
    distance: str
    cost: str
    weights: str
    lengths: str | None = None
    pilots: dict[str, str] = {}
    full_scale: list[str] = []
    questions: list[Question]
    open: str | None = None

    def studies(self) -> dict[str, tuple[str, str | None]]:
        """Every grid that the page rests on and its budget, under the name of its report."""
        named = [question.grid for question in self.questions] + ([self.lengths] if self.lengths else [])
        found: dict[str, tuple[str, str | None]] = {self.weights: (self.weights, None)}
        found |= {grid: (grid, self.budget) for grid in named}
        return found | {f"{grid}-{budget}": (grid, budget) for grid, budget in self.pilots.items()}


class FindingsError(StudyError):
    """What FINDINGS.md says is not what was measured; the message names the comparison."""


@dataclass(frozen=True)
class Finding:
    """A question with its declared comparisons, as numbers and as a table; without any, how far its seeds differ.

    Attributes:
        question: what was asked.
        comparisons: as declared.
        table: of them all.
        main: cells of its row in FINDINGS.md: comparison, effect with interval, seeds × images, verdict, all verdicts.
    """

    question: Question
    comparisons: Sequence[Comparison]
    table: Table
    main: tuple[str, str, str, str, str]


def write_findings(
    page: Page, words: Words, operations: Callable[[Run], float], matrix_rate: float, out: Path
) -> list[Path]:
    """Writes FINDINGS.md, docs/findings.md and the figure of the README.

    Args:
        page: what is said.
        words: over the results of every grid that the page names, as `Page.studies` names them.
        operations: floating-point operations of a training step for each sample; NaN where unknown.
        matrix_rate: of the machine that trained, one thread, FLOP/s.
        out: the repository.

    Raises:
        FindingsError: a verdict is not the one that a reading was written for, or a run is missing.
        WordsError: a sentence asks for a number that is not there.
    """
    studies = words.studies
    for name, results in studies.items():
        if set(results.counts()) != {"done"}:
            counts = ", ".join(f"{count} {state}" for state, count in results.counts().items())
            raise FindingsError(f"{name}: {counts}; FINDINGS.md is written of finished grids alone")
    findings = [
        _find(question, studies[question.grid], words.comparisons(question.grid)) for question in page.questions
    ]
    shown = dict.fromkeys(verdict for question in page.questions for verdict in question.verdicts.values())
    numbers = load_published()
    lengths = studies[page.lengths] if page.lengths else None
    rules = _rules(studies[question.grid] for question in page.questions if question.verdicts)
    content = {
        "page": page,
        "words": words,
        "rules": rules,
        "coverage": coverage(rules["alpha"]),
        "verdicts": {name: VERDICTS[name] for name in shown},
        "findings": findings,
        "weights": weights_table(studies[page.weights], numbers),
        "lengths": lengths and lengths_table(lengths),
        "orders": order_agreement(lengths) if lengths else [],
        "distances": lengths and distance_table(lengths, numbers),
        "throughput": throughput_table(list(studies.values()), operations, matrix_rate),
    }
    headline = _headline(findings)
    texts = {name: render(template, "md", content) for name, template in PAGES.items()}
    with mpl.rc_context(), style_context(["default", find_style("report")]):
        picture = save_figure(draw_forest(headline, {}), out / "docs", "findings", "")
    for name, text in texts.items():
        replace(out / name, text)
    return [*(out / name for name in texts), picture.paths["png"]]


def _rules(studies: Iterable[Results]) -> Mapping[str, Any]:
    """The level, correction, power and margin that all questions declare."""
    declared = [results.plan.grid.analysis for results in studies]
    rules = {}
    for name in ("alpha", "correction", "power", "margin_db"):
        values = {getattr(analysis, name) for analysis in declared}
        if len(values) != 1:
            raise FindingsError(f"the questions declare different {name}: {', '.join(map(str, sorted(values)))}")
        rules[name] = values.pop()
    return rules


def _find(question: Question, results: Results, declared: Mapping[str, Comparison]) -> Finding:
    comparisons = list(declared.values())
    found = {label: decide(one) for label, one in declared.items()}
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
    if not comparisons:
        return Finding(question, (), noise_table(results), _noise(results))
    shown = declared[next(iter(question.verdicts))]
    counts = Counter(question.verdicts.values())
    seeds, images = shown.deltas.values.shape
    digits = digits_of(shown)
    effect = f"{signed(shown.estimate, shown.measure.unit, digits)} {interval(shown.test.low, shown.test.high, digits)}"
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    main = shown.label, effect, f"{seeds} × {images}", found[shown.label], verdicts
    return Finding(question, comparisons, effects_table(results, comparisons), main)


def _noise(results: Results) -> tuple[str, str, str, str, str]:
    """The row of a question without comparisons: how far its baseline's seeds differ."""
    means = results.means(results.plan.grid.analysis.baseline, results.primary)
    low, high = spread_interval(means, results.plan.grid.analysis.alpha)
    unit = f" {results.primary.unit}".rstrip()
    effect = f"{means.std(ddof=1):.3f}{unit} [{low:.3f}, {high:.3f}]"
    return "standard deviation over seeds", effect, str(len(means)), "—", "—"


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
        Column("without one seed"),
    )
    rows = []
    for one, scrutiny in zip(comparisons, examine(results, comparisons), strict=True):
        values = one.deltas.values
        shape = f"{len(values)} × {values.shape[1]}" if values.size else "—"
        effect = one.estimate if values.size else None
        found = interval(one.test.low, one.test.high, digits)
        detectable = one.detectable if np.isfinite(one.detectable) else None
        p, verdict = p_text(one.p_corrected), Entry(decide(one))
        rows.append((one.label, effect, found, p, shape, detectable, verdict, _without_a_seed(scrutiny)))
    caption = f"{results.primary}; claim: {CLAIM_NAMES[analysis.claim]}; {len(rows)} declared comparisons."
    return Table("effects", caption, columns, tuple(rows))


def _without_a_seed(scrutiny: Scrutiny) -> str:
    """Whether the verdict is the same whichever seed is left out; else which gives another."""
    other: dict[str, list[str]] = {}
    for change in overturned(scrutiny, scrutiny.seeds):
        other.setdefault(change.verdict, []).append(change.name.removeprefix("seed "))
    return "; ".join(f"{verdict} (without {listed(names)})" for verdict, names in other.items()) or "the same"


def _headline(findings: Sequence[Finding]) -> list[Comparison]:
    """The comparisons of the README's figure, which share its axis and title."""
    shown = [one for finding in findings for one in finding.comparisons if one.label in finding.question.headline]
    kinds = {f"{one.measure}, {CLAIM_NAMES[one.claim]}" for one in shown}
    if len(kinds) != 1:
        found = "; ".join(sorted(kinds)) or "none"
        raise FindingsError(f"reports/findings.yaml: headline: one measure and claim in one figure, not {found}")
    return shown
