from pathlib import Path

import pytest
from filelock import FileLock

from study.grid.expand import Plan, load_plan
from study.grid.schema import Run
from study.records.index import locate, status
from study.records.store import RecordError, write_json

GRID = """\
question: q
axes: {optimisation.steps: [1, 2]}
seeds: 2
analysis: {baseline: steps=1}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "grid.yaml").write_text(GRID)
    return load_plan(tmp_path / "grid.yaml")


def store(runs: Path, name: str, run: Run) -> None:
    write_json(runs / name / "run.json", {"schema_version": 1, "run": run.model_dump(mode="json"), "data": {}})


def test_runs_are_found_by_what_they_declare(tmp_path: Path, plan: Plan) -> None:
    runs = tmp_path / "runs"
    store(runs, "here", plan.cells[1].runs[0])
    store(runs, "another", plan.cells[0].runs[0].model_copy(update={"scale": 2}))
    (runs / "old").mkdir()
    (runs / "old" / "run.json").write_text('{"run": {"unknown": 1}}')
    assert locate(runs, plan) == {("steps=2", 0): "here"}


def test_the_same_run_on_two_contents_is_refused(tmp_path: Path, plan: Plan) -> None:
    for name in ("one", "two"):
        store(tmp_path, name, plan.cells[0].runs[0])
    with pytest.raises(RecordError, match="one, two; move one of them away"):
        locate(tmp_path, plan)


def test_a_running_run_that_nobody_holds_was_interrupted(tmp_path: Path) -> None:
    assert status(tmp_path, "run") == {"state": "pending"}
    write_json(tmp_path / "run" / "status.json", {"state": "running", "step": 3})
    with FileLock(tmp_path / "run" / ".lock"):
        assert status(tmp_path, "run")["state"] == "running"
    assert status(tmp_path, "run") == {"state": "interrupted", "step": 3}
    (tmp_path / "run" / "DONE").touch()
    assert status(tmp_path, "run")["state"] == "done"
