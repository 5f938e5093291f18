"""What would overturn a declared comparison: one image fewer, one seed fewer, another protocol; and its power.

A change is made to the whole study: an image, a seed or a protocol is left out of, or exchanged in, every comparison of
the family, and the declared correction is made anew over all of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from study.analysis.comparisons import Comparison
from study.analysis.results import Results
from study.analysis.statistics import (
    CLAIMS,
    Array,
    ClaimTest,
    correct,
    rank_biserial,
    seed_mean_tests,
    signed_rank_p,
    weaker_tests,
)
from study.analysis.tables import Column, Entry, Table
from study.analysis.verdicts import attainability, counted, decide, digits_of, interval, listed, units

UNDECIDED = ("n too small", "no variance", "not run", "not comparable")  # no verdict on a difference
NAMED = 3  # changes that a sentence names before it counts


@dataclass(frozen=True)
class Change:
    """A comparison in the study with one thing otherwise: the mean difference and the verdict there."""

    name: str
    mean: float
    verdict: str


@dataclass(frozen=True)
class Scrutiny:
    """A comparison, and what becomes of it.

    Attributes:
        comparison: as declared.
        verdict: its verdict.
        images: with each image left out.
        seeds: with each seed left out.
        protocols: under each other stored protocol.
    """

    comparison: Comparison
    verdict: str
    images: tuple[Change, ...]
    seeds: tuple[Change, ...]
    protocols: tuple[Change, ...]


def examine(results: Results, comparisons: Sequence[Comparison]) -> list[Scrutiny]:
    """Remakes the declared family with each image, each seed and each protocol changed.

    Args:
        results: of the study.
        comparisons: the whole declared family, in its order.
    """
    kinds: tuple[Callable[[Comparison], dict[str, ClaimTest]], ...] = (
        _without_images,
        _without_seeds,
        partial(_under_protocols, results),
    )
    correction = results.plan.grid.analysis.correction
    remade = [_remake(comparisons, [kind(comparison) for comparison in comparisons], correction) for kind in kinds]
    return [
        Scrutiny(comparison, decide(comparison), *changes)
        for comparison, *changes in zip(comparisons, *remade, strict=True)
    ]


def _without_images(comparison: Comparison) -> dict[str, ClaimTest]:
    values = comparison.deltas.values
    if not values.size or values.shape[1] < 2 or not comparison.comparable:
        return {}
    tables = np.stack([np.delete(values, index, axis=1) for index in range(values.shape[1])])
    return dict(zip(comparison.deltas.images, _many(tables, comparison), strict=True))


def _without_seeds(comparison: Comparison) -> dict[str, ClaimTest]:
    values = comparison.deltas.values
    if len(values) < 2 or not values.size or not comparison.comparable:
        return {}
    tables = np.stack([np.delete(values, index, axis=0) for index in range(len(values))])
    names = [f"seed {seed}" for seed in comparison.deltas.seeds]
    return dict(zip(names, _many(tables, comparison), strict=True))


def _under_protocols(results: Results, comparison: Comparison) -> dict[str, ClaimTest]:
    tests = {}
    measure = comparison.measure
    for protocol in results.cells[comparison.cell].runs[0].evaluation.protocols:
        if protocol != measure.protocol and comparison.comparable:
            other = replace(measure, protocol=protocol)
            values = results.deltas(comparison.cell, comparison.reference, other).values
            if values.size:
                test = CLAIMS[comparison.claim](values, comparison.alpha, comparison.margin)
                tests[protocol] = replace(test, estimate=float(values.mean()))
    return tests


def _many(tables: Array, comparison: Comparison) -> list[ClaimTest]:
    """The claim's test of every one of (tables, seeds, images), without intervals; the estimate is the mean."""
    _, seeds, images = tables.shape
    alpha, margin = comparison.alpha, comparison.margin
    means = tables.mean(axis=(1, 2))
    directions = np.sign(means)
    p = p_equivalent = np.full(len(tables), np.nan)
    smallest = 0.0
    if comparison.claim == "these_weights":
        p, p_equivalent = signed_rank_p(tables.mean(axis=1), margin)
        directions = np.sign([rank_biserial(table) for table in tables])
        smallest = 2.0 ** (1 - images)
    elif seeds > 1 and (comparison.claim == "same_images" or images > 1):
        found = (seed_mean_tests if comparison.claim == "same_images" else weaker_tests)(tables, alpha, margin)
        p, p_equivalent = found.p, found.p_equivalent
    return [
        ClaimTest(float(mean), np.nan, np.nan, float(one), float(other), smallest, direction=float(direction))
        for mean, one, other, direction in zip(means, p, p_equivalent, directions, strict=True)
    ]


def _remake(
    comparisons: Sequence[Comparison], changed: Sequence[Mapping[str, ClaimTest]], correction: str
) -> list[tuple[Change, ...]]:
    """The family under every change; a comparison that a change does not touch keeps its test in it."""
    names = list(dict.fromkeys(name for tests in changed for name in tests))
    tests = [
        [part.get(name, comparison.test) for part, comparison in zip(changed, comparisons, strict=True)]
        for name in names
    ]
    p = correct(np.array([[test.p for test in row] for row in tests]), correction)
    p_equivalent = correct(np.array([[test.p_equivalent for test in row] for row in tests]), correction)
    smallest = correct(np.array([[test.smallest_p for test in row] for row in tests]), correction)
    found: list[list[Change]] = [[] for _ in comparisons]
    for i, name in enumerate(names):
        for k, comparison in enumerate(comparisons):
            if name in changed[k]:
                test = tests[i][k]
                remade = replace(
                    comparison,
                    test=test,
                    mean=test.estimate,
                    p_corrected=float(p[i, k]),
                    p_equivalent=float(p_equivalent[i, k]),
                    smallest_p=float(smallest[i, k]),
                )
                found[k].append(Change(name, test.estimate, decide(remade)))
    return [tuple(changes) for changes in found]


def overturned(scrutiny: Scrutiny, changes: Sequence[Change]) -> list[Change]:
    """The changes under which another verdict is reached; one that leaves nothing to test is none."""
    if scrutiny.verdict in UNDECIDED:
        return []
    return [change for change in changes if change.verdict not in (scrutiny.verdict, *UNDECIDED)]


def overturned_by(scrutiny: Scrutiny) -> str:
    """One or two plain sentences: which single change gives another verdict, and what can no longer be tested."""
    if scrutiny.verdict in UNDECIDED:
        return f"There is no verdict to overturn: {scrutiny.verdict}."
    becomes, kept, lost = [], [], []
    for kind, changes in (("image", scrutiny.images), ("seed", scrutiny.seeds), ("protocol", scrutiny.protocols)):
        other = overturned(scrutiny, changes)
        if other:
            verdicts = " or ".join(dict.fromkeys(f"'{change.verdict}'" for change in other))
            becomes.append(f"{verdicts} {'under' if kind == 'protocol' else 'without'} {_names(other, kind)}")
        elif changes and all(change.verdict in UNDECIDED for change in changes):
            lost.append(kind)
        elif changes:
            kept.append(kind)
    sentences = []
    if becomes:
        sentences.append(f"The verdict '{scrutiny.verdict}' becomes {', '.join(becomes)}.")
    if kept:
        single = listed(kept).replace(" and ", " or ")
        verdict = "it" if becomes else f"the verdict '{scrutiny.verdict}'"
        sentences.append(f"No single {single} changes {verdict}.")
    if lost:
        sentences.append(f"With one {' or one '.join(lost)} fewer nothing could be tested.")
    turned = [change for change in scrutiny.protocols if change.mean * scrutiny.comparison.mean < 0]
    if turned:
        sentences.append(f"The difference changes its sign under {_names(turned, 'protocol')}.")
    return " ".join(sentences)


def _names(changes: Sequence[Change], kind: str) -> str:
    """The first few changes by name, the rest by number."""
    names = [change.name for change in changes[:NAMED]]
    more = len(changes) - len(names)
    if more:
        names.append(f"{more} other {kind}{'s' if more > 1 else ''}")
    return listed(names).replace(" and ", " or ") if kind != "protocol" else listed(names)


def scepticism_table(scrutinies: Sequence[Scrutiny]) -> Table:
    """Range of the mean difference, and changes of the verdict, over images and seeds left out and over protocols."""
    unit = scrutinies[0].comparison.measure.unit if scrutinies else ""
    columns = [Column("comparison"), Column("verdict")]
    for group in ("without one image", "without one seed", "another protocol"):
        columns += [Column("mean δ", unit, group=group), Column("verdict", group=group)]
    rows = []
    for scrutiny in scrutinies:
        if scrutiny.verdict in ("not run", "not comparable"):
            continue
        row = [Entry(scrutiny.comparison.label), Entry(scrutiny.verdict)]
        for changes in (scrutiny.images, scrutiny.seeds, scrutiny.protocols):
            row += [_range(scrutiny, changes), _outcome(scrutiny, changes)]
        rows.append(tuple(row))
    return Table(
        "scepticism",
        "What would overturn the declared comparisons.",
        tuple(columns),
        tuple(rows),
        (
            "Mean δ: its range, and what moves it most. A change is made to the whole study, and the declared "
            "correction anew over all comparisons. Holds: the verdict is the same under every such change. Fewer "
            "seeds and images are less evidence, so that a verdict near the level may be lost without being wrong.",
        ),
    )


def _range(scrutiny: Scrutiny, changes: Sequence[Change]) -> Entry:
    if not changes:
        return Entry(None)
    means = [change.mean for change in changes]
    most = max(changes, key=lambda change: abs(change.mean - scrutiny.comparison.mean))
    low, high = min(means), max(means)
    return Entry(interval(low, high, digits_of(scrutiny.comparison)), f"(most: {most.name})", order=high - low)


def _outcome(scrutiny: Scrutiny, changes: Sequence[Change]) -> Entry:
    if not changes:
        return Entry(None)
    if scrutiny.verdict in UNDECIDED:
        return Entry("no verdict")
    if all(change.verdict in UNDECIDED for change in changes):
        return Entry("not testable", tone="warn")
    other = overturned(scrutiny, changes)
    if not other:
        return Entry("holds", tone="good")
    verdicts = " or ".join(dict.fromkeys(change.verdict for change in other))
    return Entry(f"{len(other)} of {len(changes)}: {verdicts}", tone="warn", order=len(other))


def power_table(comparisons: Sequence[Comparison]) -> Table:
    """What the design could detect, and what finding the margin's size, or equivalence, would take."""
    shown = [comparison for comparison in comparisons if comparison.deltas.values.size and comparison.comparable]
    first = shown[0] if shown else None
    unit = first.measure.unit if first else ""
    digits = f".{digits_of(first) if first else 3}f"
    what = units(first) if first else "seeds"
    columns = [
        Column("comparison"), Column(what, "", "d"), Column(f"sd over {what}", unit, digits),
        Column("could detect", unit, digits),
    ]  # fmt: skip
    if first and np.isfinite(first.margin):
        columns += [Column(f"to find {first.margin:g} {unit}"), Column(f"equivalence within {first.margin:g} {unit}")]
    rows = []
    for comparison in shown:
        means = comparison.deltas.values.mean(axis=0 if what == "images" else 1)
        sd = float(np.std(means, ddof=1)) if len(means) > 1 else None
        detectable = None if np.isnan(comparison.detectable) else comparison.detectable
        row = [comparison.label, len(means), sd, detectable]
        if np.isfinite(comparison.margin):
            needed = comparison.needed_to_find
            known = None if np.isnan(needed) else counted(needed, comparison)
            row += [Entry(known, order=needed), Entry(attainability(comparison), order=comparison.needed)]
        rows.append(tuple(row))
    level = f"power {first.power:g} at α = {first.alpha:g}" if first else ""
    return Table(
        "power",
        f"What the design could find with {level}, on the first step of the correction." if first else "Power.",
        tuple(columns),
        tuple(rows),
        (f"From the spread over these {what}, which is itself uncertain where they are few.",),
    )
