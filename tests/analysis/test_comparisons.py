import math

import numpy as np
import pytest

from study.analysis.comparisons import compare, compare_declared, compare_exploratory, declared_pairs
from study.analysis.ranking import rank_cells
from study.analysis.results import Measure
from study.analysis.scepticism import examine
from study.analysis.statistics import paired_t
from study.analysis.summaries import results_table
from study.analysis.verdicts import decide, describe
from tests.analysis.synthetic import GRID, arrange, draw_study


def test_the_family_is_corrected_together(tmp_path):
    results = arrange(draw_study(tmp_path, GRID.replace("seeds: 2", "seeds: 5"), {"soft, count=16": 0.2}))
    family = compare_declared(results)
    p = np.array([comparison.test.p for comparison in family])
    order = np.argsort(p)
    expected = np.maximum.accumulate(np.minimum(1, p[order] * [3, 2, 1]))
    assert [family[i].p_corrected for i in order] == pytest.approx(list(expected))
    assert all(comparison.family == 3 and comparison.complete for comparison in family)
    assert family[0].test == paired_t(family[0].deltas.values, 0.05, 0.02)


def test_a_comparison_that_is_not_run_still_counts_in_the_family(tmp_path):
    study = draw_study(tmp_path, GRID.replace("seeds: 2", "seeds: 5"), {"soft, count=16": 0.2})
    whole = compare_declared(arrange(study))
    for seed in range(5):
        study.statuses[study.ids["hard, count=8", seed]]["state"] = "failed"
    partial = compare_declared(arrange(study))
    assert math.isnan(partial[2].p_corrected)
    assert partial[0].p_corrected == pytest.approx(3 * partial[0].test.p)
    assert partial[0].test == whole[0].test


def test_no_correction_when_none_is_declared(tmp_path):
    text = GRID.replace("analysis:\n", "analysis:\n  correction: none\n")
    for comparison in compare_declared(arrange(draw_study(tmp_path, text))):
        assert comparison.p_corrected == comparison.test.p


def test_all_trained_cells_against_the_baseline_by_default(tmp_path):
    start, end = GRID.index("  comparisons:"), GRID.index("  curve:")
    results = arrange(draw_study(tmp_path, GRID[:start] + GRID[end:]))
    pairs = declared_pairs(results)
    assert len(pairs) == 5
    assert {reference for _, reference in pairs} == {"hard, count=16"}
    assert "bicubic" not in {cell for cell, _ in pairs}


def test_the_smallest_p_counts_the_family(tmp_path):
    text = GRID.replace("analysis:\n", "analysis:\n  claim: these_weights\n")
    family = compare_declared(arrange(draw_study(tmp_path, text, images=6)))
    assert family[0].test.smallest_p == 2**-5
    assert family[0].smallest_p == 3 * 2**-5  # Holm's first step


def test_exploration_covers_the_other_claims_and_datasets(tmp_path):
    found = list(compare_exploratory(arrange(draw_study(tmp_path))))
    assert len(found) == 3 * (2 + 1)
    assert {(c.claim, c.measure.dataset) for c in found} == {
        ("new_images", "bundled"),
        ("these_weights", "bundled"),
        ("same_images", "Set5"),
    }
    assert all(comparison.family == 0 for comparison in found)


def test_a_margin_in_db_is_none_for_ssim(tmp_path):
    results = arrange(draw_study(tmp_path))
    found = compare(results, "soft, count=16", "hard, count=16", Measure("bundled", "uint8_y", "ssim"), "same_images")
    assert found.margin == math.inf
    assert math.isnan(found.p_equivalent)
    assert math.isnan(found.needed)


def test_spread_over_protocols(tmp_path):
    # The synthetic protocols scale with the effect: by -0.02, 0 and 0.015 times 0.2 x effect.
    results = arrange(draw_study(tmp_path, effects={"soft, count=16": 0.5}))
    assert compare_declared(results)[0].protocol_spread == pytest.approx(0.035 * 0.1, abs=1e-9)


def test_pairs_of_one_scale_alone_are_compared_by_default_and_gains_are_over_bicubic_of_that_scale(tmp_path):
    text = """
question: Two scales at once?
base:
  model: {kind: imdn, width: 8, blocks: 1}
  evaluation.datasets: {bundled: {kind: bundled, split: test}, Set5: {kind: folder, path: Set5/HR}}
variants: {plain: {}, wide: {model.width: 16}, wider: {model.width: 24}}
axes: {scale: {x2: 2, x4: 4}}
references: {bicubic x2: {scale: 2, model: {kind: bicubic}}, bicubic x4: {scale: 4, model: {kind: bicubic}}}
seeds: 3
analysis: {baseline: "plain, scale=x2"}
"""
    study = draw_study(tmp_path, text)
    harder = [run for (cell, _), run in study.ids.items() if "x4" in cell]
    study.records.images.loc[study.records.images["run"].isin(harder), "value"] -= 5.0
    results = arrange(study)
    pairs = declared_pairs(results)
    assert pairs == [("wide, scale=x2", "plain, scale=x2"), ("wider, scale=x2", "plain, scale=x2")]
    rows = {str(row[0].value): row for row in results_table(results).entries()}
    assert all(0.5 < float(row[1].value or 0) < 0.9 for name, row in rows.items() if not name.startswith("bicubic"))
    assert rows["bicubic x2"][1].value is None
    assert rows["bicubic x4"][1].value is None
    marked = {str(results_table(results).rows[i][0]) for i, j in results_table(results).marks() if j == 2}
    assert {name.rpartition("x")[2] for name in marked} == {"2", "4"}
    assert rank_cells(results) is None


def test_a_seed_without_a_finite_value_is_named_and_costs_no_other(tmp_path):
    study = draw_study(tmp_path, GRID.replace("seeds: 2", "seeds: 5"), {"soft, count=16": 0.3})
    frame = study.records.images
    frame.loc[frame["run"] == study.ids["soft, count=16", 3], "value"] = math.nan
    found = compare_declared(arrange(study))[0]
    assert found.deltas.seeds == (0, 1, 2, 4)
    assert found.deltas.seeds_not_finite == (3,)
    assert not found.complete
    assert decide(found) == "better"
    assert "Preliminary: seed 3 left out, without a finite value" in describe(found)


def test_the_direction_of_a_verdict_is_that_of_its_test(tmp_path):
    text = GRID.replace("analysis:\n", "analysis:\n  claim: these_weights\n  margin_db: 0.001\n")
    study = draw_study(tmp_path, text.replace("seeds: 2", "seeds: 1"), {"soft, count=16": 0.3}, images=20)
    frame = study.records.images
    lost = (frame["run"] == study.ids["soft, count=16", 0]) & (frame["image"] == "image_07")
    frame.loc[lost, "value"] -= 9.0
    results = arrange(study)
    (found, *_), (scrutiny, *_) = compare_declared(results), examine(results, compare_declared(results))
    assert found.mean < 0 < found.estimate
    assert decide(found) == "better"
    assert {change.verdict for change in scrutiny.images} == {"better"}


def test_equivalence_counts_where_a_difference_could_not_have_been_shown(tmp_path):
    text = GRID.replace("analysis:\n", "analysis:\n  claim: these_weights\n  correction: none\n  margin_db: 0.5\n")
    found = compare_declared(arrange(draw_study(tmp_path, text, images=5)))[0]
    assert found.smallest_p == 0.0625
    assert found.p_equivalent == 2**-5
    assert decide(found) == "equivalent"
    assert "the pseudo-median lies inside the margin of 0.5 dB (TOST p = 0.031)" in describe(found)
