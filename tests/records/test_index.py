from pathlib import Path

import pytest

from study.grid.expand import load_plan
from study.grid.plan import Plan
from study.grid.schema import Data, Folder, Run
from study.records.claims import take
from study.records.index import finished, status
from study.records.location import locate
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
    claim = take(tmp_path / "run")
    assert claim is not None
    with claim:
        assert status(tmp_path, "run")["state"] == "running"
    assert status(tmp_path, "run") == {"state": "interrupted", "step": 3}
    (tmp_path / "run" / "DONE").touch()
    assert status(tmp_path, "run")["state"] == "done"


def test_one_folder_is_never_given_to_two_cells(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "question: q\nvariants: {one: {}, other: {data.train: {kind: folder, path: elsewhere}}}\n"
        "seeds: 1\nanalysis: {baseline: one}\n"
    )
    two = load_plan(tmp_path / "grid.yaml")
    store(tmp_path / "runs", "of one", two.cells[0].runs[0])
    assert locate(tmp_path / "runs", two) == {("one", 0): "of one"}


def test_a_run_whose_images_moved_is_still_found(tmp_path: Path, plan: Plan) -> None:
    moved = plan.cells[0].runs[0].model_copy(update={"data": Data(train=Folder(path="elsewhere"))})
    store(tmp_path, "moved", moved)
    assert locate(tmp_path, plan) == {("steps=1", 0): "moved"}


def test_external_networks_are_told_apart_by_their_files(tmp_path: Path) -> None:
    references = "a: {model: {kind: external, weights: a.pth}}, b: {model: {kind: external, weights: b.pth}}"
    text = (
        f"question: q\nreferences: {{{references}}}\nvariants: {{hard: {{}}}}\nseeds: 1\nanalysis: {{baseline: hard}}\n"
    )
    (tmp_path / "grid.yaml").write_text(text)
    plan = load_plan(tmp_path / "grid.yaml")
    both = {cell.name: cell.runs[0] for cell in plan.cells}
    store(tmp_path / "runs", "of a", both["a"])
    assert locate(tmp_path / "runs", plan) == {("a", 0): "of a"}
    store(tmp_path / "runs", "of b", both["b"])
    assert locate(tmp_path / "runs", plan) == {("a", 0): "of a", ("b", 0): "of b"}
    (tmp_path / "grid.yaml").write_text(text.replace("a.pth", "c.pth"))  # another network: never taken for it
    assert ("a", 0) not in locate(tmp_path / "runs", load_plan(tmp_path / "grid.yaml"))


def test_done_counts_only_with_every_file_it_lists(tmp_path: Path) -> None:
    assert not finished(tmp_path)
    (tmp_path / "DONE").write_text("images.parquet\ncosts.parquet")
    (tmp_path / "images.parquet").touch()
    assert not finished(tmp_path)
    (tmp_path / "costs.parquet").touch()
    assert finished(tmp_path)
    write_json(tmp_path / "status.json", {"state": "done", "attempt": 2})
    (tmp_path / "images.parquet").unlink()
    assert status(tmp_path.parent, tmp_path.name) == {"state": "pending", "attempt": 2}


@pytest.mark.parametrize("content", ["", "[1]", '{"run": [], "schema_version": 1}', '{"run": {}, "schema_version": 0}'])
def test_a_broken_or_foreign_folder_stops_nobody(tmp_path: Path, plan: Plan, content: str) -> None:
    for name in ("run.json", "status.json"):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / name).write_text(content)
    assert locate(tmp_path, plan) == {}
    assert status(tmp_path, "broken")["state"] == "pending"
