"""What a launch shows: a live table on a terminal, a plain line now and then elsewhere."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from study.records.index import status
from study.records.store import RecordError

PLAIN_EVERY_S = 15.0
COLOURS = {"done": "green", "failed": "red", "running": "cyan", "interrupted": "yellow", "pending": "dim"}
SHOWN = 24


def table(
    title: str,
    names: Mapping[str, str],
    runs: Path,
    limit: int | None = None,
    done: dict[str, Mapping[str, Any]] | None = None,
) -> Table:
    """State, step, loss, speed and time left of every run.

    Args:
        title: the grid's name.
        names: run id -> name of its cell.
        runs: folder of the run folders.
        limit: rows at most; what runs or failed comes first then, and the rest is counted.
        done: states of finished runs, which are not read again; those that have finished since are added.
    """
    states = _states(names, runs, {} if done is None else done)
    counts: dict[str, int] = {}
    for body in states.values():
        counts[body["state"]] = counts.get(body["state"], 0) + 1
    summary = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    shown = list(states)
    if limit is not None and len(shown) > limit:
        order = {"running": 0, "failed": 1, "interrupted": 2, "pending": 3, "done": 4}
        shown = sorted(shown, key=lambda run_id: order.get(states[run_id]["state"], 5))[:limit]
    view = Table(title=escape(f"{title}: {summary}"), title_justify="left", expand=False)
    for column, justify in (
        ("run", "left"),
        ("id", "left"),
        ("state", "left"),
        ("step", "right"),
        ("loss", "right"),
        ("steps/s", "right"),
        ("left", "right"),
    ):
        view.add_column(column, justify=justify, no_wrap=column != "run")  # pyright: ignore[reportArgumentType]
    for run_id in shown:
        body = states[run_id]
        state = body["state"]
        what = body.get("evaluating", "evaluating") if body.get("phase") == "evaluating" else state
        view.add_row(
            escape(names[run_id]) + (f"\n[red]{escape(body.get('reason', ''))}[/red]" if state == "failed" else ""),
            run_id[-10:] if body["state"] != "pending" else "",
            f"[{COLOURS.get(state, 'white')}]{what if state == 'running' else state}[/]",
            f"{body.get('step', 0)}/{body['steps']}" if body.get("steps") else "",
            f"{body['loss']:.5f}" if "loss" in body else "",
            f"{body['steps_per_s']:.2f}" if "steps_per_s" in body else "",
            _left(body),
        )
    return view


def _states(names: Mapping[str, str], runs: Path, done: dict[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The runs' states, in order; those already `done` are not read, and the newly done are added there."""
    try:
        begun = {entry.name for entry in os.scandir(runs)}
    except OSError:
        begun = set()
    pending: Mapping[str, Any] = {"state": "pending"}
    states = {run_id: done.get(run_id) or (_status(runs, run_id) if run_id in begun else pending) for run_id in names}
    done |= {run_id: body for run_id, body in states.items() if body["state"] == "done"}
    return states


def _status(runs: Path, run_id: str) -> dict[str, Any]:
    try:
        return status(runs, run_id)
    except RecordError as error:
        return {"state": "failed", "reason": str(error)}
    except OSError as error:  # a server that is away for a while must not end the display
        return {"state": "pending", "reason": str(error)}


def _left(body: Mapping[str, Any]) -> str:
    if body["state"] != "running" or body.get("phase") != "training" or not body.get("steps_per_s"):
        return ""
    seconds = round((body["steps"] - body.get("step", 0)) / body["steps_per_s"])
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


@contextmanager
def display(
    title: str, names: Mapping[str, str], runs: Path, shows: bool, done: Mapping[str, Mapping[str, Any]]
) -> Iterator[None]:
    """Shows the runs' progress while the block runs, in the process that `shows`; `done` as for `table`."""
    known = dict(done)
    console = Console(stderr=True)
    if not shows:
        yield
    elif console.is_terminal:
        shown = partial(table, title, names, runs, SHOWN, known)
        with Live(get_renderable=shown, console=console, refresh_per_second=2):
            yield
    else:
        stopped = threading.Event()
        thread = threading.Thread(target=_log, args=(console, names, runs, known, stopped), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


def _log(
    console: Console,
    names: Mapping[str, str],
    runs: Path,
    done: dict[str, Mapping[str, Any]],
    stopped: threading.Event,
) -> None:
    """One line for every change of state, and one for every running run from time to time."""
    told = dict.fromkeys(done, "done")
    waited = 0.0
    ends = False
    while not ends:
        ends = stopped.wait(0.5)
        waited += 0.5
        for run_id, body in _states(names, runs, done).items():
            changed = told.get(run_id) != body["state"]
            if (changed and body["state"] != "pending") or (body["state"] == "running" and waited >= PLAIN_EVERY_S):
                console.print(_line(names[run_id], body), highlight=False, markup=False, soft_wrap=True)
            told[run_id] = body["state"]
        waited = 0.0 if waited >= PLAIN_EVERY_S else waited


def _line(name: str, body: Mapping[str, Any]) -> str:
    parts = [f"{name}: {body['state']}"]
    if body["state"] == "running" and body.get("phase") == "evaluating":
        parts.append(body.get("evaluating", "evaluating"))
    elif body["state"] == "running" and body.get("step"):
        parts.append(f"step {body['step']}/{body['steps']}")
        parts += [f"loss {body['loss']:.5f}"] if "loss" in body else []
        parts += [f"{body['steps_per_s']:.2f} steps/s, {_left(body)} left"] if "steps_per_s" in body else []
    if "reason" in body and body["state"] != "done":
        parts.append(body["reason"])
    return ", ".join(parts)
