"""What a plan will cost before anything is trained: sizes from the meta device, time from a step of each network."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from study import StudyError
from study.data.decoding import DataError
from study.evaluation.complexity import multiply_adds, parameters
from study.grid.plan import Plan
from study.grid.schema import Run
from study.models import build
from study.models.external import placed
from study.training.steps import sample_operations, training_step

CPU_BATCH = 2  # at most: on a CPU time grows in proportion to the batch, so a small one tells as much


@dataclass(frozen=True)
class Estimate:
    """Cost of one run.

    Attributes:
        parameters: trainable values; None where a weights file is missing.
        multiply_adds: see `complexity.multiply_adds`; None likewise.
        operations: floating-point operations of the training, see `steps.sample_operations`; None where unknown.
        seconds: training time on this machine; None where it was not asked for.
    """

    parameters: int | None
    multiply_adds: int | None
    operations: float | None
    seconds: float | None


def duration(seconds: float | None) -> str:
    """`40 s`, `1:05 h`, `3 d 1:05 h`; nothing for None."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 or not seconds else "<1 s"
    days, hours = divmod(minutes // 60, 24)
    return (f"{days} d " if days else "") + f"{hours}:{minutes % 60:02} h"


def estimate(plan: Plan, *, root: Path, cpu: bool, timed: bool) -> dict[str, Estimate]:
    """Estimates for every cell of a plan, by name; equal networks are measured once.

    Args:
        plan: the runs.
        root: the data root, below which external weights lie.
        cpu: keep off the GPU.
        timed: measure training steps too.
    """
    sizes: dict[Any, tuple[int, int] | tuple[None, None]] = {}
    samples: dict[Any, float] = {}
    times: dict[Any, float | None] = {}
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    estimates = {}
    shown = Console(stderr=True)
    for cell in track(plan.cells, "timing a step of every network", console=shown, transient=True, disable=not timed):
        run = cell.runs[0]
        network = run.model, run.scale
        if network not in sizes:
            sizes[network] = _size(run, root)
        seconds = 0.0
        sample = *network, run.objective, run.data.lr_patch_px, run.trains
        if sample not in samples:
            samples[sample] = sample_operations(run)
        operations = samples[sample] * run.optimisation.batch * run.optimisation.steps
        if run.trains and timed:
            micro = run.optimisation.batch // run.optimisation.accumulate
            batch = micro if device.type == "cuda" else min(micro, CPU_BATCH)
            step = *network, run.objective, run.data.lr_patch_px, batch, run.optimisation.precision
            if step not in times:
                times[step] = _sample_seconds(run, batch, device)
            each = times[step]
            seconds = None if each is None else each * run.optimisation.batch * run.optimisation.steps
        known = None if math.isnan(operations) else operations
        estimates[cell.name] = Estimate(*sizes[network], known, seconds if timed else None)
    return estimates


def _size(run: Run, root: Path) -> tuple[int, int] | tuple[None, None]:
    try:
        run = placed(run, root)
    except DataError:  # whoever asks for the run's id is told
        return None, None
    with torch.device("meta"):
        network = build(run)
    return parameters(network), multiply_adds(run)


def _sample_seconds(run: Run, batch: int, device: torch.device) -> float | None:
    """Seconds of an optimiser step of `batch` samples, for each of them; the second of two steps.

    None where the objective lacks pretrained weights, the device lacks the precision, or the batch does not fit
    into it.
    """
    optimisation = run.optimisation.model_copy(update={"batch": batch, "accumulate": 1})
    begun = 0.0
    try:
        step = training_step(run.model_copy(update={"optimisation": optimisation}), device)
        for _ in range(2):
            begun = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
    except (StudyError, torch.OutOfMemoryError):  # whoever runs it is told
        return None
    return (time.perf_counter() - begun) / batch
