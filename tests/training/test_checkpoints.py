"""States that a disk has broken, and results that cannot be written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from study.data.decoding import DataError
from study.grid.expand import load_plan
from study.records.index import status
from study.records.store import RecordError
from study.training import checkpoints, execution
from study.training.checkpoints import PREVIOUS, STATE, load_state, save_state
from study.training.runner import Options, run_grid
from study.training.trainer import Trainer
from tests.training.test_runner import DONE_FILES, folders, in_process

Write = Callable[..., Path]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, where: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def flip_first(path: Path) -> None:
    flip(path, 0)


def flip_last(path: Path) -> None:
    flip(path, 1)


FAULTS = [truncate, halve, empty, flip, flip_first, flip_last]


def saved(folder: Path, *steps: int) -> None:
    for step in steps:
        save_state(folder, {"step": step, "network": {"weight": torch.full((64,), float(step))}})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_state_falls_back_to_the_one_before_and_says_so(
    fault: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1, 2, 3)
    fault(tmp_path / STATE)
    state = load_state(tmp_path)
    assert state is not None
    assert state["step"] == 2
    assert torch.equal(state["network"]["weight"], torch.full((64,), 2.0))
    said = capsys.readouterr().err
    assert "latest.pt is broken" in said
    assert "going on from the state before it, of step 2" in said
    saved(tmp_path, 4)  # must not put the broken one in the whole one's place
    truncate(tmp_path / STATE)
    assert (load_state(tmp_path) or {})["step"] == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_where_both_are_broken_it_starts_anew_and_says_so(
    fault: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1, 2)
    fault(tmp_path / STATE)
    fault(tmp_path / PREVIOUS)
    assert load_state(tmp_path) is None
    said = capsys.readouterr().err
    assert "latest.pt is broken" in said
    assert "previous.pt is broken" in said
    assert "training starts anew" in said


def test_a_quiet_start_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_state(tmp_path) is None
    saved(tmp_path, 1, 2)
    assert (load_state(tmp_path) or {})["step"] == 2
    assert capsys.readouterr().err == ""


def test_the_one_before_is_kept_where_the_file_system_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(checkpoints.os, "link", refuse)
    saved(tmp_path, 1, 2)
    flip(tmp_path / STATE)
    assert (load_state(tmp_path) or {})["step"] == 1
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"previous.pt"}


def test_a_state_that_is_not_written_whole_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1, 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("study.records.store.os.fsync", full)
        with pytest.raises((OSError, RecordError)):
            saved(tmp_path, 3)
    assert (load_state(tmp_path) or {})["step"] == 2
    assert not list((tmp_path / "state").glob(".*"))


def test_a_whole_state_of_another_kind_is_refused_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("written by a later version")

    monkeypatch.setattr(checkpoints.torch, "load", refuse)
    with pytest.raises(RecordError, match=r"latest\.pt cannot be read \(written by a later version\)"):
        load_state(tmp_path)
    assert (tmp_path / STATE).exists()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing inference takes most of so short a run."""
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])


IMDN = "variants:\n  hard: {model: {kind: imdn, width: 8, blocks: 1}}"
ONE_SEED = ("seeds: 2", "seeds: 1")


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills training after some steps, as an error does."""
    optimise = Trainer._optimise

    def some(self: Trainer, *given: object) -> object:
        if self.step == steps:
            raise KeyboardInterrupt
        return optimise(self, *given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Trainer, "_optimise", some)


@pytest.mark.parametrize("which", [(STATE,), (STATE, PREVIOUS)], ids=["latest", "both"])
def test_a_run_with_broken_states_ends_in_the_same_bits(
    which: tuple[Path, ...], write_grid: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(IMDN, ONE_SEED)
    plan = load_plan(grid)
    quiet = Options(grid.parent / "quiet", grid.parent / "images", cpu=True)
    assert set(run_grid(plan, quiet).values()) == {"done"}
    with monkeypatch.context() as patch:
        stop_after(9, patch)
        with pytest.raises(KeyboardInterrupt):
            run_grid(plan, in_process(grid))
    (folder,) = folders(grid, "results").values()
    for name in which:
        flip(folder / name)
    assert set(run_grid(plan, in_process(grid)).values()) == {"done"}
    said = capsys.readouterr().err
    assert ("of step 6" in said) == (len(which) == 1)
    assert ("training starts anew" in said) == (len(which) == 2)
    (other,) = folders(grid, "quiet").values()
    for name in DONE_FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_images_that_vanish_in_mid_training_change_nothing_and_are_named_by_the_next_launch(
    write_grid: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid(IMDN, ("seeds: 2", "seeds: [0, 1]"))
    plan, images = load_plan(grid), grid.parent / "images"
    quiet = Options(grid.parent / "quiet", images, cpu=True)
    assert set(run_grid(plan, quiet).values()) == {"done"}
    optimise = Trainer._optimise

    def lose(self: Trainer, *given: object) -> object:
        if self.run.seed == 1 and self.step == 5:
            shutil.rmtree(images / "train")
        return optimise(self, *given)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_optimise", lose)
        assert set(run_grid(plan, in_process(grid)).values()) == {"done"}  # they were decoded before it began
    both = folders(grid, "quiet")
    for key, folder in folders(grid, "results").items():
        for name in DONE_FILES:
            assert (folder / name).read_bytes() == (both[key] / name).read_bytes(), name
    with pytest.raises(DataError, match="train"):
        run_grid(plan, in_process(grid))
    assert all(status(folder.parent, folder.name)["state"] == "done" for folder in both.values())
