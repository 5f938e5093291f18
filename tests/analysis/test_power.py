import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from study.analysis.power import (
    detectable_difference,
    detectable_effect,
    equivalence_power,
    location_power,
    measure_spread,
    needed_for_difference,
    needed_for_equivalence,
)


@pytest.mark.parametrize("n", [3, 5, 10, 40])
def test_power_is_statsmodels(n):
    assert location_power(0.8, 1 / np.sqrt(n), n - 1, 0.05) == pytest.approx(TTestPower().power(0.8, n, 0.05), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 100])
def test_detectable_effect_has_the_wanted_power(n):
    effect = detectable_effect(0.03, n, 0.05, 0.8)
    assert location_power(effect / 0.03, 1 / np.sqrt(n), n - 1, 0.05) == pytest.approx(0.8, abs=1e-6)


def test_detectable_effect_at_the_edges():
    assert math.isnan(detectable_effect(0.03, 1, 0.05, 0.8))
    assert math.isnan(detectable_effect(math.nan, 3, 0.05, 0.8))
    assert detectable_effect(0.0, 3, 0.05, 0.8) == 0


def test_equivalence_power_by_simulation():
    rng = np.random.default_rng(0)
    n, sd, margin = 12, 0.03, 0.02
    draws = rng.normal(0, sd, (20_000, n))
    error = draws.std(axis=1, ddof=1) / math.sqrt(n)
    accepted = np.abs(draws.mean(axis=1)) + stats.t.isf(0.05, n - 1) * error < margin
    assert equivalence_power(margin, sd / math.sqrt(n), n - 1, 0.05) == pytest.approx(accepted.mean(), abs=0.01)


def scaled(rows, sd):
    means = np.linspace(-1, 1, rows)
    return means / means.std(ddof=1) * sd


def test_the_example_of_the_protocols():
    # 0.02 dB at 0.03 dB seed noise in either arm: about 40 seeds.
    deltas = np.tile(scaled(5, 0.03 * math.sqrt(2))[:, None], (1, 10))
    assert needed_for_equivalence(deltas, "same_images", 0.02, 0.05, 0.8) == pytest.approx(40, abs=1)


def test_new_images_may_need_more_than_any_number_of_seeds():
    rng = np.random.default_rng(1)
    deltas = scaled(5, 0.02)[:, None] + rng.normal(0, 0.1, 6) + rng.normal(0, 0.01, (5, 6))
    assert needed_for_equivalence(deltas, "new_images", 0.02, 0.05, 0.8) == math.inf
    assert np.isfinite(needed_for_equivalence(deltas, "same_images", 0.02, 0.05, 0.8))


def test_these_weights_count_images():
    values = scaled(10, 0.05)[None]
    expected = needed_for_equivalence(values.T, "same_images", 0.02, 0.05, 0.8)
    found = needed_for_equivalence(values, "these_weights", 0.02, 0.05, 0.8)
    assert found == pytest.approx(expected * math.pi / 3, abs=2)


def test_unknown_spread():
    assert math.isnan(needed_for_equivalence(np.ones((1, 5)), "same_images", 0.02, 0.05, 0.8))
    assert math.isnan(needed_for_equivalence(np.ones((5, 1)), "these_weights", 0.02, 0.05, 0.8))


def test_the_weaker_of_the_two_tests_on_new_images_decides_what_is_detectable():
    rng = np.random.default_rng(2)
    deltas = scaled(3, 0.03)[:, None] + rng.normal(0, 0.2, 100) + rng.normal(0, 0.01, (3, 100))
    spread = measure_spread(deltas, "new_images")
    alone = detectable_effect(math.sqrt(spread.per_unit), 3, 0.05, 0.8)
    assert spread.floor > 0
    assert detectable_difference(spread, 3, 0.05, 0.8) == pytest.approx(alone)
    error, df = spread.error(3)
    assert location_power(alone, error, df, 0.05) > 0.8  # of the quasi-F, which is the stronger here
    assert needed_for_difference(spread, alone, 0.05, 0.8) == 3


@pytest.mark.parametrize("level", [0.05, 0.05 / 3])
def test_ranks_need_images_enough_for_a_small_p_whatever_the_values(level):
    quiet = np.random.default_rng(3).normal(0.0, 1e-6, (1, 12))
    assert needed_for_difference(measure_spread(quiet, "these_weights"), 0.5, level, 0.8) == math.ceil(
        1 - math.log2(level)
    )
    assert needed_for_equivalence(quiet, "these_weights", 0.5, level, 0.8) == math.ceil(-math.log2(level))
    assert math.isnan(detectable_difference(measure_spread(quiet[:, :5], "these_weights"), 5, level, 0.8))
