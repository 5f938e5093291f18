"""The grid's runner, through the command its user types."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from study import StudyError
from study.grid.expand import load_plan
from study.records.index import status
from study.records.location import locate
from study.records.store import read_json, read_table
from study.training import execution, runner
from study.training.placement import Placement, Processes
from study.training.runner import Options, run_grid
from study.training.trainer import Trainer
from tests.training.conftest import grid_writer

Write = Callable[..., Path]
DONE_FILES = ("images.parquet", "scalars.parquet", "weights.safetensors")


def study(
    *words: str,
    launcher: tuple[str, ...] = (),
    wait: bool = True,
    warnings: str = "ignore",
    program: str = "tests.training.quick",
) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    command = [sys.executable, "-W", warnings, *launcher, "-m", program, *words]
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a process group of its own, as a terminal gives it
    )
    if wait:
        process.output = process.communicate(timeout=300)[0]  # pyright: ignore[reportAttributeAccessIssue]
    return process


def run(grid: Path, results: str, *more: str, **how: Any) -> subprocess.Popen[str]:
    root = grid.parent
    words = ("run", str(grid), "--results", str(root / results), "--data-root", str(root / "images"), "--cpu", *more)
    return study(*words, **how)


def folders(grid: Path, results: str) -> dict[tuple[str, int], Path]:
    runs = grid.parent / results / "runs"
    return {key: runs / run_id for key, run_id in locate(runs, load_plan(grid)).items()}


def output(process: subprocess.Popen[str]) -> str:
    return process.output  # pyright: ignore[reportAttributeAccessIssue]


def in_process(grid: Path, **placement: Any) -> Options:
    return Options(grid.parent / "results", grid.parent / "images", Placement(**placement), cpu=True)


def wait_for(happened: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, int], Path]]:
    grid = grid_writer(tmp_path_factory.mktemp("finished"))()
    process = run(grid, "results", program="study")
    assert process.returncode == 0, output(process)
    return grid, folders(grid, "results")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `tests.training.quick` does, in this process."""
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])


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
@pytest.mark.parametrize(
    ("how", "workers"), [(signal.SIGKILL, "0"), (signal.SIGTERM, "0"), (signal.SIGTERM, "2")], ids=str
)
def test_killed_in_mid_run_it_goes_on_to_the_same_bits(write_grid: Write, how: signal.Signals, workers: str) -> None:
    grid = write_grid("variants: {hard: {}}", ("seeds: 2", "seeds: 1"), ("steps: 12", "steps: 60"))
    process = run(grid, "quiet")
    assert process.returncode == 0, output(process)
    process = run(grid, "killed", "--workers", workers, wait=False)
    runs = grid.parent / "killed" / "runs"
    wait_for(lambda: list(runs.glob("*/state/latest.pt")))
    os.killpg(process.pid, how)  # as launchers do: processes that prepare samples get it, too
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
def test_packed_runs_end_as_one_by_one_though_stopped_and_killed_on_the_way(write_grid: Write) -> None:
    grid = write_grid("variants: {hard: {}}", ("steps: 12", "steps: 40"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_grid(load_plan(grid), in_process(grid))
    finally:
        torch.set_num_threads(threads)
    runs = grid.parent / "packed" / "runs"
    process = run(grid, "packed", "--placement", "packed:2", wait=False)
    wait_for(lambda: list(runs.glob("*/state/latest.pt")))
    os.killpg(process.pid, signal.SIGINT)  # control-C: the launch and its processes all get it
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    stopped = [one.name for one in runs.iterdir() if "stopped after" in status(runs, one.name).get("reason", "")]
    assert stopped

    process = run(grid, "packed", "--placement", "packed:2", wait=False, warnings="default")
    wait_for(lambda: status(runs, stopped[0])["attempt"] == 2)
    pid = read_json(runs / stopped[0] / "status.json")["process"]
    assert pid != process.pid
    os.kill(pid, signal.SIGKILL)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "1 of 2 processes ended early, exit code -9" in said
    assert status(runs, stopped[0])["attempt"] == 3
    for key, folder in folders(grid, "results").items():
        for name in DONE_FILES:
            assert (runs / folder.name / name).read_bytes() == (folder / name).read_bytes(), (key, name)


@pytest.mark.parametrize(("asked", "world", "started"), [(2, 1, 2), (9, 1, 3), (9, 2, 2), (1, 1, None), (9, 3, None)])
def test_no_more_runs_are_packed_than_are_left(
    write_grid: Write, monkeypatch: pytest.MonkeyPatch, asked: int, world: int, started: int | None
) -> None:
    grid = write_grid("references: {bicubic: {model: {kind: bicubic}}}\nvariants: {hard: {}}", ("seeds: 2", "seeds: 3"))
    counts: list[int] = []
    monkeypatch.setattr(runner, "find_processes", lambda: Processes(0, world, 0))
    monkeypatch.setattr(runner, "_alone", lambda *_: {})
    monkeypatch.setattr(runner, "pack", lambda _, count, __: counts.append(count) or [0] * count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    plan, options = load_plan(grid), in_process(grid, packed=asked)
    first = next(
        iter(runner.ImageSets(options.data_root, options.results / "cache").identify(r) for _, r in plan.runs())
    )
    (options.results / "runs" / first).mkdir(parents=True)
    for name in ("run.json", "DONE"):
        (options.results / "runs" / first / name).touch()
    ended = run_grid(plan, options)
    assert counts == ([] if started is None else [started])
    if started is not None:
        assert list(ended.values()).count("interrupted") == 3
        assert ended[first] == "done"


def test_more_packed_runs_than_cores_are_warned_about(write_grid: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(runner, "pack", lambda *_: [0, 0])
    grid = write_grid("variants: {hard: {}}")
    with pytest.warns(UserWarning, match="2 runs at once on 1 CPU cores"):
        run_grid(load_plan(grid), in_process(grid, packed=2))


def test_stopped_while_evaluating_it_goes_on_without_training(
    write_grid: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid("variants: {hard: {}}", ("seeds: 2", "seeds: 1"))
    scored: list[str] = []

    def stopped(*arguments: Any, on_image: Callable[[str], None], **settings: Any) -> Any:
        def noted(name: str) -> None:
            scored.append(name)
            signal.raise_signal(signal.SIGTERM)
            on_image(name)

        return evaluate(*arguments, on_image=noted, **settings)

    evaluate = execution.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(execution, "evaluate", stopped)
        ended = run_grid(load_plan(grid), in_process(grid))
    assert list(ended.values()) == ["interrupted"]
    assert len(scored) == 1
    (folder,) = folders(grid, "results").values()
    assert "stopped while evaluating" in status(folder.parent, folder.name)["reason"]
    assert not (folder / "images.parquet").exists()
    weights, curve = (folder / "weights.safetensors").read_bytes(), read_table(folder, "scalars")
    monkeypatch.setattr(Trainer, "_optimise", None)
    ended = run_grid(load_plan(grid), in_process(grid))
    assert list(ended.values()) == ["done"]
    assert (folder / "weights.safetensors").read_bytes() == weights
    assert read_table(folder, "scalars").equals(curve)
    assert read_table(folder, "images").image.nunique() == 2


def test_finished_runs_of_other_code_stay_and_are_told_of(write_grid: Write) -> None:
    grid = write_grid("variants: {hard: {}, bicubic: {model: {kind: bicubic}}}", ("seeds: 2", "seeds: 1"))
    run_grid(load_plan(grid), in_process(grid))
    for folder in folders(grid, "results").values():
        record = json.loads((folder / "provenance.json").read_text())
        (folder / "provenance.json").write_text(json.dumps({**record, "training_sha256": "0" * 64}))
    with pytest.warns(UserWarning, match="1 of 1 finished runs were trained by other code .* remove its folder"):
        assert set(run_grid(load_plan(grid), in_process(grid)).values()) == {"done"}


def test_a_state_that_a_kill_left_in_a_finished_run_is_removed(write_grid: Write) -> None:
    grid = write_grid("variants: {hard: {model: {kind: bicubic}}}")
    run_grid(load_plan(grid), in_process(grid))
    (folder,) = folders(grid, "results").values()
    (folder / "state").mkdir()
    (folder / "state" / "latest.pt").touch()
    assert set(run_grid(load_plan(grid), in_process(grid)).values()) == {"done"}
    assert not (folder / "state").exists()


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


def test_ddp_refuses_a_batch_that_does_not_divide(write_grid: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = write_grid("variants: {hard: {}}")
    monkeypatch.setattr(runner, "find_processes", lambda: Processes(0, 3, 0))
    with pytest.raises(StudyError, match=r"optimisation\.batch 4 .* does not divide among 3 processes"):
        run_grid(load_plan(grid), in_process(grid, ddp=True))
    assert not (grid.parent / "results" / "runs").exists()


def test_ddp_records_a_failure_before_it_ends_the_launch_and_tries_it_last(
    write_grid: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid("variants: {hard: {}, soft: {model.assignment: {kind: soft}}}", ("seeds: 2", "seeds: 1"))
    plan, options = load_plan(grid), in_process(grid, ddp=True)
    monkeypatch.setattr(runner, "find_processes", lambda: Processes(0, 2, 0))
    images = runner.ImageSets(options.data_root, options.results / "cache")
    hard, soft = (options.results / "runs" / images.identify(run) for _, run in plan.runs())
    (hard / "state" / "latest.pt").mkdir(parents=True)  # a broken file is passed over, what cannot be read is not
    for begun, after in ((False, "pending"), (True, "done")):
        assert hard.joinpath("status.json").exists() == begun
        with pytest.raises(StudyError, match=r"latest\.pt cannot be read"):
            run_grid(plan, options)
        failed = status(hard.parent, hard.name)
        assert failed["state"] == "failed"
        assert "latest.pt cannot be read" in failed["reason"]
        assert "Traceback" in failed["traceback"]
        assert status(soft.parent, soft.name)["state"] == after


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
        ("path: train", "path: test", "of evaluation.datasets.held_out, as"),
        ("path: train", "path: [test]", "of evaluation.datasets.held_out, as"),
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
