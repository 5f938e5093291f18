"""The verb that measures this machine and this program: bench."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from study import StudyError
from study.cli.options import BudgetName, CpuOnly, DataRoot, ResultsFolder, app, load_grid, out, say, show


@app.command()
def bench(
    grid: Annotated[
        Path | None, typer.Argument(metavar="[GRID]", help="time this grid's networks, for its report to show")
    ] = None,
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    data_root: DataRoot = Path("datasets"),
    model: Annotated[
        list[str] | None, typer.Option(help="repeatable, such as 'spin' or 'catanet, soft dense'; all when absent")
    ] = None,
    switches: Annotated[
        bool, typer.Option(help="also with each optimisation off, in bf16, and on a GPU compiled")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="interleaved measurements of each figure")] = 5,
    to: Annotated[Path | None, typer.Option("--to", help="folder to write bench.parquet and the machine to")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="instead: time and memory of a report of 1,000,000 rows, and a bootstrap")
    ] = False,
    calibration: Annotated[
        bool,
        typer.Option("--calibration", help="instead: how often the tests err, on simulated grids (minutes)"),
    ] = False,
    cpu: CpuOnly = False,
) -> None:
    """Time training steps and inference against the floor: the operations over this machine's matrix rate.

    Everything is interleaved in one process. Use a machine that does nothing else: two CPU threads that others
    interrupt wait for each other.

    Without a grid: the networks that are built in, at published size. With one: every network of it, at its own batch
    and crop, beside the baseline.
    """
    if report and calibration:
        raise StudyError("--report and --calibration are two measurements; ask for one at a time")
    if grid is not None:
        if model or switches or report or calibration or to is not None:
            raise StudyError("--model, --switches, --to, --report and --calibration are for bench without a grid")
        _bench_grid(grid, budget, results, data_root, repeats=repeats, cpu=cpu)
        return
    if report or calibration:
        (_bench_report if report else _bench_calibration)(to)
        return
    from study.training.bench import MODELS, headline, measure, save, standard, tables

    unknown = [name for name in model or () if name not in MODELS]
    if unknown:
        raise StudyError(f"--model {unknown[0]!r}: known are {', '.join(map(repr, MODELS))}")
    rows = measure(standard(model or list(MODELS)), cpu=cpu, repeats=repeats, switches=switches)
    if to is not None:
        save(rows, to, cpu=cpu)
    for view in tables(rows):
        out.print(view)
    out.print(headline(rows), highlight=False)


def _bench_grid(grid: Path, budget: str | None, results: Path, data_root: Path, *, repeats: int, cpu: bool) -> None:
    from study.analysis.timing import timing_table
    from study.models.external import placed
    from study.records.timings import keep_timings, read_timings, timed_runs
    from study.training.bench import machine, measure

    declared = load_grid(grid, budget, results)
    runs = {name: placed(run, data_root) for name, run in timed_runs(declared).items()}
    folder = keep_timings(results, declared, measure(runs, cpu=cpu, repeats=repeats), machine(cpu=cpu))
    show(timing_table(*read_timings(results, declared), declared.grid.analysis.baseline))
    say(f"{folder}: `study report {grid}{f' --budget {budget}' if budget else ''}` shows it")


def _bench_report(to: Path | None) -> None:
    """In `to`, where the made-up runs stay, or in a folder that is removed."""
    from study.analysis.scale import Size, measure_report, scale_table

    with TemporaryDirectory() as temporary, out.status("writing 500 made-up runs") as view:
        measured = measure_report(Size(500, 5, 400), to or Path(temporary), lambda what: view.update(what))
    show(scale_table(measured))


def _bench_calibration(to: Path | None) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from study.analysis.calibration import GRIDS, calibrate, calibration_tables, save_calibration

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("simulated designs", total=None)
        rows = calibrate(GRIDS, on_progress=lambda done, total: progress.update(task, completed=done, total=total))
    if to is not None:
        save_calibration(rows, to)
    for table in calibration_tables(rows):
        show(table)
