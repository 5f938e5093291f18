"""Stored values arranged by cell and seed, and the paired differences between two cells."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.analysis.statistics import Array
from study.analysis.tables import Best
from study.grid.plan import Cell, Plan
from study.grid.schema import Run
from study.records.schemas import METRIC_UNITS
from study.records.store import RecordError, Records

KEYS = ["cell", "dataset", "protocol", "metric"]
STATES = ["failed", "interrupted", "running", "pending", "done"]
# Which end is best, where it is not the high one; signed differences to HR are best at zero.
BEST: dict[str, Best | None] = {
    "gmsd": "low",
    "lpips": "low",
    "niqe": "low",
    "swd": "low",
    "spectral_slope": "zero",
    "high_band": "zero",
    "diversity": None,
}
FORMATS = {
    "psnr": ".2f",
    "musiq": ".2f",
    "niqe": ".3f",
    "swd": ".3f",
    "spectral_slope": "+.3f",
    "high_band": "+.2f",
    "diversity": ".3f",
}
WORDS = ("spectral_slope", "high_band", "diversity")  # no abbreviations


@dataclass(frozen=True)
class Measure:
    """Which number of an image is meant."""

    dataset: str
    protocol: str
    metric: str

    @property
    def unit(self) -> str:
        return METRIC_UNITS.get(self.metric, "1").replace("1", "")

    @property
    def name(self) -> str:
        return self.metric.replace("_", " ") if self.metric in WORDS else self.metric.upper()

    @property
    def best(self) -> Best | None:
        """Which end of the metric is best; none where neither is."""
        return BEST.get(self.metric, "high")

    @property
    def format(self) -> str:
        """Format specification of its values."""
        return FORMATS.get(self.metric, ".4f")

    def text(self, value: float) -> str:
        """A value with its unit, such as `−0.31 dB`."""
        return f"{value:{self.format}} {self.unit}".strip().replace("-", "−")

    def __str__(self) -> str:
        return f"{self.name} on {self.dataset} ({self.protocol})"


@dataclass(frozen=True)
class Deltas:
    """Paired differences of two cells.

    Attributes:
        values: (seeds, images), variant − reference; may have no rows or no columns.
        seeds: seeds of the rows.
        images: names of the columns.
        seeds_missing: declared seeds that one side has no values for.
        seeds_not_finite: seeds left out because one side has not a single finite value: a training that broke down.
        images_missing: images left out because a value is absent or not finite.
    """

    values: Array
    seeds: tuple[int, ...]
    images: tuple[str, ...]
    seeds_missing: tuple[int, ...]
    images_missing: tuple[str, ...]
    seeds_not_finite: tuple[int, ...] = ()


@dataclass(frozen=True)
class Results:
    """A plan with what its finished runs have stored.

    Attributes:
        plan: the declared grid.
        ids: (cell name, seed) -> run id.
        records: tables of the runs; rows of runs that are not done are ignored.
        statuses: run id -> status; a run without one is pending.
    """

    plan: Plan
    ids: Mapping[tuple[str, int], str]
    records: Records
    statuses: Mapping[str, Mapping[str, Any]]

    @cached_property
    def cells(self) -> dict[str, Cell]:
        return {cell.name: cell for cell in self.plan.cells}

    @cached_property
    def datasets(self) -> list[str]:
        """Every dataset that some cell is evaluated on, in declared order."""
        return list(dict.fromkeys(name for cell in self.plan.cells for name in cell.runs[0].evaluation.datasets))

    @cached_property
    def primary(self) -> Measure:
        """The declared dataset, protocol and metric."""
        analysis = self.plan.grid.analysis
        dataset = analysis.dataset or next(iter(self.cells[analysis.baseline].runs[0].evaluation.datasets))
        return Measure(dataset, analysis.protocol, analysis.metric)

    @cached_property
    def untrained(self) -> list[str]:
        """Cells with nothing to train: bicubic enlargement, and networks from files."""
        return [cell.name for cell in self.plan.cells if not cell.runs[0].model.trained]

    @cached_property
    def bicubic(self) -> list[str]:
        """Cells of bicubic enlargement, which gains are measured from."""
        return [cell.name for cell in self.plan.cells if cell.runs[0].model.kind == "bicubic"]

    def scale(self, cell: str) -> int:
        """The scale of a cell."""
        return self.cells[cell].runs[0].scale

    def start(self, run: Run) -> str:
        """The cell whose run this one begins from; nothing where there is none in the plan."""
        return next((cell.name for cell in self.plan.cells if run.start is not None and run.start in cell.runs), "")

    def runs(self) -> Iterator[tuple[Cell, int, str]]:
        """Every declared run as (cell, seed, run id); a run without an id has the empty one."""
        for cell in self.plan.cells:
            for run in cell.runs:
                yield cell, run.seed, self.ids.get((cell.name, run.seed), "")

    def state(self, run: str) -> str:
        """State of a run, one of `STATES`."""
        return str(self.statuses.get(run, {}).get("state", "pending"))

    def done(self, cell: str) -> list[int]:
        """Seeds of a cell whose runs are finished."""
        runs = ((run.seed, self.ids.get((cell, run.seed), "")) for run in self.cells[cell].runs)
        return [seed for seed, run in runs if self.state(run) == "done"]

    def counts(self) -> dict[str, int]:
        """Number of declared runs in each state."""
        states = Counter(self.state(run) for _, _, run in self.runs())
        return {state: states[state] for state in sorted(states, key=STATES.index)}

    def rows(self, table: str) -> pd.DataFrame:
        """Rows of `images`, `scalars` or `costs` with columns `cell` and `seed` before the run's, in declared order.

        Text is categories: the cells as declared, all else in the order in which it is stored.
        """
        places = [place for place in self.runs() if place[2]]
        stored = pd.DataFrame({name: _encode(column) for name, column in getattr(self.records, table).items()})
        number = {run: index for index, (_, _, run) in enumerate(places)}
        of_run = np.array([number.get(run, len(places)) for run in stored["run"].cat.categories], int)
        at = of_run.astype(np.min_scalar_type(len(places)))[stored["run"].cat.codes]
        order = np.argsort(at, kind="stable")[: np.count_nonzero(at < len(places))]
        at = at[order]
        cells = pd.Categorical([cell.name for cell, _, _ in places], list(self.cells))
        rows = stored.iloc[order].reset_index(drop=True)
        rows.insert(0, "cell", cells[at])
        rows.insert(1, "seed", np.array([seed for _, seed, _ in places], int)[at])
        return rows

    @cached_property
    def measures(self) -> list[Measure]:
        """Every dataset, protocol and metric that values are stored of, in the order in which they are met."""
        keys = self.rows("images")[["dataset", "protocol", "metric"]].drop_duplicates()
        return [Measure(*key) for key in keys.itertuples(index=False)]

    @cached_property
    def _values(self) -> dict[tuple[str, Measure], pd.DataFrame]:
        """(cell, measure) -> values as `values` gives them."""
        rows = self.rows("images")
        unfinished = [run for run in rows["run"].cat.categories if self.state(run) != "done"]
        if unfinished:
            rows = rows.loc[~rows["run"].isin(unfinished)]
        parts = rows.groupby(KEYS, sort=False, observed=True).indices
        columns = rows["seed"].to_numpy(), rows["image"].cat.codes.to_numpy(), rows["value"].to_numpy(float)
        names = rows["image"].cat.categories
        tables = {}
        for key, places in parts.items():
            cell, dataset, protocol, metric = map(str, key)  # type: ignore[arg-type]
            seeds, codes, values = (column[places] for column in columns)
            table = _table(seeds, codes, values, names)
            tables[cell, Measure(dataset, protocol, metric)] = _pivot(rows.iloc[places]) if table is None else table
        return tables

    def values(self, cell: str, measure: Measure) -> pd.DataFrame:
        """Values of a cell's finished runs: one row per seed, one column per image; empty where there are none.

        The frame is shared by all who ask: to be read, not written to.
        """
        return self._values.get((cell, measure), pd.DataFrame(dtype=float))

    def means(self, cell: str, measure: Measure) -> Array:
        """Mean over images for each finished seed of a cell; NaN where an image's value is absent."""
        return self.values(cell, measure).to_numpy(float).mean(axis=1) if self.has(cell, measure) else np.empty(0)

    def mean(self, cell: str, measure: Measure) -> float:
        """Mean over images and finished seeds; NaN where there are none."""
        means = self.means(cell, measure)
        return float(means.mean()) if len(means) else np.nan

    def has(self, cell: str, measure: Measure) -> bool:
        """Whether any finished run of the cell has values."""
        return (cell, measure) in self._values

    def deltas(self, cell: str, reference: str, measure: Measure) -> Deltas:
        """Differences cell − reference, paired by image and seed; an untrained side is the same for every seed.

        Where the two count their seeds from different ones, the first is paired with the first, and named by the
        cell's.
        """
        one, other = self.values(cell, measure), self.values(reference, measure)
        trained = [name for name in (cell, reference) if name not in self.untrained]
        shift = self.cells[trained[0]].runs[0].seed - self.cells[trained[-1]].runs[0].seed if trained else 0
        if shift:
            other = other.set_axis(other.index + shift)
        declared = [{run.seed + shift * (name == reference) for run in self.cells[name].runs} for name in trained]
        seeds = set.union(*declared) if declared else {self.cells[cell].runs[0].seed}
        one, other = (self._repeated(frame, name, seeds) for frame, name in ((one, cell), (other, reference)))
        both = [seed for seed in one.index if seed in other.index]
        names = one.columns.union(other.columns, sort=False)
        table = one.reindex(index=both, columns=names) - other.reindex(index=both, columns=names)
        values: Array = table.to_numpy(float)
        whole = np.isfinite(values).any(axis=1)
        values = values[whole]
        finite: NDArray[np.bool_] = np.all(np.isfinite(values), axis=0)
        return Deltas(
            values[:, finite],
            tuple(np.array(both, int)[whole].tolist()),
            tuple(names[finite]),
            tuple(sorted(seeds - set(both))),
            tuple(names[~finite]),
            tuple(np.array(both, int)[~whole].tolist()),
        )

    def _repeated(self, frame: pd.DataFrame, cell: str, seeds: set[int]) -> pd.DataFrame:
        if cell in self.untrained and len(frame):
            return pd.concat([frame.iloc[[0]]] * len(seeds)).set_axis(sorted(seeds))
        return frame


def _encode(column: pd.Series) -> pd.Series:
    """Text as categories, in the order in which it is met."""
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_numeric_dtype(column):
        return column
    return column.astype(pd.CategoricalDtype(column.unique()))


def _table(seeds: NDArray[np.int_], images: NDArray[np.int_], values: Array, names: pd.Index) -> pd.DataFrame | None:
    """What `_pivot` gives, at once, where every seed has the same images in the same order; else None.

    Args:
        seeds: of every value.
        images: of every value, its place in `names`.
        values: of one cell and measure.
        names: of the images.
    """
    starts = np.flatnonzero(np.diff(seeds, prepend=seeds[0] - 1))
    shape = len(starts), len(values) // len(starts)
    order = images[: shape[1]]
    alike = len(values) == shape[0] * shape[1] and (images.reshape(shape) == order).all()
    once = len(np.unique(order)) == shape[1] and len(np.unique(seeds[starts])) == shape[0]
    if not (alike and once and (starts == shape[1] * np.arange(shape[0])).all()):
        return None
    ranked = np.argsort(seeds[starts])
    index, columns = pd.Index(seeds[starts][ranked], name="seed"), names[order].rename("image")
    # without a copy the order in memory is that of a pivot, so that means have the same last bit
    return pd.DataFrame(values.reshape(shape)[ranked], index, columns, copy=False)


def _pivot(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one cell and measure as a table of seeds and images.

    Raises:
        RecordError: a run has two rows for one image.
    """
    twice = rows[rows.duplicated(subset=["seed", "image"])]
    if len(twice):
        first = twice.iloc[0]
        raise RecordError(
            f"{first['run']}/images.parquet has two rows for {first['dataset']}/{first['image']}, "
            f"{first['protocol']} {first['metric']}; one row per image, protocol and metric is right"
        )
    names = list(dict.fromkeys(rows["image"]))
    return rows.astype({"image": "str"}).pivot(index="seed", columns="image", values="value").reindex(columns=names)
