from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from study.analysis.complexity import MEASURED, complexity_table, devices, draw_quality
from study.analysis.figures import MUTED, cell_styles
from study.analysis.published_points import PublishedPoint, published_caption
from study.analysis.statistics import mean_interval
from tests.analysis.synthetic import GRID, arrange, draw_study, points, write_provenance

pytestmark = pytest.mark.usefixtures("style")


@pytest.fixture
def study(tmp_path):
    return draw_study(tmp_path)


def change(study, keep):
    """The study with the rows of its costs for which `keep` holds."""
    study.records = replace(study.records, costs=study.records.costs[keep(study.records.costs)])


def draw(study, *published) -> Figure:
    results = arrange(study)
    figure = draw_quality(results, cell_styles(results), published)
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


def published_marks(axes):
    return [line for line in axes.lines if line.get_color() == MUTED and line.get_marker() in "D^v<>"]


def level(study):
    results = arrange(study)
    return results.mean("soft, count=8", results.primary)


def key(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_published_points_are_hollow_grey_diamonds_over_multiply_adds_alone(study):
    value = level(study)
    published = [
        PublishedPoint("CATANet", 477_000, 20e9, value + 0.2, "transcribed"),
        PublishedPoint("EDSR", 43.1e6, 30e9, value + 0.1),
        PublishedPoint("SPIN", None, 10e9, value, "unverified"),
    ]
    figure = draw(study, *published)
    marks = published_marks(figure.axes[0])
    assert [points(mark)[0].item() for mark in marks] == [20, 30, 10]
    assert [points(mark)[1].item() for mark in marks] == pytest.approx([value + 0.2, value + 0.1, value])
    assert {(mark.get_marker(), mark.get_markerfacecolor()) for mark in marks} == {("D", "none")}
    assert not published_marks(figure.axes[1])
    assert key(figure) == ["a  CATANet (477 K, transcribed)", "b  EDSR (43.10 M)", "c  SPIN (unverified)"]
    assert not draw(study).legends


def test_the_panel_is_widened_for_points_within_reach_only(study):
    before, value = draw(study).axes[0], level(study)
    (left, right), (low, high) = before.get_xlim(), before.get_ylim()
    near = PublishedPoint("near", None, 5 * right * 1e9, high + 0.9 * (high - low))
    figure = draw(study, near)
    axes = figure.axes[0]
    assert axes.get_xlim() == pytest.approx((left, 6.5 * right))
    assert axes.get_ylim() == pytest.approx((low, high + 0.95 * (high - low)))
    assert figure.axes[1].get_ylim() == axes.get_ylim()
    far = [
        PublishedPoint("above", None, 12e9, value + 5),
        PublishedPoint("below", None, 12e9, value - 5),
        PublishedPoint("costly", None, 2894e9, value),
        PublishedPoint("cheap", None, 1e7, value),
        PublishedPoint("both", None, 2894e9, value + 5),
    ]
    figure = draw(study, *far)
    axes = figure.axes[0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((left, right), (low, high))
    marks = published_marks(axes)
    assert [mark.get_marker() for mark in marks] == ["^", "v", ">", "<", "^"]
    assert [points(mark)[0].item() for mark in marks[2:]] == pytest.approx([0.97, 0.03, 0.97])  # shares of the panel
    assert [points(mark)[1].item() for mark in (*marks[:2], marks[4])] == pytest.approx([0.97, 0.03, 0.97])
    assert key(figure)[0] == f"a  above: {value + 5:.2f} dB at 12 G"
    assert key(figure)[4] == f"e  both: {value + 5:.2f} dB at 2,894 G"


def test_a_published_point_without_multiply_adds_is_named_in_the_caption(study):
    without = PublishedPoint("RFDN", 534_000, None, level(study), "transcribed")
    figure = draw(study, without)
    assert not published_marks(figure.axes[0])
    assert not figure.legends
    assert published_caption([without]) == "Published without multiply-adds at this output, so not drawn: RFDN."
    both = published_caption([without, PublishedPoint("IMDN", 694_000, 159e9, 30.0)])
    assert both.startswith("Hollow grey diamonds: published values")
    assert both.endswith(" not drawn: RFDN.")
    assert published_caption([]) == ""


def test_without_measured_multiply_adds_nothing_published_is_drawn(study):
    change(study, lambda costs: ~costs["name"].str.startswith("multiply_adds"))
    figure = draw(study, PublishedPoint("CATANet", 477_000, 20e9, level(study)))
    assert [axes.get_xlabel() for axes in figure.axes] == ["latency (ms), 64 × 64 input"]
    assert not published_marks(figure.axes[0])
    assert not figure.legends


def test_letters_do_not_touch(study):
    rng, value = np.random.default_rng(0), level(study)
    published = [
        PublishedPoint(f"{k}", 5e5, 10 ** rng.uniform(9.7, 10.8), value + rng.normal(0, 0.3)) for k in range(24)
    ]
    published += [PublishedPoint("twin", None, 2e10, value + 0.2)] * 3
    figure = draw(study, *published)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the line to its mark
    assert [text.get_text() for text in axes.texts[-2:]] == ["z", "a1"]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    marks = [mark.get_transform().transform(mark.get_xydata())[0] for mark in published_marks(axes)]
    assert not any(box.contains(x, y) for box in boxes for x, y in marks)
    panel = axes.get_window_extent()
    assert all(panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 <= panel.y1 for box in boxes)
