"""What a grid declared when it first ran, so that a report can say what was changed afterwards."""

from pathlib import Path
from typing import Any

from study.grid.plan import Plan
from study.records.store import read_json, write_json

FOLDER = "declared"  # in the results folder


def declare(results: Path, plan: Plan) -> None:
    """Keeps the analysis and the cells of a plan at its first run; later calls leave it as it is."""
    path = results / FOLDER / f"{plan.name}.json"
    if not path.exists():
        write_json(path, _declaration(plan))


def changes(results: Path, plan: Plan) -> list[str]:
    """What the plan declares otherwise than at its first run: `analysis.margin_db: 0.02, now 3.0`, one each."""
    path = results / FOLDER / f"{plan.name}.json"
    if not path.exists():
        return []
    before, now = _flat(read_json(path)), _flat(_declaration(plan))
    return [
        f"{key}: {before.get(key)}, now {now.get(key)}" for key in {**before, **now} if before.get(key) != now.get(key)
    ]


def _declaration(plan: Plan) -> dict[str, Any]:
    return {
        "question": plan.grid.question,
        "analysis": plan.grid.analysis.model_dump(mode="json"),
        "cells": {cell.name: [run.seed for run in cell.runs] for cell in plan.cells},
    }


def _flat(declaration: dict[str, Any]) -> dict[str, Any]:
    flat = {f"analysis.{key}": value for key, value in declaration["analysis"].items()}
    flat |= {f"seeds of {name}": seeds for name, seeds in declaration["cells"].items()}
    return {"question": declaration["question"], **flat}
