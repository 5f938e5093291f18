"""The grid's runner, through the command its user types."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from study.grid.expand import load_plan
from study.records.index import locate, status
from study.records.store import read_table

Write = Callable[..., Path]
DONE_FILES = ("images.parquet", "scalars.parquet", "weights.safetensors")


def study(*words: str, launcher: tuple[str, ...] = (), wait: bool = True) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    command = [sys.executable, "-W", "ignore", *launcher, "-m", "study", *words]
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if wait:
        process.output = process.communicate(timeout=300)[0]  # pyright: ignore[reportAttributeAccessIssue]
    return process


def run(
    grid: Path, results: str, *more: str, launcher: tuple[str, ...] = (), wait: bool = True
) -> subprocess.Popen[str]:
    root = grid.parent
    words = ("run", str(grid), "--results", str(root / results), "--data-root", str(root / "images"), "--cpu", *more)
    return study(*words, launcher=launcher, wait=wait)


def folders(grid: Path, results: str) -> dict[tuple[str, int], Path]:
    runs = grid.parent / results / "runs"
    return {key: runs / run_id for key, run_id in locate(runs, load_plan(grid)).items()}


def output(process: subprocess.Popen[str]) -> str:
    return process.output  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture
def finished(write_grid: Write) -> tuple[Path, dict[tuple[str, int], Path]]:
    grid = write_grid()
    process = run(grid, "results")
    assert process.returncode == 0, output(process)
    return grid, folders(grid, "results")


@pytest.mark.slow
def test_a_grid_ends_with_every_file_and_is_skipped_the_second_time(finished: tuple[Path, dict]) -> None:
    grid, runs = finished
    assert set(runs) == {("hard", 0), ("hard", 1), ("soft", 0), ("soft", 1), ("bicubic", 0)}
    for (cell, _), folder in runs.items():
        assert (folder / "DONE").exists()
        assert status(folder.parent, folder.name)["state"] == "done"
        images = read_table(folder, "images")
        assert len(images) == 2 * 2
        assert images.value.between(0, 60).all()
        assert json.loads((folder / "provenance.json").read_text())["data"]
        if cell != "bicubic":
            scalars = read_table(folder, "scalars")
            assert scalars[scalars.name == "loss"].step.tolist() == [2, 4, 6, 8, 10, 12]
            assert scalars[scalars.name == "validation_psnr_y_db"].step.tolist() == [6, 12]
        assert not (folder / "state").exists()
        assert not list(folder.glob("*.partial"))
    before = {path: path.stat().st_mtime_ns for folder in runs.values() for path in folder.iterdir()}
    again = run(grid, "results")
    assert again.returncode == 0
    assert "5 done" in output(again)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_two_processes_share_the_runs_and_give_the_same_results(finished: tuple[Path, dict]) -> None:
    grid, alone = finished
    process = run(grid, "both", launcher=("-m", "torch.distributed.run", "--nproc-per-node", "2"))
    assert process.returncode == 0, output(process)
    for key, folder in folders(grid, "both").items():
        assert folder.name == alone[key].name
        names = DONE_FILES if key[0] != "bicubic" else ("images.parquet",)
        for name in names:
            assert (folder / name).read_bytes() == (alone[key] / name).read_bytes(), (key, name)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_mid_run_it_goes_on_to_the_same_bits(write_grid: Write, how: signal.Signals) -> None:
    grid = write_grid("variants: {hard: {}}", ("seeds: 2", "seeds: 1"), ("steps: 12", "steps: 60"))
    process = run(grid, "quiet")
    assert process.returncode == 0, output(process)
    process = run(grid, "killed", wait=False)
    runs = grid.parent / "killed" / "runs"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(runs.glob("*/state/latest.pt")):
        time.sleep(0.01)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    (folder,) = folders(grid, "killed").values()
    assert status(runs, folder.name)["state"] == "interrupted"
    assert not (folder / "DONE").exists()
    process = run(grid, "killed")
    assert process.returncode == 0, output(process)
    (quiet,) = folders(grid, "quiet").values()
    for name in DONE_FILES:
        assert (folder / name).read_bytes() == (quiet / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_that_diverges_fails_alone_with_its_reason(write_grid: Write) -> None:
    variants = (
        "variants:\n  hard: {}\n  wild: {optimisation: {optimiser: {kind: adam, lr: 1e30}}}\n"
        "  short: {optimisation.steps: 4}\nreferences:\n  bicubic: {model: {kind: bicubic}}"
    )
    grid = write_grid(variants, ("seeds: 2", "seeds: 1"))
    process = run(grid, "results")
    assert process.returncode == 1
    assert "3 done, 1 failed" in output(process)
    runs = folders(grid, "results")
    wild = status(runs["wild", 0].parent, runs["wild", 0].name)
    assert wild["state"] == "failed"
    assert "the loss is" in wild["reason"]
    assert "of seed 0" in wild["reason"]
    assert "Traceback" in wild["traceback"]
    assert all((folder / "DONE").exists() for key, folder in runs.items() if key[0] != "wild")
    report = study("report", str(grid), "--results", str(grid.parent / "results"))
    assert report.returncode == 0, output(report)
    page = (grid.parent / "results" / "reports" / "grid" / "report.md").read_text()
    assert "the loss is" in page


@pytest.mark.slow
def test_ddp_gives_the_losses_of_one_process(write_grid: Write) -> None:
    precise = ("steps: 12, batch: 4, log_every: 2", "steps: 20, batch: 4, log_every: 1, precision: fp64")
    grid = write_grid(
        "variants:\n  hard: {}\n  soft: {model.assignment: {kind: soft}}", ("seeds: 2", "seeds: 1"), precise
    )
    process = run(grid, "one")
    assert process.returncode == 0, output(process)
    process = run(grid, "two", "--placement", "ddp", launcher=("-m", "torch.distributed.run", "--nproc-per-node", "2"))
    assert process.returncode == 0, output(process)
    both = folders(grid, "two")
    for key, folder in folders(grid, "one").items():
        one, two = (_losses(read_table(path, "scalars")) for path in (folder, both[key]))
        assert len(one) == 20
        assert two == pytest.approx(one, abs=1e-6)


def _losses(scalars: pd.DataFrame) -> list[float]:
    return scalars[scalars.name == "loss"].value.tolist()


@pytest.mark.slow
def test_fewer_processes_than_asked_for_is_warned_about(write_grid: Write) -> None:
    grid = write_grid("variants: {hard: {optimisation.steps: 2}}", ("seeds: 2", "seeds: 1"))
    root = grid.parent
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "-m",
        "study",
        "run",
    ]
    command += [str(grid), "--results", str(root / "results"), "--data-root", str(root / "images"), "--cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes were asked for and 1 is running" in done.stderr


def test_missing_images_are_named_before_anything_starts(write_grid: Write, tmp_path: Path) -> None:
    grid = write_grid("variants: {hard: {}}", ("path: train", "path: tran"))
    process = run(grid, "results")
    assert process.returncode == 2
    assert "tran" in output(process)
    assert "STUDY_DATA" in output(process)
    assert not (tmp_path / "results" / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr_patch_px: 12", "lr_patch_px: 64", "64"),
        ("path: train", "path: test", "holds the very images of evaluation.datasets.held_out"),
    ],
)
def test_what_cannot_or_must_not_train_is_refused_before_anything_starts(
    write_grid: Write, tmp_path: Path, old: str, new: str, said: str
) -> None:
    process = run(write_grid("variants: {hard: {}}", (old, new)), "results")
    assert process.returncode == 2, output(process)
    assert said in output(process)
    assert "Traceback" not in output(process)
    assert not (tmp_path / "results" / "runs").exists()
