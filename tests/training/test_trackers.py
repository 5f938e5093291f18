from collections.abc import Callable
from pathlib import Path

import pytest

from study import StudyError
from study.grid.expand import load_plan
from study.records.location import locate
from study.records.store import read_table
from study.training import execution
from study.training.runner import Options, run_grid
from study.training.trackers import FOLDER, check_trackers

IMDN = "variants:\n  hard: {model: {kind: imdn, width: 8, blocks: 1}}"


def test_tensorboard_shows_what_the_table_holds(
    write_grid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])
    grid = write_grid(IMDN, ("seeds: 2", "seeds: 1"))
    plan = load_plan(grid)
    quiet = Options(grid.parent / "quiet", grid.parent / "images", cpu=True)
    told = Options(grid.parent / "told", grid.parent / "images", cpu=True, trackers=("tensorboard",))
    for options in (quiet, told):
        assert set(run_grid(plan, options).values()) == {"done"}
    assert not (quiet.results / FOLDER).exists()
    (run_id,) = locate(told.results / "runs", plan).values()
    for name in ("scalars.parquet", "weights.safetensors"):
        assert (told.results / "runs" / run_id / name).read_bytes() == (
            quiet.results / "runs" / run_id / name
        ).read_bytes()
    rows = read_table(told.results / "runs" / run_id, "scalars")
    shown = events.EventAccumulator(str(told.results / FOLDER / run_id)).Reload()
    assert set(shown.Tags()["scalars"]) == set(rows["name"])
    for name, part in rows.groupby("name"):
        assert [(event.step, event.value) for event in shown.Scalars(name)] == [
            (step, pytest.approx(value, rel=1e-6)) for step, value in zip(part["step"], part["value"], strict=True)
        ]
    settings = next((told.results / FOLDER / run_id).glob("*/hparams.yml")).read_text()
    assert "model.kind: imdn\n" in settings
    assert "optimisation.steps: 12\n" in settings


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorbord", "--log-with tensorbord: did you mean 'tensorboard'"),
        ("aim", "--log-with aim: its package is not"),
    ],
)
def test_an_unknown_or_absent_tracker_is_refused_by_name(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.training.trackers.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(StudyError, match=said):
        check_trackers(["tensorboard", name])
    assert check_trackers(["tensorboard", "tensorboard"]) == ("tensorboard",)
