"""A grid's runs: which are left, who takes which, and what became of them."""

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from study import StudyError
from study.grid.plan import Plan, title
from study.grid.schema import Run
from study.records.claims import take
from study.records.declaration import declare
from study.records.index import finished, status
from study.records.provenance import trained_by_other_code
from study.records.store import RecordError
from study.records.survey import survey
from study.training.attempts import attempt
from study.training.checkpoints import STATE
from study.training.display import display
from study.training.execution import Machine, Status, lacks_no_longer
from study.training.image_sets import ImageSets
from study.training.placement import (
    Placement,
    Processes,
    Signals,
    find_processes,
    keep_freed_memory,
    pack,
    separate,
)

POLL_S = 0.5
WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Options:
    """How to run a grid on this machine; nothing here changes a result.

    Attributes:
        results: folder with `runs/` and the image cache.
        data_root: folder that relative image paths start from.
        placement: whether each process takes whole runs, several at once, or all processes share every run.
        cpu: keep off the accelerator.
        workers: processes per run that prepare samples; None chooses.
        trackers: see `Machine`.
    """

    results: Path
    data_root: Path
    placement: Placement = field(default_factory=Placement)
    cpu: bool = False
    workers: int | None = None
    trackers: tuple[str, ...] = ()


def run_grid(plan: Plan, options: Options) -> dict[str, str]:
    """Brings every run of a plan to an end, skipping what is done and going on with what was interrupted.

    A run that fails keeps its reason and traceback and does not stop the others; the next call tries it again.

    Returns:
        Id of every run of the plan -> `done`, `failed` or `interrupted`.

    Raises:
        DataError: an image set cannot be read; nothing was started.
    """
    processes = find_processes()
    keep_freed_memory()
    ddp = options.placement.ddp
    if ddp:
        PartialState(cpu=options.cpu, timeout=WAIT)  # the others wait while the first evaluates
    else:
        separate(processes)
    images = ImageSets(options.data_root, options.results / "cache")
    for cell in plan.cells:
        images.check(cell.runs[0], processes.world if ddp else 1)
    folder = options.results / "runs"
    every = [(images.identify(run), title(cell, run), run) for cell, run in plan.runs()]
    names = {run_id: name for run_id, name, _ in every}
    grid = {run_id: run for run_id, _, run in sorted(every, key=lambda item: _stage(item[2]))}
    starts = _starts(grid, images, folder)
    stored = survey(folder)
    done = {run_id: stored[run_id].state for run_id in grid if run_id in stored}
    done = {run_id: state for run_id, state in done.items() if state["state"] == "done"}
    if processes.first:
        declare(options.results, plan, len(done))
        _warn_of_other_code([folder / run_id for run_id in done if grid[run_id].trains])
    anew = _clean(done, grid, folder, torch.device("cuda" if _on_gpu(options) else "cpu"), processes.first)
    for run_id in anew:
        del done[run_id]
    signals = Signals()
    machine = Machine(images, options.cpu, _workers(options), lambda: signals.requested, options.trackers)
    with signals.caught(), display(plan.name, names, folder, processes.first, done):
        if ddp:
            return _together(grid, starts, folder, machine, processes, anew)
        left = {run_id: run for run_id, run in grid.items() if run_id not in done}
        ended = dict.fromkeys(done, "done")
        attempts = {run_id: status(folder, run_id).get("attempt", 0) for run_id in left}
        count = _at_once(options, processes, len(left))
        if count == 1:
            return ended | _alone(left, starts, folder, machine, attempts, anew)
        codes = pack(partial(_take, left, starts, folder, options, images, attempts, anew), count, signals)
        for run_id in left:
            ended[run_id] = _ended(folder, run_id, attempts[run_id], run_id in anew) or "interrupted"
        if not signals.requested:
            _warn_of_losses(codes, ended)
        return ended


def _stage(run: Run) -> int:
    """How many runs it follows, each the start of the next."""
    return 1 + _stage(run.start) if isinstance(run.start, Run) else 0


def _starts(grid: Mapping[str, Run], images: ImageSets, folder: Path) -> dict[str, str]:
    """Id of each run that starts from another -> that other's.

    Raises:
        RecordError: a start is neither part of the grid nor finished; nothing was started.
    """
    starts = {run_id: images.identify(run.start) for run_id, run in grid.items() if isinstance(run.start, Run)}
    for run_id, start in starts.items():
        if start not in grid and not finished(folder / start):
            raise RecordError(
                f"{run_id} starts from {start}, which is not finished in {folder} and no run of this grid "
                "(its images or its settings may have changed since)"
            )
    return starts


def _workers(options: Options) -> int:
    if options.workers is not None:
        return options.workers
    return 4 if _on_gpu(options) else 0


def _on_gpu(options: Options) -> bool:
    return torch.cuda.is_available() and not options.cpu


def _clean(
    done: Iterable[str], grid: Mapping[str, Run], folder: Path, device: torch.device, first: bool
) -> frozenset[str]:
    """Removes states that a kill left in finished runs.

    Returns:
        Ids of those that can now have a metric they lack: their networks stay, they are only evaluated anew, and count
        as they are until that has succeeded. None but for the first process.
    """
    anew = set()
    for run_id in done if first else ():
        shutil.rmtree(folder / run_id / STATE.parent, ignore_errors=True)
        if lacks_no_longer(grid[run_id], folder / run_id, device):
            anew.add(run_id)
    return frozenset(anew)


def _at_once(options: Options, processes: Processes, left: int) -> int:
    """How many runs this process trains at a time: what was asked for, but no more than its share of what is left."""
    count = max(1, min(options.placement.packed, -(-left // processes.world)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count > cores and not _on_gpu(options):
        warnings.warn(f"{count} runs at once on {cores} CPU cores wait for one another", stacklevel=3)
    return count


def _take(
    grid: dict[str, Run],
    starts: dict[str, str],
    folder: Path,
    options: Options,
    images: ImageSets,
    attempts: dict[str, int],
    anew: frozenset[str],
    stop: Callable[[], bool],
) -> None:
    """What one of several processes on a device does; what its user can put right is one message, as in the launch."""
    machine = Machine(images, options.cpu, _workers(options), stop, options.trackers)
    try:
        _alone(grid, starts, folder, machine, attempts, anew)
    except StudyError as error:
        sys.exit(str(error))


def _warn_of_other_code(finished_runs: list[Path]) -> None:
    other = [path for path in finished_runs if trained_by_other_code(path)]
    if other:
        warnings.warn(
            f"{len(other)} of {len(finished_runs)} finished runs were trained by other code than this and are not "
            f"trained again; the report says by which. To train one anew, remove its folder, such as {other[0]}",
            stacklevel=3,
        )


def _warn_of_losses(codes: list[int], ended: Mapping[str, str]) -> None:
    lost = [code for code in codes if code]
    if lost:
        left = list(ended.values()).count("interrupted")
        warnings.warn(
            f"{len(lost)} of {len(codes)} processes ended early, exit code {', '.join(map(str, lost))} "
            f"(-9: killed, as for want of memory); "
            + (f"{left} runs are left for the same command" if left else "the others did their runs"),
            stacklevel=3,
        )


def _alone(
    grid: dict[str, Run],
    starts: Mapping[str, str],
    folder: Path,
    machine: Machine,
    attempts: Mapping[str, int],
    anew: frozenset[str],
) -> dict[str, str]:
    """Takes whole runs that nobody else holds, each after its start, until all have ended.

    Args:
        grid: the runs by id, every start before what starts from it.
        starts: id -> id of its start.
        folder: of the run folders.
        machine: what each run is given.
        attempts: how often each run was tried before this launch.
        anew: finished runs that are to be evaluated again.
    """
    ended: dict[str, str] = {}
    while len(ended) < len(grid):
        progressed = False
        for run_id, run in grid.items():
            if run_id in ended:
                continue
            state = _ended(folder, run_id, attempts[run_id], run_id in anew)
            if state is None and machine.stop():
                state = "interrupted"
            if state is None:
                before = _begun(run_id, starts, folder, ended)
                if before == "running":
                    continue
                state = _try(run_id, run, folder, machine, (attempts[run_id], run_id in anew), before)
            if state is not None:
                ended[run_id], progressed = state, True
        if not progressed:
            time.sleep(POLL_S)  # the rest are other processes' runs; should one die, its run is taken over
    return ended


def _begun(run_id: str, starts: Mapping[str, str], folder: Path, ended: Mapping[str, str]) -> str:
    """How the run's start ended: `done` too where it has none, `running` while it has not."""
    start = starts.get(run_id)
    if start is None or finished(folder / start):
        return "done"
    return ended.get(start, "running")


def _ended(folder: Path, run_id: str, attempts_before: int, anew: bool) -> str | None:
    """How a run ended, in this launch or, unless it is to be evaluated anew, before; None while it has not."""
    if finished(folder / run_id):
        return "done" if not anew or status(folder, run_id).get("attempt", 0) > attempts_before else None
    current = status(folder, run_id)
    if current["state"] == "failed" and current["attempt"] > attempts_before:
        return "failed"
    return None


def _try(run_id: str, run: Run, folder: Path, machine: Machine, before: tuple[int, bool], start: str) -> str | None:
    """Runs it; None where another process holds it, or has taken it over meanwhile. `before`: as `_ended` takes it."""
    path = folder / run_id
    path.mkdir(parents=True, exist_ok=True)
    claim = take(path)
    if claim is None:
        return None
    with claim:
        state = _ended(folder, run_id, *before)
        if state is None and start != "done":
            return _pass_over(run, path, start, first=True)
        return state or attempt(run, path, machine, claim)


def _together(
    grid: dict[str, Run],
    starts: Mapping[str, str],
    folder: Path,
    machine: Machine,
    processes: Processes,
    anew: frozenset[str],
) -> dict[str, str]:
    """All processes train one run after the other; the first claims it, and alone looks at the disk to decide."""
    ended: dict[str, str] = {}
    # what failed before comes last: in shared runs an error may end the launch, and must not keep others from training
    failed = {run_id for run_id in grid if processes.first and status(folder, run_id)["state"] == "failed"}
    for run_id in grid:  # starts come first
        failed |= {run_id} if starts.get(run_id) in failed else set()
    order = sorted(grid, key=lambda run_id: run_id in failed)
    broadcast_object_list(order)
    for run_id in order:
        run, path = grid[run_id], folder / run_id
        path.mkdir(parents=True, exist_ok=True)
        claim = take(path) if processes.first else None
        decision: list[Any] = ["held", ""]
        if claim is not None:
            over = finished(path) and run_id not in anew
            decision = ["done" if over else "interrupted" if machine.stop() else "run"]
            decision.append(_begun(run_id, starts, folder, ended))
        broadcast_object_list(decision)
        what, before = decision
        if what == "held":
            raise RecordError(f"{run_id} is being trained by another launch on {folder}")
        with claim or nullcontext():
            if what == "run" and before != "done":
                what = _pass_over(run, path, before, processes.first)
            state = attempt(run, path, machine, claim, processes) if what == "run" else what
        if state is None:
            raise RecordError(
                f"{run_id} was taken over by another launch on {folder}: this one had stopped for too long"
            )
        ended[run_id] = state
    return ended


def _pass_over(run: Run, path: Path, start: str, first: bool) -> str:
    """Notes that a run cannot begin, since the run it starts from ended as `start` says; ends it likewise."""
    if first:
        reason = f"the run it starts from {'was interrupted' if start == 'interrupted' else start}"
        Status(path, run).write(state=start, reason=reason)
    return start
