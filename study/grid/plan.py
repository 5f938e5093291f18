"""A grid with all its runs resolved."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from study.grid.schema import Grid, Run


@dataclass(frozen=True)
class Cell:
    """One combination of a grid: runs that differ in nothing but their seed.

    Attributes:
        name: the combination's labels, joined: the name that the analysis and the report use.
        labels: `variant` and the dotted path of each axis -> label of the value.
        runs: one run per seed; a single one where nothing is trained.
    """

    name: str
    labels: Mapping[str, str]
    runs: tuple[Run, ...]


def title(cell: Cell, run: Run) -> str:
    """How one run of a cell is called: `hard, seed 0`; the cell's name alone where seeds do nothing."""
    return cell.name if "seed" in run.ineffective() else f"{cell.name}, seed {run.seed}"


@dataclass(frozen=True)
class Plan:
    """All runs of a grid.

    Attributes:
        name: the grid's file name without its ending, and the budget's where one was laid over.
        budget: name of the budget, if any.
        grid: the declared question.
        cells: the combinations, in the file's order; the references last.
    """

    name: str
    budget: str | None
    grid: Grid
    cells: tuple[Cell, ...]

    def runs(self) -> Iterator[tuple[Cell, Run]]:
        """Every run with the cell it belongs to, all cells at their first seed before the second."""
        for index in range(max(len(cell.runs) for cell in self.cells)):
            for cell in self.cells:
                if index < len(cell.runs):
                    yield cell, cell.runs[index]
