import re
from pathlib import Path

from study.grid.expand import load_plan
from study.records.declaration import FOLDER, changes, declare, declared
from study.records.store import read_json, write_json

GRID = "question: q\naxes: {optimisation.steps: [1, 2]}\nseeds: 2\nanalysis: {baseline: steps=1}\n"


def test_what_was_declared_first_stays_and_changes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    assert changes(tmp_path, load_plan(path)) == []
    assert declared(tmp_path, load_plan(path)) == {}
    declare(tmp_path, load_plan(path), 1)
    assert changes(tmp_path, load_plan(path)) == []
    first = declared(tmp_path, load_plan(path))
    assert first["finished"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", first["at"])
    path.write_text(GRID.replace("steps=1}", "steps=1, margin_db: 3.0}").replace("seeds: 2", "seeds: 3"))
    declare(tmp_path, load_plan(path), 4)
    assert declared(tmp_path, load_plan(path)) == first
    assert changes(tmp_path, load_plan(path)) == [
        "analysis.margin_db: 0.02, now 3.0",
        "seeds of steps=1: 0, 1, now 0, 1, 2",
        "seeds of steps=2: 0, 1, now 0, 1, 2",
    ]


def test_a_cell_that_keeps_its_name_and_changes_its_settings_is_named(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    text = "question: q\nvariants: {a: {model.assignment: {kind: soft, support: topk, top_k: 4}}, b: {}}\n"
    path.write_text(text + "analysis: {baseline: b}\n")
    declare(tmp_path, load_plan(path), 0)
    path.write_text(text.replace("top_k: 4", "top_k: 8") + "base: {optimisation.steps: 7}\nanalysis: {baseline: b}\n")
    found = changes(tmp_path, load_plan(path))
    assert "a: model.assignment.top_k: 4, now 8" in found
    assert [line for line in found if line.startswith("b: ")] == ["b: optimisation.steps: 250000, now 7"]


def test_added_cells_and_other_comparisons_are_said_in_words(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    text = "question: q\nvariants: {a: {}, b: {optimisation.steps: 3}, c: {optimisation.steps: 4}}\n"
    path.write_text(text + "analysis: {baseline: a, comparisons: [[b, a]]}\n")
    declare(tmp_path, load_plan(path), 0)
    text = text.replace("}}", "}, d: {optimisation.steps: 5}}")
    path.write_text(text + "seeds: 2\nanalysis: {baseline: a, comparisons: [[b, a], [c, d]]}\n")
    found = changes(tmp_path, load_plan(path))
    assert "analysis.comparisons: b vs a, now b vs a; c vs d" in found
    assert "seeds of d: nothing, now 0, 1" in found


def test_an_older_record_is_compared_by_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    declare(tmp_path, load_plan(path), 0)
    file = tmp_path / FOLDER / "grid.json"
    write_json(file, {key: value for key, value in read_json(file).items() if key in ("question", "analysis", "cells")})
    assert declared(tmp_path, load_plan(path)) == {}
    path.write_text(GRID + "base: {optimisation.batch: 3}\n")
    assert changes(tmp_path, load_plan(path)) == []
