"""What a design could have found: the smallest detectable effect, and the seeds that equivalence would need."""

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from study.analysis.statistics import Array, mean_squares

SEEDS_LIMIT = 10_000  # a design that needs more is out of reach
RANK_EFFICIENCY = 3 / np.pi  # of the signed-rank test against t, for normal differences
_CHI2_GRID = (np.arange(512) + 0.5) / 512  # midpoints: power to four digits


def t_power(effect: float, n: int, alpha: float) -> float:
    """Power of the two-sided paired t test for an effect in standard deviations of the differences."""
    df = n - 1
    critical = stats.t.isf(alpha / 2, df)
    shift = effect * np.sqrt(n)
    # For a shift far beyond the critical value the noncentral t's lower tail is zero and its routine returns NaN.
    lower = np.nan_to_num(stats.nct.cdf(-critical, df, shift))
    return float(stats.nct.sf(critical, df, shift) + lower)


def detectable_effect(sd: float, n: int, alpha: float, power: float) -> float:
    """Smallest mean difference that the paired t test over `n` seeds finds with the wanted power.

    Args:
        sd: standard deviation over seeds of the difference.
        n: seeds.
        alpha: two-sided level.
        power: wanted probability of finding it.

    Returns:
        In the unit of `sd`; NaN for fewer than two seeds.
    """
    if n < 2 or not np.isfinite(sd):
        return np.nan
    if sd == 0:
        return 0.0
    upper = 4 * stats.t.isf(alpha / 2, n - 1) / np.sqrt(n) + 4
    return sd * float(brentq(lambda effect: t_power(effect, n, alpha) - power, 0.0, upper))  # type: ignore[arg-type]


def equivalence_power(margin: float, error: float, df: float, alpha: float) -> float:
    """Probability that TOST confirms equivalence where the true difference is zero.

    Args:
        margin: half-width of the zone of equivalence.
        error: true standard error of the mean difference, whose estimate has `df` degrees of freedom.
        df: degrees of freedom.
        alpha: level of each one-sided test.
    """
    if error == 0:
        return 1.0
    estimated = np.sqrt(stats.chi2.ppf(_CHI2_GRID, df) / df)
    room = margin / error - stats.t.isf(alpha, df) * estimated
    return float(np.mean(np.maximum(0.0, 2 * stats.norm.cdf(room) - 1)))


def needed_for_equivalence(deltas: Array, claim: str, margin: float, alpha: float, power: float) -> float:
    """How many seeds (for `these_weights`: images) TOST would need to confirm a true difference of zero.

    Spreads are those of the (seeds, images) table `deltas`. More seeds do not shrink what new images add, so for
    `new_images` the answer may be infinite. NaN where the table is too small to know its spreads.
    """
    seeds, images = deltas.shape
    per_seed, floor, floor_df = np.nan, 0.0, np.inf
    if claim == "these_weights":
        per_seed = np.var(deltas.mean(axis=0), ddof=1) / RANK_EFFICIENCY if images > 1 else np.nan
    elif seeds > 1:
        per_seed = float(np.var(deltas.mean(axis=1), ddof=1))
        if claim == "new_images" and images > 1:
            squares = mean_squares(deltas)
            floor = max(0.0, float(squares.images) - float(squares.residual)) / (seeds * images)
            floor_df = images - 1
    return _smallest_count(float(per_seed), floor, floor_df, margin, alpha, power)


def _smallest_count(per_seed: float, floor: float, floor_df: float, margin: float, alpha: float, power: float) -> float:
    if not np.isfinite(per_seed):
        return np.nan

    def reached(n: int) -> bool:
        variance = per_seed / n + floor
        if variance == 0:
            return True
        df = variance**2 / ((per_seed / n) ** 2 / (n - 1) + floor**2 / floor_df)
        return equivalence_power(margin, float(np.sqrt(variance)), df, alpha) >= power

    high = 2
    while not reached(high):
        high *= 2
        if high > SEEDS_LIMIT:
            return np.inf
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return float(high)
