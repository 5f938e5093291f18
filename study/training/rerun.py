"""A finished run trained again from its record alone, and how far the second training came from the first."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch

from study import StudyError
from study.grid.plan import Cell, Plan
from study.grid.schema import Analysis, Grid, Run
from study.records.index import finished
from study.records.provenance import changed_files
from study.records.store import RecordError, name_partial, read_json, read_table
from study.training.checkpoints import WEIGHTS
from study.training.image_sets import ImageSets
from study.training.networks import choose_device
from study.training.runner import Options, run_grid
from study.training.verification import (
    Change,
    Verification,
    adopt_settings,
    changed_data,
    compare_rows,
    read_record,
    why_inexact,
)


@dataclass(frozen=True)
class Rerun:
    """What came of it.

    Attributes:
        folder: of the second training.
        state: how it ended: `done`, `failed` or `interrupted`; unless done, nothing was compared.
        reason: why it did not end well.
        rows: the comparison of the per-image rows; `changes` where the data are others, and nothing was trained.
        weights: largest absolute difference of any weight; None of a network without.
        diverged_at: first step at which the training curves differ; None where they do not.
    """

    folder: Path
    state: str
    rows: Verification
    reason: str = ""
    weights: float | None = None
    diverged_at: int | None = None


def rerun(folder: Path, to: Path, options: Options) -> Rerun:
    """Trains a recorded run again in another results folder, then compares; called again it goes on, or only compares.

    The threads of a CPU and determinism are taken from the record.

    Args:
        folder: of the finished run.
        to: results folder, not the one that the run lies in.
        options: where data are found and what it runs on; its results folder is not used.

    Raises:
        StudyError: the run has not finished, `to` is its own results folder, or the run it starts from is not beside
            it, or is not what it was.
    """
    run, body, recorded = read_record(folder)
    home = folder.resolve().parents[1]
    if to.resolve() == home:
        raise StudyError(f"--to {to}: the run itself lies there, and is not written over; name another folder")
    images = ImageSets(options.data_root, to / "cache")
    changes = changed_data(run, body, images, evaluation_only=False)
    changes += [Change(name, *pair) for name, pair in (changed_files(folder) or {}).items()]
    target = to / "runs" / images.identify(run)
    if changes:
        return Rerun(target, "refused", Verification(folder.name, tuple(changes)))
    if isinstance(run.start, Run):
        _bring_start(folder, run.start, target.parent, images)
    device = choose_device(options.cpu)
    adopt_settings(recorded, device)
    ended = run_grid(_plan(run, folder.name), replace(options, results=to))
    state = ended[target.name]
    if state != "done":
        reason = str(read_json(target / "status.json").get("reason", ""))
        return Rerun(target, state, Verification(folder.name), reason)
    here = read_json(target / "provenance.json")
    found = Verification(
        folder.name,
        inexact=tuple(_why_another_training(run, recorded, here, device)),
        rows=compare_rows(read_table(folder, "images"), read_table(target, "images")),
    )
    if not run.model.trained:
        return Rerun(target, state, found)
    weights = _largest_difference(folder / WEIGHTS, target / WEIGHTS)
    step = _first_difference(read_table(folder, "scalars"), read_table(target, "scalars"))
    return Rerun(target, state, found, weights=weights, diverged_at=step)


def _plan(run: Run, name: str) -> Plan:
    """A grid of that one run."""
    grid = Grid(question=f"Is {name} had again?", base=run, seeds=[run.seed], analysis=Analysis(baseline="rerun"))
    return Plan(f"rerun-{name}", None, grid, (Cell("rerun", {"variant": "rerun"}, (run,)),))


def _bring_start(folder: Path, start: Run, runs: Path, images: ImageSets) -> None:
    """Copies the finished run that this one starts from, unless the other results folder has it."""
    name = images.identify(start)
    if finished(runs / name):
        return
    beside = folder.resolve().parent / name
    if not finished(beside):
        raise RecordError(
            f"{folder.name} starts from {name}, which is not finished in {beside.parent} (or its images have changed "
            "since, and it had another id): train that run first"
        )
    if changed := changed_files(beside):
        raise RecordError(f"{folder.name} starts from {name}, of which {', '.join(changed)} was changed since it ended")
    partial = name_partial(runs / name)
    try:
        shutil.copytree(beside, partial, ignore=shutil.ignore_patterns(".lock", "claims", "samples"))
        shutil.rmtree(runs / name, ignore_errors=True)
        partial.rename(runs / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _why_another_training(
    run: Run, recorded: Mapping[str, Any], here: Mapping[str, Any], device: torch.device
) -> list[str]:
    """Why a second training may come out otherwise, though nothing is wrong."""
    reasons = why_inexact(recorded, here, device)
    then, now = (one.get("settings", {}).get("processes") for one in (recorded, here))
    if then is not None and then != now:
        reasons.append(f"settings.processes: {then}, now {now}")
    if run.trains and device.type == "cuda" and not here["settings"]["deterministic"]:
        reasons.append("a GPU adds up gradients in another order each time; --deterministic makes it one")
    return reasons


def _largest_difference(one: Path, other: Path) -> float:
    a, b = safetensors.torch.load_file(one), safetensors.torch.load_file(other)
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


def _first_difference(one: pd.DataFrame, other: pd.DataFrame) -> int | None:
    """First step at which two training curves have another value, or only one of them has any."""
    both = one.merge(other, on=["step", "name"], how="outer", suffixes=("_one", "_other"))
    a, b = both["value_one"].to_numpy(float), both["value_other"].to_numpy(float)
    apart = both["step"].to_numpy()[(a != b) & ~(np.isnan(a) & np.isnan(b))]
    return int(apart.min()) if len(apart) else None
