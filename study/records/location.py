"""Which folder holds which run of a plan, found from the stored runs alone: no images and no network needed."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from study.grid.messages import nearest
from study.grid.plan import Plan
from study.grid.schema import Run
from study.grid.starts import misfit
from study.records.index import finished, status, stored_runs
from study.records.store import RecordError
from study.records.survey import Stored, keys, survey


def locate(runs: Path, plan: Plan, known: Mapping[str, Stored] | None = None) -> dict[tuple[str, int], str]:
    """Ids of the plan's runs that have a folder, by (cell, seed); no folder is given to two runs.

    A run is known by its settings and the sources it names; by its settings alone (the images may have moved) only
    where no other run of the plan has the same ones. The path of external weights is one of the settings.

    Args:
        runs: folder of the run folders.
        plan: the runs.
        known: what `survey` found there; looked up when absent.

    Raises:
        RecordError: two folders hold the same run on different images or weights, and nothing tells which is meant.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for run_id, stored in (survey(runs) if known is None else known).items():
        if stored.settings:
            found.setdefault(stored.settings, []).append((run_id, stored.images))
    declared = {
        (cell.name, run.seed): key for cell in plan.cells for run, key in zip(cell.runs, keys(cell), strict=True)
    }
    wanted = Counter(settings for settings, _ in declared.values())
    ids = {}
    for cell, run in plan.runs():
        settings, images = declared[cell.name, run.seed]
        alike = found.get(settings, [])
        named = [one for one in alike if one[1] == images]
        candidates = named if named or wanted[settings] > 1 else alike
        if len(candidates) > 1:
            both = ", ".join(run_id for run_id, _ in candidates)
            raise RecordError(
                f"{runs} holds run {cell.name!r}, seed {run.seed}, on different images or weights: {both}; "
                "move one of them away"
            )
        if candidates:
            ids[cell.name, run.seed] = candidates[0][0]
    return ids


def settle(plan: Plan, runs: Path) -> Plan:
    """The plan with every `start` that is an id replaced by the finished run of that id.

    Raises:
        RecordError: no such run, one that has not finished, or one of another network or scale.
    """
    stored = cache(lambda: dict(stored_runs(runs)))  # read once, and only where an id is named
    cells = [
        replace(cell, runs=tuple(_settled(run, cell.name, runs, stored) for run in cell.runs)) for cell in plan.cells
    ]
    return replace(plan, cells=tuple(cells))


def _settled(run: Run, cell: str, runs: Path, find: Callable[[], Mapping[str, Run]]) -> Run:
    if run.start is None:
        return run
    if isinstance(run.start, Run):
        return run.model_copy(update={"start": _settled(run.start, cell, runs, find)})
    stored = find()
    if run.start not in stored:
        raise RecordError(f"start of {cell!r}: {runs} holds no run {run.start!r}; {nearest(run.start, stored)}")
    if not finished(runs / run.start):
        state = status(runs, run.start)["state"]
        raise RecordError(f"start of {cell!r}: run {run.start!r} in {runs} has not finished ({state})")
    start = stored[run.start]
    problem = misfit(run, start)
    if problem:
        raise RecordError(f"start of {cell!r}: it cannot start from run {run.start!r}: {problem}")
    return run.model_copy(update={"start": start})
