from pathlib import Path

import pandas as pd
import pytest

from study.analysis.archive import Archive
from study.analysis.papers import build_tables, paper_cells, paper_table
from study.analysis.published import load_published, select
from study.analysis.rendering import REPORTS
from study.grid.identity import specification
from study.grid.loading import GridError
from study.grid.papers import load_paper, papers
from study.grid.schema import SCHEMA_VERSION, Run
from study.records.store import write_json, write_table

TABLES = REPORTS / "tables"
IMDN = "e660c38221147217a136debeb99eb304d62d9c0f73ac421ed66281b619719714"


def store(runs, name, run: Run, psnr: float, digest: str = ""):
    folder = runs / name
    data = {"model.weights": digest} if digest else {}
    write_json(
        folder / "run.json", {"schema_version": SCHEMA_VERSION, "run": run.model_dump(mode="json"), "data": data}
    )
    rows = [
        {"dataset": "Set5", "image": f"i{i}", "protocol": protocol, "metric": "psnr", "value": psnr}
        for i in range(5)
        for protocol in ("uint8_y", "float_y")
    ]
    write_table(folder, "images", rows)
    write_table(folder, "costs", [{"name": "parameters", "value": 715_176.0, "unit": "1"}])
    (folder / "DONE").write_text("run.json\nimages.parquet")


def cells(tmp_path, name="catanet") -> pd.DataFrame:
    written = build_tables(TABLES, name, tmp_path / "runs", tmp_path / "out", f"study report --tables {name}")
    assert {"tables.html", "tables.md", "tables.tex", "cells.csv"} <= set(written)
    return pd.read_csv(written["cells.csv"], dtype={"published": str})


@pytest.mark.parametrize("name", list(papers(TABLES)))
def test_every_paper_renders_without_any_run(tmp_path, name):
    found = cells(tmp_path, name)
    assert bool(found["measured"].isna().to_numpy().all())
    assert set(found["verdict"].dropna()) <= {"not run", "not comparable"}


def test_published_weights_and_a_short_training(tmp_path):
    runs = tmp_path / "runs"
    external = {"kind": "external", "weights": "IMDN_x4.pth", "network": {"kind": "imdn"}}
    store(runs, "imdn", Run.model_validate({"model": external}), 32.2096, IMDN)
    paper = load_paper(TABLES, "catanet")
    row = next(row for row in paper.tables[0].rows if row.method == "CATANet")
    expected = paper.expected(row, 4)
    assert expected is not None
    for seed, psnr in enumerate((32.58, 32.581, 32.579)):
        store(runs, f"full{seed}", expected.model_copy(update={"seed": seed}), psnr)
    short = expected.model_copy(update={"optimisation": expected.optimisation.model_copy(update={"steps": 500})})
    store(runs, "short", short, 30.0)
    found = cells(tmp_path).query("dataset == 'Set5' and metric == 'psnr' and scale == 4")
    main = found[found["table"] == "CATANet, Table 2"].set_index("method")
    assert main.loc["IMDN", "verdict"] == "reproduced"
    assert main.loc["CATANet", "verdict"] == "reproduced"
    assert main.loc["CATANet", "seeds"] == 3
    assert main.loc["CATANet", "runs"] == "full0 full1 full2"
    assert main.loc["CARN", "verdict"] == "not run"


def test_another_budget_is_named(tmp_path):
    paper = load_paper(TABLES, "catanet")
    expected = paper.expected(next(row for row in paper.tables[0].rows if row.method == "CATANet"), 4)
    assert expected is not None
    short = expected.model_copy(update={"optimisation": expected.optimisation.model_copy(update={"steps": 500})})
    assert specification(short) != specification(expected)
    store(tmp_path / "runs", "short", short, 30.0)
    found = (
        cells(tmp_path).query("method == 'CATANet' and dataset == 'Set5' and metric == 'psnr' and scale == 4").iloc[0]
    )
    assert found["verdict"] == "not comparable"
    assert found["reason"] == "another budget: optimisation.steps 500 for 250000"


def test_an_unknown_paper_names_the_nearest(tmp_path):
    with pytest.raises(GridError, match="did you mean 'catanet'"):
        build_tables(TABLES, "catnet", tmp_path, tmp_path, "")


@pytest.mark.parametrize("name", list(papers(TABLES)))
def test_every_row_of_the_given_tables_has_a_published_number(name):
    paper, numbers = load_paper(TABLES, name), load_published()
    for table in paper.tables:
        for row in (row for row in table.rows if row.method != "CT"):  # the notes say that it has none
            place = {"paper": row.paper or paper.paper, "table": row.table or table.table, "method": row.method}
            found = select(numbers, **place, steps=row.steps)
            assert {one.scale for one in found} & set(table.scales), (table.name, row.method)
            assert {one.dataset for one in found} & {*table.datasets, ""}, (table.name, row.method)


def test_a_published_number_that_contradicts_its_neighbours_is_marked_and_never_best():
    paper, numbers = load_paper(TABLES, "catanet"), load_published()
    table = next(table for table in paper.tables if 4 in table.scales)
    place = {"dataset": "Set5", "metric": "psnr", "table": table.table}
    wrong = select(numbers, method="CATANet", scale=4, **place)[0]
    below = select(numbers, method="CATANet", scale=2, **place)[0]
    above = f"{below.number + 0.2:.2f}"  # x4 above x2
    for value in ("68.05", above):
        changed = [one.model_copy(update={"value": value}) if one == wrong else one for one in numbers]
        assert len(changed) == len(numbers)
        cells = paper_cells(paper, table, Archive(Path("nowhere")), changed, 4)
        (cell,) = [
            cell for cell in cells if cell.contradicted and cell.result.cited and cell.result.cited.value == value
        ]
        shown = paper_table(table, 4, cells)
        (row,) = [i for i, line in enumerate(shown.entries()) if line[0].value == cell.row.method]
        column = next(j for j, one in enumerate(shown.columns) if (one.group, one.name) == ("Set5", "PSNR"))
        assert shown.entries()[row][column].suffix == "!"
        assert (row, column) not in shown.marks()
        assert any(note.startswith("! CATANet Set5") for note in shown.notes)
