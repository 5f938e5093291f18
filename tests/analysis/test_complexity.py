from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from study.analysis.complexity import MEASURED, complexity_table, devices, draw_quality
from study.analysis.figures import cell_styles
from study.analysis.statistics import mean_interval
from tests.analysis.synthetic import GRID, arrange, draw_study, write_provenance

pytestmark = pytest.mark.usefixtures("style")


@pytest.fixture
def study(tmp_path):
    return draw_study(tmp_path)


def change(study, keep):
    """The study with the rows of its costs for which `keep` holds."""
    study.records = replace(study.records, costs=study.records.costs[keep(study.records.costs)])


def draw(study) -> Figure:
    results = arrange(study)
    figure = draw_quality(results, cell_styles(results))
    assert figure is not None
    return figure


def test_the_table_names_its_units_and_inputs(study):
    table = complexity_table(arrange(study), "one GPU")
    assert [(c.group, c.heading) for c in table.columns] == [
        ("", "cell"),
        ("", "parameters (K)"),
        ("1280 × 720 output", "multiply-adds (G)"),
        ("1280 × 720 output", "with products (G)"),
        ("1280 × 720 output", "activations (M)"),
        ("64 × 64 input", "memory (MB)"),
        ("64 × 64 input", "latency (ms)"),
        ("64 × 64 input", "throughput (Mpx/s)"),
    ]
    assert table.caption == "What each network costs at equal input; time and memory on one GPU."
    assert "at batch 4" in table.notes[1]
    row = next(row for row in table.entries() if row[0].value == "soft, count=16")
    assert [entry.value for entry in row[1:6]] == pytest.approx([61.234, 12.34, 21, 150, 4.5])
    bicubic = table.entries()[-1]
    assert [entry.value for entry in bicubic[1:5]] == [0, 0, 0, 0]
    assert (bicubic[6].value, bicubic[6].suffix) == (1, "(0.90–1.20)")


def test_timings_are_medians_over_seeds(tmp_path):
    study = draw_study(tmp_path, GRID.replace("seeds: 2", "seeds: 3"))
    costs = study.records.costs
    place = costs["run"].eq(study.ids["hard, count=8", 1]) & costs["name"].eq("latency_median")
    costs.loc[place, "value"] = 4000.0
    found = complexity_table(arrange(study), "").entries()[0][6].value
    mine = costs[
        costs["run"].isin([study.ids["hard, count=8", s] for s in range(3)]) & costs["name"].eq("latency_median")
    ]
    assert found == sorted(mine["value"])[1] < 40


def test_inputs_that_differ_are_told_row_by_row(study):
    costs = study.records.costs
    costs.loc[costs["run"].eq(study.ids["bicubic", 0]) & costs["name"].eq("cost_lr_px"), "value"] = 256.0
    table = complexity_table(arrange(study), "")
    place = [c.heading for c in table.columns].index("side (px)")
    assert [row[place].value for row in table.entries()][-2:] == [64, 256]
    assert {c.group for c in table.columns[place:]} == {"square input"}
    assert draw(study).axes[1].get_xlabel() == "latency (ms)"


def test_runs_without_the_newer_costs_are_still_reported(study):
    newer = {*MEASURED, "multiply_adds_products_720p", "activations_720p"}
    change(study, lambda costs: ~costs["name"].isin(newer))
    table = complexity_table(arrange(study), "a device")
    assert [c.heading for c in table.columns] == ["cell", "parameters (K)", "multiply-adds (G)"]
    assert len(table.rows) == 7
    assert table.caption == "What each network costs at equal input."
    assert [axes.get_xlabel() for axes in draw(study).axes] == ["multiply-adds (G), 1280 × 720 output"]


def test_one_cell_without_timings_keeps_its_row_and_label(study):
    runs = [study.ids["soft, count=8", seed] for seed in (0, 1)]
    change(study, lambda costs: ~(costs["run"].isin(runs) & costs["name"].isin(MEASURED)))
    row = next(row for row in complexity_table(arrange(study), "").entries() if row[0].value == "soft, count=8")
    assert row[3].value == pytest.approx(21)
    assert [entry.value for entry in row[5:]] == [None, None, None]
    axes = draw(study).axes[1]
    assert len(axes.collections) == 5
    assert "soft, count=8 (61 K)" in [text.get_text() for text in axes.texts]


def test_nothing_stored_gives_no_row_and_no_figure(study):
    change(study, lambda costs: costs["name"].eq("training"))
    results = arrange(study)
    assert complexity_table(results, "").rows == ()
    assert draw_quality(results, cell_styles(results)) is None


def test_cells_without_values_are_not_drawn(study):
    for seed in (0, 1):
        study.statuses[study.ids["soft, count=8", seed]]["state"] = "failed"
    labels = [text.get_text() for text in draw(study).axes[1].texts]
    assert len([label for label in labels if label]) == 6
    study.statuses.clear()
    results = arrange(study)
    assert draw_quality(results, cell_styles(results)) is None


def test_points_are_means_with_their_intervals_over_the_costs(study):
    results = arrange(study)
    figure = draw(study)
    left, right = figure.axes
    assert left.get_xscale() == right.get_xscale() == "log"
    assert left.get_ylabel() == "PSNR on bundled (dB)"
    mean, low, high = mean_interval(results.means("hard, count=8", results.primary), 0.05)
    assert np.asarray(left.collections[0].get_offsets()) == pytest.approx(np.array([[12.34, mean]]))
    bars = [(np.ravel(line.get_xdata()).tolist(), np.ravel(line.get_ydata()).tolist()) for line in left.lines[:2]]
    assert bars == [([12.34, 12.34], pytest.approx([low, high])), (pytest.approx([12.34, 21]), [mean, mean])]
    median = complexity_table(results, "").entries()[0][6].value
    assert np.asarray(right.collections[0].get_offsets()) == pytest.approx(np.array([[median, mean]]))
    level = next(
        line for line in left.lines if to_rgb(line.get_color()) == to_rgb(cell_styles(results)["bicubic"]["color"])
    )
    assert np.ravel(level.get_ydata())[0] == pytest.approx(results.mean("bicubic", results.primary))


def test_area_is_proportional_to_the_parameters(study):
    costs = study.records.costs
    runs = [study.ids["soft, count=32", seed] for seed in (0, 1)]
    costs.loc[costs["run"].isin(runs) & costs["name"].eq("parameters"), "value"] *= 4
    areas = [float(part.get_sizes()[0]) for part in draw(study).axes[0].collections if isinstance(part, PathCollection)]
    assert areas[-1] == pytest.approx(4 * areas[0])


def test_labels_do_not_overlap(tmp_path):
    text = GRID.replace("{8: [8], 16: [16], 32: [32]}", "{8: [8], 16: [16], 32: [32], a very long label indeed: [64]}")
    figure = draw(draw_study(tmp_path, text))
    figure.draw_without_rendering()
    boxes = sorted((t.get_window_extent() for t in figure.axes[1].texts if t.get_text()), key=lambda box: box.y0)
    assert len(boxes) == 9
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    axes = figure.axes[1].get_window_extent()
    assert all(box.x0 > axes.x1 for box in boxes)


def test_devices_are_named_once(study):
    assert devices(arrange(study), study.runs) == ""
    write_provenance(study, device="NVIDIA H200; 2 processes")
    assert devices(arrange(study), study.runs) == "NVIDIA H200 and cpu, 2 threads"


def test_one_seed_has_no_interval(tmp_path):
    study = draw_study(tmp_path, GRID.replace("seeds: 2", "seeds: 1"))
    heights = [np.ravel(line.get_ydata()) for line in draw(study).axes[0].lines]
    assert len(heights) == 7
    assert not any(np.ptp(height) for height in heights)
