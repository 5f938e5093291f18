"""A grid of many finished runs: its plan, its status, and what is left to do, timed as commands.

`python -m tests.records.test_scale RUNS FOLDER` writes and measures any number of runs.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from study.data.images import open_images
from study.grid.expand import load_plan
from study.grid.identity import inputs, run_id
from study.grid.models import External
from study.grid.plan import Plan
from study.grid.schema import SCHEMA_VERSION
from study.records.location import locate
from study.records.provenance import describe
from study.records.schemas import RUN_TABLES
from study.records.store import write_json
from study.records.survey import MEMORY, survey

SEEDS = 5
LIMITS_S = {"plan": 5.0, "status": 2.0, "run": 5.0}
ROOT = Path(__file__).resolve().parents[2]


def declare(runs: int, folder: Path) -> Path:
    """Writes the grid of that many runs, which differ in steps, batch and seed."""
    batches = next(n for n in (20, 10, 5, 1) if runs % (SEEDS * n) == 0)
    steps = list(range(1, runs // SEEDS // batches + 1))
    grid = {
        "question": "How long does a grid of very many runs take?",
        "base": {
            "model": {"kind": "imdn"},
            "data.train": {"kind": "bundled", "split": "train"},
            "data.lr_patch_px": 16,
            "evaluation.datasets": {"bundled": {"kind": "bundled", "split": "test"}},
        },
        "axes": {"optimisation.steps": steps, "optimisation.batch": list(range(1, batches + 1))},
        "seeds": SEEDS,
        "analysis": {"baseline": "steps=1, batch=1"},
    }
    path = folder / "many.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(grid))
    return path


def finish(plan: Plan, results: Path) -> None:
    """Writes every run of a plan as one that has finished, the files of `records.store`, all tables alike."""
    known = dict.fromkeys(item for _, run in plan.runs() for item in inputs(run))
    contents: dict[Any, str] = {}
    for item in known:
        assert not isinstance(item, External)
        contents[item] = open_images(item, root=results, cache=results / "cache").fingerprint
    tables = {name: _table(name) for name in RUN_TABLES}
    provenance = json.dumps(describe("cpu, 1 threads; 1 processes", {}), indent=2).encode()
    files = ["run.json", "provenance.json", *(f"{name}.parquet" for name in RUN_TABLES), "weights.safetensors"]
    for _, run in plan.runs():
        folder = results / "runs" / run_id(run, contents)
        folder.mkdir(parents=True)
        body = {"schema_version": SCHEMA_VERSION, "run": run.model_dump(mode="json"), "data": {}}
        steps = run.optimisation.steps
        state = {"attempt": 1, "steps": steps, "state": "done", "phase": "done", "step": steps, "loss": 0.1}
        for name, content in {
            "run.json": json.dumps(body, indent=2).encode(),
            "provenance.json": provenance,
            "status.json": json.dumps(state, indent=2).encode(),
            **{f"{name}.parquet": table for name, table in tables.items()},
            "weights.safetensors": (2).to_bytes(8, "little") + b"{}",
            ".lock": b"",
            "DONE": "\n".join(files).encode(),
        }.items():
            (folder / name).write_bytes(content)


def _table(name: str) -> bytes:
    """A small table of a run: ten rows."""
    columns = {field.name: ["1"] * 10 if field.type == pa.string() else [1] * 10 for field in RUN_TABLES[name]}
    for key in columns.keys() & {"image", "name"}:
        columns[key] = [f"{key}_{n}" for n in range(10)]
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=RUN_TABLES[name]), sink, compression="zstd")
    return sink.getvalue()


def measure(grid: Path, results: Path) -> dict[str, float]:
    """Seconds that each command takes, the start of Python and its imports included."""
    commands = {
        "plan": ["plan", "--no-time", "--cpu"],
        "status": ["status"],
        "run": ["run", "--cpu"],
    }
    taken = {}
    for name, (verb, *options) in commands.items():
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "study", verb, str(grid), "--results", str(results), *options],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        taken[name] = time.perf_counter() - begun
        assert done.returncode == 0, done.stderr[-2000:]
    return taken


def test_a_small_grid_takes_its_share_of_the_time(tmp_path: Path) -> None:
    grid = declare(100, tmp_path)
    plan = load_plan(grid)
    finish(plan, tmp_path / "results")
    runs = tmp_path / "results" / "runs"
    begun = time.perf_counter()
    known = survey(runs)
    ids = locate(runs, plan, known)
    assert len(ids) == len(set(ids.values())) == 100
    assert {known[run_id].state["state"] for run_id in ids.values()} == {"done"}
    assert time.perf_counter() - begun < 3.0  # ten milliseconds a run, where one is usual


def test_what_is_remembered_is_what_would_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load_plan(declare(10, tmp_path))
    finish(plan, tmp_path / "results")
    runs = tmp_path / "results" / "runs"
    first = survey(runs)
    assert not (runs / MEMORY).exists()  # too fresh to be told from what may follow
    monkeypatch.setattr("study.records.survey.SETTLED_S", -1.0)
    assert survey(runs) == first
    assert set(json.loads((runs / MEMORY).read_text())["runs"]) == set(first)
    assert survey(runs) == first
    one, other, third, fourth = sorted(first)[:4]
    (runs / one / "images.parquet").unlink()
    (runs / other / "run.json").write_text("{}")  # in place: the folder's own time stays
    write_json(runs / third / "status.json", {"state": "done", "loss": 0.5})
    shutil.rmtree(runs / fourth)
    again = survey(runs)
    assert again[one].state["state"] == "pending"
    assert again[other].settings == ""
    assert again[third].state["loss"] == 0.5
    assert fourth not in again
    assert {name: again[name] for name in sorted(first)[4:]} == {name: first[name] for name in sorted(first)[4:]}
    (runs / MEMORY).unlink()
    assert survey(runs) == again


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"code": 1, "runs": {}}', b'{"runs": 3}', b"\xff"])
def test_a_broken_memory_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    plan = load_plan(declare(5, tmp_path))
    finish(plan, tmp_path / "results")
    runs = tmp_path / "results" / "runs"
    monkeypatch.setattr("study.records.survey.SETTLED_S", -1.0)
    first = survey(runs)
    (runs / MEMORY).write_bytes(content)
    assert survey(runs) == first
    assert len(json.loads((runs / MEMORY).read_text())["runs"]) == 5


def main(runs: int, folder: Path) -> None:
    """Writes the runs unless they are there, and prints the seconds of each command, the best of three."""
    grid = declare(runs, folder)
    if not (folder / "results").exists():
        finish(load_plan(grid), folder / "results")
    rounds = [measure(grid, folder / "results") for _ in range(3)]
    for name, limit in LIMITS_S.items():
        print(f"{name}: {min(taken[name] for taken in rounds):.2f} s (limit {limit} s)")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
