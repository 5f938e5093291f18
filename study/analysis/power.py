"""What a design could have found: the smallest detectable effect, and the seeds that a finding would need.

A unit is what a claim's design gets more of: a seed, or for `these_weights` an image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from study.analysis.statistics import Array, mean_squares

SEEDS_LIMIT = 10_000  # a design that needs more is out of reach
RANK_EFFICIENCY = 3 / np.pi  # of the signed-rank test against t, for normal differences
_CHI2_GRID = (np.arange(512) + 0.5) / 512  # midpoints: power to four digits


@dataclass(frozen=True)
class Spread:
    """Variance of a mean difference as a function of the units that it is over.

    Attributes:
        per_unit: the part that falls with their number; NaN where the table is too small to know it.
        floor: the part that does not fall.
        floor_df: degrees of freedom of the floor's estimate.
        ranks: whether the test is the signed-rank one, which of few units cannot reject whatever their values.
    """

    per_unit: float
    floor: float = 0.0
    floor_df: float = np.inf
    ranks: bool = False

    def tests(self) -> tuple["Spread", ...]:
        """The spreads as the claim's tests see them: with a floor there are two, of which the weaker decides."""
        return (self, replace(self, floor=0.0)) if self.floor else (self,)

    def least(self, smallest_p: float) -> int:
        """Fewest units with which the test can reject: 2, or as ranks need where n units allow 2^-n and no less."""
        return max(2, math.ceil(-math.log2(smallest_p))) if self.ranks else 2

    def error(self, n: int) -> tuple[float, float]:
        """Standard error over `n` units, and its degrees of freedom (Satterthwaite)."""
        variance = self.per_unit / n + self.floor
        if variance == 0:
            return 0.0, n - 1.0
        df = variance**2 / ((self.per_unit / n) ** 2 / (n - 1) + self.floor**2 / self.floor_df)
        return float(np.sqrt(variance)), float(df)


def measure_spread(deltas: Array, claim: str) -> Spread:
    """The spread of a (seeds, images) table under a claim.

    More seeds do not shrink what new images add, so under `new_images` there is a floor. A signed-rank test over n
    images is taken as a t over n × `RANK_EFFICIENCY`.
    """
    seeds, images = deltas.shape
    if claim == "these_weights":
        per_image = float(np.var(deltas.mean(axis=0), ddof=1) / RANK_EFFICIENCY) if images > 1 else np.nan
        return Spread(per_image, ranks=True)
    if seeds < 2:
        return Spread(np.nan)
    per_seed = float(np.var(deltas.mean(axis=1), ddof=1))
    if claim == "same_images" or images < 2:
        return Spread(per_seed)
    squares = mean_squares(deltas)
    return Spread(per_seed, max(0.0, float(squares.images - squares.residual)) / (seeds * images), images - 1)


def location_power(effect: float, error: float, df: float, alpha: float) -> float:
    """Power of a two-sided t test for a mean of `effect` whose estimate has this true standard error."""
    if error == 0:
        return float(effect != 0)
    critical = stats.t.isf(alpha / 2, df)
    # For a shift far beyond the critical value the noncentral t's lower tail is zero and its routine returns NaN.
    lower = np.nan_to_num(stats.nct.cdf(-critical, df, effect / error))
    return float(np.nan_to_num(stats.nct.sf(critical, df, effect / error), nan=1.0) + lower)


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
    return detectable_difference(Spread(sd**2), n, alpha, power)


def detectable_difference(spread: Spread, n: int, alpha: float, power: float) -> float:
    """Smallest mean difference that `n` units find with the wanted power; NaN for too few to find any."""
    if n < spread.least(alpha / 2) or not np.isfinite(spread.per_unit):
        return np.nan
    return max(_detectable(*test.error(n), alpha, power) for test in spread.tests())


def _detectable(error: float, df: float, alpha: float, power: float) -> float:
    if error == 0:
        return 0.0
    upper = 4 * stats.t.isf(alpha / 2, df) + 4
    return error * float(brentq(lambda shift: location_power(shift, 1.0, df, alpha) - power, 0.0, upper))  # type: ignore[arg-type]


def needed_for_difference(spread: Spread, effect: float, alpha: float, power: float) -> float:
    """Units with which a mean difference of `effect` is found with the wanted power.

    At least 2; infinite where none suffice, or more than `SEEDS_LIMIT`; NaN where the spread is not known.
    """
    return _smallest_count(
        spread, spread.least(alpha / 2), lambda error, df: location_power(effect, error, df, alpha) >= power
    )


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

    Spreads are those of the (seeds, images) table `deltas`; the answer may be infinite, as in `measure_spread`. NaN
    where the table is too small to know its spreads.
    """
    spread = measure_spread(deltas, claim)
    return _smallest_count(
        spread, spread.least(alpha), lambda error, df: equivalence_power(margin, error, df, alpha) >= power
    )


def _smallest_count(spread: Spread, least: int, reached: Callable[[float, float], bool]) -> float:
    """Fewest units, from `least` on, whose standard error and degrees of freedom suffice for every test."""
    if not np.isfinite(spread.per_unit):
        return np.nan

    def suffices(n: int) -> bool:
        return all(reached(*test.error(n)) for test in spread.tests())

    low, high = least - 1, least
    while not suffices(high):
        low, high = high, 2 * high
        if high > SEEDS_LIMIT:
            return np.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return float(high)
