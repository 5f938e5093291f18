"""What the verbs of a grid do on a Slurm cluster."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from study import StudyError
from study.cli.options import say
from study.grid.plan import Cell, Plan, title
from study.grid.schema import Run
from study.training.slurm_queue import (
    Queued,
    SlurmError,
    Submission,
    cancel,
    follow,
    home,
    last_words,
    queue,
    spell,
    submissions,
)

if TYPE_CHECKING:
    from study.training.slurm import Profile

LOCK_S = 60.0
LISTED = 100  # tasks at most


@dataclass(frozen=True)
class Launch:
    """What `study run` was given besides the grid; see `study.training.slurm.Task`."""

    results: Path
    data_root: Path
    placement: str
    cpu: bool
    workers: int | None
    deterministic: bool
    trackers: tuple[str, ...] = ()


def run_on_slurm(plan: Plan, path: Path, launch: Launch, detach: bool) -> dict[str, str] | None:
    """Submits what is left of a grid and not in the queue yet, and follows all of it that is.

    Args:
        plan: the grid's runs.
        path: of the profile.
        launch: what each task is to do.
        detach: return once they are submitted.

    Returns:
        Id of every run -> `done`, `failed` or `interrupted`; None where it does not wait for that.

    Raises:
        StudyError: something is missing or refused; nothing was submitted.
    """
    from study.records.declaration import declare
    from study.training.slurm import check_programs, read_profile

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise StudyError("--slurm submits from one process: leave torchrun or accelerate launch away")
    profile = read_profile(path)
    check_programs()
    members, starts = _identify(plan, profile, launch)
    names = {run_id: title(*member) for run_id, member in members.items()}
    runs, folder = launch.results / "runs", home(launch.results, plan.name)
    done = _done(runs, names)
    declare(launch.results, plan, len(done))  # whole: a task would declare its own runs alone
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=LOCK_S):
            known = submissions(folder)
            waiting = queue(known)
            taken = {run_id for task in waiting for run_id in task.runs}
            left = {run_id: members[run_id] for run_id in members if run_id not in done and run_id not in taken}
            known += _submit(plan, profile, launch, left, members, starts)
    except Timeout:
        raise SlurmError(f"{folder}: another command has been submitting there for {LOCK_S:g} s") from None
    if waiting:
        say(f"in the queue before: {spell(waiting)}")
    if detach:
        return None
    try:
        follow(plan.name, names, runs, known, done)
    except KeyboardInterrupt:
        say("no longer followed; the jobs go on (study status, study cancel)")
        return None
    return _ended(runs, names, known)


Members = Mapping[str, tuple[Cell, Run]]


def _identify(plan: Plan, profile: "Profile", launch: Launch) -> tuple[Members, dict[str, str]]:
    """Every run of the plan by its id; and id -> id of its start, where that has not finished.

    Raises:
        StudyError: a run could not work as it is declared, or starts from one that is nowhere.
    """
    from study.records.index import finished
    from study.training.image_sets import ImageSets
    from study.training.placement import read_placement

    images = ImageSets(launch.data_root, launch.results / "cache")
    ddp = read_placement(launch.placement).ddp
    for cell in plan.cells:
        images.check(cell.runs[0], profile.processes if ddp else 1)
    members = {images.identify(run): (cell, run) for cell, run in plan.runs()}
    starts = {}
    for run_id, (_, run) in members.items():
        start = images.identify(run.start) if isinstance(run.start, Run) else None
        if start is not None and not finished(launch.results / "runs" / start):
            if start not in members:
                raise SlurmError(f"{run_id} starts from {start}, which is neither finished nor a run of this grid")
            starts[run_id] = start
    return members, starts


def _done(runs: Path, names: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    from study.records.survey import survey

    stored = survey(runs)
    found = {run_id: stored[run_id].state for run_id in names if run_id in stored}
    return {run_id: state for run_id, state in found.items() if state["state"] == "done"}


def _submit(
    plan: Plan, profile: "Profile", launch: Launch, left: Members, members: Members, starts: Mapping[str, str]
) -> list[Submission]:
    """Submits the runs that are left, if any, and says so."""
    from study.training.placement import read_placement
    from study.training.slurm import Task, group, restrict, submit

    if not left:
        return []
    placed = read_placement(launch.placement)
    at_once = 1 if placed.ddp else profile.processes * placed.packed
    tasks = [
        Task(
            restrict(plan, [members[run_id] for run_id in ids]),
            ids,
            launch.results.absolute(),
            launch.data_root.absolute(),
            launch.placement,
            launch.cpu,
            launch.workers,
            launch.deterministic,
            launch.trackers,
            profile.restarts,
            profile.processes,
        )
        for ids in group(list(left), starts, profile.runs_per_task or at_once)
    ]
    titles = {run_id: title(*member) for run_id, member in members.items()}
    made = submit(tasks, titles, profile, home(launch.results, plan.name))
    say(f"submitted {len(left)} runs as job {made.job}, {len(tasks)} tasks; logs lie in {made.folder}")
    return [made]


def _ended(runs: Path, names: Mapping[str, str], known: list[Submission]) -> dict[str, str]:
    """How each run ended; what a task said whose runs have not."""
    from study.records.index import status

    states = {run_id: str(status(runs, run_id)["state"]) for run_id in names}
    ended = {run_id: state if state in ("done", "failed") else "interrupted" for run_id, state in states.items()}
    last = {run_id: (one, index) for one in known for index, task in enumerate(one.tasks) for run_id in task}
    logs = {run_id: one.log(index) for run_id, (one, index) in last.items() if ended.get(run_id) == "interrupted"}
    for log in list(dict.fromkeys(logs.values()))[:LISTED]:
        say(f"not finished: {log}: {last_words(log)}", style="yellow")
    return ended


def print_queued(plan: Plan, results: Path, states: Mapping[str, str]) -> None:
    """Says which of the grid's runs that are not done wait or run on Slurm, where any was submitted.

    Args:
        plan: the grid's runs.
        results: folder with `runs/`.
        states: run id -> its state, of those with a folder.
    """
    known = submissions(home(results, plan.name))
    try:
        waiting = queue(known)
    except SlurmError as error:
        say(f"what is on Slurm is not known: {error}", style="yellow")
        return
    if waiting:
        say(f"on Slurm: {spell(waiting)}")
    for task in waiting[:LISTED]:
        left = [name for run_id, name in task.runs.items() if states.get(run_id) != "done"]
        if left:
            say(f"  {'; '.join(left)}: {task.describe()}")
    if len(waiting) > LISTED:
        say(f"  and {len(waiting) - LISTED} tasks more")


def cancel_submitted(plan: Plan, results: Path) -> None:
    """Cancels what was submitted for a grid and is not over, and says what that was."""
    folder = home(results, plan.name)
    known = submissions(folder)
    waiting: list[Queued] = [task for task in queue(known) if not task.ending]
    if not waiting:
        say(f"nothing of {plan.name} is on Slurm")
        return
    left = cancel(waiting, known)
    for task in waiting:
        names = "; ".join(task.runs.values())
        say(f"cancelled: {task.describe()}: {names}")
    if left:
        say(f"not over yet: {spell(left)}; states may still be written", style="yellow")
