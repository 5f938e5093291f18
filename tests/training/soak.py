"""Faults at random on real runs, each told apart from a quiet run byte by byte.

`python -m tests.training.soak` (or `make soak`) tries them at full length and prints a table of what was tried and what
was lost; the tests try a few of each. Workers are forked from one process that has imported everything, so that a
killed one is replaced within milliseconds.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from study.grid.expand import load_plan
from study.grid.plan import Plan
from study.records.index import finished
from study.records.location import locate
from study.records.schemas import RUN_TABLES
from study.records.store import read_json, read_table
from study.training import execution
from study.training.checkpoints import STATE
from study.training.runner import Options, run_grid
from tests.training.conftest import grid_writer

TINY = "variants:\n  hard: {model: {kind: imdn, width: 8, blocks: 1}}"
SAME = ("images.parquet", "scalars.parquet", "weights.safetensors")
QUIET_S = 600.0  # without a run more in this time, something is stuck
_forks = multiprocessing.get_context("fork")


@dataclass
class Outcome:
    """What became of a campaign of faults.

    Attributes:
        faults: how many were made.
        seconds: how long it took.
        lost: what differs from a quiet run or is torn, in words; empty where nothing was lost.
        moments: what the killed were doing: the newest file of the run they held, or `between runs`.
    """

    faults: int = 0
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    moments: dict[str, int] = field(default_factory=dict)


def declare(root: Path, runs: int, steps: int) -> Path:
    """Writes images and a grid of that many tiny runs, which differ in their seed alone."""
    return grid_writer(root)(TINY, ("seeds: 2", f"seeds: {runs}"), ("steps: 12", f"steps: {steps}"))


def storm(grid: Path, workers: int, every_s: float, seed: int) -> Outcome:
    """Several workers on one folder, one of them killed every now and then, until all is done.

    Args:
        grid: as `declare` wrote it; results go to `storm/` beside it, those of a quiet run to `quiet/`.
        workers: processes at a time.
        every_s: mean time between two kills, s.
        seed: of their times and victims.
    """
    plan, drawn, outcome = load_plan(grid), random.Random(seed), Outcome()
    runs = grid.parent / "storm" / "runs"
    with _quick_costs():
        work(grid, "quiet")
        begun = time.monotonic()
        known = locate(grid.parent / "quiet" / "runs", plan)
        with _watching(runs, set(known.values())) as twice:
            crew = [_start(grid, "storm") for _ in range(workers)]
            while any(one.exitcode != 0 for one in crew):
                time.sleep(drawn.expovariate(1 / every_s))
                alive = [one for one in crew if one.is_alive()]
                if alive:
                    _kill(drawn.choice(alive), runs, outcome)
                crew = [one if one.is_alive() or one.exitcode == 0 else _start(grid, "storm") for one in crew]
                assert time.monotonic() - begun < QUIET_S + every_s * len(known) * 10, "stuck"
    outcome.seconds = time.monotonic() - begun
    outcome.lost = [*twice, *compare(grid.parent, plan)]
    return outcome


def kill_at_points(grid: Path, points: int, seed: int) -> Outcome:
    """One worker after the other on one run, each killed after a random part of a quiet run's time.

    The first half of the points are killed from the start of a run on, the others where files are being written.
    """
    plan, drawn, outcome = load_plan(grid), random.Random(seed), Outcome()
    runs = grid.parent / "storm" / "runs"
    with _quick_costs():
        begun = time.monotonic()
        work(grid, "quiet")
        whole = time.monotonic() - begun
        begun = time.monotonic()
        while outcome.faults < points:
            worker = _start(grid, "storm")
            worker.join(drawn.uniform(0, 1.2 * whole / 4))
            if worker.is_alive():
                _kill(worker, runs, outcome)
            elif worker.exitcode == 0:  # it got through: begin again
                outcome.lost += compare(grid.parent, plan)
                _remove(runs)
        work(grid, "storm")
    outcome.seconds = time.monotonic() - begun
    outcome.lost += compare(grid.parent, plan)
    return outcome


def work(grid: Path, results: str) -> None:
    """What a worker does: brings the grid to an end."""
    root = grid.parent
    ended = run_grid(load_plan(grid), Options(root / results, root / "images", cpu=True))
    assert set(ended.values()) == {"done"}, ended


def compare(root: Path, plan: Plan) -> list[str]:
    """What of `root`/storm is torn, left over, or differs from `root`/quiet, in words."""
    quiet, stormy = (locate(root / name / "runs", plan) for name in ("quiet", "storm"))
    if quiet != stormy:
        return [f"{len(stormy)} of {len(quiet)} runs are there"]
    wrong = []
    for run in quiet.values():
        one, other = root / "quiet" / "runs" / run, root / "storm" / "runs" / run
        wrong += [f"{run}: not finished"] if not finished(other) else []
        wrong += [f"{run}: {name} differs" for name in SAME if (one / name).read_bytes() != (other / name).read_bytes()]
        wrong += [f"{run}: {path.name} is left" for path in other.rglob("*.partial")]
        wrong += [f"{run}: its state is left"] if (other / STATE).exists() else []
        for name in RUN_TABLES:
            read_table(other, name)
        for path in other.glob("*.json"):
            read_json(path)
    return wrong


@contextmanager
def _quick_costs() -> Iterator[None]:
    """Timing inference takes most of so short a run, and is none of its results."""
    measure, threads = execution.measure_costs, torch.get_num_threads()
    execution.measure_costs = lambda *_: []
    torch.set_num_threads(1)
    try:
        yield
    finally:
        execution.measure_costs = measure
        torch.set_num_threads(threads)


def _start(grid: Path, results: str) -> BaseProcess:
    process = _forks.Process(target=_silently, args=(grid, results))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which these do not use
        process.start()
    return process


def _silently(grid: Path, results: str) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    work(grid, results)


def _kill(worker: BaseProcess, runs: Path, outcome: Outcome) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    moment = _moment(runs, worker.pid)
    outcome.faults += 1
    outcome.moments[moment] = outcome.moments.get(moment, 0) + 1


def _moment(runs: Path, pid: int) -> str:
    """The newest file of the run that a killed process held."""
    for claim in runs.glob("*/claims/*"):
        content = claim.read_text()
        if content and json.loads(content)["pid"] == pid:
            files = [path for path in claim.parents[1].rglob("*") if path.is_file() and path.parent != claim.parent]
            newest = max(files, key=lambda path: path.stat().st_mtime_ns, default=None)
            return "no file yet" if newest is None else newest.name.replace(f".{pid}", "")
    return "between runs"


@contextmanager
def _watching(runs: Path, ids: set[str]) -> Iterator[list[str]]:
    """Lists the runs that were finished twice: whose `DONE` was replaced, or went away again."""
    seen: dict[str, tuple[int, int]] = {}
    twice: list[str] = []
    ended = threading.Event()

    def look() -> None:
        last = False
        while not last:
            last = ended.wait(0.2)
            for run in ids:
                try:
                    found = (runs / run / "DONE").stat()
                except FileNotFoundError:
                    found = None
                stamp = (found.st_ino, found.st_mtime_ns) if found else None
                if run in seen and stamp != seen[run]:
                    twice.append(f"{run}: finished twice")
                if stamp:
                    seen[run] = stamp

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield twice
    finally:
        ended.set()
        watcher.join()


def _remove(runs: Path) -> None:
    import shutil

    shutil.rmtree(runs)


def _table(rows: list[tuple[str, Outcome]]) -> str:
    lines = ["| fault | tried | time | lost |", "| --- | --: | --: | --- |"]
    for name, outcome in rows:
        lost = "nothing" if not outcome.lost else f"{len(outcome.lost)}: {outcome.lost[0]}"
        lines.append(f"| {name} | {outcome.faults} | {outcome.seconds:.0f} s | {lost} |")
    for name, outcome in rows:
        parts = sorted(outcome.moments.items(), key=lambda item: -item[1])
        lines.append(f"\n{name}, newest file of the killed: " + ", ".join(f"{file} {n}" for file, n in parts))
    return "\n".join(lines)


def main() -> None:
    """Everything at full length."""
    campaigns: list[tuple[str, int, int, Callable[[Path], Outcome]]] = [
        ("8 workers on 200 runs, one killed every 3 s", 200, 60, lambda grid: storm(grid, 8, 3.0, seed=0)),
        ("8 workers on 60 runs, one killed every 0.3 s", 60, 30, lambda grid: storm(grid, 8, 0.3, seed=1)),
        ("kill -9 at a random point of a run", 1, 60, lambda grid: kill_at_points(grid, 50, seed=2)),
    ]
    rows = []
    for name, runs, steps, campaign in campaigns:
        with tempfile.TemporaryDirectory() as folder:
            print(name, file=sys.stderr, flush=True)
            rows.append((name, campaign(declare(Path(folder), runs, steps))))
    print(_table(rows))
    sys.exit(any(outcome.lost for _, outcome in rows))


if __name__ == "__main__":
    main()
