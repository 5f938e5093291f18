"""Finished runs of a results folder, and which of them measure a row of a paper's table."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.statistics import Array
from study.grid.identity import specification
from study.grid.models import External
from study.grid.papers import Row
from study.grid.schema import Evaluation, Run
from study.records.index import finished, stored_runs
from study.records.store import read, read_json


@dataclass(frozen=True, eq=False)
class Stored:
    """A finished run: its id, settings, and the SHA-256 of its weights file where it has one from outside."""

    id: str
    run: Run
    weights: str


@dataclass(frozen=True, eq=False)
class Source:
    """What measures a row: runs of one training that differ in their seed, or published weights.

    Attributes:
        runs: finished ones; none where nothing was run.
        trained: whether they were trained here.
        problem: why they do not measure the published number; empty where they do.
    """

    runs: tuple[Stored, ...]
    trained: bool
    problem: str = ""

    @property
    def name(self) -> str:
        seeds = len({one.run.seed for one in self.runs})
        return f"trained here, n = {seeds}" if self.trained else "published weights, run here"


class Archive:
    """Every finished run of a results folder, with its per-image values."""

    def __init__(self, runs: Path) -> None:
        self.folder = runs
        self.stored = [
            Stored(name, run, str(read_json(runs / name / "run.json").get("data", {}).get("model.weights", "")))
            for name, run in stored_runs(runs)
            if finished(runs / name)
        ]

    @cached_property
    def _records(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        records = read(self.folder, [one.id for one in self.stored])
        return records.images, records.costs

    def means(self, runs: Iterable[Stored], dataset: str, protocol: str, metric: str) -> tuple[Array, int]:
        """Mean over images for each seed whose run has them, and the number of images.

        Of several evaluations of one training the first that has the values counts. NaN where an image's value is
        absent or not finite.
        """
        images = self._records[0]
        seeds = {one.id: one.run.seed for one in runs}
        ids = list(seeds)
        part = images[
            images["run"].isin(ids)
            & (images["dataset"] == dataset)
            & (images["protocol"] == protocol)
            & (images["metric"] == metric)
        ]
        if not len(part):
            return np.empty(0), 0
        table = part.astype({"run": str, "image": str}).pivot(index="run", columns="image", values="value")
        first = {seeds[run]: run for run in reversed([run for run in ids if run in table.index])}
        return table.loc[sorted(first.values(), key=ids.index)].to_numpy(float).mean(axis=1), table.shape[1]

    def parameters(self, runs: Iterable[Stored]) -> float:
        """Parameters of a network, in thousands; NaN where no run counted them."""
        costs = self._records[1]
        part = costs[costs["run"].isin([one.id for one in runs]) & (costs["name"] == "parameters")]
        return float(np.asarray(part["value"], float)[0]) / 1e3 if len(part) else np.nan

    def of_network(self, expected: Run) -> list[Stored]:
        """Runs of the same network at the same scale, whatever trained it."""
        return [one for one in self.stored if (one.run.model, one.run.scale) == (expected.model, expected.scale)]


def sources(archive: Archive, row: Row, scale: int, expected: Run | None) -> list[Source]:
    """What measures a row at a scale: published weights, and the training nearest to the expected one."""
    found = []
    digest = row.weights.get(str(scale))
    if digest:
        runs = [
            one
            for one in archive.stored
            if isinstance(one.run.model, External) and (one.weights, one.run.scale) == (digest, scale)
            if one.run.evaluation.self_ensemble == row.method.endswith("+")
        ]
        found += [Source(tuple(runs), False)] if runs else []
    if expected is not None:
        nearest = _nearest(archive, expected)
        found += [nearest] if nearest else []
    return found or [Source((), expected is not None, row.why or "not run")]


def _nearest(archive: Archive, expected: Run) -> Source | None:
    """The runs of one training of the network that differ least from the expected one, then trained longest."""
    groups: dict[Any, list[Stored]] = defaultdict(list)
    for one in archive.of_network(expected):
        if one.run.evaluation.self_ensemble == expected.evaluation.self_ensemble:
            groups[_training(one.run)].append(one)
    if not groups:
        return None

    def rank(runs: list[Stored]) -> tuple[int, int]:
        given = runs[0].run
        return len(_differences(given, expected)), -given.optimisation.steps * given.optimisation.batch

    runs = min(groups.values(), key=rank)
    problem = "; ".join(_differences(runs[0].run, expected)[:3])
    return Source(tuple(runs), True, f"another budget: {problem}" if problem else "")


def _training(run: Run) -> Any:
    """What two runs have in common that differ in their seed and evaluation alone."""
    start = _training(run.start) if isinstance(run.start, Run) else run.start
    bare = run.model_copy(update={"evaluation": Evaluation(), "seed": 0, "start": None})
    return specification(bare), run.data.train, start


def _differences(given: Run, expected: Run) -> list[str]:
    """`optimisation.steps 500 for 250000`, one for each setting of the training in which two runs differ."""
    flat = [dict(_flat({"start": _start(run), **_training_settings(run)})) for run in (given, expected)]
    keys = dict.fromkeys([*flat[1], *flat[0]])
    return [f"{key} {flat[0].get(key)} for {flat[1].get(key)}" for key in keys if flat[0].get(key) != flat[1].get(key)]


def _start(run: Run) -> Any:
    return _training_settings(run.start) if isinstance(run.start, Run) else run.start


def _training_settings(run: Run) -> dict[str, Any]:
    settings = run.model_dump(mode="json", include={"objective", "data", "optimisation"})
    for name in ("checkpoint_every_s", "log_every"):  # how it is watched
        del settings["optimisation"][name]
    return settings


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
