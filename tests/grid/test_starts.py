from collections.abc import Callable
from pathlib import Path

import pytest

from study.grid.expand import load_plan
from study.grid.identity import run_id, sources, specification
from study.grid.loading import GridError
from study.grid.models import External
from study.grid.plan import Plan
from study.grid.schema import Run, Source

GRID = """\
question: Does a second stage help?
base:
  scale: 2
  model: {kind: unet, width: 16, multipliers: [1, 2], blocks: 1, attention_width: 16, heads: 2}
  objective: {kind: consistency}
  optimisation.steps: 400
variants:
  CT: {}
  DTM: {start: CT, objective: {kind: trajectory}, optimisation.steps: 40}
  AMD: {start: DTM, objective: {kind: adaptive}, optimisation.steps: 20}
  two steps: {start: CT, model.inference_steps: 2, optimisation.steps: 0}
references:
  bicubic: {model: {kind: bicubic}}
seeds: 2
analysis: {baseline: CT}
"""

BUDGET = """\
description: two cores
optimisation: {steps: 30}
objectives:
  consistency: {objective: {distance: {kind: charbonnier}}, data.lr_patch_px: 16}
  trajectory: {objective: {distance: {kind: charbonnier}, refresh_every: 7}}
started: {optimisation: {steps: 5}}
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(*changes: tuple[str, str]) -> Path:
        text = GRID
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "budgets").mkdir(exist_ok=True)
        budget = BUDGET.replace("data.lr_patch_px: 16", "data: {lr_patch_px: 16}")
        (tmp_path / "budgets" / "small.yaml").write_text(budget)
        path = tmp_path / "grid.yaml"
        path.write_text(text)
        return path

    return make


def runs(plan: Plan) -> dict[str, tuple[Run, ...]]:
    return {cell.name: cell.runs for cell in plan.cells}


def test_a_start_is_the_named_cells_run_of_the_same_seed(write: Write) -> None:
    cells = runs(load_plan(write()))
    for seed in (0, 1):
        assert cells["DTM"][seed].start == cells["CT"][seed]
        assert cells["AMD"][seed].start == cells["DTM"][seed]
        assert cells["two steps"][seed].start == cells["CT"][seed]
        assert cells["CT"][seed].start is None


def test_the_start_counts_for_the_identity_and_so_do_its_images(write: Write) -> None:
    cells = runs(load_plan(write()))
    content: dict[Source | External, str] = dict.fromkeys(sources(cells["AMD"][0]), "0")
    ids = {run_id(run, content) for name in ("CT", "DTM", "AMD", "two steps") for run in cells[name]}
    assert len(ids) == 8
    other = cells["DTM"][0].model_copy(update={"start": cells["CT"][1]})
    assert run_id(other, content) != run_id(cells["DTM"][0], content)
    alone = cells["CT"][0]
    assert "start" not in specification(alone)  # ids from before starts existed stay


def test_a_run_without_steps_is_known_by_its_start_alone(write: Write) -> None:
    plan = load_plan(write(("model.inference_steps: 2, optimisation.steps: 0", "optimisation: {steps: 0, batch: 3}")))
    run = runs(plan)["two steps"][0]
    assert not run.trains
    changed = run.model_copy(update={"optimisation": run.optimisation.model_copy(update={"batch": 9})})
    assert specification(run) == specification(changed)


def test_names_of_variants_are_meant_at_the_same_labels_of_every_axis(write: Write) -> None:
    axes = ("references:", "axes:\n  model.width: [16, 32]\nreferences:")
    cells = runs(load_plan(write(axes, ("baseline: CT", "baseline: 'CT, width=16'"))))
    for width in (16, 32):
        start = cells[f"DTM, width={width}"][0].start
        assert start == cells[f"CT, width={width}"][0]


def test_a_budget_reaches_kinds_of_objectives_and_second_stages(write: Write) -> None:
    cells = runs(load_plan(write(), "small"))
    assert [cells[name][0].optimisation.steps for name in ("CT", "DTM", "AMD", "two steps")] == [30, 5, 5, 0]
    assert cells["CT"][0].objective.distance.kind == "charbonnier"  # pyright: ignore[reportAttributeAccessIssue]
    assert cells["DTM"][0].objective.refresh_every == 7  # pyright: ignore[reportAttributeAccessIssue]
    assert cells["AMD"][0].objective.distance.kind == "mixture"  # pyright: ignore[reportAttributeAccessIssue]
    assert cells["DTM"][0].data.lr_patch_px == 16


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("start: CT, objective", "start: TC, objective", [":9: start: no cell 'TC' (in DTM)", "did you mean 'CT'?"]),
        ("start: CT, objective", "start: bicubic, objective", [":9: start: 'DTM' cannot start from", "is not trained"]),
        ("CT: {}", "CT: {start: AMD}", [":8: start: a circle: CT -> AMD -> DTM -> CT"]),
        (
            "start: CT, objective",
            "start: CT, model.width: 24, objective",
            [":9: start: 'DTM' cannot start from 'CT': its model.width is 16, here it is 24"],
        ),
        ("start: CT, objective", "start: CT, scale: 3, objective", ["it is of scale 2, this run of scale 3"]),
        ("{model: {kind: bicubic}}", "{model: {kind: bicubic}, start: CT}", ["a bicubic network is not trained"]),
        ("objective: {kind: trajectory}", "objective: {kind: l1}", ["objective l1 does not train model unet"]),
        ("kind: adaptive}", "kind: adaptive, separate_fake: false}", ["sharpening: true trains the separate fake"]),
        ("kind: trajectory}", "kind: trajectory, time_range: [0.9, 0.5]}", ["time_range [0.9, 0.5]: holds no time"]),
    ],
)
def test_what_cannot_start_is_refused_by_place_and_name(write: Write, old: str, new: str, said: list[str]) -> None:
    with pytest.raises(GridError) as refused:
        load_plan(write((old, new)))
    for words in said:
        assert words in str(refused.value)
