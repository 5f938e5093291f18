"""One attempt at a run: how it ended, why, and what it leaves of the device to the next."""

import errno
import gc
import traceback
from dataclasses import replace
from pathlib import Path

import torch

from study import StudyError
from study.grid.schema import Run
from study.records.claims import Claim
from study.records.store import remove_partials
from study.training.execution import Machine, Status, execute
from study.training.placement import Processes
from study.training.trainer import Diverged, Interrupted


def attempt(
    run: Run, path: Path, machine: Machine, claim: Claim | None, processes: Processes | None = None
) -> str | None:
    """How it ended; None where another process has taken it over, whose records are then left alone."""
    first = processes is None or processes.first
    if first:
        remove_partials(path)
    status_file = Status(path, run)
    if claim is not None:
        machine = replace(machine, stop=lambda stop=machine.stop: stop() or claim.passed_over.is_set(), lost=claim.lost)
    try:
        execute(run, path, machine, status_file)
    except Interrupted as error:
        state, details = "interrupted", {"reason": str(error)}
    except Exception as error:
        _end_where_no_space_is_left(error, path)
        state, details = "failed", {"reason": _reason(error, run), "traceback": traceback.format_exc()}
        if processes is not None and processes.world > 1 and not isinstance(error, Diverged):
            if not status_file.failed():  # the first to fail knows why, the others that it has gone
                status_file.write(state=state, **details)
            raise  # the other processes wait for this one: only the launcher can end them
    else:
        _free(run, machine)
        return "done"
    if claim is not None and claim.lost():
        return None
    if first:
        status_file.write(state=state, **details)
    _free(run, machine)
    return state


def _free(run: Run, machine: Machine) -> None:
    """Gives back what a run held, now that its frames are gone."""
    gpu = torch.cuda.is_available() and not machine.cpu
    given = run.optimisation
    if gpu or given.compile or given.precision in ("bf16", "fp16"):
        gc.collect()  # Accelerate's autocast and compiled networks refer to themselves
    if gpu:
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise StudyError(
                f"the GPU can no longer be used: {str(error).partition(chr(10))[0]}. What is done is kept; the run "
                "that was in work says why it failed, and the same command goes on with the others"
            ) from error


def _end_where_no_space_is_left(error: Exception, path: Path) -> None:
    """Ends the launch where the disk is full, which no other run would survive either; this one counts as interrupted.

    Raises:
        StudyError: it is.
    """
    cause = error.__cause__ if isinstance(error, StudyError) else error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        raise StudyError(
            f"{cause.filename or path}: {cause.strerror}. What is done is kept; once there is space the same command "
            "goes on from the last state"
        ) from None


def _reason(error: Exception, run: Run) -> str:
    if isinstance(error, StudyError):
        return str(error)
    said = f"{type(error).__name__}: {error}".strip()
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in said:
        return said
    given = run.optimisation
    return (
        f"out of memory, with optimisation.batch {given.batch} in {given.accumulate} parts and data.lr_patch_px "
        f"{run.data.lr_patch_px}: raise optimisation.accumulate (the batch stays what it is; k-means prototypes move "
        "once for each part), lower the batch or the patch, or train fewer runs at once on the device; if it was "
        f"being evaluated, lower evaluation.tile_lr_px, {run.evaluation.tile_lr_px} here. "
        f"{said.partition(chr(10))[0]}"
    )
