"""Which processes there are, and what each does: whole runs, one or several at a time, or a share of every run."""

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

import psutil
import torch

from study import StudyError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # schedulers warn with the last two


def leave_signals(worker: int) -> None:
    """In a process that prepares samples: it ends with its training, which alone decides when to stop.

    A launcher stops the whole process group; a loader that has lost a worker would raise before the state is saved.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class Placement:
    """How runs are laid on processes; as it stands, each process takes whole runs, one after the other.

    Attributes:
        ddp: all processes share every run.
        packed: how many runs each process trains at once on its device, every one in a process of its own. Processes,
            because parameters stacked by `torch.func.vmap` would need other networks (CATANet's step raises under it;
            IMDN's took 1.3 times as long as four steps in turn, width 16, one CPU thread), and threads or CUDA streams
            of one process share one interpreter.
    """

    ddp: bool = False
    packed: int = 1


def read_placement(text: str) -> Placement:
    """`run-per-process`, `packed:K` or `ddp`, as on the command line.

    Raises:
        StudyError: it is none of them.
    """
    name, _, number = text.partition(":")
    if name == "packed" and number.isascii() and number.isdigit() and int(number):
        return Placement(packed=int(number))
    if text in ("run-per-process", "ddp"):
        return Placement(ddp=text == "ddp")
    if name == "packed":
        right = "packed:K wants K, how many runs train at once on one device, as a number from 1"
    elif "ddp" in text:
        right = "with ddp all processes share every run, so that it takes no number and packs none"
    else:
        right = "one of run-per-process, packed:K (K runs at once on one device), ddp"
    raise StudyError(f"--placement {text!r}: {right}")


@dataclass(frozen=True)
class Processes:
    """This process among those of its launch.

    Attributes:
        rank: its number, 0 the first.
        world: how many there are.
        local_rank: its number on this machine.
    """

    rank: int
    world: int
    local_rank: int

    @property
    def first(self) -> bool:
        return self.rank == 0


def find_processes() -> Processes:
    """Reads what the launcher (`torchrun`, `accelerate launch`) set; warns when it started too few."""
    found = Processes(*(int(os.environ.get(name, default)) for name, default in zip(ENVIRONMENT, "010", strict=False)))
    asked = _asked()
    if asked is not None and asked > found.world:
        warnings.warn(
            f"{asked} processes were asked for and {found.world} is running: `accelerate launch --cpu` starts one "
            f"whatever number it is given; `torchrun --nproc-per-node {asked} -m study …` starts them all",
            stacklevel=2,
        )
    return found


def _asked() -> int | None:
    """The number of processes on the command line of the `accelerate launch` above this process, if there is one."""
    try:
        words = [word for parent in psutil.Process().parents()[:2] for word in parent.cmdline()]
    except psutil.Error:
        return None
    if not any(word.endswith("accelerate") or "accelerate.commands" in word for word in words):
        return None
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name.replace("-", "_") in ("__num_processes", "__num_process"):
            value = value or after
            return int(value) if value.isdigit() else None
    return None


def separate(processes: Processes) -> None:
    """Makes this process one of its own, on its own device, so that it trains whole runs alone.

    Has to come before CUDA is initialised and before an `Accelerator` is made.
    """
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    if processes.world > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible != "":  # empty hides them all
            devices = visible.split(",") if visible else None
            mine = (
                devices[processes.local_rank % len(devices)]
                if devices
                else str(processes.local_rank % max(1, torch.cuda.device_count()))
            )
            os.environ["CUDA_VISIBLE_DEVICES"] = mine


@dataclass
class Signals:
    """Whether this process was asked to stop: the first request saves and stops, the second stops at once.

    Slurm says it more than once, to the process and through `srun`, and with several signals: inside a job only a
    keyboard's second request is another one.

    Attributes:
        requested: it was.
        children: processes that stop with this one; to them any number of requests is one.
        received: every signal that any launch of this process has noted.
    """

    received: ClassVar[list[int]] = []
    requested: bool = False
    children: list[BaseProcess] = field(default_factory=list)
    previous: dict[int, Any] = field(default_factory=dict)

    def note(self, number: int, _: object) -> None:
        self.received.append(number)
        if self.requested and number != signal.SIGINT and "SLURM_JOB_ID" in os.environ:
            return
        if self.requested:
            self.kill_children()
            signal.signal(number, self.previous[number])
            signal.raise_signal(number)
        self.requested = True
        self.stop_children()

    def stop_children(self) -> None:
        for child in self.children:
            if child.is_alive():
                child.terminate()

    def kill_children(self) -> None:
        for child in self.children:
            if child.is_alive():
                child.kill()

    @contextmanager
    def caught(self) -> Iterator[None]:
        for number in STOPPING:
            self.previous[number] = signal.signal(number, self.note)
        try:
            yield
        finally:
            for number, handler in self.previous.items():
                signal.signal(number, handler)


Take = Callable[[Callable[[], bool]], object]


def pack(take: Take, count: int, signals: Signals) -> list[int]:
    """Calls `take(stop)` in `count` fresh processes, which share this one's device and divide its threads.

    Each goes on whatever becomes of the others; `stop` says whether to save and stop: once this process was asked to,
    or is gone.

    Args:
        take: pickled for the other processes.
        count: how many.
        signals: what this process is sent goes on to them.

    Returns:
        Exit code of each; the negative number of the signal that ended it.
    """
    context = get_context("spawn")  # forked processes could use neither CUDA nor this one's threads
    threads = max(1, torch.get_num_threads() // count)
    signals.children = [context.Process(target=_packed, args=(take, threads)) for _ in range(count)]
    resource_tracker.ensure_running()  # started later, it would lift the mask
    with _environment("OMP_NUM_THREADS", str(threads)):  # read when libraries are loaded
        # the mask is inherited: a signal waits in each child until it can note it
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            for child in signals.children:
                child.start()
        except BaseException:
            signals.kill_children()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    if signals.requested:  # while they were being started
        signals.stop_children()
    for child in signals.children:
        child.join()
    return [child.exitcode or 0 for child in signals.children]


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    own = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        os.environ |= {} if own is None else {name: own}


def _packed(take: Take, threads: int) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    requests: list[int] = []
    for number in STOPPING:  # a terminal sends its own to every process, besides what the launch passes on
        signal.signal(number, lambda number, _: requests.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    launch = parent_process()
    take(lambda: bool(requests) or launch is None or not launch.is_alive())


def keep_freed_memory() -> None:
    """Lets glibc reuse the large buffers of one step for the next, instead of returning them to the kernel each time.

    A training step on a CPU frees and takes again buffers of tens of MB; without their page faults CATANet's step takes
    6 to 10% less time (`study bench`, three interleaved runs with and without, two cores). Nothing happens where the
    C library has no `mallopt`.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
