"""Verbs of evidence: published, compare, export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table as View

from study import StudyError
from study.analysis.tables import Table
from study.cli.options import BudgetName, CpuOnly, DataRoot, GridFile, ResultsFolder, app, named, out, stored_grid
from study.grid.messages import nearest
from study.grid.schema import Analysis, Run

if TYPE_CHECKING:
    import pandas as pd

FORMS: dict[str, Callable[[Table], str]] = {
    "csv": Table.to_csv,
    "latex": Table.to_latex,
    "markdown": Table.to_markdown,
    "json": lambda table: json.dumps(table.to_records(), indent=1, ensure_ascii=False),
}
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
    protocol: Annotated[str, typer.Option(help="evaluation protocol")] = "uint8_y",
    margin_db: Annotated[float, typer.Option(help="differences inside it count as equivalent, dB")] = 0.02,
    data_root: DataRoot = Path(),
    results: ResultsFolder = Path("results"),
    cpu: CpuOnly = False,
) -> None:
    """Compare two trained networks outside any grid, image by image, under the claim 'these trained weights'."""
    from study.analysis.pairs import compare_pair, pair_table

    settings: dict[str, Any] = {"metric": metric, "protocol": protocol, "margin_db": margin_db}
    try:
        Analysis(baseline="", **settings)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str((problem["loc"] or ("metric",))[0]).replace("_", "-")
        raise StudyError(f"--{name} {problem['input']}: {problem['msg']}") from None
    if data:
        from study.training.checkpoint_evaluation import evaluate_checkpoint

        wanted, sources = {"metrics": [metric], "protocols": [protocol]}, [named(item) for item in data]
        measured = [
            evaluate_checkpoint(
                named(one),
                scale,
                None,
                sources,
                wanted,
                data_root,
                results / "cache",
                cpu,
                "RUN",
            )
            for one in (_place(first, results), _place(second, results))
        ]
        sides = [(one.name, one.run, one.rows) for one in measured]
    else:
        sides = [_stored(one, results) for one in (first, second)]
    (a, run_a, rows_a), (b, run_b, rows_b) = sides
    if run_a.scale != run_b.scale:
        raise StudyError(f"{a} is of scale {run_a.scale}, {b} of scale {run_b.scale}: they solve different tasks")
    show(pair_table(compare_pair((a, b), (run_a, run_b), (rows_a, rows_b), settings)))


def _place(given: str, results: Path) -> str:
    """The folder of a run that is named by its id; anything else as it is."""
    folder = results / "runs" / given
    return str(folder) if folder.is_dir() else given


def _stored(given: str, results: Path) -> tuple[str, Run, "pd.DataFrame"]:
    from study.records.index import finished, stored_runs
    from study.records.store import read_table

    folder = Path(_place(given, results))
    if not finished(folder):
        raise StudyError(
            f"RUN {given}: neither the id of a finished run in {results / 'runs'} nor the folder of one; a network "
            "from weights, '{kind: imdn, weights: FILE}', needs --data to be measured on"
        )
    runs = dict(stored_runs(folder.parent))
    if folder.name not in runs:
        raise StudyError(f"RUN {given}: {folder / 'run.json'} does not describe a run of this version")
    return folder.name, runs[folder.name], read_table(folder, "images")


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
    tables = {one.name: one for one in report_tables(*stored_grid(grid, budget, results), results / "runs")}
    if table is None:
        for one in tables.values():
            out.print(f"{one.name}: {one.caption}", highlight=False, markup=False, soft_wrap=True)
        return
    if table not in tables:
        raise StudyError(f"no table {table!r} in the report of {grid}; {nearest(table, tables)}")
    text = FORMS[form](tables[table])
    if to is None:
        typer.echo(text)
        return
    replace(to, f"{text.rstrip()}\n".encode())
    out.print(str(to), highlight=False, soft_wrap=True)


def show(table: Table) -> None:
    """Prints a table with its notes."""
    view = View(title=table.caption, title_justify="left", pad_edge=False, collapse_padding=True)
    lines = table.to_text()
    for j, column in enumerate(table.columns):
        number = any(isinstance(row[j].value, int | float) for row in table.entries())
        name = f"{column.group} {column.heading}".strip()
        view.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in lines:
        view.add_row(*line)
    out.print(view, markup=False)
    for note in table.notes:
        out.print(note, highlight=False, markup=False, soft_wrap=True)
