"""Time of every network of a grid, measured in turn by one process, as a table and as latencies."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.complexity import Latencies
from study.analysis.statistics import Array
from study.analysis.tables import Column, Entry, Table, Value

PHASES = {"training": "step", "inference": "inference"}


def latency_quartiles(rows: pd.DataFrame) -> Latencies:
    """Low quartile, median and high quartile of the time of every cell's inference, ms."""
    found = {}
    for name, times in _by_cell(rows, "inference", "seconds").items():
        low, middle, high = (float(value) for value in np.quantile(1e3 * times, (0.25, 0.5, 0.75)))
        found[name] = low, middle, high
    return found


def timing_table(rows: pd.DataFrame, machine: Mapping[str, Any], baseline: str) -> Table:
    """Median time of each network, its share of the baseline's in the same repeat, and its ratio to the floor.

    Args:
        rows: of `schemas.BENCH`, at least one; `model` is the cell's name.
        machine: where and by which code it was measured.
        baseline: a cell.
    """
    columns = [Column("cell")]
    body: dict[str, list[Value]] = {str(name): [str(name)] for name in dict.fromkeys(rows["model"])}
    rows = rows.assign(ratio=rows["seconds"] * rows["matrix_rate"] / rows["operations"])
    for phase, group in PHASES.items():
        times, ratios = (_by_cell(rows, phase, name) for name in ("seconds", "ratio"))
        medians = {name: 1e3 * float(np.median(values)) for name, values in times.items()}
        if not medians:
            continue
        digits = min(2, max(0, 2 - math.floor(math.log10(min(medians.values())))))
        columns.append(Column("time", "ms", f",.{digits}f", group=group))
        columns.append(Column("× baseline", "", ".2f", group=group))
        columns.append(Column("× floor", "", ".1f", group=group))
        for name, row in body.items():
            known = name in ratios and np.isfinite(ratios[name]).all()
            row.append(medians.get(name))
            row.append(_share(times.get(name), times.get(baseline), name == baseline))
            row.append(float(np.median(ratios[name])) if known else None)
    notes = (
        f"Medians of {rows['repeat'].nunique()} repeats, in each of which every network had its turn; × baseline: over "
        f"the time of {baseline} in the same repeat (range); × floor: over the operations of the plain formulation, "
        "products of attention and assignment included, at the rate of a large matrix product just before and after. "
        "Step: of training, as declared; inference: fp32, not compiled, one image of declared size.",
    )
    where = f"; on {machine['device']}" if machine.get("device") else ""
    commit = f", commit {str(machine['commit'])[:7]}" if machine.get("commit") else ""
    commit += " with uncommitted changes" if machine.get("dirty") else ""
    caption = f"Time of a step and of an inference, all networks measured in turn{where}{commit}."
    return Table("timing", caption, tuple(columns), tuple(map(tuple, body.values())), notes)


def _by_cell(rows: pd.DataFrame, phase: str, column: str) -> dict[str, Array]:
    """Values of each cell in the order of the repeats; cells that were not measured are left out."""
    part = rows.query("phase == @phase").sort_values("repeat") if len(rows) else rows
    return {str(name): own[column].to_numpy(float) for name, own in part.groupby("model")}


def _share(times: Array | None, baseline: Array | None, itself: bool) -> Entry:
    if times is None or baseline is None:
        return Entry(None)
    shares = times / baseline
    return Entry(1.0) if itself else Entry(float(np.median(shares)), f"({shares.min():.2f}–{shares.max():.2f})")
