"""Tables over several grids of one study: published weights, length of training, distance to papers, throughput."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.analysis.published import Cited, legend
from study.analysis.reproduction import METHODS, TONES, cite, reproduce_weights
from study.analysis.results import Measure, Results
from study.analysis.tables import Column, Entry, Table, Value
from study.grid.models import CATANet, Hard
from study.grid.schema import Run

PRINTED = ("psnr", "ssim")
LENGTH = "optimisation.steps"


@dataclass(frozen=True)
class Agreement:
    """How far the order of networks after `steps` is that after `longest`: Kendall's τ, and the pairs exchanged."""

    steps: int
    longest: int
    tau: float
    exchanged: tuple[str, ...]


@dataclass(frozen=True)
class Effort:
    """What one training took: steps per second, share of the floor's rate (NaN where unknown), core hours in all."""

    rate: float
    share: float
    hours: float


def weights_table(results: Results, numbers: Sequence[Cited]) -> Table:
    """Published weights on every data set: measured, printed, and whether the last digit is the same."""
    protocol = results.plan.grid.analysis.protocol
    rows, used = [], []
    for cell in results.plan.cells:
        for measure in (Measure(dataset, protocol, metric) for dataset in results.datasets for metric in PRINTED):
            run, images = cell.runs[0], results.values(cell.name, measure).shape[1]
            mean = results.mean(cell.name, measure)
            found = reproduce_weights(run, measure.dataset, protocol, measure.metric, mean, images, numbers)
            if found is not None and found.cited is not None:
                digits = found.cited.digits + 2 * (found.verdict != "reproduced")
                verdict = Entry(found.verdict, tone=TONES.get(found.verdict, ""))
                place = f"{measure.dataset}, x{run.scale}"
                printed = Entry(found.cited.value, found.cited.mark)
                rows.append((cell.name, place, measure.name, f"{found.mean:.{digits}f}", printed, verdict))
                used.append(found.cited)
    names = ("network", "data set", "metric", "measured", "printed", "verdict")
    notes = (legend(used),) if used else ()
    return Table("weights", f"Protocol {protocol}.", tuple(map(Column, names)), tuple(rows), notes)


def lengths_table(results: Results) -> Table:
    """Mean of each network at each length of its training."""
    means, measure = _by_length(results), results.primary
    columns = [Column("network"), *(Column(f"{steps:,} steps", measure.unit, measure.format) for steps in means)]
    rows = [(str(network), *map(float, row)) for network, row in zip(means.index, means.to_numpy(), strict=True)]
    seeds, images = results.values(results.plan.grid.analysis.baseline, measure).shape
    caption = f"{measure}, mean over {seeds} seeds and {images} images; every length has a schedule of its own."
    return Table("lengths", caption, tuple(columns), tuple(rows))


def order_agreement(results: Results) -> list[Agreement]:
    """The order of the networks' means after each shorter training beside that after the longest."""
    means = _by_length(results)
    *shorter, longest = means.columns
    last = means[longest].to_numpy(float)
    found = []
    for steps in shorter:
        here = means[steps].to_numpy(float)
        tau = float(pd.Series(here).corr(pd.Series(last), method="kendall"))
        exchanged = [
            f"{means.index[i]} and {means.index[j]}"
            for i in range(len(here))
            for j in range(i)
            if (here[i] - here[j]) * (last[i] - last[j]) < 0
        ]
        found.append(Agreement(steps, longest, tau, tuple(exchanged)))
    return found


def distance_table(results: Results, numbers: Sequence[Cited]) -> Table:
    """Measured minus published of the networks that a paper has, at each length, under the paper's own protocol."""
    primary = results.plan.grid.analysis.protocol
    lengths = list(_by_length(results).columns)
    columns = [Column("network"), Column("data set"), Column("protocol"), Column("published", "dB", ".2f")]
    columns += [Column(f"{steps:,} steps", "dB", "+.2f") for steps in lengths]
    rows, used = [], []
    for network, cells in _lengths(results).items():
        run = results.cells[cells[lengths[-1]]].runs[0]
        if isinstance(run.model, CATANet) and not isinstance(run.model.assignment, Hard):
            continue
        for dataset in results.datasets:
            cited = cite(numbers, METHODS[run.model.kind], run.scale, dataset, "psnr")
            if cited is not None:
                protocol = primary if cited.protocol == "unknown" else cited.protocol
                used.append(cited)
                gaps = [
                    results.mean(cells[steps], Measure(dataset, protocol, "psnr")) - cited.number for steps in lengths
                ]
                rows.append((network, dataset, protocol, Entry(cited.number, cited.mark), *gaps))
    caption = "PSNR measured minus published, under the protocol of the published number."
    return Table("distances", caption, tuple(columns), tuple(rows), (legend(used),) if used else ())


def throughput_table(studies: Sequence[Results], operations: Callable[[Run], float], matrix_rate: float) -> Table:
    """Steps per second of every kind of network, its share of the floor's rate, and the time of all its runs.

    The floor is the operations of a training step over the matrix rate.

    Args:
        studies: results that may share runs; each counts once.
        operations: floating-point operations of a step for each sample; NaN where unknown.
        matrix_rate: of the machine that trained, FLOP/s.
    """
    kinds: dict[str, dict[str, Effort]] = {}
    for results in studies:
        for run_id, (run, effort) in _efforts(results, operations, matrix_rate).items():
            kinds.setdefault(_kind(run), {})[run_id] = effort
    columns = (
        Column("network"),
        Column("runs", "", "d"),
        Column("training", "steps/s", ".2f"),
        Column("share of the floor's rate", "", ".0%"),
        Column("training and evaluation", "core hours", ".2f"),
    )
    rows: list[tuple[Value, ...]] = []
    for kind, runs in sorted(kinds.items()):
        efforts = list(runs.values())
        rate, share = (float(np.median([getattr(one, name) for one in efforts])) for name in ("rate", "share"))
        rows.append((kind, len(runs), rate, None if np.isnan(share) else share, sum(one.hours for one in efforts)))
    every = [one for runs in kinds.values() for one in runs.values()]
    rows.append(("all", len(every), None, None, sum(one.hours for one in every)))
    caption = (
        "Medians over the runs of a network and its variants, one thread each; "
        f"floor: a step's operations at {matrix_rate / 1e9:.0f} GFLOP/s, the matrix rate of one thread, which maps as "
        "small and layers as narrow as these do not reach."
    )
    return Table("throughput", caption, columns, tuple(rows))


def full_scale_table(questions: Mapping[str, Mapping[str, float]], rate: float) -> Table:
    """What questions take that have not run at that size: operations, and the time of one device.

    Args:
        questions: name -> floating-point operations of every training, under a name that two questions share for the
            same run.
        rate: of the device with these networks, FLOP/s.
    """
    columns = (
        Column("question"),
        Column("trainings", "", "d"),
        Column("operations", "10¹⁸", ".1f"),
        Column("time of one GPU", "h", ",.0f"),
    )
    every = {name: work for runs in questions.values() for name, work in runs.items()}
    rows = [
        (name, len(runs), sum(runs.values()) / 1e18, sum(runs.values()) / rate / 3600)
        for name, runs in {**questions, "all, shared runs once": every}.items()
    ]
    return Table("full_scale", "Trainings at full scale; evaluation is not counted.", columns, tuple(rows))


def _efforts(results: Results, operations: Callable[[Run], float], matrix_rate: float) -> dict[str, tuple[Run, Effort]]:
    """Of every finished training, by id."""
    rows = results.records.costs
    costs = {str(run): dict(zip(part["name"], part["value"], strict=True)) for run, part in rows.groupby("run")}
    found = {}
    for cell, seed, run_id in results.runs():
        run = next(run for run in cell.runs if run.seed == seed)
        if run_id in costs and run.trains and results.state(run_id) == "done":
            cost = costs[run_id]
            rate = run.optimisation.steps / (cost["training"] - cost["training_validation"])
            share = operations(run) * run.optimisation.batch * rate / matrix_rate
            found[run_id] = run, Effort(rate, share, (cost["training"] + cost["evaluation"]) / 3600)
    return found


def _kind(run: Run) -> str:
    model, objective = run.model, run.objective.kind
    name = METHODS.get(model.kind, model.kind)
    if isinstance(model, CATANet):
        name += f", {model.assignment.kind}"
    return f"{name}, x{run.scale}, batch {run.optimisation.batch}" + (f", {objective}" if objective != "l1" else "")


def _lengths(results: Results) -> Mapping[str, Mapping[int, str]]:
    """Network -> steps -> cell."""
    found: dict[str, dict[int, str]] = {}
    for cell in results.plan.cells:
        if LENGTH in cell.labels:
            found.setdefault(cell.labels["variant"], {})[cell.runs[0].optimisation.steps] = cell.name
    return found


def _by_length(results: Results) -> pd.DataFrame:
    """Means on the primary measure: networks as rows, steps as columns, in rising order."""
    table = {
        network: {steps: results.mean(cell, results.primary) for steps, cell in sorted(cells.items())}
        for network, cells in _lengths(results).items()
    }
    return pd.DataFrame(table).T
