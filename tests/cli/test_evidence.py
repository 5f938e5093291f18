"""`study published`, `compare`, `export`, and `report --tables`, as they are typed."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.text import Text

from study import StudyError
from study.analysis import report
from study.analysis.published import load_published
from study.analysis.report import report_tables
from study.analysis.tables import Column, Entry, Table
from study.cli.options import out, show
from study.grid.expand import load_plan
from study.grid.schema import SCHEMA_VERSION, Run
from study.records.store import write_json, write_table
from tests.analysis.synthetic import draw_study
from tests.test_cli import invoke

CFSR: dict[str, Any] = {"kind": "cfsr", "width": 8, "layers": 1, "blocks": 1, "mlp_width": 8}
GRID = """\
question: Does width help?
base:
  scale: 2
  model: {kind: cfsr, width: 8, layers: 1, blocks: 1, mlp_width: 8}
  optimisation: {steps: 40}
  evaluation: {datasets: {bundled: {kind: bundled, split: test}}}
variants: {narrow: {}, wide: {model.width: 16}}
seeds: 2
analysis: {baseline: narrow}
"""


def store_run(runs: Path, name: str, level: float, scale: int = 2, rows: list[dict[str, Any]] | None = None) -> Path:
    """A finished run with a PSNR and an SSIM for 12 images of Set5 and of B100; returns its folder."""
    run = Run.model_validate({"model": CFSR, "scale": scale})
    write_json(runs / name / "run.json", {"schema_version": SCHEMA_VERSION, "run": run.model_dump(mode="json")})
    rng = np.random.default_rng(len(name))
    made = [
        {"dataset": dataset, "image": f"i{i:02d}", "protocol": "uint8_y", "metric": metric, "value": value}
        for dataset in ("Set5", "B100")
        for i in range(12)
        for metric, value in {"psnr": level + i + rng.normal(0, 0.01), "ssim": 0.9}.items()
    ]
    write_table(runs / name, "images", made if rows is None else rows)
    (runs / name / "DONE").write_text("run.json\nimages.parquet")
    return runs / name


def stored_psnr(folder: Path, dataset: str) -> np.ndarray:
    from study.records.store import read_table

    rows = read_table(folder, "images").query("metric == 'psnr' and dataset == @dataset")
    return rows.sort_values("image")["value"].to_numpy()


def words(page: str) -> str:
    """A printed table without its lines and folds."""
    return " ".join(page.translate(dict.fromkeys(map(ord, "│┃┏┓└┘━─┳┴╇┡┩┼"), " ")).split())


def test_published_lists_every_paper_and_table() -> None:
    code, page = invoke("published")
    assert code == 0
    for paper, table in {(one.paper, one.table) for one in load_published()}:
        assert paper in page
        assert words(table) in words(page)
    assert "Contradicts its neighbours: CATANet, Table 4: Clustered Attention x2 Set5 psnr" in page
    assert "(t) transcribed" in page


def test_published_prints_what_is_cited_for_a_method_scale_and_set() -> None:
    code, page = invoke("published", "--method", "imdn", "--scale", "4", "--dataset", "set5", "--metric", "psnr")
    assert code == 0
    assert "IMDN x4 Set5 psnr 32.21 (t) uint8_y CATANet, Table 2" in words(page)
    assert "32.21" not in words(page).replace("32.21 (t)", "", 1)
    assert "38.00" not in page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--method", "CATNet"), "--method CATNet: nothing is cited; did you mean 'CATANet'?"),
        (("--dataset", "Set-5"), "--dataset Set-5: nothing is cited; did you mean 'Set5'?"),
        (("--metric", "pnsr"), "--metric pnsr: nothing is cited; did you mean 'psnr'?"),
        (("--paper", "RDS"), "--paper RDS: nothing is cited; did you mean 'RSD'?"),
        (("--scale", "9"), "--scale 9: nothing is cited; valid: 2, 3, 4"),
        (("--method", "CFSR", "--scale", "3"), "nothing is cited for method CFSR, scale 3 together"),
    ],
)
def test_published_names_what_is_not_cited(given: tuple[str, ...], said: str) -> None:
    with pytest.raises(StudyError) as error:
        invoke("published", *given)
    assert said in str(error.value)


def test_compare_prints_the_numbers_of_two_stored_runs(tmp_path: Path) -> None:
    first, second = store_run(tmp_path / "runs", "first", 30.5), store_run(tmp_path / "runs", "second", 30.0)
    code, page = invoke("compare", "first", "second", "--results", str(tmp_path))
    assert code == 0
    assert "first vs second: the first minus the second, PSNR." in page
    for dataset in ("Set5", "B100"):
        delta = (stored_psnr(first, dataset) - stored_psnr(second, dataset)).mean()
        assert f"{dataset} +{delta:.3f} [" in words(page)
        assert f"{dataset}: Mean difference +{delta:.3f} dB in PSNR on {dataset} (uint8_y)" in page
    assert "claim 'these trained weights'" in page.lower()
    assert "after correction over 2 comparisons" in page


def test_compare_takes_folders_and_ids_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = store_run(tmp_path / "runs", "first", 30.5), store_run(tmp_path / "elsewhere", "second", 30.0)
    by_folder = invoke("compare", str(first), str(second))
    assert by_folder == invoke("compare", "first", str(second), "--results", str(tmp_path))
    monkeypatch.chdir(second)
    assert by_folder == invoke("compare", "first", ".", "--results", str(tmp_path))


def test_compare_of_a_metric_on_rgb_needs_no_protocol(tmp_path: Path) -> None:
    place = {"dataset": "Set5", "protocol": "rgb", "metric": "lpips"}
    for name, level in (("first", 0.2), ("second", 0.3)):
        rows = [{**place, "image": f"i{i}", "value": level + i / 100 + level * i / 1000} for i in range(8)]
        store_run(tmp_path / "runs", name, 0, rows=rows)
    code, page = invoke("compare", "first", "second", "--metric", "lpips", "--results", str(tmp_path))
    assert code == 0
    assert "Set5 −0.1" in words(page)
    assert "better" in words(page)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("first", "secnd"), "RUN secnd: neither the id of a finished run in "),
        (("first", "secnd"), "did you mean 'second'?"),
        (("first", "first/run.json"), "RUN first/run.json: neither the id"),
        (("first", "x" * 5000), "x: neither the id of a finished run"),
        (("first", "{kind: imdn, weights: a.pth}"), "needs --data to be measured on"),
        (("first", "other"), "first is of scale 2, other of scale 4: they solve different tasks"),
        (("first", "second", "--metric", "psrn"), "--metric psrn: did you mean 'psnr'?"),
        (("first", "second", "--protocol", "uint8"), "--protocol uint8: did you mean 'uint8_y'?"),
        (("first", "second", "--metric", "lpips", "--protocol", "uint8_y"), "--protocol uint8_y: metric lpips is comp"),
        (("first", "second", "--protocol", "rgb"), "no image with psnr under rgb in common; they have psnr under uint"),
        (("first", "second", "--margin-db", "0"), "--margin-db 0.0: Input should be greater than 0"),
        (("first", "second", "--scale", "2"), "--scale 2: goes with --data"),
        (("first", "broken"), "run.json does not describe a run"),
        (("first", "old"), "run.json is of schema version 0, this is 1"),
        (("first", "unfinished"), "RUN unfinished: neither the id of a finished run"),
        (("bicbic", "first", "--data", "bundled"), "RUN: kind: unknown kind 'bicbic'; did you mean 'bicubic'?"),
        (("bicubic", "bicubic", "--data", "a/Set5/HR", "--data", "b/Set5"), "--data b/Set5: is reported as 'Set5'"),
    ],
)
def test_compare_refuses_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], said: str
) -> None:
    runs = tmp_path / "results" / "runs"
    for name in ("first", "second", "broken", "old", "unfinished"):
        store_run(runs, name, 30)
    store_run(runs, "other", 30, scale=4)
    write_json(runs / "broken" / "run.json", {"schema_version": SCHEMA_VERSION, "run": {"scale": "two"}})
    write_json(runs / "old" / "run.json", {"schema_version": 0, "run": {}})
    (runs / "unfinished" / "DONE").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError) as error:
        invoke("compare", *given)
    assert said in str(error.value)


def test_compare_measures_networks_on_given_images(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "small").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "small" / f"{i}.png")
    given = ("--data", "small", "--data-root", str(tmp_path), "--results", str(tmp_path), "--cpu", "--scale", "2")
    code, page = invoke("compare", "bicubic", "bicubic", *given)
    assert code == 0
    assert "bicubic vs bicubic (second)" in page
    assert "small +0.000" in words(page)


@pytest.fixture
def grid(tmp_path: Path) -> tuple[str, ...]:
    """Words that name a grid whose four runs are finished, and its results folder."""
    study = draw_study(tmp_path, GRID, {"wide": 0.3})
    plan = load_plan(tmp_path / "groups.yaml")
    for (cell, seed), name in study.ids.items():
        run = next(run for one, run in plan.runs() if (one.name, run.seed) == (cell, seed))
        folder = tmp_path / "results" / "runs" / name
        write_json(folder / "run.json", {"schema_version": SCHEMA_VERSION, "run": run.model_dump(mode="json")})
        for table in ("images", "scalars", "costs"):
            frame = getattr(study.records, table)
            write_table(folder, table, frame[frame["run"] == name].drop(columns="run").to_dict("records"))
        (folder / "DONE").write_text("run.json images.parquet")
    return str(tmp_path / "groups.yaml"), "--results", str(tmp_path / "results")


def test_export_lists_prints_and_writes_one_table(
    grid: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Table] = []
    monkeypatch.setattr(report, "report_tables", lambda *given: made or made.extend(report_tables(*given)) or made)
    code, page = invoke("export", *grid)
    assert code == 0
    names = [line.split(":")[0] for line in page.splitlines()]
    assert len(names) == len(set(names)) > 3
    assert "results" in names
    shown = invoke("export", *grid, "results")[1]
    (head, *rows) = csv.reader(io.StringIO(shown))
    assert [row[0] for row in rows] == ["narrow", "wide"]
    records = json.loads(invoke("export", *grid, "results", "--format", "json")[1])
    assert [row[head[0]] for row in records] == ["narrow", "wide"]
    column = next(i for i, name in enumerate(head) if "PSNR" in name and "note" not in name)
    assert [float(row[column]) for row in rows] == [row[head[column]] for row in records]
    assert r"\toprule" in invoke("export", *grid, "results", "--format", "latex")[1]
    assert "| :--" in invoke("export", *grid, "results", "--format", "markdown")[1]
    target = tmp_path / "new" / "ünïcode.csv"
    assert invoke("export", *grid, "results", "--to", str(target)) == (0, f"{target}\n")
    assert target.read_text() == shown
    assert [path.name for path in target.parent.iterdir()] == ["ünïcode.csv"]  # no part of it is left


def test_export_refuses_before_it_computes(
    grid: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more, said in {
        ("results", "--format", "xlsx"): "--format xlsx: valid: csv, json, latex, markdown",
        ("results", "--format", "jsn"): "did you mean 'json'?",
        ("--to", "a.csv"): "--to a.csv: name the table to write",
    }.items():
        with pytest.raises(StudyError) as error:
            invoke("export", *grid, *more)
        assert said in str(error.value)
    table = Table("results", "c", (Column("a"),), (("1",),))
    monkeypatch.setattr(report, "report_tables", lambda *given: [table])
    with pytest.raises(StudyError, match=r"no table 'result' in the report of .*did you mean 'results'"):
        invoke("export", *grid, "result")
    (tmp_path / "file").write_text("")
    for target in (tmp_path, tmp_path / "file" / "a.csv"):
        with pytest.raises(StudyError, match=f"^--to {target}: "):
            invoke("export", *grid, "results", "--to", str(target))


def test_tables_of_a_paper_are_written_where_asked(tmp_path: Path) -> None:
    given = ("--tables", "spin", "--results", str(tmp_path / "nothing"), "--to", str(tmp_path / "out"))
    code, page = invoke("report", *given)
    assert code == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tables.html", "tables.md", "tables.tex", "cells.csv"} <= written
    assert {Path(line).name for line in page.splitlines()} == written
    assert "study report --tables spin" in (tmp_path / "out" / "tables.md").read_text()
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--tables", "catnet"), "did you mean 'catanet'? valid: catanet, ctmsr, spin"),
        ((), "report: name a grid file, or --tables PAPER, and not both"),
        (("a.yaml", "--tables", "catanet"), "report: name a grid file, or --tables PAPER, and not both"),
    ],
)
def test_report_refuses_by_name(given: tuple[str, ...], said: str) -> None:
    with pytest.raises(StudyError) as error:
        invoke("report", *given)
    assert said in str(error.value)


def test_hostile_names_are_printed_as_they_are() -> None:
    hostile = "[/bold] :dog: [red]x[/red]"
    table = Table("t", hostile, (Column(hostile), Column("n", hostile)), ((hostile, Entry("1", hostile)),), (hostile,))
    with out.capture() as capture:
        out.width, before = 200, out.width
        try:
            show(table)
        finally:
            out.width = before
    assert Text.from_ansi(capture.get()).plain.count(hostile) == 6
