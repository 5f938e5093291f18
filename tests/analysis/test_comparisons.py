import math

import numpy as np
import pytest

from study.analysis.comparisons import compare, compare_declared, compare_exploratory, declared_pairs
from study.analysis.results import Measure
from study.analysis.statistics import paired_t
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
