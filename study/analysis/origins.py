"""Where a number comes from, in a few short lines: what the page shows when one points at it."""

from collections.abc import Sequence

import numpy as np

from study.analysis.comparisons import TEST_NAMES, Comparison
from study.analysis.results import Measure, Results
from study.analysis.statistics import Array, mean_interval
from study.analysis.verdicts import coverage, digits_of, interval

MOST_NAMED = 6  # runs and seed means; of longer lists the rest is a count


def of_mean(results: Results, cell: str, measure: Measure) -> str:
    """A cell's mean: seeds × images, the mean of each seed, the t interval over seeds, the runs."""
    values = results.values(cell, measure)
    images, runs = counted(values.shape[1], "image"), run_list(results, cell, list(values.index))
    if cell in results.untrained:
        return f"{images}, nothing trained.\n{runs}"
    means = values.to_numpy(float).mean(axis=1)
    return f"{counted(len(means), 'seed')} × {images}.\n{_over_seeds(results, measure, means)}\n{runs}"


def of_spread(results: Results, cell: str, measure: Measure, means: Array) -> str:
    """A cell's spread over seeds: the mean of each seed, their t interval, the runs."""
    runs = run_list(results, cell, list(results.values(cell, measure).index))
    return f"{counted(len(means), 'seed')}.\n{_over_seeds(results, measure, means)}\n{runs}"


def of_comparison(results: Results, comparison: Comparison) -> str:
    """A difference: seeds × images, its interval, the mean of each seed, the runs of both sides."""
    deltas, test, digits = comparison.deltas, comparison.test, digits_of(comparison)
    if not deltas.values.size:
        return ""
    parts = [f"{counted(len(deltas.seeds), 'seed')} × {counted(len(deltas.images), 'image')}."]
    if np.isfinite(test.low):
        name = TEST_NAMES[comparison.claim]
        parts.append(f"{coverage(comparison.alpha)} interval {interval(test.low, test.high, digits)} ({name}).")
    parts.append(f"Per seed: {_numbers(deltas.values.mean(axis=1), f'+.{digits}f')}.")
    for cell in (comparison.cell, comparison.reference):
        seeds = sorted({run.seed for run in results.cells[cell].runs} & set(deltas.seeds))
        # An untrained side has one run, which stands for every seed.
        seeds = [run.seed for run in results.cells[cell].runs] if cell in results.untrained else seeds
        parts.append(f"{cell}: {run_list(results, cell, seeds)}")
    return "\n".join(parts)


def run_list(results: Results, cell: str, seeds: Sequence[int]) -> str:
    """The runs of a cell at these seeds, such as `runs a, b.`; of a long list the first few and a count."""
    ids = [results.ids[cell, seed] for seed in seeds if (cell, seed) in results.ids]
    return f"{'run' if len(ids) == 1 else 'runs'} {shortened(ids)}."


def shortened(words: Sequence[str]) -> str:
    """Words in a row, those beyond the first few as a count."""
    more = len(words) - MOST_NAMED
    return ", ".join(words[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """Such as `1 seed` or `3 seeds`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _over_seeds(results: Results, measure: Measure, means: Array) -> str:
    alpha, form = results.plan.grid.analysis.alpha, _finer(measure.format)
    text = f"Per seed: {_numbers(means, form)}"
    if len(means) > 1 and np.isfinite(means).all():
        low, high = mean_interval(means, alpha)[1:]
        ends = ", ".join(f"{end:{form}}".replace("-", "−") for end in (low, high))
        text += f"; {coverage(alpha)} t interval over seeds [{ends}]"
    return f"{text}."


def _numbers(values: Array, form: str) -> str:
    return shortened([f"{value:{form}}".replace("-", "−") for value in values])


def _finer(form: str) -> str:
    """A format with one decimal more, since seeds often differ in the last printed digit alone."""
    return f"{form[:-2]}{int(form[-2]) + 1}f"
