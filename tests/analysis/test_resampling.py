import numpy as np
import pytest
from scipy import stats

from study.analysis import resampling
from study.analysis.resampling import seed_bootstrap, studentised_bootstrap, two_level_bootstrap
from study.analysis.statistics import crossed_variance, mean_squares


def table(seeds=5, images=6, seed=0):
    rng = np.random.default_rng(seed)
    return 0.05 + rng.normal(0, 0.05, (seeds, 1)) + rng.normal(0, 0.05, (seeds, images))


def counts(monkeypatch, seeds, images):
    """The counts that a method draws, made fixed."""
    rng = np.random.default_rng(7)
    drawn = {size: resampling._counts(rng, size, 50) for size in (seeds, images)}
    monkeypatch.setattr(resampling, "_counts", lambda rng, size, resamples: drawn[size])
    monkeypatch.setattr(resampling, "RESAMPLES", 50)
    return drawn[seeds].astype(int), drawn[images].astype(int)


def enlarged(deltas, rows, columns):
    """One resample, spelled out."""
    return deltas[np.repeat(np.arange(len(rows)), rows)][:, np.repeat(np.arange(len(columns)), columns)]


def test_two_levels_are_what_a_loop_gives(monkeypatch):
    rows, columns = counts(monkeypatch, 5, 6)
    tables = np.stack([table(seed=0), table(seed=1)])
    low, high = two_level_bootstrap(tables, 0.1, np.random.default_rng(0))
    for index, deltas in enumerate(tables):
        means = [enlarged(deltas, r, c).mean() for r, c in zip(rows, columns, strict=True)]
        assert (low[index], high[index]) == pytest.approx(tuple(np.quantile(means, (0.05, 0.95))))


def test_two_studentised_levels_are_what_a_loop_gives(monkeypatch):
    rows, columns = counts(monkeypatch, 5, 6)
    monkeypatch.setattr(resampling, "BLOCK", 1)
    tables = np.stack([table(seed=0), table(seed=1)])
    low, high = studentised_bootstrap(tables, 0.1, np.random.default_rng(0))
    for index, deltas in enumerate(tables):
        t = []
        for r, c in zip(rows, columns, strict=True):
            resampled = enlarged(deltas, r, c)
            error = np.sqrt(crossed_variance(mean_squares(resampled), 5, 6)[0])
            t.append((resampled.mean() - deltas.mean()) / error)
        error = np.sqrt(crossed_variance(mean_squares(deltas), 5, 6)[0])
        ends = np.quantile(t, (0.95, 0.05))
        assert (low[index], high[index]) == pytest.approx(tuple(deltas.mean() - ends * error))


def test_seeds_alone_are_what_a_loop_gives(monkeypatch):
    rows, _ = counts(monkeypatch, 5, 6)
    deltas = table()
    (low, high), (low_t, high_t) = seed_bootstrap(deltas[None], 0.1, np.random.default_rng(0))
    values = deltas.mean(axis=1)
    resampled = [np.repeat(values, r) for r in rows]
    assert (low[0], high[0]) == pytest.approx(tuple(np.quantile([v.mean() for v in resampled], (0.05, 0.95))))
    t = [(v.mean() - values.mean()) / stats.sem(v) for v in resampled if np.ptp(v) > 0]
    ends = values.mean() - np.quantile(t, (0.95, 0.05)) * stats.sem(values)
    assert (low_t[0], high_t[0]) == pytest.approx(tuple(ends))


def test_resamples_of_one_seed_alone_have_no_t_value():
    # One resample in nine of three seeds repeats a single one.
    (_, _), (low, high) = seed_bootstrap(table(seeds=3)[None], 0.05, np.random.default_rng(0))
    assert np.isfinite([low, high]).all()
