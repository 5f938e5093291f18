import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.analysis import summaries
from study.analysis.comparisons import compare_declared, compare_exploratory
from study.analysis.power import detectable_effect
from study.analysis.results import Measure
from study.analysis.tables import Table
from tests.analysis import generative
from tests.analysis.generative import draw_generative
from tests.analysis.synthetic import GRID, arrange, draw_study


@pytest.fixture
def study(tmp_path):
    return draw_study(tmp_path, effects={"soft, count=16": 0.1, "hard, count=8": -0.9})


def column(table: Table, name: str) -> dict[Any, Any]:
    place = [c.name for c in table.columns].index(name)
    return {row[0].value: row[place] for row in table.entries()}


def test_declaration_repeats_what_was_declared(study):
    rows = {row[0].value: row[1].value for row in summaries.declaration_table(arrange(study)).entries()}
    assert rows["baseline"] == "hard, count=16"
    assert rows["claim"] == "retraining on these images"
    assert rows["correction"] == "Holm over 3"
    assert rows["stopping rule"] == "fixed: 400 optimiser steps at batch 8"
    assert rows["seeds"] == "2 (0, 1)"
    assert rows["margin of equivalence"] == "0.02 dB"


def test_results_are_means_of_the_rows(study):
    table = summaries.results_table(arrange(study))
    assert [c.group for c in table.columns].count("Set5") == 2
    rows = study.records.images.query("dataset == 'bundled' and protocol == 'uint8_y' and metric == 'psnr'")
    runs = [study.ids["soft, count=16", seed] for seed in (0, 1)]
    entry = column(table, "PSNR")["soft, count=16"]
    assert entry.value == pytest.approx(rows[rows["run"].isin(runs)]["value"].mean())
    assert entry.suffix == ""
    assert table.notes[0].startswith("Means are over 2 seeds. Bold: ")
    assert column(table, "PSNR")["bicubic"].suffix == ""
    assert column(table, "parameters")["bicubic"].value == 0
    assert column(table, "multiply adds 720p")["hard, count=8"].value == pytest.approx(12.34)


def test_gain_over_bicubic_is_shown_with_its_sign(study):
    gains = column(summaries.results_table(arrange(study)), "gain over bicubic")
    assert (gains["hard, count=8"].suffix, gains["hard, count=8"].tone) == ("▼", "bad")
    assert (gains["soft, count=16"].suffix, gains["soft, count=16"].tone) == ("▲", "good")
    assert gains["bicubic"].value is None


def test_unfinished_cells_stay_in_the_table(study):
    study.statuses[study.ids["soft, count=16", 0]]["state"] = "running"
    for seed in (0, 1):
        study.statuses[study.ids["soft, count=8", seed]]["state"] = "failed"
    table = summaries.results_table(arrange(study))
    assert len(table.rows) == 7
    assert column(table, "PSNR")["soft, count=8"].value is None
    assert column(table, "PSNR")["soft, count=16"].suffix == "(n = 1)"
    assert column(table, "PSNR")["soft, count=16"].tone == "warn"
    assert column(table, "PSNR")["hard, count=16"].suffix == ""
    assert table.notes[0].startswith("Means are over 2 seeds, or n finished ones. ")
    assert table.notes[-1] == (
        "Unfinished, finished of declared seeds: soft, count=8 (0 of 2); soft, count=16 (1 of 2)."
    )


def test_values_that_are_not_finite_show_as_such(study):
    frame = study.records.images
    frame.loc[frame["run"] == study.ids["soft, count=16", 0], "value"] = math.nan
    assert math.isnan(float(column(summaries.results_table(arrange(study)), "PSNR")["soft, count=16"].value))
    assert "not finite" in summaries.results_table(arrange(study)).to_markdown()


def test_declared_comparisons_have_verdicts_and_explored_ones_have_none(study):
    results = arrange(study)
    declared = summaries.comparison_table(compare_declared(results), "comparisons", "")
    explored = summaries.comparison_table(list(compare_exploratory(results)), "exploratory", "")
    assert {"verdict", "p, corrected"} <= {c.name for c in declared.columns}
    assert not {"verdict", "p, corrected"} & {c.name for c in explored.columns}
    assert len(declared.rows) == 3
    assert len(explored.rows) == 9


def test_noise_floor(study):
    results = arrange(study)
    table = summaries.noise_table(results)
    means = results.means("hard, count=16", Measure("bundled", "uint8_y", "psnr"))
    sd = float(np.std(means, ddof=1))
    row = next(row for row in table.entries() if row[0].suffix == "(baseline)")
    assert row[2].value == pytest.approx(sd)
    assert row[4].value == pytest.approx(detectable_effect(math.sqrt(2) * sd, 2, 0.05, 0.8))
    assert row[5].value == pytest.approx(detectable_effect(math.sqrt(2) * sd, 2, 0.05 / 3, 0.8))
    assert "bicubic" not in column(table, "cell")


def test_noise_floor_of_one_seed_is_empty(tmp_path):
    table = summaries.noise_table(arrange(draw_study(tmp_path, GRID.replace("seeds: 2", "seeds: 1"))))
    assert all(row[2].value is None and row[1].value == 1 for row in table.entries())


def test_equivalence_beyond_the_margin(tmp_path):
    study = draw_study(tmp_path, GRID.replace("seeds: 2", "seeds: 5"), effects={"soft, count=16": 0.5})
    texts = column(summaries.equivalence_table(compare_declared(arrange(study))), "equivalence")
    assert texts["soft, count=16 vs hard, count=16"].value == "no, the whole interval lies beyond the margin"
    assert texts["hard, count=8 vs hard, count=16"].value.startswith("not attainable, needs about ")


def test_protocols_show_the_spread_and_the_level(study):
    table = summaries.protocol_table(arrange(study))
    assert [c.name for c in table.columns] == ["comparison", "uint8_y", "matlab_y", "float_y", "spread"]
    assert table.rows[-1][0] == "level of the baseline"
    assert float(str(column(table, "spread")["level of the baseline"].value)) == pytest.approx(0.035, abs=1e-3)


def test_failed_runs_come_first_and_none_is_left_out(study):
    run = study.ids["soft, count=32", 1]
    study.statuses[run] = {"state": "failed", "reason": "loss is nan at step 7", "step": 7, "steps": 400}
    del study.ids["hard, count=8", 0]
    rows = summaries.runs_table(arrange(study)).entries()
    assert len(rows) == 13
    assert [entry.value for entry in rows[0]][:4] == ["soft, count=32", "1", "failed", "7 / 400"]
    assert rows[0][4].value == "loss is nan at step 7"
    assert [entry.value for entry in rows[1]][:3] == ["hard, count=8", "0", "pending"]


def test_costs_choose_a_readable_unit(study):
    more = {"run": study.ids["hard, count=8", 0], "name": "training_peak_memory", "value": 1.5e10, "unit": "B"}
    study.records = replace(study.records, costs=pd.concat([study.records.costs, pd.DataFrame([more])]))
    table = summaries.costs_table(arrange(study))
    headings = [c.heading for c in table.columns]
    assert headings == ["cell", "training (s)", "training peak memory (GB)"]
    assert column(table, "training peak memory")["hard, count=8"].value == pytest.approx(15)
    assert column(table, "training")["bicubic"].value is None


def test_ranking_needs_three_cells_and_two_datasets(study, tmp_path):
    table = summaries.ranking_table(arrange(study))
    assert table is not None
    assert table.rows[-1] == ("hard, count=8", 6.0)
    assert "Mean ranks over 2 datasets (bundled, Set5)" in table.notes[0]
    for seed in (0, 1):
        study.statuses[study.ids["soft, count=8", seed]]["state"] = "failed"
    assert summaries.ranking_table(arrange(study)) is None


def test_stopping_rules_name_the_run_they_start_from(tmp_path):
    results = arrange(draw_generative(tmp_path))
    rows = {row[0].value: row[1].value for row in summaries.declaration_table(results).entries()}
    assert rows["stopping rule"] == (
        "fixed: 2,000 optimiser steps at batch 32; 160 optimiser steps at batch 32, from CT"
    )


def test_a_start_at_the_same_labels_is_named_by_its_variant(tmp_path):
    axis = "axes: {optimisation.optimiser.lr: {slow: 1.0e-5, fast: 1.0e-4}}\nreferences:"
    text = generative.GRID.replace("references:", axis)
    text = text.replace("baseline: CT", 'baseline: "CT, lr=slow"').partition("  comparisons:")[0]
    text = text.replace("  CT at 4 steps: {start: CT,", '  CT at 4 steps: {start: "CT, lr=slow",')
    text = text.replace("optimisation.steps: 0}", "optimisation.steps: 40}")
    results = arrange(draw_generative(tmp_path, text))
    rows = {row[0].value: row[1].value for row in summaries.declaration_table(results).entries()}
    assert rows["stopping rule"] == (
        "fixed: 2,000 optimiser steps at batch 32; 160 optimiser steps at batch 32, from CT; "
        "40 optimiser steps at batch 32, from CT; 40 optimiser steps at batch 32, from CT, lr=slow"
    )


def test_a_start_outside_the_grid_is_said_to_be(tmp_path):
    study = draw_generative(tmp_path)
    cells = [cell for cell in study.plan.cells if cell.name != "CT"]
    analysis = study.plan.grid.analysis.model_copy(update={"baseline": "CT + DTM", "comparisons": None})
    grid = study.plan.grid.model_copy(update={"analysis": analysis})
    results = arrange(replace(study, plan=replace(study.plan, cells=tuple(cells), grid=grid)))
    rows = {row[0].value: row[1].value for row in summaries.declaration_table(results).entries()}
    assert rows["stopping rule"] == "fixed: 160 optimiser steps at batch 32, from a run outside this grid"


def test_an_evaluated_start_has_seeds_but_no_costs_of_training(tmp_path):
    results = arrange(draw_generative(tmp_path))
    assert column(summaries.noise_table(results), "seeds")["CT at 4 steps"].value == 3
    assert column(summaries.costs_table(results), "training")["CT at 4 steps"].value is None
    assert column(summaries.results_table(results), "PSNR")["CT at 4 steps"].suffix == ""
    assert summaries.results_table(results).notes[0].startswith("Means are over 3 seeds. ")


def test_cells_of_different_seeds_show_each_number(study):
    cells = [replace(cell, runs=cell.runs[: 1 if cell.name == "hard, count=8" else 2]) for cell in study.plan.cells]
    table = summaries.results_table(arrange(replace(study, plan=replace(study.plan, cells=tuple(cells)))))
    shown = column(table, "PSNR")
    assert [shown[name].suffix for name in ("hard, count=8", "hard, count=16")] == ["(n = 1)", "(n = 2)"]
    assert table.notes[0].startswith("n: finished seeds. Bold: ")


def test_numbers_say_where_they_come_from(study):
    results = arrange(study)
    runs = ", ".join(study.ids["soft, count=16", seed] for seed in (0, 1))
    assert f"runs {runs}." in column(summaries.results_table(results), "PSNR")["soft, count=16"].detail
    assert f"runs {runs}." in column(summaries.noise_table(results), "sd over seeds")["soft, count=16"].detail
    declared = compare_declared(results)
    table = summaries.comparison_table(declared, "comparisons", "", results)
    assert f"soft, count=16: runs {runs}." in column(table, "mean δ")["soft, count=16 vs hard, count=16"].detail
    assert (
        column(summaries.comparison_table(declared, "c", ""), "mean δ")["soft, count=16 vs hard, count=16"].detail == ""
    )


def test_texts_sort_by_their_numbers(study):
    results = arrange(study)
    declared = compare_declared(results)
    table = summaries.comparison_table(declared, "comparisons", "")
    assert [entry.order for entry in column(table, "p").values()] == [c.test.p for c in declared]
    assert [entry.order for entry in column(table, "interval").values()] == [c.test.low for c in declared]
    assert column(summaries.runs_table(results), "step")["soft, count=16"].order == 400
    assert column(summaries.protocol_table(results), "uint8_y")[
        "soft, count=16 vs hard, count=16"
    ].order == pytest.approx(declared[0].mean)


@pytest.mark.parametrize(
    ("claim", "images", "warned"), [("new_images", 14, 1), ("new_images", 100, 0), ("same_images", 14, 0)]
)
def test_few_images_are_said_to_be_too_few_for_new_ones(tmp_path, claim, images, warned):
    study = draw_study(tmp_path, GRID.replace("analysis:", f"analysis:\n  claim: {claim}", 1), images=images)
    table = summaries.comparison_table(compare_declared(arrange(study)), "comparisons", "")
    assert sum(f"On so few images ({images})" in note for note in table.notes) == warned
