"""The comparisons of a study: those declared beforehand as one corrected family, all others as exploration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from study.analysis.power import detectable_difference, measure_spread, needed_for_difference, needed_for_equivalence
from study.analysis.results import Deltas, Measure, Results
from study.analysis.statistics import (
    CLAIMS,
    ClaimTest,
    bootstrap_interval,
    correct,
    rank_biserial,
    share_improved,
)

BOOTSTRAP_SEED = 0
CLAIM_NAMES = {
    "same_images": "retraining on these images",
    "new_images": "retraining and new images",
    "these_weights": "these trained weights",
}
TEST_NAMES = {
    "same_images": "paired t on seed means",
    "new_images": "the weaker of paired t and quasi-F on the seed × image table",
    "these_weights": "Wilcoxon signed-rank over images",
}


@dataclass(frozen=True)
class Comparison:
    """One cell against one reference: the numbers from which its verdict follows.

    Attributes:
        cell: the variant.
        reference: what it is compared with.
        measure: dataset, protocol and metric.
        claim: key of `CLAIM_NAMES`.
        deltas: paired differences.
        test: of the claim.
        mean: mean difference; NaN without any values.
        family: how many comparisons were declared together; 0 for an exploratory one.
        p_corrected: adjusted over the family.
        p_equivalent: of TOST, adjusted over the family.
        smallest_p: the smallest adjusted p that the design allows.
        margin: equivalence margin; infinite where the metric has none.
        alpha: level of the family.
        power: declared power.
        share_improved: share of images that the variant is better on, on average.
        rank_biserial: effect size over images, −1 to 1, above zero where the variant is better.
        bootstrap: two-level percentile interval, as description.
        detectable: smallest effect the claim's test could have found at the declared power, on the family's first step.
        needed: seeds (for `these_weights`: images) that equivalence would need; infinite where none suffice.
        needed_to_find: the same for finding a true difference of the margin's size.
        protocol_spread: largest minus smallest mean difference over the stored protocols.
        comparable: False where the two cells solve different tasks (another scale).
    """

    cell: str
    reference: str
    measure: Measure
    claim: str
    deltas: Deltas
    test: ClaimTest
    mean: float
    family: int
    p_corrected: float
    p_equivalent: float
    smallest_p: float
    margin: float
    alpha: float
    power: float
    share_improved: float = np.nan
    rank_biserial: float = np.nan
    bootstrap: tuple[float, float] = (np.nan, np.nan)
    detectable: float = np.nan
    needed: float = np.nan
    needed_to_find: float = np.nan
    protocol_spread: float = np.nan
    comparable: bool = True

    @property
    def label(self) -> str:
        return f"{self.cell} vs {self.reference}"

    @property
    def estimate(self) -> float:
        """What the interval is about: the mean difference, or for `these_weights` the pseudo-median."""
        return self.test.estimate if self.claim == "these_weights" else self.mean

    @property
    def complete(self) -> bool:
        """Whether every declared seed and image is in it."""
        deltas = self.deltas
        absent = deltas.seeds_missing or deltas.seeds_not_finite or deltas.images_missing
        return not absent and bool(deltas.values.size)


def declared_pairs(results: Results) -> list[tuple[str, str]]:
    """The declared (cell, reference) pairs; by default every other trained cell of its scale against the baseline."""
    analysis = results.plan.grid.analysis
    if analysis.comparisons is not None:
        return [(cell, reference) for cell, reference in analysis.comparisons]
    trained = [name for name in results.cells if name not in results.untrained and name != analysis.baseline]
    return [(name, analysis.baseline) for name in trained if results.scale(name) == results.scale(analysis.baseline)]


def protocol_means(results: Results, cell: str, reference: str, measure: Measure) -> dict[str, float]:
    """Mean difference under every protocol that both cells have values for."""
    means = {}
    for protocol in results.cells[cell].runs[0].evaluation.protocols:
        values = results.deltas(cell, reference, replace(measure, protocol=protocol)).values
        if values.size:
            means[protocol] = float(values.mean())
    return means


def compare(results: Results, cell: str, reference: str, measure: Measure, claim: str, family: int = 0) -> Comparison:
    """Compares two cells under one claim; corrected values are those of a comparison on its own."""
    analysis = results.plan.grid.analysis
    margin = analysis.margin_db if measure.metric == "psnr" else np.inf
    deltas = results.deltas(cell, reference, measure)
    values = deltas.values
    steps = max(family, 1) if analysis.correction == "holm" else 1
    comparable = results.scale(cell) == results.scale(reference)
    if not values.size or not comparable:
        absent = ClaimTest(np.nan, np.nan, np.nan, np.nan, np.nan, 1.0, "no values on both sides")
        return Comparison(
            cell, reference, measure, claim, deltas, absent, np.nan, family, np.nan, np.nan, np.nan,
            margin, analysis.alpha, analysis.power, comparable=comparable,
        )  # fmt: skip
    test = CLAIMS[claim](values, analysis.alpha, margin)
    sign = -1 if measure.best == "low" else 1
    tested = Comparison(
        cell, reference, measure, claim, deltas, test, float(values.mean()), family, test.p, test.p_equivalent,
        test.smallest_p, margin, analysis.alpha, analysis.power, share_improved(values * sign),
        rank_biserial(values * sign),
    )  # fmt: skip
    return _described(results, tested, analysis.alpha / steps) if family else tested


def _described(results: Results, comparison: Comparison, level: float) -> Comparison:
    """A declared comparison with its bootstrap, power at a level, and spread over protocols."""
    values, claim, power, margin = comparison.deltas.values, comparison.claim, comparison.power, comparison.margin
    spread = list(protocol_means(results, comparison.cell, comparison.reference, comparison.measure).values())
    design = measure_spread(values, claim)
    units = values.shape[1] if claim == "these_weights" else len(values)
    bounded = bool(np.isfinite(margin))
    return replace(
        comparison,
        bootstrap=bootstrap_interval(values, comparison.alpha, BOOTSTRAP_SEED),
        detectable=detectable_difference(design, units, level, power),
        needed=needed_for_equivalence(values, claim, margin, level, power) if bounded else np.nan,
        needed_to_find=needed_for_difference(design, margin, level, power) if bounded else np.nan,
        protocol_spread=float(np.ptp(spread)) if spread else np.nan,
    )


def compare_declared(results: Results) -> list[Comparison]:
    """The declared family on the primary measure, p values corrected over all of it, missing ones included."""
    analysis = results.plan.grid.analysis
    pairs = declared_pairs(results)
    family = [
        compare(results, cell, reference, results.primary, analysis.claim, len(pairs)) for cell, reference in pairs
    ]
    return correct_family(family, analysis.correction)


def correct_family(family: Sequence[Comparison], method: str) -> list[Comparison]:
    """The comparisons with p values corrected over all of them, and the smallest ones that they could have had."""
    p = correct([comparison.test.p for comparison in family], method)
    p_equivalent = correct([comparison.test.p_equivalent for comparison in family], method)
    smallest = correct([comparison.test.smallest_p for comparison in family], method)
    return [
        replace(comparison, p_corrected=float(one), p_equivalent=float(other), smallest_p=float(least))
        for comparison, one, other, least in zip(family, p, p_equivalent, smallest, strict=True)
    ]


def compare_exploratory(results: Results) -> Iterator[Comparison]:
    """The declared pairs under the other claims and on the other datasets; none of it was declared."""
    primary, claim = results.primary, results.plan.grid.analysis.claim
    for cell, reference in declared_pairs(results):
        for other in CLAIM_NAMES:
            if other != claim:
                yield compare(results, cell, reference, primary, other)
        for dataset in results.datasets:
            if dataset != primary.dataset:
                yield compare(results, cell, reference, replace(primary, dataset=dataset), claim)
