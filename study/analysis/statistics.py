"""From a seeds × images table of paired differences to tests and intervals, one for each claim (float64).

A difference is metric(variant) − metric(reference) on the same image and seed index; higher is better throughout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

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
        direction: sign of what was tested: of the mean, or for `these_weights` of the ranks.
    """

    estimate: float
    low: float
    high: float
    p: float
    p_equivalent: float
    smallest_p: float = 0.0
    problem: str = ""
    direction: float = 0.0


def _untested(estimate: float, problem: str) -> ClaimTest:
    return ClaimTest(estimate, np.nan, np.nan, np.nan, np.nan, 1.0, problem, float(np.sign(estimate)))


@dataclass(frozen=True)
class ClaimTests:
    """The tests of many tables at once; arrays over the tables, fields as in `ClaimTest`."""

    estimate: Array
    low: Array
    high: Array
    p: Array
    p_equivalent: Array

    def single(self) -> ClaimTest:
        """The test of the only table."""
        parts = (self.estimate, self.low, self.high, self.p, self.p_equivalent)
        estimate, low, high, p, p_equivalent = (float(np.asarray(part).item()) for part in parts)
        return ClaimTest(estimate, low, high, p, p_equivalent, direction=float(np.sign(estimate)))


def _location_tests(mean: Array, error: Array, df: Array | float, alpha: float, margin: float) -> ClaimTests:
    """Two-sided t, its interval and TOST for means with errors; no p where a mean other than 0 has an error of 0."""
    same = error == 0
    equal = np.where(np.abs(mean) <= ROUNDING, 1.0, np.nan)
    scale = np.where(same, 1.0, error)
    half = stats.t.isf(alpha / 2, df) * error
    p = np.where(same, equal, 2 * stats.t.sf(np.abs(mean) / scale, df))
    p_equivalent = np.full(np.shape(mean), np.nan)
    if np.isfinite(margin):
        p_equivalent = np.where(same, equal - 1, stats.t.sf((margin - np.abs(mean)) / scale, df))
    return ClaimTests(mean, mean - half, mean + half, p, p_equivalent)


def seed_mean_tests(deltas: Array, alpha: float, margin: float = np.inf) -> ClaimTests:
    """Paired t on the seeds' means over images; at least two seeds, which differ.

    Args:
        deltas: (..., seeds, images).
        alpha: level of the test; the interval has coverage 1 − alpha.
        margin: equivalence margin in the metric's unit; infinite for none.
    """
    means = deltas.mean(axis=-1)
    seeds = means.shape[-1]
    error = means.std(axis=-1, ddof=1) / np.sqrt(seeds)
    error = np.where(np.ptp(means, axis=-1) <= ROUNDING, 0.0, error)
    return _location_tests(means.mean(axis=-1), error, seeds - 1, alpha, margin)


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
    if np.ptp(means) <= ROUNDING < abs(mean):
        return _untested(mean, "all seeds give the same difference, so they do not vary what they should")
    return seed_mean_tests(deltas, alpha, margin).single()


@dataclass(frozen=True)
class MeanSquares:
    """Mean squares of a two-way table without replication; arrays where many tables are treated at once."""

    seeds: Array
    images: Array
    residual: Array


def mean_squares(deltas: Array) -> MeanSquares:
    """Mean squares of (..., seeds, images) tables with at least two of each."""
    seeds, images = deltas.shape[-2:]
    grand = deltas.mean(axis=(-2, -1))
    rows = deltas.mean(axis=-1) - grand[..., None]
    columns = deltas.mean(axis=-2) - grand[..., None]
    residual = deltas - grand[..., None, None] - rows[..., :, None] - columns[..., None, :]
    return MeanSquares(
        images * np.sum(rows**2, axis=-1) / (seeds - 1),
        seeds * np.sum(columns**2, axis=-1) / (images - 1),
        np.sum(residual**2, axis=(-2, -1)) / ((seeds - 1) * (images - 1)),
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


def crossed_tests(deltas: Array, alpha: float, margin: float = np.inf) -> ClaimTests:
    """Quasi-F, as a t, of (..., seeds, images) tables with at least two of each. Arguments as in `seed_mean_tests`."""
    variance, df = crossed_variance(mean_squares(deltas), *deltas.shape[-2:])
    return _location_tests(deltas.mean(axis=(-2, -1)), np.sqrt(variance), df, alpha, margin)


def weaker_tests(deltas: Array, alpha: float, margin: float = np.inf) -> ClaimTests:
    """The larger p values of `seed_mean_tests` and `crossed_tests`, and the wider interval."""
    one, other = seed_mean_tests(deltas, alpha, margin), crossed_tests(deltas, alpha, margin)
    return ClaimTests(
        one.estimate,
        np.minimum(one.low, other.low),
        np.maximum(one.high, other.high),
        np.maximum(one.p, other.p),
        np.maximum(one.p_equivalent, other.p_equivalent),
    )


def quasi_f(deltas: Array, alpha: float, margin: float = np.inf) -> ClaimTest:
    """Claim 'retraining and new images': the weaker of the paired t and a quasi-F on the seed × image table.

    The p values are the larger ones of the two tests, the interval is the wider one. Arguments as in `paired_t`.
    """
    over_seeds = paired_t(deltas, alpha, margin)
    if over_seeds.problem:
        return over_seeds
    if deltas.shape[1] < 2:
        return _untested(over_seeds.estimate, "one image says nothing about new images")
    if np.ptp(deltas) <= ROUNDING:
        return over_seeds
    return weaker_tests(deltas, alpha, margin).single()


def _signed_ranks(values: Array) -> tuple[float, Array]:
    """Sum of the positive values' ranks, and all ranks; zeros dropped (Wilcoxon), ties at their mean rank."""
    values = values[np.abs(values) > ROUNDING]
    ranks = stats.rankdata(np.round(np.abs(values), 12))
    return float(ranks[values > 0].sum()), ranks


def _normal_tails(statistic: Array, centre: float, spread: float) -> tuple[Array, Array]:
    low = stats.norm.cdf((statistic + 0.5 - centre) / spread)
    return np.asarray(low), np.asarray(stats.norm.sf((statistic - 0.5 - centre) / spread))


def _tied_tails(values: Array) -> tuple[float, float]:
    """P(W <= w) and P(W >= w) under random signs of one row of values, zeros and ties included."""
    statistic, ranks = _signed_ranks(values)
    if len(ranks) > EXACT_IMAGES:
        low, high = _normal_tails(np.array(statistic), ranks.sum() / 2, float(np.sqrt(np.sum(ranks**2)) / 2))
        return float(low), float(high)
    mass = _rank_distribution(tuple(np.rint(2 * ranks).astype(int)))
    position = round(2 * statistic)
    return float(mass[: position + 1].sum()), float(mass[position:].sum())


@lru_cache(maxsize=64)
def _rank_distribution(steps: tuple[int, ...]) -> Array:
    """Probabilities of every subset sum of `steps`, each step taken with probability one half."""
    mass = np.zeros(sum(steps) + 1)
    mass[0] = 1.0
    reach = 0
    for step in steps:
        shifted = mass[: reach + 1] / 2
        mass[: reach + 1] = shifted
        mass[step : step + reach + 1] += shifted
        reach += step
    return mass


def signed_rank_tails(values: Array) -> tuple[Array, Array]:
    """P(W <= w) and P(W >= w) under random signs for every row of (rows, n) values.

    Exact up to `EXACT_IMAGES` values, ties and zeros included; beyond, the normal limit.
    """
    n = values.shape[1]
    ranks = stats.rankdata(np.round(np.abs(values), 12), axis=1)
    statistic = np.sum(ranks * (values > 0), axis=1)
    if n > EXACT_IMAGES:
        low, high = _normal_tails(statistic, n * (n + 1) / 4, np.sqrt(n * (n + 1) * (2 * n + 1) / 24))
    else:
        below = np.cumsum(_rank_distribution(tuple(range(1, n + 1))))
        position = np.floor(statistic).astype(int)
        low, high = below[position], below[n * (n + 1) // 2 - position]
    # A tie lowers the sum of the squared ranks.
    odd = (np.sum(ranks**2, axis=1) < n * (n + 1) * (2 * n + 1) / 6) | np.any(np.abs(values) <= ROUNDING, axis=1)
    for row in np.flatnonzero(odd):
        low[row], high[row] = _tied_tails(values[row])
    return low, high


def signed_rank_p(values: Array, margin: float = np.inf) -> tuple[Array, Array]:
    """Two-sided p of the signed-rank test for every row of (rows, n) values, and p of TOST against ±margin."""
    p = np.minimum(1.0, 2 * np.minimum(*signed_rank_tails(values)))
    if not np.isfinite(margin):
        return p, np.full(len(values), np.nan)
    return p, np.maximum(signed_rank_tails(values + margin)[1], signed_rank_tails(values - margin)[0])


def walsh_interval(values: Array, alpha: float) -> tuple[Array, Array, Array]:
    """Hodges–Lehmann pseudo-median and its 1 − alpha interval by inverting the signed-rank test.

    The ends are infinite where so few values cannot give that coverage.

    Args:
        values: (..., n).
        alpha: one minus the coverage.
    """
    n = values.shape[-1]
    first, second = np.triu_indices(n)
    walsh = np.sort((values[..., first] + values[..., second]) / 2, axis=-1)
    if n > EXACT_IMAGES:
        spread = np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        outside = int(np.floor(n * (n + 1) / 4 - stats.norm.isf(alpha / 2) * spread + 0.5))
    else:
        below = np.cumsum(_rank_distribution(tuple(range(1, n + 1))))
        outside = int(np.searchsorted(below, alpha / 2 * (1 + 1e-12), side="right"))
    centre = np.median(walsh, axis=-1)
    if outside == 0:
        return centre, np.full_like(centre, -np.inf), np.full_like(centre, np.inf)
    return centre, walsh[..., outside - 1], walsh[..., -outside]


def signed_rank(deltas: Array, alpha: float, margin: float = np.inf) -> ClaimTest:
    """Claim 'these trained weights': Wilcoxon's signed-rank test over the images' means over seeds.

    Exact up to `EXACT_IMAGES` images, ties included. Arguments as in `paired_t`.
    """
    values = deltas.mean(axis=0)
    centre, low, high = map(float, walsh_interval(values, alpha))
    p, p_equivalent = (float(part[0]) for part in signed_rank_p(values[None], margin))
    direction = float(np.sign(rank_biserial(deltas)))
    return ClaimTest(centre, low, high, p, p_equivalent, 2.0 ** (1 - len(values)), direction=direction)


CLAIMS: dict[str, Callable[[Array, float, float], ClaimTest]] = {
    "same_images": paired_t,
    "new_images": quasi_f,
    "these_weights": signed_rank,
}


def correct(p_values: Sequence[float] | Array, method: str) -> Array:
    """Adjusted p values of a declared family; a comparison without a test counts as p = 1 and stays NaN.

    statsmodels' `multipletests` gives the same for one family, after a garbage collection of the whole process.

    Args:
        p_values: (..., family), one per declared comparison.
        method: `holm` or `none`.
    """
    p = np.asarray(p_values, float)
    if method == "none" or not p.size:
        return p
    family = p.shape[-1]
    known = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(known, axis=-1)
    stepped = np.take_along_axis(known, order, axis=-1) * np.arange(family, 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1.0, np.maximum.accumulate(stepped, axis=-1)), axis=-1)
    return np.where(np.isnan(p), np.nan, adjusted)


def share_improved(deltas: Array) -> float:
    """Share of images whose mean difference over seeds is above zero."""
    return float(np.mean(deltas.mean(axis=0) > ROUNDING))


def rank_biserial(deltas: Array) -> float:
    """Matched-pairs rank-biserial correlation over images, −1 (all worse) to 1 (all better) (Kerby 2014)."""
    positive, ranks = _signed_ranks(deltas.mean(axis=0))
    total = ranks.sum()
    return float((2 * positive - total) / total) if total else 0.0


@lru_cache(maxsize=4)
def resample_counts(seeds: int, images: int, seed: int, resamples: int) -> tuple[Array, Array]:
    """How often each resample has each seed, (resamples, seeds), and each image, (resamples, images): multinomial."""
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    columns = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    return rows.astype(float), columns.astype(float)


def bootstrap_interval(deltas: Array, alpha: float, seed: int, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile interval of the mean with seeds and images resampled; it describes and never decides.

    It rejects far too often at few seeds (docs/calibration.md).
    """
    rows, columns = resample_counts(*deltas.shape, seed, resamples)
    means = np.sum(columns @ deltas.T * rows, axis=1) / deltas.size
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
