"""What lies in a folder of runs, and how each stands."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from study.grid.schema import SCHEMA_VERSION, Run
from study.records.claims import held
from study.records.store import RecordError, read_json


def stored_runs(runs: Path) -> Iterable[tuple[str, Run]]:
    """Every run folder's id and resolved run; folders that are broken or of another schema are passed over."""
    for path in sorted(runs.glob("*/run.json")):
        try:
            body = read_json(path)
            if body["schema_version"] == SCHEMA_VERSION:
                yield path.parent.name, Run.model_validate(body["run"])
        except (ValidationError, KeyError, TypeError, RecordError):
            continue


def finished(folder: Path) -> bool:
    """Whether a run has ended well, and every file that its `DONE` lists is still there."""
    try:
        names = (folder / "DONE").read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return False
    return all((folder / name).exists() for name in names)


def status(runs: Path, run_id: str) -> dict[str, Any]:
    """A run's state with step, loss, speed, reason: pending, running, done, failed, or interrupted (nobody runs it)."""
    folder = runs / run_id
    try:
        body = {"state": "pending", **read_json(folder / "status.json")}
    except (RecordError, TypeError):
        body = {"state": "pending"}  # never begun, or torn: the run is tried again
    if finished(folder):
        body["state"] = "done"
    elif body["state"] == "done":
        body = {"state": "pending", "attempt": body.get("attempt", 0)}  # something it recorded was removed
    elif body["state"] == "running" and not held(folder):
        body["state"] = "interrupted"
    return body
