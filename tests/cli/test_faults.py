"""A results folder that cannot be written, or no further: one message, and what was there stays.

Root may write anywhere, so that permissions prove nothing: the system's calls refuse instead, as on a disk that was
mounted read-only.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from study.cli import main
from study.grid.expand import load_plan
from study.records import provenance
from study.records.index import finished, status
from study.records.location import locate
from study.records.store import read_table
from study.training import execution
from study.training.runner import Options, run_grid
from study.training.trainer import Trainer
from tests.training.conftest import grid_writer

IMDN = "variants:\n  hard: {model: {kind: imdn, width: 8, blocks: 1}}"
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grid of which the first seed has run."""
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])
    path = grid_writer(tmp_path)(IMDN, ("seeds: 2", "seeds: 1"))
    place = Options(tmp_path / "results", tmp_path / "images", cpu=True)
    assert set(run_grid(load_plan(path), place).values()) == {"done"}
    path.write_text(path.read_text().replace("seeds: 1", "seeds: 2"))
    return path


def command(grid: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    root = grid.parent
    words = ("run", str(grid), "--results", str(root / "results"), "--data-root", str(root / "images"), "--cpu")
    monkeypatch.setattr(sys, "argv", ["study", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def mount_read_only(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes every call that would change a file below `folder` fail."""

    def refuse(path: Any) -> None:
        if str(path).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    path_open, os_open, mkdir = Path.open, os.open, os.mkdir

    def opened(self: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            refuse(self)
        return path_open(self, mode, *more, **named)

    def opened_low(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & WRITES:
            refuse(path)
        return os_open(path, flags, *more, **named)

    def made(path: Any, *more: Any, **named: Any) -> None:
        if not Path(path).exists():
            refuse(path)
        mkdir(path, *more, **named)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "open", opened_low)
    monkeypatch.setattr(os, "mkdir", made)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_read_only_results_folder_gives_one_message_and_stays_as_it_is(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = grid.parent / "results"
    before = contents(results)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        mount_read_only(patch, results)
        assert command(grid, patch) == 2
    said = capsys.readouterr().err.strip().splitlines()
    (refusal,) = (line for line in said if "Read-only file system" in line)
    assert str(results) in refusal
    assert "Traceback" not in "".join(said)
    assert contents(results) == before
    assert command(grid, monkeypatch) == 0  # once it can be written again
    assert sum(finished(folder) for folder in (results / "runs").iterdir()) == 2


def test_a_file_in_the_place_of_the_runs_is_named(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = grid.parent / "results" / "runs"
    runs.rename(runs.with_name("moved"))
    runs.write_text("")
    capsys.readouterr()
    assert command(grid, monkeypatch) == 2
    said = capsys.readouterr().err
    assert "Not a directory" in said
    assert str(runs) in said
    assert "Traceback" not in said
    assert all(finished(folder) for folder in runs.with_name("moved").iterdir())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts, or resizes, a file system of so many KiB in the place of the results; its folder."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    folder = tmp_path / "results"
    folder.mkdir()

    def size(kib: int) -> Path:
        options = f"{'remount,' if folder.is_mount() else ''}size={kib}k"
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if made.returncode:
            pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
        return folder

    yield size
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # pixels are still mapped


def test_a_full_disk_ends_the_launch_in_one_message_and_costs_no_result(
    tmp_path: Path,
    disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])
    path = grid_writer(tmp_path)(IMDN)
    plan, quiet = load_plan(path), tmp_path / "quiet"
    assert set(run_grid(plan, Options(quiet, tmp_path / "images", cpu=True)).values()) == {"done"}
    done: set[str] = set()
    ended = [2]
    for kib in (40, 70, 100, 130, 160, 200, 240, 300, 400, 20_000):  # the cache does not fit, a state, the weights, …
        folder = disk(kib)
        ended.append(command(path, monkeypatch))
        said = capsys.readouterr()
        assert ("No space left on device" in said.err) == (ended[-1] == 2), (kib, said)
        assert "Traceback" not in said.err
        assert not list(folder.rglob("*.partial"))
        states = {path.name: status(path.parent, path.name)["state"] for path in (folder / "runs").glob("[!.]*")}
        assert set(states.values()) <= {"done", "interrupted", "pending"}, (kib, states)
        assert done <= {name for name, state in states.items() if state == "done"}
        done = {name for name, state in states.items() if state == "done"}
    assert ended.count(2) > 5
    assert ended[-1] == 0
    found, expected = locate(tmp_path / "results" / "runs", plan), locate(quiet / "runs", plan)
    assert found == expected
    for name in found.values():
        for file in ("images.parquet", "scalars.parquet", "weights.safetensors"):
            one, other = tmp_path / "results" / "runs" / name / file, quiet / "runs" / name / file
            assert one.read_bytes() == other.read_bytes(), (name, file)


def test_a_device_out_of_memory_fails_one_run_with_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])
    path = grid_writer(tmp_path)(IMDN)
    optimise = Trainer._optimise

    def want_more(self: Trainer, *given: object) -> object:
        if self.run.seed == 0 and self.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 TiB.\nSee the manual.")
        return optimise(self, *given)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_optimise", want_more)
        assert command(path, patch) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 done, 1 failed" in said
    assert "out of memory, with optimisation.batch 4 in 1 parts and data.lr_patch_px 12: raise" in said
    assert "Tried to allocate 9 TiB." in said
    assert "See the manual" not in said
    assert command(path, monkeypatch) == 0


def cough(patch: pytest.MonkeyPatch, step: int) -> None:
    """Ends training with an error of the disk after so many steps."""
    optimise = Trainer._optimise

    def stop(self: Trainer, *given: object) -> object:
        if self.step == step:
            raise OSError(errno.EIO, "the disk coughs")
        return optimise(self, *given)  # pyright: ignore[reportArgumentType]

    patch.setattr(Trainer, "_optimise", stop)


def test_another_version_of_the_code_does_not_go_on_with_a_half_trained_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])
    path = grid_writer(tmp_path)(IMDN, ("seeds: 2", "seeds: 1"))
    with monkeypatch.context() as patch:
        cough(patch, step=5)
        patch.setattr(provenance, "training_code", lambda: "a" * 64)
        assert command(path, patch) == 1
    capsys.readouterr()
    assert command(path, monkeypatch) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "half trained by another version of the code (commit" in said
    assert "training code aaaaaaaaaa); this is commit" in said
    monkeypatch.setattr(provenance, "training_code", lambda: "a" * 64)
    assert command(path, monkeypatch) == 0


def test_a_broken_curve_does_not_keep_a_training_from_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])
    path = grid_writer(tmp_path)(IMDN, ("seeds: 2", "seeds: 1"))
    with monkeypatch.context() as patch:
        cough(patch, step=7)
        assert command(path, patch) == 1
    (curve,) = (tmp_path / "results" / "runs").glob("*/scalars.parquet")
    curve.write_bytes(curve.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"scalars\.parquet is not a readable .*: the curve begins at step 6"):
        assert command(path, monkeypatch) == 0
    assert read_table(curve.parent, "scalars").query("name == 'loss'")["step"].tolist() == [8, 10, 12]
