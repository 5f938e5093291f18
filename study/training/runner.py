"""A grid's runs: which are left, who takes which, and what became of them."""

import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from study import StudyError
from study.grid.expand import Plan, title
from study.grid.schema import Run
from study.records.declaration import declare
from study.records.index import finished, status
from study.records.store import RecordError
from study.training.display import display
from study.training.execution import ImageSets, Machine, Status, execute
from study.training.placement import Placement, Processes, find_processes, keep_freed_memory, separate
from study.training.trainer import Diverged, Interrupted

POLL_S = 0.5
LOCK_PATIENCE_S = 5.0  # `study status` holds a lock for an instant
WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Options:
    """How to run a grid on this machine; nothing here changes a result.

    Attributes:
        results: folder with `runs/` and the image cache.
        data_root: folder that relative image paths start from.
        placement: each process takes whole runs, or all processes share every run.
        cpu: keep off the accelerator.
        workers: processes per run that prepare samples; None chooses.
    """

    results: Path
    data_root: Path
    placement: Placement = "run-per-process"
    cpu: bool = False
    workers: int | None = None


@dataclass
class _Signals:
    """Whether the launch was asked to stop: the first request saves and stops, the second stops at once."""

    requested: bool = False
    previous: dict[int, Any] = field(default_factory=dict)

    def note(self, number: int, _: object) -> None:
        if self.requested:
            signal.signal(number, self.previous[number])
            signal.raise_signal(number)
        self.requested = True

    @contextmanager
    def caught(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self.note)
        try:
            yield
        finally:
            for number, handler in self.previous.items():
                signal.signal(number, handler)


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
    alone = options.placement == "run-per-process"
    if alone:
        separate(processes)
    else:
        PartialState(cpu=options.cpu, timeout=WAIT)  # the others wait while the first evaluates
    images = ImageSets(options.data_root, options.results / "cache")
    for cell in plan.cells:
        images.check(cell.runs[0], 1 if alone else processes.world)
    ids = {images.identify(run): (title(cell, run), run) for cell, run in plan.runs()}
    if processes.first:
        declare(options.results, plan)
    runs = options.results / "runs"
    signals = _Signals()
    machine = Machine(images, options.cpu, _workers(options), lambda: signals.requested)
    with signals.caught(), display(plan.name, {i: name for i, (name, _) in ids.items()}, runs, processes.first):
        work = _alone if alone else _together
        return work({i: run for i, (_, run) in ids.items()}, runs, machine, processes)


def _workers(options: Options) -> int:
    if options.workers is not None:
        return options.workers
    return 4 if torch.cuda.is_available() and not options.cpu else 0


def _alone(runs: dict[str, Run], folder: Path, machine: Machine, processes: Processes) -> dict[str, str]:
    """Takes whole runs that nobody else holds, until all have ended."""
    attempts = {run_id: status(folder, run_id).get("attempt", 0) for run_id in runs}
    ended: dict[str, str] = {}
    while len(ended) < len(runs):
        progressed = False
        for run_id, run in runs.items():
            if run_id in ended:
                continue
            state = _ended(folder, run_id, attempts[run_id])
            if state is None and machine.stop():
                state = "interrupted"
            if state is None:
                state = _try(run_id, run, folder, machine, attempts[run_id])
            if state is not None:
                ended[run_id], progressed = state, True
        if not progressed:
            time.sleep(POLL_S)  # the rest are other processes' runs; should one die, its run is taken over
    return ended


def _ended(folder: Path, run_id: str, attempts_before: int) -> str | None:
    """How a run ended, in this launch or before; None while it has not."""
    if finished(folder / run_id):
        return "done"
    current = status(folder, run_id)
    if current["state"] == "failed" and current["attempt"] > attempts_before:
        return "failed"
    return None


def _try(run_id: str, run: Run, folder: Path, machine: Machine, attempts_before: int) -> str | None:
    """Runs it, unless another process holds it (None); the kernel lets go of the lock when a process dies."""
    path = folder / run_id
    path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path / ".lock", timeout=0):
            return _ended(folder, run_id, attempts_before) or _attempt(run, path, machine)
    except Timeout:
        return None


def _together(runs: dict[str, Run], folder: Path, machine: Machine, processes: Processes) -> dict[str, str]:
    """All processes train one run after the other; the first holds its lock."""
    ended = {}
    # what failed before comes last: in shared runs an error may end the launch, and must not keep others from training
    for run_id, run in sorted(runs.items(), key=lambda item: status(folder, item[0])["state"] == "failed"):
        path = folder / run_id
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock", timeout=LOCK_PATIENCE_S)
        decision: list[Any] = [None]
        if processes.first:
            try:
                lock.acquire()
                decision = ["done" if finished(path) else "interrupted" if machine.stop() else "run"]
            except Timeout:
                decision = ["held"]
        broadcast_object_list(decision)
        try:
            if decision[0] == "held":
                raise RecordError(f"{run_id} is being trained by another launch on {folder}")
            ended[run_id] = _attempt(run, path, machine, processes) if decision[0] == "run" else decision[0]
        finally:
            lock.release()
    return ended


def _attempt(run: Run, path: Path, machine: Machine, processes: Processes | None = None) -> str:
    status_file = Status(path, run)
    first = processes is None or processes.first
    try:
        execute(run, path, machine, status_file)
        return "done"
    except Interrupted as error:
        state, details = "interrupted", {"reason": str(error)}
    except Exception as error:
        state = "failed"
        reason = str(error) if isinstance(error, StudyError) else f"{type(error).__name__}: {error}".strip()
        details = {"reason": reason, "traceback": traceback.format_exc()}
        if processes is not None and processes.world > 1 and not isinstance(error, Diverged):
            status_file.write(state=state, **details)
            raise  # the other processes wait for this one: only the launcher can end them
    if first:
        status_file.write(state=state, **details)
    return state
