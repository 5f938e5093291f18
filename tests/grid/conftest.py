from collections.abc import Callable
from pathlib import Path

import pytest

GRID = """\
question: Soft or hard?
base:
  scale: 2
  optimisation.steps: 400
variants:
  hard: {}
  soft:
    model.assignment: {kind: soft}
axes:
  model.prototypes.count:
    half: [8, 16, 32, 64]
    full: [16, 32, 64, 128]
references:
  bicubic: {model: {kind: bicubic}}
seeds: 2
analysis:
  baseline: hard, count=full
"""

BUDGET = """\
description: two cores
optimisation: {steps: 100, batch: 8}
models:
  catanet: {blocks: 2, width: 24, qk_width: 24, mlp_width: 48}
  imdn: {width: 16}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes the grid with one passage changed, and a budget called `small` beside it."""

    def make(old: str = "", new: str = "", budget: str = BUDGET, name: str = "grid.yaml") -> Path:
        assert old in GRID
        (tmp_path / "budgets").mkdir(exist_ok=True)
        (tmp_path / "budgets" / "small.yaml").write_text(budget)
        path = tmp_path / name
        path.write_text(GRID.replace(old, new, 1) if old else GRID)
        return path

    return make
