"""A results folder that cannot be written: one message, and what was there stays.

Root may write anywhere, so that permissions prove nothing: the system's calls refuse instead, as on a disk that was
mounted read-only.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from study.cli import main
from study.grid.expand import load_plan
from study.records.index import finished
from study.training import execution
from study.training.runner import Options, run_grid
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
