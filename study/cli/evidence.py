"""Verbs of evidence: published, compare, export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import ValidationError

from study import StudyError
from study.analysis.tables import Table
from study.cli.options import BudgetName, CpuOnly, DataRoot, GridFile, ResultsFolder, app, named, out, show, stored_grid
from study.grid.messages import nearest
from study.grid.schema import SCHEMA_VERSION, Analysis, Protocol, Run

if TYPE_CHECKING:
    import pandas as pd

FORMS: dict[str, Callable[[Table], str]] = {
    "csv": Table.to_csv,
    "latex": Table.to_latex,
    "markdown": Table.to_markdown,
    "json": lambda table: json.dumps(table.to_records(), indent=1, ensure_ascii=False),
}
Side = tuple[str, Run, "pd.DataFrame"]  # of a comparison: name, what it is, per-image values
_WHAT = "id or folder of a finished run or, with --data, a mapping '{kind: imdn, weights: FILE}'"


@app.command()
def published(
    method: Annotated[str | None, typer.Option(help="as printed, such as CATANet")] = None,
    scale: Annotated[int | None, typer.Option(help="upscaling factor")] = None,
    dataset: Annotated[str | None, typer.Option(help="image set, such as Set5")] = None,
    metric: Annotated[str | None, typer.Option(help="such as psnr, ssim, lpips, parameters_k")] = None,
    paper: Annotated[str | None, typer.Option(help="where it was printed, such as RSD")] = None,
) -> None:
    """List what is cited under results/published/: by paper or, with any option, number by number."""
    from study.analysis.published import contradictions, load_published, numbers_table, select_known, summary_table

    numbers = load_published()
    wanted = {"method": method, "scale": scale, "dataset": dataset, "metric": metric, "paper": paper}
    if all(value is None for value in wanted.values()):
        show(summary_table(numbers))
        return
    show(numbers_table(select_known(numbers, **wanted), contradictions(numbers)))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help=_WHAT)],
    second: Annotated[str, typer.Argument(metavar="RUN", help="what it is compared with, named alike")],
    data: Annotated[
        list[str] | None, typer.Option(help="image sets to measure both on; the runs' stored values when absent")
    ] = None,
    scale: Annotated[int | None, typer.Option(help="upscaling factor of networks from weights; 4 when absent")] = None,
    metric: Annotated[str, typer.Option(help="primary metric")] = "psnr",
    protocol: Annotated[
        str | None,
        typer.Option(help="evaluation protocol; uint8_y when absent, or rgb where the metric takes no other"),
    ] = None,
    margin_db: Annotated[float, typer.Option(help="differences inside it count as equivalent, dB")] = 0.02,
    data_root: DataRoot = Path(),
    results: ResultsFolder = Path("results"),
    cpu: CpuOnly = False,
) -> None:
    """Compare two trained networks outside any grid, image by image, under the claim 'these trained weights'."""
    from study.analysis.pairs import compare_pair, pair_table

    settings = _declared(metric, protocol, margin_db)
    if data:
        sides = [
            _measured(one, data, scale, settings, (data_root, results / "cache", cpu))
            for one in (_place(first, results), _place(second, results))
        ]
    elif scale is not None:
        raise StudyError(f"--scale {scale}: goes with --data; the stored values of a run are of its own scale")
    else:
        sides = [_stored(one, results) for one in (first, second)]
    (a, run_a, rows_a), (b, run_b, rows_b) = sides
    if run_a.scale != run_b.scale:
        raise StudyError(f"{a} is of scale {run_a.scale}, {b} of scale {run_b.scale}: they solve different tasks")
    show(pair_table(compare_pair((a, b), (run_a, run_b), (rows_a, rows_b), settings)))


def _declared(metric: str, protocol: str | None, margin_db: float) -> dict[str, Any]:
    """Fields of the schema's `Analysis`, checked."""
    if protocol is None:
        protocol = "uint8_y" if metric in ("psnr", "ssim", "ssim_pyiqa") else "rgb"
    for option, value, name in (
        ("metric", metric, Analysis.model_fields["metric"].annotation),
        ("protocol", protocol, Protocol),
    ):
        if value not in get_args(name):
            raise StudyError(f"--{option} {value}: {nearest(value, get_args(name))}")
    settings = {"metric": metric, "protocol": protocol, "margin_db": margin_db}
    try:
        Analysis(baseline="", **settings)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["loc"]:
            raise StudyError(
                f"--{'-'.join(map(str, problem['loc'])).replace('_', '-')} {problem['input']}: {problem['msg']}"
            ) from None
        raise StudyError(f"--protocol {protocol}: {problem['msg'].removeprefix('Value error, ')}") from None
    return settings


def _place(given: str, results: Path) -> str:
    """The folder of a run that is named by its id; anything else as it is."""
    folder = results / "runs" / given
    is_id = Path(given).name == given != ".."
    return str(folder) if is_id and _is_folder(folder) else given


def _is_folder(path: Path) -> bool:
    """Also of text that no path can be: a mapping of a network that is long, say."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _measured(
    given: str, data: list[str], scale: int | None, settings: dict[str, Any], where: tuple[Path, Path, bool]
) -> Side:
    """A network's values on image sets, measured now."""
    from study.cli.networks import read_sources
    from study.training.checkpoint_evaluation import evaluate_checkpoint

    wanted = {"metrics": [settings["metric"]], "protocols": [settings["protocol"]]}
    one = evaluate_checkpoint(named(given), scale, None, read_sources(data), wanted, *where, "RUN")
    for reason in one.missing.values():
        raise StudyError(f"--metric {settings['metric']}: {reason}")
    return one.name, one.run, one.rows


def _stored(given: str, results: Path) -> Side:
    """A finished run's stored values."""
    from study.records.index import finished
    from study.records.store import read_json, read_table

    runs = results / "runs"
    folder = Path(_place(given, results)).resolve()  # the folder `.` has a name, too
    if not _is_folder(folder) or not finished(folder):
        ids = [path.parent.name for path in runs.glob("*/DONE")]
        raise StudyError(
            f"RUN {given}: neither the id of a finished run in {runs} "
            f"({nearest(given, ids) if ids else 'there is none'}) nor the folder of one; "
            "a network from weights, '{kind: imdn, weights: FILE}', needs --data to be measured on"
        )
    body = read_json(folder / "run.json")
    try:
        if body["schema_version"] != SCHEMA_VERSION:
            raise StudyError(
                f"RUN {given}: {folder / 'run.json'} is of schema version {body['schema_version']}, "
                f"this is {SCHEMA_VERSION}"
            )
        return folder.name, Run.model_validate(body["run"]), read_table(folder, "images")
    except (KeyError, TypeError, ValidationError) as error:
        raise StudyError(f"RUN {given}: {folder / 'run.json'} does not describe a run: {error!r}") from None


@app.command()
def export(
    grid: GridFile,
    table: Annotated[str | None, typer.Argument(help="name of a table; a list of them when absent")] = None,
    form: Annotated[str, typer.Option("--format", help=f"one of {', '.join(FORMS)}")] = "csv",
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    to: Annotated[Path | None, typer.Option("--to", help="file to write; printed when absent")] = None,
) -> None:
    """Print or write one table of a grid's report as CSV, LaTeX, Markdown or JSON."""
    from study.analysis.report import report_tables
    from study.records.store import replace

    if form not in FORMS:
        raise StudyError(f"--format {form}: {nearest(form, FORMS)}")
    if table is None and to is not None:
        raise StudyError(f"--to {to}: name the table to write; without --to they are listed")
    tables = {one.name: one for one in report_tables(*stored_grid(grid, budget, results), results / "runs")}
    if table is None:
        for one in tables.values():
            out.print(f"{one.name}: {one.caption}", highlight=False, markup=False, soft_wrap=True)
        return
    if table not in tables:
        raise StudyError(f"no table {table!r} in the report of {grid}; {nearest(table, tables)}")
    text = f"{FORMS[form](tables[table])}".rstrip("\r\n")
    if to is None:
        typer.echo(text)
        return
    try:
        replace(to, f"{text}\n".encode())
    except OSError as error:
        raise StudyError(f"--to {to}: {error.strerror or error}") from None
    out.print(str(to), highlight=False, soft_wrap=True)
