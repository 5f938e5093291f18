"""Which folder holds which run of a plan, found from the stored runs alone: no images and no network needed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from study.grid.expand import Plan
from study.grid.identity import sources, specification
from study.grid.schema import Run
from study.records.store import RecordError, read_json


def stored_runs(runs: Path) -> Iterable[tuple[str, Run]]:
    """Every run folder's id and resolved run; folders of an older, unreadable schema are passed over."""
    for path in sorted(runs.glob("*/run.json")):
        try:
            yield path.parent.name, Run.model_validate(read_json(path)["run"])
        except (ValidationError, KeyError):
            continue


def locate(runs: Path, plan: Plan) -> dict[tuple[str, int], str]:
    """Ids of the plan's runs that have a folder, by (cell, seed).

    Raises:
        RecordError: two folders hold the same run on different images and both name the same sources.
    """
    found: dict[str, list[tuple[str, Run]]] = {}
    for run_id, run in stored_runs(runs):
        found.setdefault(specification(run), []).append((run_id, run))
    ids = {}
    for cell, run in plan.runs():
        candidates = found.get(specification(run), [])
        named = [c for c in candidates if list(sources(c[1])) == list(sources(run))]
        if len(named or candidates) > 1:
            both = ", ".join(run_id for run_id, _ in named or candidates)
            raise RecordError(
                f"{runs} holds run {cell.name!r}, seed {run.seed}, on different images: {both}; move one of them away"
            )
        if candidates:
            ids[cell.name, run.seed] = (named or candidates)[0][0]
    return ids


def status(runs: Path, run_id: str) -> dict[str, Any]:
    """A run's state with step, loss, speed, reason: pending, running, done, failed, or interrupted (nobody runs it)."""
    folder = runs / run_id
    body = read_json(folder / "status.json") if (folder / "status.json").exists() else {"state": "pending"}
    if (folder / "DONE").exists():
        body["state"] = "done"
    elif body["state"] == "running" and not _held(folder / ".lock"):
        body["state"] = "interrupted"
    return body


def _held(lock: Path) -> bool:
    """Whether a living process holds a run's lock."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError):
        return True
