"""How long a step and an inference of a grid's networks take, all measured in turn by one process."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from study.grid.identity import specification
from study.grid.plan import Plan
from study.grid.schema import Run
from study.records.provenance import keep
from study.records.store import read_json, read_table, write_json, write_table

FOLDER = "timings"  # in the results folder
NETWORKS, MACHINE = "networks.json", "provenance.json"


def timed_runs(plan: Plan) -> dict[str, Run]:
    """The runs of a plan that differ in what decides their time, by the name of the first cell that has it."""
    found: dict[str, Run] = {}
    for cell in plan.cells:
        found.setdefault(_settings(cell.runs[0]), cell.runs[0])
    names = {_settings(cell.runs[0]): cell.name for cell in reversed(plan.cells)}
    return {names[settings]: run for settings, run in found.items()}


def keep_timings(results: Path, plan: Plan, rows: pd.DataFrame, machine: Mapping[str, Any]) -> Path:
    """Writes what was measured of `timed_runs(plan)` over what was measured before; returns the folder.

    Args:
        results: results folder.
        plan: the grid.
        rows: of `schemas.BENCH`; `model` names the cell.
        machine: as `provenance.describe` gives it.
    """
    folder = results / FOLDER / plan.name
    write_table(folder, "bench", rows.to_dict("records"))  # type: ignore[arg-type]
    write_json(folder / NETWORKS, {name: _settings(run) for name, run in timed_runs(plan).items()})
    keep(folder / MACHINE, dict(machine))
    return folder


def read_timings(results: Path, plan: Plan) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows of `schemas.BENCH` for every cell that was timed as it is declared now, and the machine; empty without any.

    Raises:
        RecordError: a file is broken.
    """
    folder = results / FOLDER / plan.name
    if not (folder / MACHINE).exists():
        return pd.DataFrame(columns=["model"]), {}
    rows = read_table(folder, "bench")
    timed = {settings: name for name, settings in read_json(folder / NETWORKS).items()}
    parts = [
        rows[rows["model"] == timed[settings]].assign(model=cell.name)
        for cell in plan.cells
        if (settings := _settings(cell.runs[0])) in timed
    ]
    return pd.concat(parts) if parts else rows.iloc[:0], read_json(folder / MACHINE)


def _settings(run: Run) -> str:
    """Canonical JSON of what the time of a step and of an inference depends on."""
    body, optimisation = json.loads(specification(run))["run"], run.optimisation
    settings: dict[str, Any] = {name: body[name] for name in ("model", "scale")}
    settings["cost_lr_px"] = run.evaluation.cost_lr_px
    if run.trains:
        settings["objective"] = body["objective"]
        settings["crop"] = run.data.lr_patch_px
        settings["step"] = [optimisation.batch, optimisation.accumulate, optimisation.precision]
        settings["step"] += [optimisation.optimiser.kind, bool(optimisation.ema_decay), optimisation.clip_norm is None]
    return json.dumps(settings, sort_keys=True)
