import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from study.analysis.statistics import (
    EXACT_IMAGES,
    MeanSquares,
    bootstrap_interval,
    correct,
    crossed_variance,
    mean_interval,
    mean_squares,
    paired_t,
    quasi_f,
    rank_biserial,
    rank_variants,
    share_improved,
    signed_rank,
    walsh_interval,
)


def table(seeds=5, images=14, mean=0.05, seed=0, seed_sd=0.03, image_sd=0.05, noise_sd=0.05):
    rng = np.random.default_rng(seed)
    rows, columns = rng.normal(0, seed_sd, (seeds, 1)), rng.normal(0, image_sd, images)
    return mean + rows + columns + rng.normal(0, noise_sd, (seeds, images))


def test_paired_t_is_scipys_on_seed_means():
    deltas = table()
    expected: Any = stats.ttest_1samp(deltas.mean(axis=1), 0)
    found = paired_t(deltas, 0.05, 0.02)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-12)
    means = deltas.mean(axis=1)
    above: Any = stats.ttest_1samp(means, -0.02, alternative="greater")
    below: Any = stats.ttest_1samp(means, 0.02, alternative="less")
    assert found.p_equivalent == pytest.approx(max(above.pvalue, below.pvalue), rel=1e-12)


def test_equivalence_agrees_with_the_90_percent_interval():
    for seed in range(40):
        deltas = table(seeds=4, mean=0.0, seed=seed, seed_sd=0.01, image_sd=0, noise_sd=0.01)
        interval = stats.ttest_1samp(deltas.mean(axis=1), 0).confidence_interval(0.9)
        inside = interval.low > -0.02 and interval.high < 0.02
        assert (paired_t(deltas, 0.05, 0.02).p_equivalent < 0.05) == inside


def test_one_seed_says_nothing_about_retraining():
    for test in (paired_t, quasi_f):
        found = test(table(seeds=1), 0.05, 0.02)
        assert math.isnan(found.p)
        assert "one seed" in found.problem
        assert found.smallest_p == 1


def test_one_image_says_nothing_about_new_images():
    assert "one image" in quasi_f(table(images=1), 0.05).problem
    assert paired_t(table(images=1), 0.05).problem == ""


def test_two_equal_networks_are_equivalent_and_not_different():
    for test in (paired_t, quasi_f, signed_rank):
        found = test(np.zeros((3, 7)), 0.05, 0.02)
        least = 2**-7 if test is signed_rank else 0  # seven images allow no smaller one, whatever their values
        assert (found.p, found.p_equivalent, found.low, found.high) == (1, least, 0, 0)
        assert math.isnan(test(np.zeros((3, 7)), 0.05, np.inf).p_equivalent)


def test_a_difference_that_no_seed_changes_is_not_tested():
    found = paired_t(np.full((3, 4), 0.1), 0.05)
    assert "do not vary" in found.problem
    assert math.isnan(found.p)


def test_mean_squares_by_hand():
    squares = mean_squares(np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 4.0]]))
    # row means 3, 3; column means 2, 2, 5; grand mean 3; residuals ±1, 0, ±1
    assert [float(part) for part in (squares.seeds, squares.images, squares.residual)] == pytest.approx([0, 6, 2])


def test_mean_squares_add_up_to_the_total():
    deltas = table(4, 6)
    squares = mean_squares(deltas)
    total = 3 * squares.seeds + 5 * squares.images + 15 * squares.residual
    assert total == pytest.approx(np.sum((deltas - deltas.mean()) ** 2))


def test_expected_variance_of_the_grand_mean():
    tables = [table(4, 6, seed=seed, mean=0) for seed in range(4000)]
    estimated = np.mean([(s.seeds + s.images - s.residual) / 24 for s in map(mean_squares, tables)])
    true = 0.03**2 / 4 + 0.05**2 / 6 + 0.05**2 / 24
    assert estimated == pytest.approx(true, rel=0.05)
    assert np.var([t.mean() for t in tables]) == pytest.approx(true, rel=0.08)


def test_negative_components_fall_back_to_one_mean_square():
    variance, df = crossed_variance(MeanSquares(*np.array([8.0, 1.0, 2.0])), 5, 10)
    assert (variance, df) == (8.0 / 50, 4)
    variance, df = crossed_variance(MeanSquares(*np.array([1.0, 8.0, 2.0])), 5, 10)
    assert (variance, df) == (8.0 / 50, 9)
    variance, df = crossed_variance(MeanSquares(*np.array([4.0, 3.0, 2.0])), 5, 10)
    assert variance == pytest.approx(5.0 / 50)
    assert df == pytest.approx(25 / (16 / 4 + 9 / 9 + 4 / 36))


def test_quasi_f_is_never_stronger_than_paired_t():
    for seed in range(60):
        deltas = table(seed=seed, images=5)
        one, both = paired_t(deltas, 0.05, 0.02), quasi_f(deltas, 0.05, 0.02)
        assert both.p >= one.p
        assert both.p_equivalent >= one.p_equivalent
        assert both.high - both.low >= one.high - one.low - 1e-12


@pytest.mark.parametrize("images", [6, 14, 40])
def test_signed_rank_is_scipys_exact_test(images):
    deltas = table(seeds=2, images=images, mean=0.02)
    expected: Any = stats.wilcoxon(deltas.mean(axis=0), method="exact")
    assert signed_rank(deltas, 0.05).p == pytest.approx(expected.pvalue, rel=1e-9)


def test_signed_rank_with_ties_and_zeros_by_enumeration():
    values = np.array([0.1, 0.1, -0.1, 0.3, 0.0, 0.2, -0.4])
    kept = values[values != 0]
    ranks = stats.rankdata(np.abs(kept))
    observed = ranks[kept > 0].sum()
    signs = np.array(np.meshgrid(*[[0, 1]] * len(kept))).reshape(len(kept), -1)
    sums = ranks @ signs
    expected = min(1, 2 * min(np.mean(sums <= observed), np.mean(sums >= observed)))
    assert signed_rank(values[None], 0.05).p == pytest.approx(expected)


def test_signed_rank_normal_limit_meets_the_exact_one(monkeypatch):
    deltas = table(seeds=1, images=120, mean=0.012)
    exact = signed_rank(deltas, 0.05)
    monkeypatch.setattr("study.analysis.statistics.EXACT_IMAGES", 10)
    limit = signed_rank(deltas, 0.05)
    assert EXACT_IMAGES >= 120
    assert limit.p == pytest.approx(exact.p, rel=0.03)
    assert (limit.low, limit.high) == pytest.approx((exact.low, exact.high), abs=2e-4)


def test_five_images_cannot_reach_five_percent():
    found = signed_rank(np.abs(table(seeds=3, images=5)), 0.05)
    assert found.smallest_p == 0.0625 == found.p
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert signed_rank(table(images=6), 0.05).smallest_p == 0.03125


def test_walsh_interval_of_a_known_table():
    # n = 6: P(W <= 0) = 1/64 < 0.025 < P(W <= 1), so the interval is the range of the Walsh averages.
    centre, low, high = walsh_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 0.05)
    assert (centre, low, high) == (3.5, 1.0, 6.0)
    # n = 10: the tabled critical value at 0.05 two-sided is 8, so 8 averages lie outside on each side, plus one.
    values = np.arange(10.0) ** 2
    pairs = np.sort([(a + b) / 2 for i, a in enumerate(values) for b in values[i:]])
    assert walsh_interval(values, 0.05)[1:] == (pairs[8], pairs[-9])


@given(st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=14, unique=True), st.floats(-0.3, 0.3))
def test_walsh_interval_excludes_zero_exactly_when_the_test_rejects(values, shift):
    values = np.array(values) + shift
    _, low, high = walsh_interval(values, 0.05)
    magnitudes = np.abs(values)
    # Ties and zeros: the interval inverts the test without them.
    assume(min(abs(low), abs(high), min(np.diff(np.sort(magnitudes))), min(magnitudes)) > 1e-6)
    assert (signed_rank(values[None], 0.05).p <= 0.05) == (low > 0 or high < 0)


def test_holm_counts_missing_comparisons():
    p = [0.01, math.nan, 0.03]
    found = correct(p, "holm")
    assert found[0] == pytest.approx(0.03)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(0.06)
    assert list(correct([0.01, 0.04], "none")) == [0.01, 0.04]
    assert correct([], "holm").shape == (0,)


def test_holm_is_statsmodels():
    families = np.random.default_rng(0).uniform(0, 0.2, (5, 8))
    families[0, :4] = 0.01  # ties
    expected = [multipletests(family, method="holm")[1] for family in families]
    assert correct(families, "holm") == pytest.approx(np.array(expected), rel=1e-12)


def test_effect_sizes_by_hand():
    deltas = np.array([[0.1, 0.2, -0.3, 0.0]])
    assert share_improved(deltas) == 0.5
    assert rank_biserial(deltas) == pytest.approx((1 + 2 - 3) / 6)
    assert rank_biserial(np.array([[1.0, 2.0]])) == 1
    assert rank_biserial(np.zeros((2, 3))) == 0


def test_bootstrap_is_seeded_and_matches_plain_resampling():
    deltas = table(4, 6)
    low, high = bootstrap_interval(deltas, 0.05, 3)
    assert (low, high) == bootstrap_interval(deltas, 0.05, 3)
    assert (low, high) != bootstrap_interval(deltas, 0.05, 4)
    rng = np.random.default_rng(0)
    means = [deltas[np.ix_(rng.integers(0, 4, 4), rng.integers(0, 6, 6))].mean() for _ in range(10_000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.003)


def test_mean_interval_of_one_value_has_no_ends():
    mean, low, high = mean_interval(np.array([1.0]), 0.05)
    assert mean == 1
    assert math.isnan(low)
    assert math.isnan(high)
    expected = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval()
    assert mean_interval(np.array([1.0, 2.0, 4.0]), 0.05)[1:] == pytest.approx(tuple(expected))


def test_friedman_and_the_critical_difference():
    scores = np.array([[27.0, 28.0, 29.0], [30.0, 31.0, 32.0], [25.0, 26.0, 27.0], [21.0, 23.0, 22.0]])
    ranking = rank_variants(scores, 0.05)
    assert ranking.p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    assert list(ranking.mean_ranks) == [3, 1.75, 1.25]
    # Demšar (2006), table 5: q at 0.05 for three classifiers is 2.343.
    assert ranking.critical_difference == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 4)), rel=1e-3)
    assert rank_variants(np.ones((2, 3)), 0.05).p == 1


def test_the_direction_of_ranks_is_not_turned_by_an_outlier():
    deltas = np.array([[*np.linspace(0.03, 0.048, 19), -1.5]])
    found = signed_rank(deltas, 0.05)
    assert deltas.mean() < 0
    assert found.direction == 1
    assert found.estimate > 0
    assert paired_t(np.array([[0.1], [0.2], [-0.9]]), 0.05).direction == -1


def test_one_image_that_is_equal_shows_no_equivalence():
    found = signed_rank(np.zeros((1, 1)), 0.05, 0.02)
    assert (found.p, found.p_equivalent, found.smallest_p) == (1, 0.5, 1)
    assert (found.low, found.high) == (-math.inf, math.inf)
