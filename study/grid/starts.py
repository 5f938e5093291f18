"""Runs that start from other runs: which, and whether they can."""

import re
from collections.abc import Callable

from study.grid.loading import GridError
from study.grid.messages import nearest
from study.grid.plan import Cell
from study.grid.schema import Run

ID = re.compile(r"^.+-[0-9a-f]{10}$")


def chain(cells: list[Cell], place: Callable[[Cell], str]) -> list[Cell]:
    """Cells with every `start` that names a cell replaced by that cell's run of the same seed.

    The name is a cell's, or that of a variant, which then is meant at the same labels of every axis. What looks like a
    run's id stays, to be found in the results folder.

    Args:
        cells: of a grid.
        place: `file:line` where a cell's start was written.

    Raises:
        GridError: no such cell, a circle, or a start of another network or scale.
    """
    resolved: dict[str, Cell] = {}

    def resolve(cell: Cell, children: tuple[str, ...]) -> Cell:
        if cell.name in resolved:
            return resolved[cell.name]
        if cell.name in children:
            raise GridError(f"{place(cell)}: start: a circle: {' -> '.join((*children, cell.name))}")
        name = cell.runs[0].start
        if isinstance(name, str):
            other = _find(name, cell, cells)
            if other is not None:
                cell = _started(cell, resolve(other, (*children, cell.name)), place)
            elif not ID.match(name):
                names = [one.name for one in cells if one.runs[0].model.trained]
                raise GridError(
                    f"{place(cell)}: start: no cell {name!r} (in {cell.name}), nor an id (a slug and ten hexadecimal "
                    f"digits); {nearest(name, names)}"
                )
        resolved[cell.name] = cell
        return cell

    return [resolve(cell, ()) for cell in cells]


def misfit(run: Run, start: Run) -> str:
    """Why a run cannot start from another, or nothing."""
    if start.scale != run.scale:
        return f"it is of scale {start.scale}, this run of scale {run.scale}"
    if not start.model.trained:
        return f"a {start.model.kind} network is not trained"
    once = {"inference_steps": 1} if start.model.kind == "unet" else {}  # no part of what is trained
    mine, other = (one.model.model_copy(update=once).model_dump() for one in (run, start))
    differing = [key for key in {**mine, **other} if mine.get(key) != other.get(key)]
    return ", ".join(f"its model.{key} is {other.get(key)}, here it is {mine.get(key)}" for key in differing)


def _find(name: str, cell: Cell, cells: list[Cell]) -> Cell | None:
    beside = {**cell.labels, "variant": name}
    found = (one for one in cells if one.labels == beside or one.name == name)
    return next(found, None)


def _started(cell: Cell, other: Cell, place: Callable[[Cell], str]) -> Cell:
    problem = misfit(cell.runs[0], other.runs[0])
    if problem:
        raise GridError(f"{place(cell)}: start: {cell.name!r} cannot start from {other.name!r}: {problem}")
    by_seed = {run.seed: run for run in other.runs}
    runs = tuple(run.model_copy(update={"start": by_seed[run.seed]}) for run in cell.runs)
    return Cell(cell.name, cell.labels, runs)
