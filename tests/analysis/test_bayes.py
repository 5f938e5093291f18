import math

import numpy as np
import pytest

from study.analysis.bayes import PRIOR_STRENGTH, bayes_table, signed_rank_posterior
from study.analysis.comparisons import compare_declared
from tests.analysis.synthetic import GRID, arrange, draw_study

ERROR = 0.02  # four standard errors of a probability of one half from 10,000 draws


def naive(values, margin, strength, draws, seed):
    """The definition: every pair of values, one draw after the other."""
    rng = np.random.default_rng(seed)
    places = np.append(values, 0.0)
    sums = np.add.outer(places, places)
    wins = np.zeros(3)
    for _ in range(draws):
        weights = rng.dirichlet([*np.ones(len(values)), strength])
        pairs = np.outer(weights, weights)
        worse, better = pairs[sums < -2 * margin].sum(), pairs[sums > 2 * margin].sum()
        wins[np.argmax([worse, 1 - worse - better, better])] += 1
    return wins / draws


def test_one_image_has_closed_forms():
    # Weights w and 1 − w of the pseudo-observation and the image, w ~ Beta(strength, 1). Beyond twice the margin all
    # pairs with the image are better, 1 − w²; between the two only the image with itself, (1 − w)².
    half = math.sqrt(0.5)
    for strength in (0.5, 1.0, 3.0):
        far = signed_rank_posterior(np.array([0.1]), 0.02, strength=strength)
        assert far.better == pytest.approx(half**strength, abs=ERROR)
        assert far.equivalent == pytest.approx(1 - half**strength, abs=ERROR)
        near = signed_rank_posterior(np.array([-0.03]), 0.02, strength=strength)
        assert near.worse == pytest.approx((1 - half) ** strength, abs=ERROR)
        assert near.better == 0


def test_it_is_what_pairwise_counting_gives():
    values = np.array([-0.2, -0.12, -0.05, 0.0, 0.01, 0.03, 0.06, 0.14, 0.22])
    expected = naive(values, 0.03, PRIOR_STRENGTH, 4000, 3)
    assert signed_rank_posterior(values, 0.03) == pytest.approx(expected, abs=0.04)
    assert min(expected) > 0.05


def test_signs_mirror():
    values = np.random.default_rng(2).normal(0.02, 0.05, 14)
    one, other = signed_rank_posterior(values, 0.02), signed_rank_posterior(-values, 0.02, seed=5)
    assert (one.worse, one.equivalent, one.better) == pytest.approx(other[::-1], abs=ERROR)
    even = signed_rank_posterior(np.array([-0.3, 0.3, -0.1, 0.1, -0.2, 0.2]), 0.02)
    assert even.worse == pytest.approx(even.better, abs=2 * ERROR)


def test_limits():
    assert signed_rank_posterior(np.array([0.019, -0.02, 0.02, 0.0]), 0.02) == (0, 1, 0)
    assert signed_rank_posterior(np.full(100, 0.5), 0.02) == (0, 0, 1)
    assert signed_rank_posterior(np.full(100, -0.5), 0.02) == (1, 0, 0)
    assert signed_rank_posterior(np.full(5, 0.5), 0.02, strength=1e4).equivalent == 1


def test_it_is_seeded_and_adds_up():
    values = np.random.default_rng(3).normal(0.02, 0.05, 30)
    assert signed_rank_posterior(values, 0.02) == signed_rank_posterior(values, 0.02)
    assert signed_rank_posterior(values, 0.02) != signed_rank_posterior(values, 0.02, seed=1)
    assert sum(signed_rank_posterior(values, 0.02)) == pytest.approx(1)


def test_the_table_names_what_is_likely(tmp_path):
    study = draw_study(tmp_path, GRID, effects={"soft, count=16": 0.3, "soft, count=32": -0.3})
    table = bayes_table(compare_declared(arrange(study)))
    likely = {row[0].value: row[-1].value for row in table.entries()}
    assert likely["soft, count=16 vs hard, count=16"] == "weights better"
    assert likely["soft, count=32 vs soft, count=16"] == "weights worse"
    assert "0.02 dB" in table.caption
    assert "retraining is left out" in table.caption


def test_without_a_margin_or_values_there_is_no_row(tmp_path):
    text = GRID.replace("analysis:\n", "analysis:\n  metric: ssim\n")
    assert bayes_table(compare_declared(arrange(draw_study(tmp_path, text)))).rows == ()
    assert bayes_table([]).rows == ()
