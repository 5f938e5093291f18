"""Verbs of stored runs: verify, rerun, compact, pack, unpack."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from study import StudyError
from study.cli.options import BudgetName, CpuOnly, DataRoot, GridFile, ResultsFolder, app, out, say, stored_grid

if TYPE_CHECKING:
    from study.training.verification import Verification

SHOWN = 20  # rows that disagree are listed up to here
StoredRun = Annotated[str, typer.Argument(metavar="RUN", help="id of a finished run under --results, or its folder")]


@app.command()
def verify(
    run: StoredRun,
    data_root: DataRoot = Path("datasets"),
    results: ResultsFolder = Path("results"),
    cpu: CpuOnly = False,
) -> None:
    """Evaluate a run's stored weights again and compare every row with the recorded one.

    Equal bits are asked for where device, settings and packages are those of the record; elsewhere 0.01 dB, or 0.1%
    of a metric that is not in dB. Exit code: 0 every row agrees, 1 a row, the weights or the data do not.
    """
    from study.training.image_sets import ImageSets
    from study.training.verification import verify as check

    folder = find_run(run, results)
    images = ImageSets(data_root, results / "cache")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(folder.name, total=None)
        found = check(folder, images, cpu, lambda dataset: progress.update(task, description=dataset, advance=1))
    show_verification(found)
    if found.agrees and found.rows.empty:
        raise StudyError(f"{folder / 'images.parquet'} has no row to compare")
    raise typer.Exit(0 if found.agrees else 1)


@app.command()
def rerun(
    run: StoredRun,
    to: Annotated[
        Path | None, typer.Option("--to", help="another results folder; reruns/ in the run's own when absent")
    ] = None,
    data_root: DataRoot = Path("datasets"),
    results: ResultsFolder = Path("results"),
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="as `study run --deterministic`; so is what was recorded so")
    ] = False,
    cpu: CpuOnly = False,
) -> None:
    """Train a run again from its record alone, without the grid file, and say how far it is from the first time.

    Exit code: 0 it is done and, where equal bits are to be expected, they are equal; 1 otherwise; 130 interrupted.
    """
    from study.training.determinism import request_determinism
    from study.training.rerun import rerun as train_again
    from study.training.runner import Options

    if deterministic:
        request_determinism()
    folder = find_run(run, results)
    target = to or folder.resolve().parents[1] / "reruns"
    again = train_again(folder, target, Options(target, data_root, cpu=cpu))
    if again.state not in ("done", "refused"):
        out.print(f"{again.state}: {again.reason}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130 if again.state == "interrupted" else 1)
    show_verification(again.rows)
    if again.state == "refused":
        raise typer.Exit(1)
    if again.weights is not None:
        weights = "equal to the bit" if again.weights == 0 else f"largest difference {again.weights:.3g}"
        curve = "equal" if again.diverged_at is None else f"apart from step {again.diverged_at} on"
        out.print(f"weights: {weights}; training curves: {curve}", highlight=False)
    out.print(f"the second training lies in {again.folder}", highlight=False, soft_wrap=True)
    missing = again.rows.rows["difference"].isna().to_numpy().any()
    raise typer.Exit(1 if missing or not (again.rows.inexact or again.rows.agrees) else 0)


def find_run(given: str, results: Path) -> Path:
    """The folder of a run, named by its id under `results` or by its folder.

    Raises:
        StudyError: there is none.
    """
    for folder in (results / "runs" / given, Path(given)):
        if (folder / "run.json").is_file():
            return folder
    raise StudyError(f"RUN {given}: neither the id of a run in {results / 'runs'} nor the folder of one")


@app.command()
def compact(
    results: ResultsFolder = Path("results"),
    undo: Annotated[bool, typer.Option("--undo", help="give every run files of its own again")] = False,
) -> None:
    """Merge the tables of finished runs into few files; every verb reads them as before.

    Worth its while from some hundred runs. What is running or not finished is left as it is, and an interruption loses
    nothing. Before one run's folder is moved elsewhere, --undo.
    """
    from study.records.compaction import compact, separate

    runs = results / "runs"
    if not runs.is_dir():
        raise StudyError(f"{runs}: no such folder")
    if undo:
        say(f"{len(separate(runs))} runs have files of their own again in {runs}")
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("merging tables")
        ended = compact(runs, lambda done, total: bar.update(row, completed=done, total=total))
    for run_id, reason in ended.left.items():
        if reason != "not finished":
            say(f"left as it is: {run_id}: {reason}", style="yellow")
    out.print(
        f"{len(ended.merged)} runs merged, {len(ended.before)} had been before, {len(ended.left)} left as they are",
        highlight=False,
    )


@app.command()
def pack(
    grid: GridFile,
    to: Annotated[Path, typer.Option("--to", help="folder of packed runs, such as results/reference/study")],
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
) -> None:
    """Add a grid's finished runs to a few small parquet files, for a repository: without weights and images.

    Runs that are in the folder already, of this grid or another, are not written again.
    """
    from study.records.packing import pack

    declared, ids, _, statuses = stored_grid(grid, budget, results)
    done = [run_id for run_id in ids.values() if statuses[run_id]["state"] == "done"]
    new = pack(results, declared.name, done, to)
    say(f"{len(new)} runs packed into {to}, {len(set(done)) - len(new)} were there")


@app.command()
def unpack(
    packed: Annotated[Path, typer.Argument(metavar="FOLDER", help="as `study pack` wrote it")],
    results: ResultsFolder = Path("results"),
) -> None:
    """Write packed runs into a results folder, where `study report` reads them and `study run` takes them as done."""
    from study.records.packing import unpack

    say(f"{len(unpack(packed, results))} runs unpacked into {results}")


def show_verification(found: "Verification") -> None:
    """Prints what changed or, where nothing did, the comparison and the rows that disagree."""
    from study.training.verification import KEY, TOLERANCE_DB, TOLERANCE_RELATIVE, summarise

    for change in found.changes:
        say(f"changed since the run ended: {change.what}: {change.recorded}, now {change.found}", style="red")
    if found.changes:
        say(f"{found.name}: nothing was computed")
        return
    view = Table(title=found.name, title_justify="left")
    names = ("protocol", "metric", "rows", "equal", "within", "largest difference", "missing")
    for name in names:
        view.add_column(name, justify="left" if name in names[:2] else "right")
    for row in summarise(found.rows, exact=not found.inexact).to_dict("records"):
        largest = "–" if row["missing"] == row["rows"] else f"{row['largest']:.3g}"
        counts = (str(row["rows"]), str(row["equal"]), str(row["within"]), largest, str(row["missing"]))
        view.add_row(row["protocol"], row["metric"], *counts)
    out.print(view)
    if found.inexact:
        say(f"tolerance: {TOLERANCE_DB} dB, or {TOLERANCE_RELATIVE:.1%} of a metric that is not in dB, since")
        for reason in found.inexact:
            say(f"  {reason}")
    else:
        say("tolerance: none (same device, settings and packages)")
    for note in (*found.notes, *(f"{metric}: not computed here: {why}" for metric, why in found.missing.items())):
        say(note)
    wrong = found.disagreeing
    for row in wrong.head(SHOWN).to_dict("records"):
        then, now = ("absent" if _absent(row, name) else f"{row[name]:.17g}" for name in ("recorded", "found"))
        say(f"differs: {', '.join(row[key] for key in KEY)}: recorded {then}, found {now}", style="red")
    if len(wrong) > SHOWN:
        say(f"… and {len(wrong) - SHOWN} more", style="red")
    say(f"{len(found.rows) - len(wrong)} of {len(found.rows)} rows agree", style="red" if len(wrong) else "green")


def _absent(row: dict, name: str) -> bool:
    """Whether that side of a comparison has no such row."""
    return row["difference"] != row["difference"] and row[name] != row[name]
