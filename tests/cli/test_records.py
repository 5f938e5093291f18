"""The verbs of stored runs, as they are typed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from study import StudyError
from study.cli import grids
from study.grid.expand import load_plan
from study.records.store import read_table, write_json, write_table
from study.training import determinism, execution
from study.training.runner import Options, run_grid
from tests.test_cli import invoke
from tests.training.conftest import grid_writer
from tests.training.test_runner import folders

IMDN = "variants:\n  hard: {model: {kind: imdn, width: 8, blocks: 1}}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of one run that has run, in its own folder."""
    root = tmp_path_factory.mktemp("finished")
    grid = grid_writer(root)(IMDN, ("seeds: 2", "seeds: 1"), ("[uint8_y]", "[uint8_y]\n    metrics: [psnr]"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "measure_costs", lambda *_: [])  # it times inference, which takes seconds
        place = Options(root / "results", root / "images", cpu=True)
        assert set(run_grid(load_plan(grid), place).values()) == {"done"}
    return root


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a copy of the run, which lies below `tmp_path`/results."""
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("STUDY_DATA", str(tmp_path / "images"))
    (folder,) = folders(tmp_path / "grid.yaml", "results").values()
    return folder


def test_verify_says_that_all_is_equal(run: Path) -> None:
    for name in ((run.name, "--results", str(run.parents[1])), (str(run), "--results", str(run.parents[2] / "other"))):
        code, page = invoke("verify", *name, "--cpu")
        assert code == 0, page
        assert "tolerance: none (same device, settings and packages)" in page
        assert "2 of 2 rows agree" in page


def test_verify_lists_rows_that_differ_and_ends_with_1(run: Path) -> None:
    rows = read_table(run, "images")
    rows.loc[0, "value"] += 1
    write_table(run, "images", rows.iloc[:1].to_dict("records"))  # pyright: ignore[reportArgumentType]
    (run / "digests.json").unlink()
    code, page = invoke("verify", str(run), "--cpu")
    assert code == 1
    first, second = (line for line in page.splitlines() if line.startswith("differs: held_out, "))
    assert f"recorded {rows.value[0]:.17g}, found " in first
    assert float(first.rpartition(" ")[2]) == pytest.approx(rows.value[0] - 1, abs=1e-12)
    assert "recorded absent, found" in second
    assert "0 of 2 rows agree" in page


def test_verify_names_what_changed_and_ends_with_1(run: Path) -> None:
    with (run / "weights.safetensors").open("ab") as file:
        file.write(b" ")
    code, page = invoke("verify", str(run), "--cpu")
    assert code == 1
    recorded = json.loads((run / "digests.json").read_text())["weights.safetensors"]
    assert f"changed since the run ended: weights.safetensors: {recorded}, now" in page
    assert "nothing was computed" in page


@pytest.mark.parametrize("verb", ["verify", "rerun"])
def test_a_run_that_is_not_there_is_named(verb: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="RUN nowhere: neither the id of a run in "):
        invoke(verb, "nowhere", "--results", str(tmp_path))


def test_rerun_says_how_far_it_is_and_goes_beside_the_run(run: Path, tmp_path: Path) -> None:
    code, page = invoke("rerun", run.name, "--results", str(tmp_path / "results"), "--cpu")
    assert code == 0, page
    assert "weights: equal to the bit; training curves: equal" in page
    assert (tmp_path / "results" / "reruns" / "runs" / run.name / "DONE").exists()
    rows = read_table(run, "images")
    rows["value"] += 1
    write_table(run, "images", rows.to_dict("records"))  # pyright: ignore[reportArgumentType]
    (run / "digests.json").unlink()
    code, page = invoke("rerun", str(run), "--to", str(tmp_path / "results" / "reruns"), "--cpu")
    assert code == 1  # compared with what was trained before
    assert "0 of 2 rows agree" in page


def test_run_takes_deterministic_and_records_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (determinism.REQUEST, determinism.CUBLAS):
        monkeypatch.setenv(name, "")  # so that what the command sets is taken back
        monkeypatch.delenv(name)
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    grid = grid_writer(tmp_path)("variants: {hard: {model: {kind: bicubic}}}")
    where = ("--results", str(tmp_path / "results"), "--data-root", str(tmp_path / "images"))
    try:
        code, page = invoke("run", str(grid), *where, "--cpu", "--deterministic")
        assert code == 0, page
        assert os.environ[determinism.REQUEST] == "1"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags
    (folder,) = folders(grid, "results").values()
    assert json.loads((folder / "provenance.json").read_text())["settings"]["deterministic"]


def test_reasons_that_look_like_markup_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "[/pytorch/third_party/gloo/pair.cc:525] Connection closed by peer :dog:"
    write_json(tmp_path / "runs" / "a-1" / "status.json", {"state": "failed", "reason": reason})
    grids._print_end({"a-1": "failed"}, tmp_path, Path("g[/x].yaml"), None)
    said = capsys.readouterr().out
    assert f"failed: a-1: {reason}" in said
    assert "next: study run g[/x].yaml" in said
