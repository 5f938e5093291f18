"""Verbs of a grid: plan, run, status, report, data."""

import os
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from study import StudyError
from study.cli.options import (
    BudgetName,
    CpuOnly,
    DataRoot,
    Deterministic,
    GridFile,
    PlacementName,
    ResultsFolder,
    Trackers,
    Workers,
    app,
    load_grid,
    out,
    say,
    stored_grid,
)
from study.grid.plan import Plan, title

if TYPE_CHECKING:
    from study.training.image_sets import ImageSets

LISTED = 100  # rows of `status` at most, unless all are asked for


@app.command()
def plan(
    grid: GridFile,
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    data_root: DataRoot = Path("datasets"),
    cpu: CpuOnly = False,
    time: Annotated[bool, typer.Option(help="time a training step of every network, to estimate the whole")] = True,
    whole: Annotated[
        bool, typer.Option("--all", help=f"list every run, of more than {LISTED} too [default: the first]")
    ] = False,
) -> None:
    """Print every run of a grid, what it costs, and what was declared; train nothing."""
    from study.training.estimate import duration, estimate
    from study.training.image_sets import ImageSets

    declared = load_grid(grid, budget, results)
    images = ImageSets(data_root, results / "cache")
    estimates = estimate(declared, root=data_root, cpu=cpu, timed=time)
    view = Table(title=escape(f"{declared.name}: {declared.grid.question}"), title_justify="left")
    for name, justify in (("cell", "left"), ("seed", "right"), ("id", "left"), ("parameters", "right")):
        view.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    view.add_column("multiply-adds", justify="right")
    view.add_column("time", justify="right")
    missing, obstacle = _what_lacks(declared, images)
    count = sum(len(cell.runs) for cell in declared.cells)
    for cell, run in islice(declared.runs(), None if whole else LISTED):
        cost = estimates[cell.name]
        seed = "" if "seed" in run.ineffective() else str(run.seed)
        parameters = "?" if cost.parameters is None else f"{cost.parameters:,}"
        products = "?" if cost.multiply_adds is None else f"{cost.multiply_adds / 1e9:.2f} G"
        run_id = images.identify(run)[-10:] if missing is None else "?"
        view.add_row(escape(cell.name), seed, run_id, parameters, products, duration(cost.seconds))
    out.print(view)
    if view.row_count < count:
        out.print(f"{LISTED} of {count} runs are listed, --all lists every one", highlight=False)
    seconds = [estimates[cell.name].seconds for cell, _ in declared.runs()]
    timed = [value for value in seconds if value is not None]
    said = f", about {duration(sum(timed))} of training one after the other on this machine"
    out.print(f"{count} runs" + (said if len(timed) == len(seconds) else ""))
    work = [estimates[cell.name].operations for cell, _ in declared.runs()]
    known = [value for value in work if value is not None]
    if len(known) == len(work):
        out.print(f"training: {sum(known):.3g} floating-point operations, attention products included", highlight=False)
    out.print("multiply-adds: convolutions and linear layers for a 1280 x 720 output, attention products left out")
    _print_analysis(declared)
    if missing:
        say(f"ids are not known yet: {missing}", style="yellow")
    if obstacle:
        say(f"cannot be trained here: {obstacle}", style="yellow")


def _what_lacks(declared: Plan, images: "ImageSets") -> tuple[str | None, str | None]:
    """Why the runs' ids cannot be known here, and why they cannot be trained here; None where they can."""
    from study.data.images import DataError
    from study.evaluation.metrics import MetricUnavailable

    obstacle: str | None = None
    try:
        for cell in declared.cells:
            try:
                images.check(cell.runs[0], 1)
            except MetricUnavailable as error:
                obstacle = obstacle or str(error)
            for run in cell.runs:
                images.identify(run)
    except DataError as error:
        return str(error), obstacle
    return None, obstacle


def _print_analysis(declared: Plan) -> None:
    analysis = declared.grid.analysis
    claims = {
        "same_images": "retraining, on these images",
        "new_images": "retraining, and new images",
        "these_weights": "these trained weights, on new images",
    }
    baseline = next(cell for cell in declared.cells if cell.name == analysis.baseline)
    dataset = analysis.dataset or next(iter(baseline.runs[0].evaluation.datasets))
    say(
        f"declared: {analysis.metric} ({analysis.protocol}) on {dataset}; claim: "
        f"{claims[analysis.claim]}; alpha {analysis.alpha}, {analysis.correction}"
        + (f", margin {analysis.margin_db} dB" if analysis.metric == "psnr" else "")
    )
    if analysis.comparisons is None:
        say(f"compared: every other trained cell with {analysis.baseline!r}")
    elif analysis.comparisons:
        say("compared: " + "; ".join(f"{cell!r} with {reference!r}" for cell, reference in analysis.comparisons))


@app.command()
def run(
    grid: GridFile,
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    data_root: DataRoot = Path("datasets"),
    placement: PlacementName = "run-per-process",
    cpu: CpuOnly = False,
    workers: Workers = None,
    deterministic: Deterministic = False,
    log_with: Trackers = None,
    slurm: Annotated[
        Path | None,
        typer.Option(metavar="PROFILE.yaml", help="submit the runs to a Slurm cluster instead, as one array"),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="with --slurm: return once they are submitted")] = False,
) -> None:
    """Train and evaluate what is left of a grid. The same command resumes, on one process or many.

    On several GPUs: [bold]accelerate launch -m study run GRID[/bold] or
    [bold]torchrun --nproc-per-node 8 -m study run GRID[/bold]. On a Slurm cluster:
    [bold]study run GRID --slurm PROFILE.yaml[/bold] (docs/running_at_scale.md).
    Exit code: 0 all done, 1 something failed, 130 interrupted.
    """
    from accelerate.utils import parse_flag_from_env

    from study.cli.slurm import Launch, run_on_slurm
    from study.training.determinism import request_determinism
    from study.training.placement import read_placement
    from study.training.runner import Options, run_grid
    from study.training.trackers import check_trackers

    trackers = check_trackers(log_with or ())
    placed = read_placement(placement)
    cpu = cpu or parse_flag_from_env("ACCELERATE_USE_CPU")  # of `accelerate launch --cpu`
    declared = load_grid(grid, budget, results)
    if slurm is not None:
        launch = Launch(results, data_root, placement, cpu, workers, deterministic, trackers)
        ended = run_on_slurm(declared, slurm, launch, detach)
        if ended is not None:
            _print_end(ended, results, grid, budget)
        raise typer.Exit(0 if detach else 130 if ended is None else _exit_code(ended))
    if detach:
        raise StudyError("--detach: only runs that --slurm submits go on by themselves")
    if deterministic:
        request_determinism()
    first = int(os.environ.get("RANK", "0")) == 0
    ended = run_grid(declared, Options(results, data_root, placed, cpu, workers, trackers))
    if first:
        _print_end(ended, results, grid, budget)
    raise typer.Exit(_exit_code(ended))


def _exit_code(ended: dict[str, str]) -> int:
    states = set(ended.values())
    return 130 if "interrupted" in states else 1 if "failed" in states else 0


def _print_end(ended: dict[str, str], results: Path, grid: Path, budget: str | None) -> None:
    from study.records.index import status

    for run_id, state in ended.items():
        if state == "failed":
            reason = status(results / "runs", run_id).get("reason", "")
            say(f"failed: {run_id}: {reason}", style="red")
    counts = ", ".join(f"{list(ended.values()).count(state)} {state}" for state in sorted(set(ended.values())))
    again = "" if budget is None else f" --budget {budget}"
    again += "" if results == Path("results") else f" --results {results}"
    verb = "report" if set(ended.values()) == {"done"} else "run"
    say(f"{counts}; runs lie in {results / 'runs'}")
    say(f"next: study {verb} {grid}{again}")


@app.command()
def status(
    grid: GridFile,
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    whole: Annotated[
        bool, typer.Option("--all", help=f"list every run, of more than {LISTED} too [default: those not done first]")
    ] = False,
) -> None:
    """Show the state of every run of a grid, from the results folder alone."""
    from study.cli.slurm import print_queued
    from study.records.location import locate
    from study.records.survey import survey
    from study.training.display import table

    declared = load_grid(grid, budget, results)
    known = survey(results / "runs")
    ids = locate(results / "runs", declared, known)
    names = {ids.get((cell.name, run.seed), title(cell, run)): title(cell, run) for cell, run in declared.runs()}
    states = {name: str(known[name].state["state"]) if name in known else "pending" for name in names}
    shown = names
    if len(names) > LISTED and not whole:
        order = {state: place for place, state in enumerate(("running", "failed", "interrupted", "pending"))}
        first = sorted(names, key=lambda name: order.get(states[name], len(order)))[:LISTED]
        shown = {name: names[name] for name in first}
    out.print(table(declared.name, shown, results / "runs"))
    if shown is not names:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(Counter(states.values()).items()))
        out.print(f"{len(names)} runs: {counts}; {LISTED} of them are listed, --all lists every one", highlight=False)
    print_queued(declared, results, states)


@app.command()
def cancel(grid: GridFile, budget: BudgetName = None, results: ResultsFolder = Path("results")) -> None:
    """Cancel what was submitted to Slurm for a grid and is not over; running tasks write their state first."""
    from study.cli.slurm import cancel_submitted

    cancel_submitted(load_grid(grid, budget, results), results)


@app.command()
def report(
    grid: Annotated[Path | None, typer.Argument(metavar="[GRID]", help="a grid file; none with --tables")] = None,
    tables: Annotated[
        str | None, typer.Option(help="a paper's tables instead, published beside measured: catanet, spin, ctmsr")
    ] = None,
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    to: Annotated[
        Path | None,
        typer.Option("--to", help="folder to write; when absent RESULTS/reports/GRID or RESULTS/tables/PAPER"),
    ] = None,
) -> None:
    """Write a grid's report, or a paper's tables, as HTML, Markdown and LaTeX, from parquet alone, without torch."""
    if (grid is None) == (tables is None):
        raise StudyError("report: name a grid file, or --tables PAPER, and not both")
    if grid is None and tables is not None:
        _write_tables(tables, results, to)
        return
    assert grid is not None
    from study.analysis.report import build_report

    stored = stored_grid(grid, budget, results)
    command = f"study report {grid}" + (f" --budget {budget}" if budget else "")
    command += "" if results == Path("results") else f" --results {results}"
    written = build_report(*stored, results / "runs", to or results / "reports" / stored[0].name, command)
    for name in ("report.html", "report.md", "report.tex"):
        say(str(written[name]))


def _write_tables(name: str, results: Path, to: Path | None) -> None:
    from study.analysis.papers import build_tables
    from study.analysis.rendering import REPORTS

    command = f"study report --tables {name}" + ("" if results == Path("results") else f" --results {results}")
    folder = to or results / "tables" / name
    for path in build_tables(REPORTS / "tables", name, results / "runs", folder, command).values():
        say(str(path))


@app.command()
def data(
    grid: GridFile,
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    data_root: DataRoot = Path("datasets"),
    samples: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="draw the first training samples as the network gets them")
    ] = None,
) -> None:
    """Open every image set of a grid, fill the cache, and print what is in it."""
    from study.grid.identity import sources
    from study.training.image_sets import ImageSets

    declared = load_grid(grid, budget, results)
    images = ImageSets(data_root, results / "cache")
    view = Table(title=escape(f"{declared.name}: image sets"), title_justify="left")
    for name in ("set", "images", "content"):
        view.add_column(name, justify="right" if name == "images" else "left")
    for source in dict.fromkeys(source for _, one in declared.runs() for source in sources(one)):
        opened = images[source]
        view.add_row(escape(opened.name), str(len(opened)), opened.fingerprint[:16])
    out.print(view)
    if samples is not None:
        _draw_samples(declared, images, samples)


def _draw_samples(declared: Plan, images: "ImageSets", path: Path) -> None:
    """Draws what the first run that trains begins with."""
    from study.analysis.patches import Sample, save_samples
    from study.data.crops import Patches

    run = next((run for _, run in declared.runs() if run.trains), None)
    if run is None:
        raise StudyError(f"--samples: no run of {declared.name} trains")
    patches = Patches.of(run, images[run.data.train])
    drawn = []
    for n in range(12):
        sample = patches[n]
        lr, hr = ((sample[name] * 255).round().byte().permute(1, 2, 0).numpy() for name in ("lr", "hr"))
        drawn.append(Sample(hr, lr, patches.describe(n)))
    save_samples(drawn, path)
    say(str(path))
