"""What a grid declared when it first ran, so that a report can say what was changed afterwards."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from study.grid.identity import specification
from study.grid.plan import Plan
from study.records.store import read_json, write_json

FOLDER = "declared"  # in the results folder


def declare(results: Path, plan: Plan, finished: int) -> None:
    """Keeps what a plan declares at its first run; later calls leave it as it is.

    Args:
        results: results folder.
        plan: the analysis, and the cells with their settings and seeds; the images' content is not among them.
        finished: runs of the plan that were done before, by other grids or before there was a record.
    """
    path = results / FOLDER / f"{plan.name}.json"
    if not path.exists():
        at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_json(path, {"at": at, "finished": finished, **_declaration(plan)})


def declared(results: Path, plan: Plan) -> dict[str, Any]:
    """`at` and `finished` of `declare`, as far as they were recorded; empty before the first run."""
    path = results / FOLDER / f"{plan.name}.json"
    kept = read_json(path) if path.exists() else {}
    return {key: kept[key] for key in ("at", "finished") if key in kept}


def changes(results: Path, plan: Plan) -> list[str]:
    """What the plan declares otherwise than at its first run: `analysis.margin_db: 0.02, now 3.0`, one each."""
    path = results / FOLDER / f"{plan.name}.json"
    if not path.exists():
        return []
    kept = read_json(path)
    before, now = _flat(kept), _flat({key: value for key, value in _declaration(plan).items() if key in kept})
    return [
        f"{key}: {_words(before.get(key))}, now {_words(now.get(key))}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]


def _declaration(plan: Plan) -> dict[str, Any]:
    settings = {cell.name: json.loads(specification(cell.runs[0]))["run"] for cell in plan.cells}
    for values in settings.values():
        values.pop("seed", None)
    return {
        "question": plan.grid.question,
        "analysis": plan.grid.analysis.model_dump(mode="json"),
        "cells": {cell.name: [run.seed for run in cell.runs] for cell in plan.cells},
        "settings": settings,
    }


def _flat(declaration: dict[str, Any]) -> dict[str, Any]:
    flat = {f"analysis.{key}": value for key, value in declaration["analysis"].items()}
    flat |= {f"seeds of {name}": seeds for name, seeds in declaration["cells"].items()}
    both = {name: values for name, values in declaration.get("settings", {}).items() if name in declaration["cells"]}
    for name, values in both.items():
        flat |= {f"{name}: {key}": value for key, value in _leaves(values, "")}
    return {"question": declaration["question"], **flat}


def _leaves(values: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in values.items():
        leaves += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return leaves


def _words(value: Any) -> str:
    """A declared value as a reader would write it; comparisons as `a vs b; c vs d`."""
    if value is None:
        return "nothing"
    if not isinstance(value, list):
        return str(value)
    pairs = any(isinstance(item, list) for item in value)
    return "; ".join(" vs ".join(map(str, item)) for item in value) if pairs else ", ".join(map(str, value))
