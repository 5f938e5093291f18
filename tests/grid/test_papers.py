from pathlib import Path

import pytest

from study.grid.loading import GridError
from study.grid.models import CATANet, Hard
from study.grid.papers import load_paper, papers

DIGEST = "e660c38221147217a136debeb99eb304d62d9c0f73ac421ed66281b619719714"
PAPER = f"""\
paper: Ours
title: Ours (2030)
tolerances: {{psnr: 0.05}}
run:
  optimisation: {{steps: 1000, batch: 64}}
scales:
  2: {{optimisation: {{steps: 3000}}}}
tables:
  - name: main
    table: Table 1
    caption: All of it.
    scales: [2, 4]
    datasets: [Set5, Set14]
    stored: {{Set5: set-5}}
    metrics: [parameters_k, psnr]
    rows:
      - {{method: A, run: {{model: {{kind: catanet, assignment: {{kind: hard, fusion: add}}}}}}}}
      - method: B
        run: {{model: {{kind: imdn}}, optimisation: {{batch: 16}}}}
        start: {{model: {{kind: imdn}}}}
        weights: {{4: {DIGEST}}}
      - {{method: C, why: no network of this kind here}}
"""


def write(folder: Path, old: str = "", new: str = "", name: str = "ours") -> Path:
    assert old in PAPER
    path = folder / f"{name}.yaml"
    path.write_text(PAPER.replace(old, new, 1) if old else PAPER)
    return path


def test_settings_are_laid_over_one_another_row_over_scale_over_file(tmp_path: Path) -> None:
    write(tmp_path)
    paper = load_paper(tmp_path, "ours")
    a, b, c = paper.tables[0].rows
    expected = {(row.method, scale): paper.expected(row, scale) for row in (a, b) for scale in (2, 4)}
    settings = {key: (run.optimisation.steps, run.optimisation.batch) for key, run in expected.items() if run}
    assert settings == {("A", 2): (3000, 64), ("A", 4): (1000, 64), ("B", 2): (3000, 16), ("B", 4): (1000, 16)}
    run = expected["A", 4]
    assert run is not None
    assert (run.scale, run.seed, run.model) == (4, 0, CATANet(assignment=Hard(fusion="add")))
    started = expected["B", 2]
    assert started is not None
    assert getattr(started.start, "optimisation", None) == paper.laid(2, {"model": {"kind": "imdn"}}).optimisation
    assert paper.expected(c, 4) is None
    assert b.weights == {"4": DIGEST}


def test_papers_are_found_by_name(tmp_path: Path) -> None:
    write(tmp_path, name="b")
    write(tmp_path, name="a")
    assert list(papers(tmp_path)) == ["a", "b"]
    assert papers(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("name", ["orus", "../ours", "ours.yaml", ""])
def test_an_unknown_paper_names_the_folder_and_those_in_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "tables").mkdir()
    write(tmp_path)
    write(tmp_path / "tables")
    with pytest.raises(GridError) as error:
        load_paper(tmp_path / "tables", name)
    assert str(tmp_path / "tables") in str(error.value)
    assert "valid: ours" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("title:", "titel:", 2, "titel: unknown key; did you mean 'title'?"),
        ("title: Ours (2030)\n", "", 1, "title: is required"),
        ("psnr: 0.05", "psnr: -1", 3, "tolerances.psnr: "),
        ("psnr: 0.05", "pnsr: 0.05", 1, "tolerances: pnsr: did you mean 'psnr'?"),
        ("  2: {", "  3: {", 1, "scales: 3: valid: 2, 4"),
        ("name: main", "name: ../main", 9, "tables.0.name: "),
        ("[2, 4]", "[2, 5]", 12, "tables.0.scales.1: got 5; must be 1, 2, 3 or 4"),
        ("[2, 4]", "[2, 2]", 9, "tables.0: scales: 2 is given twice"),
        ("[Set5, Set14]", "[Set5, Set5]", 9, "tables.0: datasets: Set5 is given twice"),
        ("{Set5: set-5}", "{Set6: set-5}", 9, "tables.0: stored: Set6: did you mean 'Set5'?"),
        ("parameters_k, psnr", "parameters_k, pnsr", 15, "tables.0.metrics.1: got 'pnsr'; must be 'psnr'"),
        (f"4: {DIGEST}", f"3: {DIGEST}", 9, "tables.0: row 'B': weights: 3: valid: 2, 4"),
        (DIGEST, "e660c382", 21, "tables.0.rows.1.weights.4: "),
        (DIGEST, DIGEST.upper(), 21, "tables.0.rows.1.weights.4: "),
        ("why: no", "wy: no", 22, "tables.0.rows.2.wy: unknown key; did you mean 'why'?"),
        (", why: no network of this kind here", "", 22, "row 'C' needs either a run or weights"),
        ("why: no", "run: {}, why: no", 22, "row 'C' needs either a run or weights"),
        ("why: no", "start: {}, why: no", 22, "row 'C' has a start and no run"),
        ("kind: catanet", "kind: catnet", 17, "run.model.kind: unknown kind 'catnet'; did you mean 'catanet'?"),
        ("fusion: add", "fusoin: add", 17, "run.model.assignment.fusoin: unknown key; did you mean 'fusion'?"),
        ("start: {model: {kind: imdn}}", "start: {model: {kind: imdm}}", 20, "start.model.kind: unknown kind 'imdm'"),
        ("steps: 1000", "step: 1000", 5, "run.optimisation.step: unknown key; did you mean 'steps'?"),
        ("steps: 3000", "steps: many", 7, "run.optimisation.steps: "),
        ("{model: {kind: imdn}, optimisation", "{model.kind: imdn, optimisation", 19, "run.model.kind: unknown key"),
        ("paper: Ours", "paper: [", 3, "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_key(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    path = write(tmp_path, old, new)
    with pytest.raises(GridError) as error:
        load_paper(tmp_path, "ours")
    assert any(one.startswith(f"{path}:{line}: ") and said in one for one in str(error.value).splitlines())


def test_a_wrong_run_names_its_row_and_scale(tmp_path: Path) -> None:
    write(tmp_path, "steps: 3000", "steps: many")
    with pytest.raises(GridError, match=r"\(row 'A' at x2\)$"):
        load_paper(tmp_path, "ours")


def test_tables_share_neither_name_nor_number(tmp_path: Path) -> None:
    second = PAPER[PAPER.index("  - name") :]
    for old, new, said in (("name: main", "name: other", "table: Table 1"), ("Table 1", "Table 2", "name: main")):
        (tmp_path / "ours.yaml").write_text(PAPER + second.replace(old, new))
        with pytest.raises(GridError, match=f"tables: {said} is given twice"):
            load_paper(tmp_path, "ours")
