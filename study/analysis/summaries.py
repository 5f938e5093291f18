"""The report's tables, each made from the stored values alone."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import chi2

from study.analysis import origins
from study.analysis.comparisons import CLAIM_NAMES, TEST_NAMES, Comparison, declared_pairs, protocol_means
from study.analysis.complexity import NAMES
from study.analysis.power import detectable_effect
from study.analysis.ranking import rank_cells, ranking_caption
from study.analysis.results import STATES, Measure, Results
from study.analysis.statistics import Array
from study.analysis.tables import Column, Entry, Table, Value
from study.analysis.verdicts import VERDICTS, attainability, coverage, decide, digits_of, interval, p_text, signed
from study.grid.plan import Cell
from study.grid.schema import Run

TONES = {"better": "good", "worse": "bad", "equivalent": "same"}
COSTS = ("parameters", "multiply_adds_720p")
# Ours: fewer are too few for a claim on new ones where networks have little in common, see calibration.
FEW_IMAGES = 100


def declaration_table(results: Results) -> Table:
    """What the grid declares."""
    grid, primary = results.plan.grid, results.primary
    analysis = grid.analysis
    pairs = declared_pairs(results)
    runs = [(cell, run) for cell in results.plan.cells for run in cell.runs if run.trains]
    rules = dict.fromkeys(_stopping_rule(results, cell, run) for cell, run in runs)
    seeds: dict[tuple[int, ...], list[str]] = {}
    for cell in results.plan.cells:
        if cell.runs[0].model.trained:
            seeds.setdefault(tuple(run.seed for run in cell.runs), []).append(cell.name)
    texts = [f"{len(part)} ({', '.join(map(str, part))})" for part in seeds]
    if len(seeds) > 1:
        texts = [f"{', '.join(names)}: {text}" for text, names in zip(texts, seeds.values(), strict=True)]
    correction = f"{analysis.correction.capitalize()} over {len(pairs)}" if analysis.correction != "none" else "none"
    margin = f"{analysis.margin_db:g} dB" if primary.metric == "psnr" else "none (declared in dB, the metric is not)"
    rows = [
        ("baseline", analysis.baseline),
        ("comparisons", "; ".join(f"{cell} vs {reference}" for cell, reference in pairs) or "none"),
        ("primary dataset", primary.dataset),
        ("metric", f"{primary.name}, protocol {primary.protocol}"),
        ("claim", CLAIM_NAMES[analysis.claim]),
        ("α", f"{analysis.alpha:g}"),
        ("correction", correction),
        ("margin of equivalence", margin),
        ("power", f"{analysis.power:g}"),
        ("seeds", "; ".join(texts) or "none"),
        ("stopping rule", "fixed: " + "; ".join(rules) if rules else "—"),
        ("budget", results.plan.budget or "none"),
    ]
    return Table("declaration", "What the grid declares.", (Column("what"), Column("value")), tuple(rows))


def _stopping_rule(results: Results, cell: Cell, run: Run) -> str:
    text = f"{run.optimisation.steps:,} optimiser steps at batch {run.optimisation.batch}"
    if run.start is None:
        return text
    start = results.start(run)
    if not start:
        return f"{text}, from a run outside this grid"
    labels = results.cells[start].labels
    alike = labels == {**cell.labels, "variant": labels.get("variant")}  # on every axis
    return f"{text}, from {labels['variant'] if alike else start}"


def results_table(results: Results, metrics: Sequence[str] = ("psnr", "ssim")) -> Table:
    """Main results: mean over images and seeds of each cell on each dataset, with gain over bicubic and costs."""
    protocol = results.plan.grid.analysis.protocol
    measures = [
        Measure(dataset, protocol, metric)
        for dataset in results.datasets
        for metric in metrics
        if any(results.has(cell, Measure(dataset, protocol, metric)) for cell in results.cells)
    ]
    columns = [Column("variant")]
    gain = replace(results.primary, metric="psnr")
    if results.bicubic and gain in measures:
        columns.append(Column("gain over bicubic", "dB", "+.2f"))
    columns += [metric_column(measure) for measure in measures]
    cost_columns, costs = _costs(results, COSTS)
    columns += cost_columns
    rows = []
    for cell in results.cells:
        row: list[Value] = [cell]
        if results.bicubic and gain in measures:
            row.append(_gain(results, cell, gain))
        row += [mean_entry(results, cell, measure) for measure in measures]
        row += costs[cell]
        rows.append(tuple(row))
    return Table(
        "results",
        f"Mean over images, then over seeds (protocol {protocol}).",
        tuple(columns),
        tuple(rows),
        (
            f"{seeds_note(results)}Bold: best, underlined: second, by the printed digits; a mark is no test.",
            *_unfinished(results),
        ),
    )


def seeds_note(results: Results) -> str:
    """How many seeds the means of `mean_entry` are over, one sentence; empty where nothing was trained."""
    common, trained = _common_seeds(results), [cell for cell in results.cells if cell not in results.untrained]
    if common is None:
        return "n: finished seeds. " if trained else ""
    whole = all(len(results.done(cell)) == common for cell in trained)
    return f"Means are over {common} seed{'' if common == 1 else 's'}{'' if whole else ', or n finished ones'}. "


def metric_column(measure: Measure) -> Column:
    """The column of a metric on a dataset."""
    return Column(measure.name, measure.unit, measure.format, measure.best, group=measure.dataset)


def mean_entry(results: Results, cell: str, measure: Measure) -> Entry:
    """Mean over images and finished seeds, with their number where it is not that of `seeds_note`."""
    means = results.means(cell, measure)
    if not len(means):
        return Entry(None)
    declared = len(results.cells[cell].runs)
    usual = cell in results.untrained or len(means) == _common_seeds(results)
    suffix = "" if usual else f"(n = {len(means)})"
    tone = "warn" if len(means) < declared else ""
    detail, rank = origins.of_mean(results, cell, measure), f"x{results.scale(cell)}"
    return Entry(float(means.mean()), suffix, tone, detail, rank=rank)


def _common_seeds(results: Results) -> int | None:
    """The number of declared seeds, if all trained cells have the same."""
    declared = {len(cell.runs) for name, cell in results.cells.items() if name not in results.untrained}
    return declared.pop() if len(declared) == 1 else None


def _gain(results: Results, cell: str, measure: Measure) -> Entry:
    reference = next((name for name in results.bicubic if results.scale(name) == results.scale(cell)), cell)
    if cell == reference:
        return Entry(None)
    values = results.deltas(cell, reference, measure).values
    if not values.size:
        return Entry(None)
    gain = float(values.mean())
    return Entry(gain, "▲" if gain > 0 else "▼", "good" if gain > 0 else "bad")


def _costs(results: Results, names: Sequence[str]) -> tuple[list[Column], dict[str, list[Value]]]:
    """Columns and, for each cell, the mean over its runs; large numbers in millions or billions."""
    rows = results.rows("costs")
    units = dict(zip(rows["name"], rows["unit"], strict=True))
    kept = [name for name in units if name in names]
    columns, values = [], {cell: [] for cell in results.cells}
    for name in kept:
        means = {
            cell: rows.loc[(rows["cell"] == cell) & (rows["name"] == name), "value"].mean() for cell in results.cells
        }
        largest = max((abs(value) for value in means.values() if value == value), default=0.0)
        prefix, divisor = ("G", 1e9) if largest >= 1e9 else ("M", 1e6) if largest >= 1e7 else ("", 1)
        digits = ",.0f" if divisor == 1 and largest >= 1000 else ".4g"
        columns.append(Column(name.replace("_", " "), prefix + units[name].replace("1", ""), digits))
        for cell, value in means.items():
            values[cell].append(float(value) / divisor if value == value else None)
    return columns, values


def _unfinished(results: Results) -> list[str]:
    missing = [
        f"{cell.name} ({len(results.done(cell.name))} of {len(cell.runs)})"
        for cell in results.plan.cells
        if len(results.done(cell.name)) < len(cell.runs)
    ]
    return [f"Unfinished, finished of declared seeds: {'; '.join(missing)}."] if missing else []


def comparison_table(
    comparisons: Sequence[Comparison], name: str, caption: str, results: Results | None = None
) -> Table:
    """Estimates before p values; exploratory rows have neither a corrected p nor a verdict.

    With `results` each mean difference says which runs it comes from.
    """
    declared = any(comparison.family for comparison in comparisons)
    digits = max((digits_of(comparison) for comparison in comparisons), default=3)
    unit = comparisons[0].measure.unit if comparisons else ""
    columns = [Column("comparison")]
    columns += [] if declared else [Column("dataset"), Column("claim")]
    ranks = {comparison.claim == "these_weights" for comparison in comparisons}
    what = "δ" if len(ranks) > 1 else "pseudo-median δ" if True in ranks else "mean δ"
    columns += [Column(what, unit, f"+.{digits}f"), Column("interval"), Column("p")]
    columns += [Column("p, corrected"), Column("verdict")] if declared else []
    columns += [Column("improved", "", ".0%"), Column("rank-biserial", "", "+.2f")]
    columns += [Column("bootstrap")] if declared else []
    rows = []
    for comparison in comparisons:
        absent = not comparison.deltas.values.size or not comparison.comparable
        verdict = decide(comparison)
        partial = "" if comparison.complete or absent else "(preliminary)"
        row: list[Value] = [comparison.label]
        row += [] if declared else [comparison.measure.dataset, CLAIM_NAMES[comparison.claim]]
        detail = "" if absent or results is None else origins.of_comparison(results, comparison)
        row.append(Entry(None if absent else comparison.estimate, detail=detail))
        row.append(Entry(interval(comparison.test.low, comparison.test.high, digits), order=comparison.test.low))
        row.append(p_entry(comparison.test.p))
        row += (
            [p_entry(comparison.p_corrected), Entry(verdict, partial, TONES.get(verdict, "warn"))] if declared else []
        )
        row += [None if absent else comparison.share_improved, None if absent else comparison.rank_biserial]
        row += [Entry(interval(*comparison.bootstrap, digits), order=comparison.bootstrap[0])] if declared else []
        rows.append(tuple(row))
    described = " Bootstrap: seeds and images resampled, as description only; it is too narrow at few seeds."
    centre = " δ: its estimate, the mean, or over images of trained weights the pseudo-median." if True in ranks else ""
    notes = [
        f"Interval: of the named claim's test, not corrected for the number of comparisons.{centre}",
        "Improved: share of images that the first is better on, on average; rank-biserial: the same weighted by ranks, "
        f"−1 to +1. All images share the seeds' luck: most can go one way by chance.{described if declared else ''}",
    ]
    if declared:
        claims = dict.fromkeys(comparison.claim for comparison in comparisons)
        notes += [f"Claim '{CLAIM_NAMES[claim]}': {TEST_NAMES[claim]} (docs/calibration.md)." for claim in claims]
        images = [one.deltas.values.shape[1] for one in comparisons if one.deltas.values.size]
        if "new_images" in claims and images and min(images) < FEW_IMAGES:
            notes.append(
                f"On so few images ({min(images)}) this claim errs more often than the level says, many times as often "
                "at a corrected one, where a few images answer much more strongly than the others, as they do between "
                "networks that have little in common."
            )
        notes += [f"{verdict}: {VERDICTS[verdict]}." for verdict in dict.fromkeys(map(decide, comparisons))]
    return Table(name, caption, tuple(columns), tuple(rows), tuple(notes))


def p_entry(p: float) -> Entry:
    """A p value as text that sorts by its number."""
    return Entry(p_text(p), order=p)


def equivalence_table(comparisons: Sequence[Comparison]) -> Table:
    """TOST against the margin, and whether the design could have reached it."""
    columns = (Column("comparison"), Column("margin", "dB", ".3g"), Column("TOST p, corrected"), Column("equivalence"))
    rows = []
    for comparison in comparisons:
        if not np.isfinite(comparison.margin) or not comparison.deltas.values.size or not comparison.comparable:
            continue
        shown = decide(comparison) == "equivalent"
        text = "shown" if shown else attainability(comparison)
        p = p_entry(comparison.p_equivalent)
        rows.append((comparison.label, comparison.margin, p, Entry(text, tone="good" if shown else "")))
    return Table("equivalence", "Is the difference inside the margin? Two one-sided tests.", columns, tuple(rows))


def noise_table(results: Results) -> Table:
    """Noise floor: how much every trained cell's dataset mean moves between seeds, and what that lets one detect."""
    analysis, primary = results.plan.grid.analysis, results.primary
    steps = max(1, len(declared_pairs(results))) if analysis.correction == "holm" else 1
    digits = ".3f" if primary.metric == "psnr" else ".5f"
    columns = (
        Column("cell"), Column("seeds", "", "d"), Column("sd over seeds", primary.unit, digits),
        Column(f"{coverage(analysis.alpha)} interval"),
        Column(f"detectable at α = {analysis.alpha:g}", primary.unit, digits),
        Column("detectable on Holm's first step", primary.unit, digits),
    )  # fmt: skip
    rows = []
    for cell in results.cells:
        if cell in results.untrained:
            continue
        means = results.means(cell, primary)
        n = len(means)
        sd = float(np.std(means, ddof=1)) if n > 1 else math.nan
        values = [
            detectable_effect(math.sqrt(2) * sd, n, level, analysis.power)
            for level in (analysis.alpha, analysis.alpha / steps)
        ]
        name = Entry(cell, "(baseline)" if cell == analysis.baseline else "")
        spread = Entry(sd, detail=origins.of_spread(results, cell, primary, means)) if np.isfinite(sd) else None
        ends = spread_interval(means, analysis.alpha)
        around = f"[{ends[0]:{digits}}, {ends[1]:{digits}}]" if np.isfinite(sd) else None
        rows.append((name, n, spread, around, *(None if math.isnan(value) else value for value in values)))
    return Table(
        "noise_floor",
        f"Noise floor: standard deviation over seeds of the mean {primary}.",
        columns if steps > 1 else columns[:-1],
        tuple(row if steps > 1 else row[:-1] for row in rows),
        (
            f"Detectable: the smallest true difference between two such cells, their seeds independent, that the "
            f"paired t finds with power {analysis.power:g}. Its interval takes seeds for normal.",
        ),
    )


def spread_interval(means: Array, alpha: float) -> tuple[float, float]:
    """Interval of the standard deviation of normal values, from χ²; NaN for fewer than two."""
    n = len(means)
    if n < 2:
        return math.nan, math.nan
    low, high = (float(chi2.ppf(level, n - 1)) for level in (1 - alpha / 2, alpha / 2))
    total = float(np.var(means)) * n
    return math.sqrt(total / low), math.sqrt(total / high)


def protocol_table(results: Results) -> Table:
    """The same difference under every protocol, and how far the protocols spread."""
    primary = results.primary
    pairs = [pair for pair in declared_pairs(results) if results.scale(pair[0]) == results.scale(pair[1])]
    means = {pair: protocol_means(results, *pair, primary) for pair in pairs}
    protocols = list(dict.fromkeys(name for part in means.values() for name in part))
    level = {
        protocol: results.mean(results.plan.grid.analysis.baseline, replace(primary, protocol=protocol))
        for protocol in protocols
    }
    digits = 3 if primary.metric == "psnr" else 5
    rows: list[tuple[Value, ...]] = []
    for (cell, reference), part in means.items():
        spread = float(np.ptp(list(part.values()))) if part else None
        gain = part.get(primary.protocol)
        small = spread is not None and gain is not None and abs(gain) < spread
        last = Entry(
            None if spread is None else f"{spread:.{digits}f}",
            "above the gain" if small else "",
            "warn" if small else "",
            order=spread,
        )
        shown = [
            Entry(signed(part[name], digits=digits), order=part[name]) if name in part else None for name in protocols
        ]
        rows.append((f"{cell} vs {reference}", *shown, last))
    if protocols and np.isfinite(list(level.values())).any():
        spread = f"{np.ptp(list(level.values())):.{digits}f}"
        rows.append(("level of the baseline", *(f"{level[name]:.{digits}f}" for name in protocols), spread))
    unit = primary.unit
    return Table(
        "protocols",
        f"Mean difference in {primary.name} on {primary.dataset} under every evaluation protocol.",
        (Column("comparison"), *(Column(name, unit) for name in protocols), Column("spread", unit)),
        tuple(rows),
        ("Spread: largest minus smallest. A level printed elsewhere under another protocol is not comparable.",),
    )


def runs_table(results: Results) -> Table:
    """Every declared run; failed ones first, none left out."""
    rows = []
    for cell, seed, run in results.runs():
        status, state = results.statuses.get(run, {}), results.state(run)
        done, steps = status.get("step"), status.get("steps")
        step = f"{done:,} / {steps:,}" if isinstance(done, int) and isinstance(steps, int) else "—"
        tone = {"done": "good", "failed": "bad"}.get(state, "warn")
        place = (
            Entry(str(seed), order=seed),
            Entry(state, tone=tone),
            Entry(step, order=done if isinstance(done, int) else None),
        )
        row = cell.name, *place, status.get("reason") or "", run or "—"
        rows.append((STATES.index(state), row))
    rows.sort(key=lambda pair: pair[0])
    columns = tuple(Column(name) for name in ("cell", "seed", "state", "step", "reason", "run"))
    return Table("runs", "Every declared run.", columns, tuple(row for _, row in rows))


def costs_table(results: Results) -> Table:
    """Every stored cost of a run that is not its network's own."""
    names = [name for name in dict.fromkeys(results.rows("costs")["name"]) if name not in NAMES]
    columns, values = _costs(results, names)
    body = tuple((cell, *row) for cell, row in values.items()) if columns else ()
    return Table("costs", "Costs, mean over the runs of a cell.", (Column("cell"), *columns), body)


def ranking_table(results: Results) -> Table | None:
    """Friedman's test over datasets; None with fewer than three trained cells or two datasets in common."""
    ranking = rank_cells(results)
    if ranking is None:
        return None
    rows = tuple(zip(ranking.cells, map(float, ranking.mean_ranks), strict=True))
    columns = (Column("cell"), Column("mean rank", "", ".2f"))
    return Table("ranking", "Mean rank over datasets, 1 is best.", columns, rows, (ranking_caption(ranking),))
