"""What was submitted to Slurm for a grid, and what of it is not over yet; `squeue` and `scancel` are all it needs."""

import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study import StudyError
from study.records.store import RecordError, read_json, write_json
from study.training.display import display

FILE = "submission.json"
WAIT_S = 60.0  # for cancelled tasks to write their state: `scancel` itself waits for KillWait, 30 s by default
SILENT_S = 600.0  # of a controller that does not answer, while jobs are followed


class SlurmError(StudyError):
    """Slurm, or what is needed to use it, is not there or refuses; the message says what it said."""


@dataclass(frozen=True)
class Submission:
    """One job array, kept in a folder of its own with what submitit wrote.

    Attributes:
        folder: that folder.
        name: the job's name in Slurm, which no other job has.
        submitted: when, ISO 8601.
        tasks: for each task of the array, id -> title of its runs.
        job: number of the array; None where the submission was cut short.
    """

    folder: Path
    name: str
    submitted: str
    tasks: tuple[Mapping[str, str], ...]
    job: str | None = None

    def write(self) -> None:
        body = {"name": self.name, "submitted": self.submitted, "job": self.job, "tasks": list(self.tasks)}
        write_json(self.folder / FILE, body)

    def log(self, task: int) -> Path:
        """Where the first process of a task writes its errors."""
        return self.folder / f"{self.job}{f'_{task}' if len(self.tasks) > 1 else ''}_0_log.err"


@dataclass(frozen=True)
class Queued:
    """A task that is not over.

    Attributes:
        job: its number, `12_3` for task 3 of array 12.
        state: Slurm's word: `PENDING`, `RUNNING`, `COMPLETING` (it is about to end), …
        reason: why it does not run yet, in Slurm's word.
        runs: id -> title of its runs.
    """

    job: str
    state: str
    reason: str
    runs: Mapping[str, str]

    @property
    def ending(self) -> bool:
        return self.state == "COMPLETING"

    def describe(self) -> str:
        """`running as 12_3`, `pending as 12_4 (Resources)`."""
        waits = f" ({self.reason})" if self.state == "PENDING" and self.reason not in ("", "None") else ""
        return f"{self.state.lower()} as {self.job}{waits}"


def home(results: Path, plan: str) -> Path:
    """Folder of all that was submitted for a plan."""
    return results / "slurm" / plan


def submissions(folder: Path) -> list[Submission]:
    """All that was submitted from there, the first first; what is not readable is passed over."""
    found = []
    for path in sorted(folder.glob(f"*/{FILE}")):
        try:
            body: dict[str, Any] = read_json(path)
            tasks = tuple({str(key): str(title) for key, title in task.items()} for task in body["tasks"])
            found.append(Submission(path.parent, str(body["name"]), str(body["submitted"]), tasks, body["job"]))
        except (RecordError, KeyError, TypeError, AttributeError):
            continue
    return found


def find(program: str) -> str:
    """Path of one of Slurm's programs.

    Raises:
        SlurmError: it is not on the PATH.
    """
    path = shutil.which(program)
    if path is None:
        raise SlurmError(f"{program} is not on the PATH: --slurm works on a machine that submits to a Slurm cluster")
    return path


def ask(*command: str) -> str:
    """What one of Slurm's programs prints.

    Raises:
        SlurmError: it is not there, does not answer, or refuses.
    """
    try:
        done = subprocess.run([find(command[0]), *command[1:]], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} has not answered for a minute") from None
    if done.returncode:
        raise SlurmError(f"{command[0]} refuses: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def queue(known: Sequence[Submission]) -> list[Queued]:
    """The tasks of some submissions that Slurm still holds.

    Raises:
        SlurmError: `squeue` is not there or does not answer.
    """
    if not known:
        return []
    names = ",".join(one.name for one in known)  # numbers alone may come again when a controller is set up anew
    return parse(ask("squeue", "--noheader", "--array", f"--name={names}", "--format=%i|%j|%T|%r"), known)


def parse(text: str, known: Iterable[Submission]) -> list[Queued]:
    """Reads lines of `squeue --array --format=%i|%j|%T|%r`; other people's jobs are passed over."""
    named = {one.name: one for one in known}
    found = []
    for line in text.splitlines():
        parts = line.strip().split("|", 3)
        if len(parts) < 4 or parts[1] not in named:
            continue
        index = parts[0].partition("_")[2] or "0"
        tasks = named[parts[1]].tasks
        if index.isdigit() and int(index) < len(tasks):
            found.append(Queued(parts[0], parts[2], parts[3], tasks[int(index)]))
    return found


def cancel(tasks: Iterable[Queued], known: Sequence[Submission], wait_s: float = WAIT_S) -> list[Queued]:
    """Cancels by number the arrays that tasks are part of, and waits until they have ended.

    Returns:
        Those that had not ended by then.
    """
    jobs = sorted({task.job.partition("_")[0] for task in tasks}, key=int)
    if jobs:
        ask("scancel", *jobs)
    deadline = time.monotonic() + wait_s
    while (left := [task for task in queue(known) if task.job.partition("_")[0] in jobs]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.5)
    return left


def follow(
    title: str,
    names: Mapping[str, str],
    runs: Path,
    known: Sequence[Submission],
    done: Mapping[str, Mapping[str, Any]],
) -> None:
    """Shows the runs' progress until Slurm holds none of the tasks any more.

    Args:
        title: the grid's name.
        names: run id -> its title.
        runs: folder of the run folders.
        known: what to wait for.
        done: states of the runs that were finished before.

    Raises:
        SlurmError: Slurm has not answered for ten minutes.
    """
    begun = answered = time.monotonic()
    with display(title, names, runs, True, done):
        while True:
            try:
                left = queue(known)
                answered = time.monotonic()
                if not left:
                    return
            except SlurmError as error:
                if time.monotonic() - answered > SILENT_S:
                    raise SlurmError(f"{error}; jobs are no longer followed, and go on where they run") from None
            time.sleep(min(15.0, 1 + (time.monotonic() - begun) / 20))  # a controller serves everybody


def last_words(path: Path) -> str:
    """The last line of a log that says something."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it wrote nothing"
    said = [line.strip() for line in lines if line.strip() and not line.startswith("submitit ")]
    return said[-1] if said else "it wrote nothing"


def spell(queued: Iterable[Queued]) -> str:
    """`2 running, 7 pending`."""
    states = [one.state.lower() for one in queued]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states, reverse=True)))
