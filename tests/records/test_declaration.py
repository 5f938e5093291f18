from pathlib import Path

from study.grid.expand import load_plan
from study.records.declaration import changes, declare

GRID = "question: q\naxes: {optimisation.steps: [1, 2]}\nseeds: 2\nanalysis: {baseline: steps=1}\n"


def test_what_was_declared_first_stays_and_changes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    assert changes(tmp_path, load_plan(path)) == []
    declare(tmp_path, load_plan(path))
    assert changes(tmp_path, load_plan(path)) == []
    path.write_text(GRID.replace("steps=1}", "steps=1, margin_db: 3.0}").replace("seeds: 2", "seeds: 3"))
    declare(tmp_path, load_plan(path))
    assert changes(tmp_path, load_plan(path)) == [
        "analysis.margin_db: 0.02, now 3.0",
        "seeds of steps=1: [0, 1], now [0, 1, 2]",
        "seeds of steps=2: [0, 1], now [0, 1, 2]",
    ]
