import time
from collections.abc import Callable
from pathlib import Path

import pytest

from study.grid.expand import load_plan
from study.grid.identity import inputs, run_id
from study.grid.loading import GridError
from study.grid.models import CATANet, Hard, Soft

Write = Callable[..., Path]


def test_product_of_variants_and_axes_with_references_last(write: Write) -> None:
    plan = load_plan(write())
    assert [cell.name for cell in plan.cells] == [
        "hard, count=half",
        "hard, count=full",
        "soft, count=half",
        "soft, count=full",
        "bicubic",
    ]
    soft = plan.cells[2].runs[0]
    assert isinstance(soft.model, CATANet)
    assert soft.model.prototypes.count == (8, 16, 32, 64)
    assert soft.model.assignment == Soft()
    assert soft.scale == 2
    assert soft.optimisation.steps == 400
    assert plan.cells[2].labels == {"variant": "soft", "model.prototypes.count": "half"}


def test_seeds_multiply_what_is_trained_and_nothing_else(write: Write) -> None:
    plan = load_plan(write("seeds: 2", "seeds: [3, 5, 8]"))
    assert [run.seed for run in plan.cells[0].runs] == [3, 5, 8]
    assert len(plan.cells[-1].runs) == 1
    assert len(list(plan.runs())) == 4 * 3 + 1
    assert [run.seed for _, run in plan.runs()][:5] == [3, 3, 3, 3, 3]


def test_budget_lies_over_the_base_and_under_the_variants(write: Write) -> None:
    plan = load_plan(write("soft:\n    model.assignment", "soft:\n    model.width: 32\n    model.assignment"), "small")
    hard, soft = plan.cells[0].runs[0], plan.cells[2].runs[0]
    assert plan.name == "grid-small"
    assert hard.optimisation.steps == 100
    assert hard.optimisation.batch == 8
    assert isinstance(hard.model, CATANet)
    assert isinstance(soft.model, CATANet)
    assert (hard.model.width, soft.model.width) == (24, 32)
    assert hard.model.blocks == soft.model.blocks == 2


def test_budget_reaches_an_assignment_by_its_kind_and_lies_under_the_variant(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "question: q\nvariants:\n  plain: {}\n  super: {model.assignment: {kind: superpixel}}\n"
        "  own: {model.assignment: {kind: superpixel, sizes: [9]}}\n  other: {model: {kind: imdn}}\n"
        "analysis: {baseline: plain}\n"
    )
    (tmp_path / "budgets").mkdir()
    budget = "description: x\nassignments: {superpixel: {sizes: [6, 8]}, hard: {group_sizes: [16]}}\n"
    (tmp_path / "budgets" / "small.yaml").write_text(budget)
    models = {cell.name: cell.runs[0].model.model_dump() for cell in load_plan(path, "small").cells}
    assert models["plain"]["assignment"]["group_sizes"] == (16,)
    assert models["super"]["assignment"]["sizes"] == (6, 8)
    assert models["own"]["assignment"]["sizes"] == (9,)
    assert "assignment" not in models["other"]
    (tmp_path / "budgets" / "small.yaml").write_text("description: x\nassignments: {superpixel: {size: [6]}}\n")
    with pytest.raises(GridError, match=r"small\.yaml:2: .*size \(in super\): unknown key"):
        load_plan(path, "small")


def test_budget_reaches_a_reference_of_another_kind(write: Write) -> None:
    plan = load_plan(write("bicubic: {model: {kind: bicubic}}", "imdn: {model: {kind: imdn, blocks: 3}}"), "small")
    model = plan.cells[-1].runs[0].model
    assert model.model_dump() == {"kind": "imdn", "width": 16, "blocks": 3}


def test_extends_lays_a_file_over_another(write: Write, tmp_path: Path) -> None:
    write(name="parent.yaml")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\nbase:\n  scale: 3\nseeds: 1\n")
    plan = load_plan(tmp_path / "child.yaml")
    assert {run.scale for _, run in plan.runs()} == {3}
    assert len(list(plan.runs())) == 5


def test_another_kind_replaces_the_mapping_and_the_same_kind_is_merged(write: Write) -> None:
    base = "scale: 2\n  model.assignment: {kind: hard, fusion: concat, padding: masked}"
    plan = load_plan(write("scale: 2", base))
    hard, soft = plan.cells[0].runs[0].model, plan.cells[2].runs[0].model
    assert isinstance(hard, CATANet)
    assert isinstance(soft, CATANet)
    assert hard.assignment == Hard(fusion="concat", padding="masked")
    assert soft.assignment == Soft()


def test_exclude_removes_combinations(write: Write) -> None:
    rule = "seeds: 2\nexclude: [{variant: soft, model.prototypes.count: [half]}]"
    assert [cell.name for cell in load_plan(write("seeds: 2", rule)).cells] == [
        "hard, count=half",
        "hard, count=full",
        "soft, count=full",
        "bicubic",
    ]


def test_numbers_and_words_follow_yaml_1_2(write: Write) -> None:
    plan = load_plan(write("optimisation.steps: 400", "optimisation.optimiser: {kind: adam, lr: 2e-4}"))
    assert plan.cells[0].runs[0].optimisation.optimiser.lr == 2e-4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds: 2", "sedes: 2", ["grid.yaml:15: sedes", "did you mean 'seeds'?"]),
        ("optimisation.steps", "optimisation.stps", [":4: base.optimisation.stps", "did you mean 'steps'?"]),
        ("steps: 400", "steps: many", [":4: base.optimisation.steps", "valid integer", "'many'"]),
        ("steps: 400", "steps: -4", [":4: base.optimisation.steps", "greater than or equal to 0", "got -4"]),
        ("steps: 400", "steps: 0", [":2: base: optimisation.steps 0 evaluates the network of another run"]),
        ("scale: 2", "scale: 5", [":3: base.scale: got 5; must be 1, 2, 3 or 4"]),
        ("{kind: soft}", "{kind: sotf}", [":8: model.assignment.kind (in soft, count=half)", "did you mean 'soft'?"]),
        (
            "{kind: soft}",
            "{kind: soft, group_sizes: [3]}",
            [":8: model.assignment.group_sizes", "belongs to kind hard, not to kind soft"],
        ),
        ("{kind: soft}", "{kind: soft, support: topk}", [":8: model.assignment", "top_k goes with support: topk"]),
        (
            "{kind: soft}",
            "{kind: soft, support: topk, top_k: 9}",
            ["top_k 9 exceeds the smallest prototypes.count, 8"],
        ),
        ("{kind: soft}", "{kind: hard}", [":7: 'soft, count=half' and 'hard, count=half' resolve to the same run"]),
        (
            "{kind: soft}",
            "{kind: soft, prior: {kind: none, bands: 3}}",
            [":8: model.assignment.prior.bands", "belongs to kind frequency or shuffled, not to kind none"],
        ),
        ("half: [8, 16, 32, 64]", "half: [8, 0]", [":11: model.prototypes.count.1 (in hard, count=half)", "got 0"]),
        (
            "half: [8, 16, 32, 64]",
            "half: [16, 32, 64, 128]",
            [":10: axes.model.prototypes.count: changes nothing between 'hard, count=half' and 'hard, count=full'"],
        ),
        ("half: [8, 16, 32, 64]", "half: 3", ["should be a list, got 3"]),
        ("prototypes.count:", "prototypes.cuont:", ["unknown key", "did you mean 'count'?"]),
        (
            "count=full",
            "count=ful",
            [":17: analysis.baseline: no cell 'hard, count=ful'; did you mean 'hard, count=full'"],
        ),
        (
            "seeds: 2",
            "seeds: 2\nexclude: [{variant: hard, model.prototypes.count: full}]",
            [":16: exclude", "removes the baseline 'hard, count=full'"],
        ),
        ("seeds: 2", "seeds: 2\nexclude: [{variant: herd}]", [":16: exclude", "did you mean 'hard'?"]),
        ("seeds: 2", "seeds: 2\nexclude: [{varaint: hard}]", ["no variant or axis 'varaint'"]),
        ("seeds: 2", "seeds: 2\nseeds: 3", [":16: seeds is given twice"]),
        ("seeds: 2", "seeds: &a 2", None),
        ("seeds: 2", "seeds: &a 2\nexclude: *a", [":16: YAML aliases are not read"]),
        (
            "scale: 2",
            "scale: 2\n  evaluation.datasets: {a: {kind: folder, path: x, pth: x}}",
            [":4:", "did you mean 'path'?"],
        ),
        ("scale: 2", "scale: 2\n  evaluation.datasets: {a b: {kind: bundled, split: test}}", ["should match", "'a b'"]),
        ("scale: 2", "scale: [2", ["not valid YAML"]),
        ("references:", "references:\n  hard, count=full: {scale: 3}", ["a variant has that name"]),
        ("analysis:\n  baseline: hard, count=full\n", "", ["analysis: is required"]),
        ("base:\n", "base: true\nlost:\n", [":2: base: must be a mapping, got True"]),
        ("base:\n", "base: base\nlost:\n", [":2: base: must be a mapping, got 'base'"]),
        ("base:", "extends: grid.yaml\nbase:", ["extends itself"]),
        ("base:", "extends: nowhere.yaml\nbase:", ["nowhere.yaml: No such file"]),
        ("count=full\n", "count=full\n  dataset: Set6\n", ["analysis.dataset", "did you mean 'Set5'?"]),
        ("count=full\n", "count=full\n  curve: model.width\n", ["analysis.curve: is not an axis"]),
        ("count=full\n", "count=full\n  comparisons: [[soft, hard]]\n", ["analysis.comparisons: no cell 'soft'"]),
    ],
)
def test_a_grid_that_cannot_run_is_refused_by_place_and_name(
    write: Write, old: str, new: str, said: list[str] | None
) -> None:
    path = write(old, new)
    if said is None:
        load_plan(path)
        return
    with pytest.raises(GridError) as caught:
        load_plan(path)
    for part in said:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("description: x\nmodels: {catanet: {wdth: 3}}", ["small.yaml:2: base.model.wdth", "did you mean 'width'?"]),
        ("description: x\nmodel: {width: 3}", ["small.yaml:2: model: unknown key", "did you mean 'models'?"]),
        ("description: x\noptimisation: {batch: 3, accumulate: 2}", ["small.yaml:2", "3 is not a multiple of"]),
        ("description: x\nanalysis: {dataset: foo}", ["small.yaml:2: analysis.dataset"]),
    ],
)
def test_a_wrong_budget_is_named_with_its_own_line(write: Write, budget: str, said: list[str]) -> None:
    with pytest.raises(GridError) as caught:
        load_plan(write(budget=budget), "small")
    for part in said:
        assert part in str(caught.value)


def test_unknown_budget_lists_those_there_are(write: Write) -> None:
    with pytest.raises(GridError, match=r"no budget 'smal'.*did you mean 'small'"):
        load_plan(write(), "smal")


def test_ten_thousand_runs_expand_and_hash_in_five_seconds(tmp_path: Path) -> None:
    steps, batches = ", ".join(map(str, range(1, 101))), ", ".join(map(str, range(1, 21)))
    path = tmp_path / "many.yaml"
    path.write_text(
        f"question: q\nseeds: 5\naxes:\n  optimisation.steps: [{steps}]\n  optimisation.batch: [{batches}]\n"
        "analysis: {baseline: 'steps=1, batch=1', dataset: Set5}\n"
    )
    begun = time.process_time()
    plan = load_plan(path)
    fingerprints = {source: "0" for _, run in plan.runs() for source in inputs(run)}
    ids = {run_id(run, fingerprints) for _, run in plan.runs()}
    assert len(ids) == 10_000
    assert time.process_time() - begun < 5


def test_a_variant_may_count_its_seeds_from_another_one(tmp_path: Path) -> None:
    text = "question: q\nvariants: {first: {}, second: {seed: SEED}}\nseeds: 3\nanalysis: {baseline: first}\n"
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("SEED", "3"))
    assert [[run.seed for run in cell.runs] for cell in load_plan(path).cells] == [[0, 1, 2], [3, 4, 5]]
    path.write_text(text.replace("SEED", "2"))
    with pytest.raises(GridError, match=r":2: 'second' and 'first' resolve to the same run"):
        load_plan(path)
