"""The application, and the options that several verbs have."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
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
    str | None, typer.Option("--budget", "-b", help="a file of budgets/ beside the grid: ci, laptop, single_gpu, paper")
]
ResultsFolder = Annotated[Path, typer.Option("--results", help="folder of runs/, reports/ and the image cache")]
DataRoot = Annotated[
    Path, typer.Option("--data-root", envvar="STUDY_DATA", help="folder that relative image paths start from")
]
CpuOnly = Annotated[bool, typer.Option("--cpu", help="keep off the GPU even where there is one")]
