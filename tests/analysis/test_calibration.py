"""The procedures, tested by simulation under the model of protocols: seed effect, persistent image effect, noise."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from study import StudyError
from study.analysis import calibration
from study.analysis.calibration import Design, calibration_tables, mixed_model, simulate, variance_components
from study.analysis.comparisons import TEST_NAMES
from study.analysis.statistics import (
    MeanSquares,
    bootstrap_interval,
    crossed_variance,
    mean_squares,
    paired_t,
    quasi_f,
    signed_rank,
)

SEED_DB, NOISE_DB = 0.03, 0.05
GRIDS = 200_000  # error of a rate: 0.0005, small against the distance to the bounds
DESIGNS = [(seeds, images) for seeds in (3, 5, 10) for images in (5, 14, 100)]


def draw(seeds, images, image_db, grids, rng, mean=0.0):
    """Grand means and mean squares of many tables, from their sampling distributions (normal and chi squared)."""
    s = (NOISE_DB**2 + images * SEED_DB**2) * rng.chisquare(seeds - 1, grids) / (seeds - 1)
    i = (NOISE_DB**2 + seeds * image_db**2) * rng.chisquare(images - 1, grids) / (images - 1)
    df = (seeds - 1) * (images - 1)
    e = NOISE_DB**2 * rng.chisquare(df, grids) / df
    spread = np.sqrt(SEED_DB**2 / seeds + image_db**2 / images + NOISE_DB**2 / (seeds * images))
    return mean + rng.normal(0, spread, grids), MeanSquares(s, i, e)


def half_widths(squares, seeds, images, alpha=0.05):
    variance, df = crossed_variance(squares, seeds, images)
    crossed = stats.t.isf(alpha / 2, df) * np.sqrt(variance)
    over_seeds = stats.t.isf(alpha / 2, seeds - 1) * np.sqrt(np.asarray(squares.seeds) / (seeds * images))
    return over_seeds, np.maximum(over_seeds, crossed)


@pytest.mark.parametrize("image_db", [0, 0.02, 0.05, 0.1])
@pytest.mark.parametrize(("seeds", "images"), DESIGNS)
def test_new_images_rejects_at_most_six_percent(seeds, images, image_db):
    means, squares = draw(seeds, images, image_db, GRIDS, np.random.default_rng(seeds * images))
    _, half = half_widths(squares, seeds, images)
    assert np.mean(np.abs(means) > half) <= 0.06  # so the intervals, which invert the test, cover at least 94%


@pytest.mark.parametrize(("seeds", "images"), DESIGNS)
def test_same_images_rejects_between_four_and_six_percent(seeds, images):
    # On these images their persistent effects are part of what is estimated: none is left to vary.
    means, squares = draw(seeds, images, 0.0, GRIDS, np.random.default_rng(seeds + images))
    half, _ = half_widths(squares, seeds, images)
    assert 0.04 <= np.mean(np.abs(means) > half) <= 0.06


def test_the_closed_form_is_what_the_functions_do():
    rng = np.random.default_rng(5)
    rejected = np.zeros(4)
    for _ in range(1500):
        own = rng.normal(0, 0.05, 14)
        rest = rng.normal(0, SEED_DB, (5, 1)) + rng.normal(0, NOISE_DB, (5, 14))
        tests = (
            quasi_f(rest + own, 0.05),
            paired_t(rest + own - own.mean(), 0.05),  # no effect on these images
            signed_rank(rng.normal(0, NOISE_DB, (1, 14)), 0.05),
            paired_t(rest + own, 0.05),  # no effect on all images, wrongly asked of these
        )
        rejected += [test.p <= 0.05 for test in tests]
    crossed, fixed, ranks, misread = rejected / 1500
    assert 0.03 <= crossed <= 0.07
    assert 0.03 <= fixed <= 0.07
    assert 0.03 <= ranks <= 0.07
    assert misread > 0.08


def test_power_of_a_real_effect_grows_with_the_seeds():
    powers = []
    for seeds in (3, 5, 10):
        means, squares = draw(seeds, 14, 0.02, GRIDS, np.random.default_rng(seeds), mean=0.05)
        powers.append(np.mean(np.abs(means) > half_widths(squares, seeds, 14)[1]))
    assert powers == sorted(powers)
    assert powers[0] < 0.6 < 0.95 < powers[2]


def test_the_bootstrap_would_reject_too_often():
    rng = np.random.default_rng(2)
    outside = 0
    for _ in range(200):
        deltas = rng.normal(0, SEED_DB, (3, 1)) + rng.normal(0, NOISE_DB, (3, 14))
        low, high = bootstrap_interval(deltas, 0.05, 0, resamples=1000)
        outside += low > 0 or high < 0
    assert outside / 200 > 0.1  # hence it describes and never decides


NOISE_FLOOR = calibration.NOISE_FLOOR
COMMITTED = NOISE_FLOOR.parent / "calibration"


def committed():
    return pd.read_parquet(COMMITTED / "calibration.parquet")


def used(rows, what, claim):
    return rows.query("what == @what and claim == @claim and method == @TEST_NAMES[@claim]")


def rates(design, components):
    rows = simulate(design, components, 4000)
    keys = zip(rows["what"], rows["claim"], rows["method"], strict=True)
    return dict(zip(keys, (rows["hits"] / rows["grids"]).to_numpy(), strict=True))


def test_components_are_what_was_drawn():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 3.0, 400) + rng.normal(0, 0.2, (200, 1)) + rng.normal(0, 0.1, (200, 400))
    seed, image = np.indices(values.shape)
    frame = pd.DataFrame({"seed": seed.ravel(), "image": image.ravel(), "psnr": values.ravel()})
    found = variance_components(frame)
    # A difference of two runs has twice the variance of one.
    assert found.seed_db == pytest.approx(0.2 * np.sqrt(2), rel=0.15)
    assert found.noise_db == pytest.approx(0.1 * np.sqrt(2), rel=0.01)
    assert found.difficulty_db == pytest.approx(3.0, rel=0.1)
    with pytest.raises(StudyError, match="2 seeds"):
        variance_components(frame.query("seed < 2"))
    with pytest.raises(StudyError, match="1 values missing"):
        variance_components(frame.assign(psnr=frame["psnr"].where(frame.index > 0)))


def reml_error(table):
    """Standard error of the mean at the numerical optimum of the restricted likelihood, written out densely."""
    seeds, images = table.shape
    of_seeds = np.kron(np.eye(seeds), np.ones((images, images)))
    of_images = np.kron(np.ones((seeds, seeds)), np.eye(images))
    y, one = table.ravel(), np.ones(table.size)

    def covariance(variances):
        return variances[0] * np.eye(table.size) + variances[1] * of_seeds + variances[2] * of_images

    def loss(variances):
        v = covariance(variances)
        weight = np.linalg.solve(v, one)
        r = y - (weight @ y) / (weight @ one)
        return np.linalg.slogdet(v)[1] + np.log(weight @ one) + r @ np.linalg.solve(v, r)

    bounds = [(1e-6, None), (0, None), (0, None)]
    fit = optimize.minimize(loss, np.full(3, table.var()), bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9})
    return 1 / np.sqrt(one @ np.linalg.solve(covariance(fit.x), one))


@pytest.mark.parametrize(("seed_db", "image_db"), [(0.2, 0.1), (0.0, 0.1), (0.2, 0.0), (0.0, 0.0)])
def test_the_mixed_model_is_the_restricted_likelihoods_optimum(seed_db, image_db):
    rng = np.random.default_rng(3)
    table = 0.1 + rng.normal(0, seed_db, (5, 1)) + rng.normal(0, image_db, (1, 14)) + rng.normal(0, 0.05, (5, 14))
    error, _ = mixed_model(mean_squares(table), 5, 14)
    assert float(error) == pytest.approx(reml_error(table), rel=1e-3)


def test_a_short_calibration_finds_who_errs():
    _, components = calibration.read_noise_floor(NOISE_FLOOR)
    rate = rates(Design("quiet", 3, 14, 0.1), components)
    for claim, name in TEST_NAMES.items():
        assert 0.02 <= rate["rejection", claim, name] <= 0.075
        assert rate["coverage", claim, name] >= 0.925
    assert rate["rejection", "new_images", TEST_NAMES["same_images"]] > 0.1  # images answer an arm differently
    assert rate["rejection", "new_images", "two-level bootstrap, percentile"] > 0.06
    assert rate["power", "these_weights", TEST_NAMES["these_weights"]] > 0.2
    alike = rates(Design("quiet", 3, 14, 0.0), components)
    assert alike["rejection", "new_images", "Wilcoxon over images"] > 0.2


def test_the_committed_result_is_whole_and_the_tests_in_use_hold():
    rows = committed()
    designs = rows[["model", "seeds", "images", "interaction_db"]].drop_duplicates()
    assert len(designs) == 3 * 9 * 4 + 9
    for claim in TEST_NAMES:
        rejection, coverage = used(rows, "rejection", claim), used(rows, "coverage", claim)
        assert len(rejection) == len(coverage) == len(designs)
        if claim == "new_images":  # the next test's
            rejection, coverage = (part.query("model != @calibration.UNLIKE") for part in (rejection, coverage))
        assert rejection["low"].to_numpy().max() <= calibration.MOST_REJECTED
        assert coverage["high"].to_numpy().min() >= calibration.LEAST_COVERED
    assert used(rows, "rejection", "same_images")["rate"].to_numpy().min() >= 0.04
    assert [table.name.removeprefix("calibration_") for table in calibration_tables(rows)] == [
        "rejection",
        "coverage",
        "power",
    ]


def test_few_images_that_answer_unequally_are_too_few_for_new_ones():
    rejection, coverage = (
        used(committed(), what, "new_images").query("model == @calibration.UNLIKE").set_index("images")["rate"]
        for what in ("rejection", "coverage")
    )
    assert rejection.loc[[5, 14]].between(0.09, 0.14).all()
    assert rejection.loc[100].between(0.04, 0.065).all()
    assert coverage.loc[[5, 14]].between(0.86, 0.91).all()
    assert coverage.loc[100].min() > 0.93
    same = used(committed(), "rejection", "same_images").query("model == @calibration.UNLIKE")
    assert same["rate"].between(0.045, 0.055).all()  # the question that few images can answer


def test_the_committed_result_is_what_the_code_gives():
    _, components = calibration.read_noise_floor(NOISE_FLOOR)
    fresh = simulate(Design("as measured", 3, 5, 0.05), components, calibration.GRIDS)
    key = ["claim", "method", "model", "seeds", "images", "interaction_db", "effect_db", "what"]
    both = fresh.merge(committed(), on=key, suffixes=("", "_kept"))
    assert len(both) == len(fresh)
    assert np.abs(both["hits"].to_numpy() / both["grids_kept"].to_numpy() - both["rate"].to_numpy()).max() < 0.005


def test_too_few_grids_are_refused():
    with pytest.raises(StudyError, match="at least 1000 grids, got 10"):
        calibration.calibrate(10)
