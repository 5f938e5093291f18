from collections.abc import Callable
from pathlib import Path

import pytest

from study.grid.expand import load_plan
from study.training.estimate import duration, estimate
from tests.training.conftest import VARIANTS


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, ""), (0.0, "0 s"), (0.3, "<1 s"), (89.0, "89 s"), (3900.0, "1:05 h"), (263_100.0, "3 d 1:05 h")],
)
def test_durations_read_as_people_say_them(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_every_cell_is_estimated_and_bicubic_costs_no_training(write_grid: Callable[..., Path], tmp_path: Path) -> None:
    plan = load_plan(write_grid(VARIANTS))
    estimates = estimate(plan, root=tmp_path, cpu=True, timed=True)
    assert set(estimates) == {"hard", "soft", "bicubic"}
    assert estimates["bicubic"].seconds == 0
    assert estimates["bicubic"].parameters == 0
    hard = estimates["hard"]
    assert hard.parameters
    assert hard.parameters > 0
    assert hard.multiply_adds
    assert hard.multiply_adds > 0
    assert hard.seconds is not None
    assert 0 < hard.seconds < 600
