from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from study.evaluation.complexity import operations
from study.grid.expand import load_plan
from study.models import build
from study.training.estimate import duration, estimate
from tests.training.conftest import VARIANTS

ROOT = Path(__file__).resolve().parents[2]


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


def test_operations_of_a_training_are_three_forwards_of_every_sample(
    write_grid: Callable[..., Path], tmp_path: Path
) -> None:
    plan = load_plan(write_grid(VARIANTS))
    estimates = estimate(plan, root=tmp_path, cpu=True, timed=False)
    run = next(cell.runs[0] for cell in plan.cells if cell.name == "hard")
    side = run.data.lr_patch_px, run.data.lr_patch_px
    with torch.device("meta"):
        counted = operations(build(run).eval(), side)
    samples = run.optimisation.steps * run.optimisation.batch
    assert estimates["hard"].operations == 6 * (counted.layers + counted.products) * samples
    assert estimates["bicubic"].operations == 0
    assert estimates["hard"].seconds is None


def test_passes_of_one_step_objectives() -> None:
    plan = load_plan(ROOT / "ablations" / "one_step.yaml", "ci")
    found = {name: one.operations for name, one in estimate(plan, root=ROOT, cpu=True, timed=False).items()}
    assert found.pop("CT + DTM + AMD") is None
    assert found.pop("bicubic") == 0
    steps = {cell.name: cell.runs[0].optimisation.steps for cell in plan.cells}
    passes = {"CT": 4, "CT continued": 4, "CT + DTM": 6, "DTM continued": 6}
    each = {name: (found[name] or 0) / passes[name] / steps[name] for name in passes}
    assert set(found) == set(passes)
    assert len(set(each.values())) == 1
    assert min(each.values()) > 0


def test_steps_are_timed_at_the_declared_precision(write_grid: Callable[..., Path], tmp_path: Path) -> None:
    axes = VARIANTS + "\naxes: {optimisation.precision: [fp32, fp64, bf16]}"
    plan = load_plan(write_grid(axes, ("baseline: hard", 'baseline: "hard, precision=fp32"')))
    seen: set[tuple[torch.dtype, bool]] = set()
    noted = torch.nn.Conv2d.forward

    def note(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        seen.add((self.weight.dtype, torch.is_autocast_enabled("cpu")))
        return noted(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv2d, "forward", note)
        estimates = estimate(plan, root=tmp_path, cpu=True, timed=True)
    assert all(found.seconds is not None for found in estimates.values())
    assert {(torch.float32, False), (torch.float64, False), (torch.float32, True)} <= seen
