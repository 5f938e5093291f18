"""The alternative view: how probable it is that a variant is worse, equivalent or better, given a margin."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from study.analysis.comparisons import Comparison
from study.analysis.statistics import ROUNDING, Array
from study.analysis.tables import Column, Entry, Table

PRIOR_STRENGTH = 0.5  # weight of the pseudo-observation at zero, in images
SAMPLES = 10_000  # the error of a probability of one half is 0.005
DRAW_SEED = 0
LIKELY = 0.95  # named in the table from here on
_LIKELY = ("weights worse", "weights alike", "weights better")  # no words of verdicts, which are about retraining


class Probabilities(NamedTuple):
    """Posterior probabilities; they add up to one."""

    worse: float
    equivalent: float
    better: float


def signed_rank_posterior(
    values: Array, margin: float, seed: int = DRAW_SEED, samples: int = SAMPLES, strength: float = PRIOR_STRENGTH
) -> Probabilities:
    """Bayesian signed-rank test with a region of practical equivalence (Benavoli, Corani, Demšar, Zaffalon, JMLR 2017).

    The population of values has a Dirichlet process prior, with a pseudo-observation at zero. A draw of the posterior
    gives the probabilities that the mean of two values of the population lies below, inside and above ±margin; what
    is returned is how often each of the three is the largest.

    Args:
        values: (n,), one difference per image, above zero where the variant is better.
        margin: half-width of the region of equivalence, in the values' unit; its ends belong to it.
        seed: of the draws.
        samples: number of draws.
        strength: weight of the pseudo-observation, in observations; above zero.
    """
    places = np.append(0.0, values)
    draws = _draws(len(values), seed, samples, strength)
    sums = places[:, None] + places
    worse, better = (
        np.einsum("ij,ij->i", draws @ beyond.astype(np.float32), draws)
        for beyond in (sums < -2 * margin - ROUNDING, sums > 2 * margin + ROUNDING)
    )
    largest = np.argmax([worse, 1 - worse - better, better], axis=0)
    return Probabilities(*(np.bincount(largest, minlength=3) / samples).tolist())


@lru_cache(maxsize=2)
def _draws(count: int, seed: int, samples: int, strength: float) -> NDArray[np.float32]:
    """(samples, 1 + count) weights of the posterior, the pseudo-observation's first."""
    rng = np.random.default_rng(seed)
    draws = np.empty((samples, 1 + count), np.float32)  # single precision: probabilities are only compared
    draws[:, 0] = rng.standard_gamma(strength, size=samples)
    draws[:, 1:] = rng.standard_exponential((samples, count), np.float32)
    draws /= draws.sum(axis=1, keepdims=True)
    return draws


def bayes_table(comparisons: Sequence[Comparison]) -> Table:
    """Probabilities of worse, equivalent and better for every comparison that has values and a finite margin."""
    columns = (
        Column("comparison"), Column("images", "", "d"), Column("weights worse", "", ".3f"),
        Column("weights alike", "", ".3f"), Column("weights better", "", ".3f"), Column(f"above {LIKELY:g}"),
    )  # fmt: skip
    rows = []
    for comparison in comparisons:
        values = comparison.deltas.values
        if not values.size or not comparison.comparable or not np.isfinite(comparison.margin):
            continue
        sign = -1 if comparison.measure.best == "low" else 1
        found = signed_rank_posterior(sign * values.mean(axis=0), comparison.margin)
        likely = next((name for name, value in zip(_LIKELY, found, strict=True) if value >= LIKELY), "none")
        rows.append((comparison.label, values.shape[1], *found, Entry(likely)))
    margin = f" of {comparisons[0].margin:g} {comparisons[0].measure.unit}" if rows else ""
    return Table(
        "bayes",
        f"The same weights, as probabilities under the declared margin{margin}; retraining is left out, so no verdict.",
        columns,
        tuple(rows),
        (
            "Bayesian signed-rank test over the images' mean differences (Benavoli et al., JMLR 2017; a pseudo-image "
            f"of weight {PRIOR_STRENGTH:g} at zero; {SAMPLES:,} seeded draws): how probable it is that for two new "
            "images, with these trained weights, the mean difference is most often beyond the margin on one side, or "
            "inside it. Other seeds could bring the opposite. It is not corrected for the number of comparisons.",
        ),
    )
