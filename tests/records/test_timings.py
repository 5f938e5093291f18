"""Which cells are timed, and which measurements still count."""

from pathlib import Path

import pandas as pd

from study.records.store import read_json
from study.records.timings import keep_timings, read_timings, timed_runs
from tests.analysis.synthetic import declare

GRID = """
question: What takes how long?
base: {scale: 4, evaluation: {datasets: {Set5: {kind: folder, path: Set5/HR}}}}
variants:
  hard: {}
  soft: {model.assignment: {kind: soft}}
axes: {optimisation.steps: [100, 200]}
references: {bicubic: {model: {kind: bicubic}}}
seeds: 2
analysis: {baseline: "hard, steps=100", comparisons: []}
"""


def rows(*names: str) -> pd.DataFrame:
    columns = {
        "phase": "inference",
        "variant": "as it is",
        "repeat": 0,
        "operations": 2.0,
        "matrix_rate": 4.0,
        "memory": 0.0,
    }
    return pd.DataFrame({"model": names, **columns, "seconds": [float(place) for place in range(1, len(names) + 1)]})


def test_cells_that_take_alike_are_timed_once(tmp_path: Path) -> None:
    plan = declare(tmp_path, GRID)
    assert list(timed_runs(plan)) == ["hard, steps=100", "soft, steps=100", "bicubic"]
    batch = GRID.replace("optimisation.steps: [100, 200]", "optimisation.batch: [8, 16]")
    assert list(timed_runs(declare(tmp_path, batch.replace("steps=100", "batch=8")))) == [
        "hard, batch=8",
        "hard, batch=16",
        "soft, batch=8",
        "soft, batch=16",
        "bicubic",
    ]


def test_a_measurement_counts_for_every_cell_that_is_still_as_it_was(tmp_path: Path) -> None:
    plan = declare(tmp_path, GRID)
    found, machine = read_timings(tmp_path / "results", plan)
    assert (len(found), machine) == (0, {})
    folder = keep_timings(tmp_path / "results", plan, rows(*timed_runs(plan)), {"device": "one GPU"})
    assert read_json(folder / "provenance.json") == {"device": "one GPU"}
    found, machine = read_timings(tmp_path / "results", plan)
    assert machine == {"device": "one GPU"}
    assert dict(zip(found["model"], found["seconds"], strict=True)) == {
        "hard, steps=100": 1.0,
        "hard, steps=200": 1.0,
        "soft, steps=100": 2.0,
        "soft, steps=200": 2.0,
        "bicubic": 3.0,
    }
    averaged = declare(tmp_path, GRID.replace("{scale: 4,", "{scale: 4, optimisation.ema_decay: 0.9,"))
    assert set(read_timings(tmp_path / "results", averaged)[0]["model"]) == {"bicubic"}
    changed = declare(tmp_path, GRID.replace("{kind: soft}", "{kind: soft, support: sparsemax}"))
    assert set(read_timings(tmp_path / "results", changed)[0]["model"]) == {
        "hard, steps=100",
        "hard, steps=200",
        "bicubic",
    }
