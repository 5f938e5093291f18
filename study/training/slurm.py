"""A grid's runs as one Slurm array, through submitit: the profile, what each task takes, and what a task does.

A task that Slurm asks to stop (time limit, preemption) lets its run write its state, and goes back into the queue; the
run goes on from there. Nothing here decides who owns a run: tasks claim runs as every other process does.
"""

import contextlib
import io
import os
import re
import secrets
import shutil
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, field_validator

from study.grid.fields import Declared
from study.grid.fields import Sequence as Listed
from study.grid.loading import read_document
from study.grid.messages import explain
from study.grid.plan import Cell, Plan
from study.grid.schema import Run
from study.records.store import RecordError
from study.training.slurm_queue import SlurmError, Submission, ask, find

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d{1,2}(:\d\d){0,2}")
MANAGED = {"array", "job_name", "output", "error", "open_mode", "signal", "requeue", "ntasks", "ntasks_per_node"}
OWN = {"mem": "memory_gb", "cpus_per_task": "cpus", "gpus_per_node": "gpus"}

Word = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$")]


class Profile(Declared):
    """How a cluster is asked for machines; nothing here changes a result.

    Attributes:
        partition: where to submit; absent, the cluster's default. So are all that follow.
        time: limit of a task, as Slurm writes it: minutes, `hours:minutes:seconds` or `days-hours`.
        gpus: per node; each has a process of its own.
        cpus: per process.
        memory_gb: per node.
        constraint: features that nodes must have.
        account: what is charged.
        qos: quality of service.
        nodes: of each task.
        runs_per_task: how many runs a task takes, one after the other; absent, as many as it trains at once.
        at_once: how many tasks may run at a time; absent, all.
        warning_s: how long before its time limit a task is told to write its state.
        restarts: how often a task may go back into the queue, so that one which never gets on ends some time.
        setup: shell lines before Python starts, such as `module load cuda`.
        extra: further options of `sbatch`, by name.
    """

    partition: Word | None = None
    time: str | PositiveInt | None = None
    gpus: NonNegativeInt = 0
    cpus: PositiveInt | None = None
    memory_gb: PositiveFloat | None = None
    constraint: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    nodes: PositiveInt = 1
    runs_per_task: PositiveInt | None = None
    at_once: PositiveInt | None = None
    warning_s: PositiveInt = 90
    restarts: NonNegativeInt = 100
    setup: Annotated[tuple[str, ...], Listed] = ()
    extra: dict[Word, Word | int | float | Literal[True]] = {}

    @field_validator("time")
    @classmethod
    def _slurm_format(cls, value: str | int | None) -> str | int | None:
        if isinstance(value, str) and not TIME.fullmatch(value):
            raise ValueError(f"{value!r} is no time of Slurm's: minutes, hours:minutes:seconds, days-hours")
        return value

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            name = key.lstrip("-").replace("-", "_")
            own = OWN.get(name, name)
            if name in MANAGED:
                raise ValueError(f"{key} is set by the submission itself; remove it")
            if own in cls.model_fields:
                raise ValueError(f"{key} has a key of its own in a profile: {own}")
        return {key.lstrip("-"): given for key, given in value.items()}

    @property
    def processes(self) -> int:
        """Of one task, over all its nodes."""
        return self.nodes * max(1, self.gpus)

    def parameters(self, name: str, tasks: int) -> dict[str, Any]:
        """What submitit is given for an array of so many tasks."""
        setup = list(self.setup)
        given: dict[str, Any] = {"partition": self.partition, "time": self.time, "nodes": self.nodes}
        given |= {"constraint": self.constraint, "account": self.account, "qos": self.qos, "wckey": None}
        given |= {"ntasks_per_node": max(1, self.gpus), "array_parallelism": self.at_once or tasks}
        given |= {"signal_delay_s": self.warning_s, "additional_parameters": {"requeue": True, **self.extra}}
        if self.gpus:
            given["gpus_per_node"] = self.gpus
        if self.memory_gb is not None:
            given["mem"] = f"{round(self.memory_gb * 1024)}M"
        if self.cpus is not None:
            given |= {"cpus_per_task": self.cpus, "srun_args": [f"--cpus-per-task={self.cpus}"]}  # not inherited
            setup.insert(0, f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{self.cpus}}}"')
        return {"job_name": name, "setup": setup, **given}


def read_profile(path: Path) -> Profile:
    """Reads a profile, a YAML file.

    Raises:
        GridError: it is not YAML.
        SlurmError: with one line per problem, each naming file, line and key.
    """
    document = read_document(path)
    try:
        return Profile.model_validate(document.tree)
    except ValidationError as error:
        raise SlurmError(explain(error, Profile, lambda p: (document.place(p), ".".join(map(str, p))))) from None


def check_programs() -> None:
    """Refuses where nothing can be submitted.

    Raises:
        SlurmError: submitit or one of Slurm's programs is missing.
    """
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError:
        raise SlurmError(
            "--slurm needs submitit: pip install 'study[slurm]' (here: pip install -e '.[slurm]')"
        ) from None
    for program in ("sbatch", "srun", "squeue"):
        find(program)


def group(left: Sequence[str], starts: Mapping[str, str], size: int) -> list[tuple[str, ...]]:
    """Shares runs out among tasks; a run that starts from another is in the task of its start, after it.

    Args:
        left: ids of the runs to do.
        starts: id -> id of the run it starts from, where that one is not finished.
        size: runs of a task; more only where they hang together by their starts.

    Returns:
        Ids of each task, every start before what starts from it. A start that is not among `left` (another task has
        it) is there all the same: who comes second waits.
    """
    families: dict[str, list[str]] = {}
    for run_id in left:
        chain = [run_id]
        while chain[-1] in starts:
            chain.append(starts[chain[-1]])
        family = families.setdefault(chain[-1], [])
        family += [one for one in reversed(chain) if one not in family]
    tasks: list[tuple[str, ...]] = []
    for family in families.values():
        if tasks and len(tasks[-1]) + len(family) <= size:
            tasks[-1] += tuple(family)
        else:
            tasks.append(tuple(family))
    return tasks


def restrict(plan: Plan, kept: Sequence[tuple[Cell, Run]]) -> Plan:
    """The plan with these of its runs alone; their ids and titles stay as they are.

    What the grid lists is left away with the rest: a task needs the runs, which are resolved, and a thousand tasks
    would each carry all of it.
    """
    cells: dict[str, Cell] = {}
    for cell, run in kept:
        before = cells[cell.name].runs if cell.name in cells else ()
        cells[cell.name] = replace(cell, runs=(*before, run))
    grid = plan.grid.model_copy(update={"variants": {}, "axes": {}, "references": {}})
    return replace(plan, grid=grid, cells=tuple(cells.values()))


class Told(BaseException):
    """Slurm asked a task to stop while none of its runs was being trained."""


@dataclass(frozen=True)
class Task:
    """What one task of an array does; pickled by submitit, so that nothing in it needs torch to be read.

    Attributes:
        plan: its runs alone.
        ids: of these runs, when they were submitted.
        results: folder with `runs/`.
        data_root: folder that relative image paths start from.
        placement: as on the command line.
        cpu: keep off the accelerator.
        workers: processes per run that prepare samples.
        deterministic: as on the command line.
        trackers: as on the command line.
        restarts: how often it may go back into the queue.
        processes: how many it is made of.
    """

    plan: Plan
    ids: tuple[str, ...]
    results: Path
    data_root: Path
    placement: str
    cpu: bool
    workers: int | None
    deterministic: bool
    trackers: tuple[str, ...]
    restarts: int
    processes: int

    def __call__(self) -> dict[str, str]:
        """Brings its runs to an end, or, where Slurm asks it to stop, goes back into the queue.

        Returns:
            How each run ended.
        """
        with _told() as told:
            try:
                ended, asked = self._run()
            except Told:
                ended, asked = {}, True
            told.append(0)  # from here on it ends anyway
            if asked and int(os.environ.get("SLURM_PROCID", "0")) == 0:
                raise SystemExit(go_back(self.restarts))  # without the file by which submitit knows that it is done
        return ended

    def _run(self) -> tuple[dict[str, str], bool]:
        from submitit.helpers import TorchDistributedEnvironment

        from study.training.determinism import request_determinism
        from study.training.image_sets import ImageSets
        from study.training.placement import Signals, read_placement
        from study.training.runner import Options, run_grid

        if self.deterministic:
            request_determinism()
        if self.processes > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        images = ImageSets(self.data_root, self.results / "cache")
        changed = sorted(set(self.ids) - {images.identify(run) for _, run in self.plan.runs()})
        if changed:
            raise RecordError(f"{', '.join(changed)}: their images have changed since they were submitted")
        before = len(Signals.received)
        options = Options(
            self.results, self.data_root, read_placement(self.placement), self.cpu, self.workers, self.trackers
        )
        ended = run_grid(self.plan, options)
        return ended, len(Signals.received) > before and "interrupted" in ended.values()


@contextlib.contextmanager
def _told() -> Iterator[list[int]]:
    """Raises `Told` at Slurm's first signal; later ones, and those that a run takes itself, change nothing.

    submitit's own handlers requeue a task from within the signal, before anything could be written.
    """
    told: list[int] = []

    def note(number: int, _: object) -> None:
        told.append(number)
        if len(told) == 1:
            raise Told

    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield told
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def go_back(restarts: int) -> str:
    """Puts the task that this process is of back into the queue; says what became of it.

    Nothing is done where Slurm is ending the job anyway: somebody has cancelled it, or it has requeued it itself, as
    after most preemptions.
    """
    from submitit import JobEnvironment

    job = JobEnvironment().job_id  # as 12_3: the bare number of an array's last task is that of the whole array
    count = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    try:
        state = ask("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip()
        if state != "RUNNING":
            return f"stopped; Slurm has {job} as {state.lower() or 'ended'}"
        if count >= restarts:
            return f"stopped; {job} was restarted {count} times, and restarts allows no more"
        ask("scontrol", "requeue", job)
    except SlurmError as error:
        return f"stopped; {job} did not go back into the queue: {error}"
    return f"stopped; {job} goes back into the queue"


def submit(tasks: Sequence[Task], titles: Mapping[str, str], profile: Profile, folder: Path) -> Submission:
    """Submits tasks as one array; the submission is kept in a new folder below `folder`.

    Args:
        tasks: at least one.
        titles: run id -> its title.
        profile: what each is given.
        folder: see `slurm_queue.home`.

    Raises:
        SlurmError: `sbatch` refuses; nothing is kept then.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    plain = re.sub(r"[^\w.+-]", "-", tasks[0].plan.name)
    name = f"study-{plain}-{secrets.token_hex(4)}"
    runs = tuple({run_id: titles[run_id] for run_id in task.ids} for task in tasks)
    with _new_folder(folder) as place:
        kept = Submission(place.absolute(), name, datetime.now().astimezone().isoformat(timespec="seconds"), runs)
        kept.write()  # first: whatever happens now, its name tells what is in the queue
        executor = SlurmExecutor(place)
        executor.update_parameters(**profile.parameters(name, len(tasks)))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the words are in the error, too
                jobs = executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            raise SlurmError(_refusal(str(error), len(tasks))) from None
        kept = replace(kept, job=jobs[0].job_id.partition("_")[0])
        kept.write()
    return kept


def _refusal(words: str, tasks: int) -> str:
    said = f"sbatch refuses, and nothing was submitted: {words.strip()}"
    if "array" in words.lower():
        said += (
            f"\n{tasks} tasks were asked for; a larger runs_per_task makes fewer (`scontrol show config`: MaxArraySize)"
        )
    return said


@contextlib.contextmanager
def _new_folder(parent: Path) -> Generator[Path, None, None]:
    """A numbered folder, which is removed again if the block fails."""
    number = 1 + max((int(path.name) for path in parent.glob("[0-9]*") if path.name.isdigit()), default=0)
    place = parent / f"{number:04d}"
    place.mkdir(parents=True)
    try:
        yield place
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
