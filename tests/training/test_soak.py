"""Kills at random, in short; `make soak` tries them at length."""

from pathlib import Path

import pytest

from tests.training.soak import declare, kill_at_points, storm


@pytest.mark.slow
def test_workers_that_are_killed_finish_every_run_once_and_as_a_quiet_one(tmp_path: Path) -> None:
    outcome = storm(declare(tmp_path, runs=8, steps=12), workers=3, every_s=0.4, seed=0)
    assert outcome.faults >= 2
    assert outcome.lost == []


@pytest.mark.slow
def test_killed_at_any_point_a_run_ends_as_a_quiet_one(tmp_path: Path) -> None:
    outcome = kill_at_points(declare(tmp_path, runs=1, steps=40), points=8, seed=0)
    assert outcome.faults == 8
    assert outcome.lost == []
