"""Bootstrap intervals of many seeds × images tables at once: candidates that calibration measures beside the tests."""

import numpy as np

from study.analysis.statistics import Array, MeanSquares, crossed_variance

RESAMPLES = 999
BLOCK = 50  # tables whose resampled image means are held at once

Interval = tuple[Array, Array]


def _counts(rng: np.random.Generator, size: int, resamples: int) -> Array:
    """(resamples, size): how often each of `size` units is drawn, with replacement."""
    return rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(float)


def _percentile(means: Array, alpha: float) -> Interval:
    low, high = np.quantile(means, (alpha / 2, 1 - alpha / 2), axis=1)
    return low, high


def _studentised(mean: Array, error: Array, means: Array, errors: Array, alpha: float) -> Interval:
    """Interval of the resampled t values; a resample without spread has none and is left out."""
    usable = errors > 1e-9 * error[:, None]
    t = np.where(usable, (means - mean[:, None]) / np.where(usable, errors, 1.0), np.nan)
    low, high = np.nanquantile(t, (alpha / 2, 1 - alpha / 2), axis=1)
    return mean - high * error, mean - low * error


def seed_bootstrap(tables: Array, alpha: float, rng: np.random.Generator) -> tuple[Interval, Interval]:
    """Percentile and studentised intervals with the seeds resampled.

    Args:
        tables: (grids, seeds, images); every table is given the same resamples.
        alpha: one minus the coverage.
        rng: of the resamples.
    """
    values = tables.mean(axis=2)
    seeds = values.shape[1]
    counts = _counts(rng, seeds, RESAMPLES)
    means = values @ counts.T / seeds
    squares = np.maximum(values**2 @ counts.T / seeds - means**2, 0.0)
    errors = np.sqrt(squares / (seeds - 1))
    error = values.std(axis=1, ddof=1) / np.sqrt(seeds)
    return _percentile(means, alpha), _studentised(values.mean(axis=1), error, means, errors, alpha)


def two_level_bootstrap(tables: Array, alpha: float, rng: np.random.Generator) -> Interval:
    """Percentile interval with seeds and images resampled. Arguments as in `seed_bootstrap`."""
    grids, seeds, images = tables.shape
    rows, columns = _counts(rng, seeds, RESAMPLES), _counts(rng, images, RESAMPLES)
    both = (rows[:, :, None] * columns[:, None]).reshape(RESAMPLES, -1)
    return _percentile(tables.reshape(grids, -1) @ both.T / (seeds * images), alpha)


def studentised_bootstrap(tables: Array, alpha: float, rng: np.random.Generator) -> Interval:
    """Studentised interval with seeds and images resampled, its standard errors those of the quasi-F.

    Arguments as in `seed_bootstrap`.
    """
    _, seeds, images = tables.shape
    rows, columns = _counts(rng, seeds, RESAMPLES), _counts(rng, images, RESAMPLES)
    parts = [_resampled(tables[start : start + BLOCK], rows, columns) for start in range(0, len(tables), BLOCK)]
    means, errors = (np.concatenate(part) for part in zip(*parts, strict=True))
    mean, error = _resampled(tables, np.ones((1, seeds)), np.ones((1, images)))
    return _studentised(mean[:, 0], error[:, 0], means, errors, alpha)


def _resampled(tables: Array, rows: Array, columns: Array) -> tuple[Array, Array]:
    """Mean and standard error of every table under every (resamples, …) pair of counts: (grids, resamples) each."""
    _, seeds, images = tables.shape
    both = (rows[:, :, None] * columns[:, None]).reshape(len(rows), -1)
    flat = tables.reshape(len(tables), -1)
    mean = flat @ both.T / (seeds * images)
    total = flat**2 @ both.T - seeds * images * mean**2
    by_seed = tables @ columns.T / images - mean[:, None]  # (grids, seeds, resamples)
    by_image = np.swapaxes(tables, 1, 2) @ rows.T / seeds - mean[:, None]
    over_seeds = images * np.einsum("gsr,gsr,rs->gr", by_seed, by_seed, rows)
    over_images = seeds * np.einsum("gir,gir,ri->gr", by_image, by_image, columns)
    residual = np.maximum(total - over_seeds - over_images, 0.0)
    squares = MeanSquares(over_seeds / (seeds - 1), over_images / (images - 1), residual / ((seeds - 1) * (images - 1)))
    return mean, np.sqrt(crossed_variance(squares, seeds, images)[0])
