"""Which processes there are, and what each of them does: whole runs, or a share of every run."""

import ctypes
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Literal

import psutil

Placement = Literal["run-per-process", "ddp"]
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
            mine = devices[processes.local_rank % len(devices)] if devices else str(processes.local_rank)
            os.environ["CUDA_VISIBLE_DEVICES"] = mine


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
