"""From a seeds × images table of paired differences to tests and intervals, one for each claim (float64).

A difference is metric(variant) − metric(reference) on the same image and seed index; higher is better throughout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

Array = NDArray[np.float64]

EXACT_IMAGES = 200  # up to here the signed-rank distribution is enumerated; beyond, its normal limit is close enough
ROUNDING = 1e-12  # spread below which values of order one differ by rounding alone


@dataclass(frozen=True)
class ClaimTest:
    """One claim's test of 'no difference', its interval, and the test of equivalence.

    Attributes:
        estimate: what the interval is about: the mean, or for `these_weights` the pseudo-median.
        low: lower end of the two-sided 1 − alpha interval.
        high: its upper end.
        p: two-sided; NaN where the test does not exist.
        p_equivalent: of the two one-sided tests (TOST) against ±margin; NaN without a margin.
        smallest_p: what p could have been at best with so many seeds and images.
        problem: why there is no test; empty where there is one.
    """

    estimate: float
    low: float
    high: float
    p: float
    p_equivalent: float
    smallest_p: float = 0.0
    problem: str = ""


def _untested(estimate: float, problem: str) -> ClaimTest:
    return ClaimTest(estimate, np.nan, np.nan, np.nan, np.nan, 1.0, problem)


def _location_test(mean: float, error: float, df: float, alpha: float, margin: float) -> ClaimTest:
    """Two-sided t, its interval and TOST for a mean with a standard error."""
    if error == 0:  # only ever with a mean of exactly zero: two equal networks
        return ClaimTest(mean, mean, mean, 1.0, 0.0 if np.isfinite(margin) else np.nan)
    p = 2 * stats.t.sf(abs(mean) / error, df)
    half = float(stats.t.isf(alpha / 2, df) * error)
    p_equivalent = stats.t.sf((margin - abs(mean)) / error, df) if np.isfinite(margin) else np.nan
    return ClaimTest(mean, mean - half, mean + half, float(p), float(p_equivalent))


def paired_t(deltas: Array, alpha: float, margin: float = np.inf) -> ClaimTest:
    """Claim 'retraining on these images': paired t on the seeds' means over images.

    Args:
        deltas: (seeds, images).
        alpha: level of the test; the interval has coverage 1 − alpha.
        margin: equivalence margin in the metric's unit; infinite for none.
    """
    means = deltas.mean(axis=1)
    mean = float(means.mean())
    if len(means) < 2:
        return _untested(mean, "one seed says nothing about retraining")
    if np.ptp(means) <= ROUNDING:
        if abs(mean) > ROUNDING:
            return _untested(mean, "all seeds give the same difference, so they do not vary what they should")
        return _location_test(0.0, 0.0, 1, alpha, margin)
    return _location_test(mean, float(stats.sem(means)), len(means) - 1, alpha, margin)


@dataclass(frozen=True)
class MeanSquares:
    """Mean squares of a two-way table without replication; arrays where many tables are treated at once."""

    seeds: Array
    images: Array
    residual: Array


def mean_squares(deltas: Array) -> MeanSquares:
    """Mean squares of a (seeds, images) table with at least two of each."""
    seeds, images = deltas.shape
    rows, columns, grand = deltas.mean(axis=1), deltas.mean(axis=0), deltas.mean()
    residual = deltas - rows[:, None] - columns + grand
    return MeanSquares(
        np.asarray(images * np.sum((rows - grand) ** 2) / (seeds - 1)),
        np.asarray(seeds * np.sum((columns - grand) ** 2) / (images - 1)),
        np.asarray(np.sum(residual**2) / ((seeds - 1) * (images - 1))),
    )


def crossed_variance(squares: MeanSquares, seeds: int, images: int) -> tuple[Array, Array]:
    """Variance of the grand mean when seeds and images are both random, and its degrees of freedom.

    With expected mean squares E[MS_s] = e + n_i S, E[MS_i] = e + n_s I, E[MS_e] = e, the grand mean has variance
    E[MS_s + MS_i − MS_e] / (n_s n_i). That sum falls below one of its terms where a component's estimate is negative;
    the component is then taken as zero, and the remaining mean square keeps its own degrees of freedom. Otherwise
    they are Satterthwaite's (Winer, 'Statistical Principles in Experimental Design', quasi-F ratios).
    """
    s, i, e = squares.seeds, squares.images, squares.residual
    total = s + i - e
    with np.errstate(invalid="ignore", divide="ignore"):
        satterthwaite = total**2 / (s**2 / (seeds - 1) + i**2 / (images - 1) + e**2 / ((seeds - 1) * (images - 1)))
    v = np.maximum(total, np.maximum(s, i))
    df = np.where(v == total, satterthwaite, np.where(s >= i, seeds - 1, images - 1))
    return v / (seeds * images), np.where(v > 0, df, 1.0)


def quasi_f(deltas: Array, alpha: float, margin: float = np.inf) -> ClaimTest:
    """Claim 'retraining and new images': the weaker of the paired t and a quasi-F on the seed × image table.

    The p values are the larger ones of the two tests, the interval is the wider one. Arguments as in `paired_t`.
    """
    over_seeds = paired_t(deltas, alpha, margin)
    seeds, images = deltas.shape
    if over_seeds.problem:
        return over_seeds
    if images < 2:
        return _untested(over_seeds.estimate, "one image says nothing about new images")
    if np.ptp(deltas) <= ROUNDING:
        return over_seeds
    variance, df = crossed_variance(mean_squares(deltas), seeds, images)
    crossed = _location_test(float(deltas.mean()), float(np.sqrt(variance)), float(df), alpha, margin)
    wider = max(over_seeds, crossed, key=lambda test: test.high - test.low)
    return replace(
        wider,
        p=max(over_seeds.p, crossed.p),
        p_equivalent=float(np.maximum(over_seeds.p_equivalent, crossed.p_equivalent)),
    )


def _signed_ranks(values: Array) -> tuple[float, Array]:
    """Sum of the positive values' ranks, and all ranks; zeros dropped (Wilcoxon), ties at their mean rank."""
    values = values[np.abs(values) > ROUNDING]
    ranks = stats.rankdata(np.round(np.abs(values), 12))
    return float(ranks[values > 0].sum()), ranks


def _rank_tails(statistic: float, ranks: Array) -> tuple[float, float]:
    """P(W <= statistic) and P(W >= statistic) under random signs, exact up to `EXACT_IMAGES` ranks."""
    if len(ranks) > EXACT_IMAGES:
        spread = np.sqrt(np.sum(ranks**2)) / 2
        centre = ranks.sum() / 2
        low = stats.norm.cdf((statistic + 0.5 - centre) / spread)
        return float(low), float(stats.norm.sf((statistic - 0.5 - centre) / spread))
    mass = _rank_distribution(np.rint(2 * ranks).astype(int))
    position = round(2 * statistic)
    return float(mass[: position + 1].sum()), float(mass[position:].sum())


def _rank_distribution(steps: NDArray[np.int_]) -> Array:
    """Probabilities of every subset sum of `steps`, each step taken with probability one half."""
    mass = np.zeros(steps.sum() + 1)
    mass[0] = 1.0
    for step in steps:
        shifted = np.zeros_like(mass)
        shifted[step:] = mass[: len(mass) - step]
        mass = (mass + shifted) / 2
    return mass


def _signed_rank_p(values: Array) -> float:
    statistic, ranks = _signed_ranks(values)
    return min(1.0, 2 * min(_rank_tails(statistic, ranks)))


def _signed_rank_equivalence(values: Array, margin: float) -> float:
    if not np.isfinite(margin):
        return np.nan
    above = _rank_tails(*_signed_ranks(values + margin))[1]
    below = _rank_tails(*_signed_ranks(values - margin))[0]
    return max(above, below)


def walsh_interval(values: Array, alpha: float) -> tuple[float, float, float]:
    """Hodges–Lehmann pseudo-median and its 1 − alpha interval by inverting the signed-rank test.

    The ends are infinite where so few values cannot give that coverage.
    """
    first, second = np.triu_indices(len(values))
    walsh = np.sort((values[first] + values[second]) / 2)
    if len(values) > EXACT_IMAGES:
        n = len(values)
        spread = np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        outside = int(np.floor(n * (n + 1) / 4 - stats.norm.isf(alpha / 2) * spread + 0.5))
    else:
        below = np.cumsum(_rank_distribution(np.arange(1, len(values) + 1)))
        outside = int(np.searchsorted(below, alpha / 2 * (1 + 1e-12), side="right"))
    if outside == 0:
        return float(np.median(walsh)), -np.inf, np.inf
    return float(np.median(walsh)), float(walsh[outside - 1]), float(walsh[-outside])


def signed_rank(deltas: Array, alpha: float, margin: float = np.inf) -> ClaimTest:
    """Claim 'these trained weights': Wilcoxon's signed-rank test over the images' means over seeds.

    Exact up to `EXACT_IMAGES` images, ties included. Arguments as in `paired_t`.
    """
    values = deltas.mean(axis=0)
    centre, low, high = walsh_interval(values, alpha)
    if np.ptp(values) <= ROUNDING and abs(centre) <= ROUNDING:
        return ClaimTest(0.0, 0.0, 0.0, 1.0, 0.0 if np.isfinite(margin) else np.nan)
    return ClaimTest(
        centre,
        low,
        high,
        _signed_rank_p(values),
        _signed_rank_equivalence(values, margin),
        smallest_p=2.0 ** (1 - len(values)),
    )


CLAIMS: dict[str, Callable[[Array, float, float], ClaimTest]] = {
    "same_images": paired_t,
    "new_images": quasi_f,
    "these_weights": signed_rank,
}


def correct(p_values: Sequence[float], method: str) -> Array:
    """Adjusted p values of a declared family; a comparison without a test counts as p = 1 and stays NaN.

    Args:
        p_values: one per declared comparison.
        method: `holm` or `none`.
    """
    p = np.asarray(p_values, float)
    if method == "none" or not len(p):
        return p
    adjusted = np.asarray(multipletests(np.where(np.isnan(p), 1.0, p), method=method)[1], float)
    return np.where(np.isnan(p), np.nan, adjusted)


def share_improved(deltas: Array) -> float:
    """Share of images whose mean difference over seeds is above zero."""
    return float(np.mean(deltas.mean(axis=0) > ROUNDING))


def rank_biserial(deltas: Array) -> float:
    """Matched-pairs rank-biserial correlation over images, −1 (all worse) to 1 (all better) (Kerby 2014)."""
    positive, ranks = _signed_ranks(deltas.mean(axis=0))
    total = ranks.sum()
    return float((2 * positive - total) / total) if total else 0.0


def bootstrap_interval(deltas: Array, alpha: float, seed: int, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile interval of the mean with seeds and images resampled; it describes and never decides.

    It rejects far too often at few seeds (protocols: 12 to 24% at a nominal 5% with three).
    """
    seeds, images = deltas.shape
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    columns = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    means = np.sum(rows @ deltas * columns, axis=1) / (seeds * images)
    low, high = np.quantile(means, (alpha / 2, 1 - alpha / 2))
    return float(low), float(high)


def mean_interval(values: Array, alpha: float) -> tuple[float, float, float]:
    """Mean and t interval of values, one per seed; the ends are NaN for a single one."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.isf(alpha / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class Ranking:
    """Friedman's test over datasets, and how far mean ranks must lie apart (Demšar 2006, Nemenyi)."""

    p: float
    mean_ranks: Array
    critical_difference: float


def rank_variants(scores: Array, alpha: float) -> Ranking:
    """Friedman's test of (datasets, variants) scores, higher is better; at least 2 datasets and 3 variants."""
    datasets, variants = scores.shape
    ranks = stats.rankdata(-scores, axis=1)
    quantile = stats.studentized_range.isf(alpha, variants, np.inf) / np.sqrt(2)
    difference = quantile * np.sqrt(variants * (variants + 1) / (6 * datasets))
    p = 1.0 if np.ptp(ranks) == 0 else float(stats.friedmanchisquare(*scores.T).pvalue)
    return Ranking(p, ranks.mean(axis=0), float(difference))
