import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from study import StudyError
from study.grid.expand import load_plan
from study.models.imdn import IMDN
from study.records.store import read_json
from study.training import attempts, execution
from study.training.execution import Machine
from study.training.image_sets import ImageSets
from study.training.runner import Options, run_grid

Write = Callable[..., Path]
SMALL = "variants: {hard: {model: {kind: imdn, width: 8, blocks: 1}}}"


def test_a_lost_gpu_ends_the_launch_and_the_run_says_why(
    write_grid: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,) = [run for _, run in load_plan(write_grid(SMALL, ("seeds: 2", "seeds: 1"))).runs()]

    def fail(*_: object) -> None:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(attempts, "execute", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    machine = Machine(ImageSets(tmp_path, tmp_path / "cache"), False, 0, lambda: False, ())
    folder = tmp_path / "runs" / "imdn"
    folder.mkdir(parents=True)
    with pytest.raises(StudyError, match="the GPU can no longer be used: device-side assert triggered"):
        attempts.attempt(run, folder, machine, None)
    status = read_json(folder / "status.json")
    assert (status["state"], status["reason"]) == ("failed", "RuntimeError: device-side assert triggered")


def test_no_network_outlives_its_run(write_grid: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])
    grid = write_grid(SMALL.replace("blocks: 1}", "blocks: 1}, optimisation.precision: bf16"))
    options = Options(grid.parent / "results", grid.parent / "images", cpu=True)
    assert set(run_grid(load_plan(grid), options).values()) == {"done"}
    assert not [thing for thing in gc.get_objects() if type(thing) is IMDN]
