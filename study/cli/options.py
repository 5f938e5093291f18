"""The application, and the options that several verbs have."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table as View
from rich.text import Text
from typer.core import TyperGroup

from study import StudyError
from study.grid.expand import load_plan
from study.grid.plan import Plan

if TYPE_CHECKING:
    from study.analysis.tables import Table
    from study.records.store import Records

VERBS = (
    *("plan", "run", "status", "report", "export", "data", "cancel", "compact", "pack", "unpack"),
    *("evaluate", "compare", "published", "verify", "rerun", "bench"),
)


class _Verbs(TyperGroup):
    """In the order in which they are used: a grid's from question to report, then those of single networks."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=VERBS.index)


app = typer.Typer(
    cls=_Verbs,
    help="Ablation studies of image super-resolution: declare a grid, run it, read the report.\n\n"
    "A first look: study plan ablations/quickstart.yaml, then run, status and report on the same file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out = Console(soft_wrap=False)

GridFile = Annotated[Path, typer.Argument(metavar="GRID", help="a grid file, such as ablations/quickstart.yaml")]
BudgetName = Annotated[
    str | None,
    typer.Option(
        "--budget", "-b", help="a file of budgets/ beside the grid: ci, pilot, reduced, laptop, single_gpu, paper"
    ),
]
ResultsFolder = Annotated[Path, typer.Option("--results", help="folder of runs/, reports/ and the image cache")]
DataRoot = Annotated[
    Path, typer.Option("--data-root", envvar="STUDY_DATA", help="folder that relative image paths start from")
]
CpuOnly = Annotated[bool, typer.Option("--cpu", help="keep off the GPU even where there is one")]
PlacementName = Annotated[
    str,
    typer.Option(
        metavar="run-per-process|packed:K|ddp",
        help="each process takes whole runs, or K at once on its device (small networks), or all share every run",
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="processes per run that prepare samples [default: 0 on a CPU, 4 on a GPU]")
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="two trainings on one device give equal bits, at some cost in time; no part of a run's id",
    ),
]
Trackers = Annotated[
    list[str] | None,
    typer.Option(
        "--log-with", help="repeatable: a tracker that Accelerate knows, such as tensorboard, told of the curves too"
    ),
]


def named(text: str) -> str | dict[str, Any]:
    """A network or image set as the command line names it: a word, or a YAML mapping."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StudyError(f"{text!r} is not a YAML mapping: {error}") from None
    return value


def load_grid(grid: Path, budget: str | None, results: Path) -> Plan:
    """The grid's runs; those that start from a run in the results folder have found it."""
    from study.records.location import settle

    return settle(load_plan(grid, budget), results / "runs")


Stored = tuple[Plan, Mapping[tuple[str, int], str], "Records", Mapping[str, Mapping[str, Any]]]


def stored_grid(grid: Path, budget: str | None, results: Path) -> Stored:
    """A grid's runs with their ids, tables and states, from the results folder alone.

    Raises:
        StudyError: the folder holds none of them.
    """
    from study.records.index import status
    from study.records.location import locate
    from study.records.store import read

    declared = load_grid(grid, budget, results)
    runs = results / "runs"
    ids = locate(runs, declared)
    if not ids:
        raise StudyError(f"{runs} holds no run of {grid}; `study run {grid}` makes them")
    statuses = {run_id: status(runs, run_id) for run_id in ids.values()}
    done = [run_id for run_id in ids.values() if statuses[run_id]["state"] == "done"]
    return declared, ids, read(runs, done), statuses


def show(table: "Table") -> None:
    """Prints a table with its notes; nothing in them is read as markup or emoji."""
    view = View(title=Text(table.caption), title_justify="left", pad_edge=False, collapse_padding=True)
    lines = table.to_text()
    for j, column in enumerate(table.columns):
        number = any(isinstance(row[j].value, int | float) for row in table.entries())
        name = Text(f"{column.group} {column.heading}".strip())
        view.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in lines:
        view.add_row(*map(Text, line))
    out.print(view)
    for note in table.notes:
        out.print(note, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(text: str, style: str | None = None) -> None:
    """Prints a line as it is: names, paths, reasons and logs may hold what rich takes for markup."""
    out.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)
