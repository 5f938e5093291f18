import itertools
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from study.analysis.comparisons import compare_declared
from study.analysis.figures import (
    MOST_LOG_TICKS,
    NAMED_IMAGES,
    cell_styles,
    draw_counts,
    draw_forest,
    draw_images,
    few_log_ticks,
)
from study.analysis.pictures import save_figure
from tests.analysis.synthetic import GRID, arrange, draw_study, points

pytestmark = pytest.mark.usefixtures("style")


def test_cells_differ_in_colour_and_marker(tmp_path):
    styles = cell_styles(arrange(draw_study(tmp_path)))
    trained = [style for name, style in styles.items() if name != "bicubic"]
    assert len({style["color"] for style in trained}) == len({style["marker"] for style in trained}) == 6
    greys = [to_rgb(style["color"]) for style in trained]
    assert all(max(rgb) - min(rgb) > 0.1 for rgb in greys)
    assert to_rgb(styles["bicubic"]["color"])[0] == pytest.approx(0.54, abs=0.01)


def test_forest_shows_the_intervals(tmp_path):
    results = arrange(draw_study(tmp_path))
    family = compare_declared(results)
    axes = draw_forest(family, cell_styles(results)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [comparison.label for comparison in family]
    drawn = [points(line)[0] for line in axes.lines if line.get_marker() == "|"]
    assert np.allclose(drawn, [(c.test.low, c.test.high) for c in family])
    assert [text.get_text().split("  ")[1] for text in axes.texts] == ["inconclusive"] * 3
    assert "claim: retraining on these images" in axes.get_title(loc="left")


def test_labels_below_a_forest_keep_apart(tmp_path):
    results = arrange(draw_study(tmp_path))
    figure = draw_forest(compare_declared(results), cell_styles(results))
    axes = figure.axes[0]
    for ends in ((-0.0745, 0.138), (-0.00031, 0.0012), (-1.21, 0.4)):
        axes.set_xlim(*ends)
        figure.draw_without_rendering()
        shown = [label for label in axes.get_xticklabels() if ends[0] <= label.get_position()[0] <= ends[1]]
        assert len(shown) >= 3
        boxes = [label.get_window_extent() for label in shown]
        assert all(a.x1 + 4 < b.x0 for a, b in itertools.pairwise(boxes))


def test_forest_keeps_the_row_of_a_comparison_without_values(tmp_path):
    study = draw_study(tmp_path)
    for seed in (0, 1):
        study.statuses[study.ids["hard, count=8", seed]]["state"] = "failed"
    results = arrange(study)
    axes = draw_forest(compare_declared(results), cell_styles(results)).axes[0]
    assert [text.get_text() for text in axes.texts][2] == "not run"


def test_images_are_dots_for_each_seed_and_a_mean(tmp_path):
    results = arrange(draw_study(tmp_path, images=5))
    family = compare_declared(results)
    axes = draw_images(family, cell_styles(results)).axes[0]
    dots, means = (points(line) for line in axes.lines if len(points(line)[0]) >= 5)
    values = family[0].deltas.values
    assert np.allclose(dots[0].reshape(values.shape), values)
    assert (dots[1].reshape(values.shape) == means[1]).all()
    assert np.allclose(means[0], values.mean(axis=0))
    assert sorted(label.get_text() for label in axes.get_yticklabels()) == [f"image_0{i}" for i in range(5)]


def test_many_images_name_the_ends_only(tmp_path):
    results = arrange(draw_study(tmp_path, images=NAMED_IMAGES + 1))
    axes = draw_images(compare_declared(results), cell_styles(results)).axes[0]
    assert len(axes.get_yticklabels()) == 2


@pytest.mark.parametrize(("images", "drawn_as_pixels"), [(NAMED_IMAGES, False), (NAMED_IMAGES + 1, True)])
def test_the_dots_of_many_images_are_pixels(images, drawn_as_pixels, tmp_path):
    results = arrange(draw_study(tmp_path, images=images))
    axes = draw_images(compare_declared(results), cell_styles(results)).axes[0]
    dots = [line for line in axes.lines if line.get_alpha() == 0.5]
    assert [bool(line.get_rasterized()) for line in dots] == [drawn_as_pixels]


def test_counts_are_a_line_for_each_family(tmp_path):
    results = arrange(draw_study(tmp_path))
    figure = draw_counts(results, results.primary)
    assert figure is not None
    axes = figure.axes[0]
    lines = [line for line in axes.lines if line.get_label() in ("hard", "soft")]
    assert [line.get_label() for line in lines] == ["hard", "soft"]
    expected = [results.mean(f"hard, count={count}", results.primary) for count in (8, 16, 32)]
    assert np.allclose(points(lines[0])[1], expected)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["8", "16", "32"]
    assert any(line.get_label() == "bicubic" for line in axes.lines)


def test_a_point_far_from_all_others_is_marked_at_the_edge(tmp_path):
    study = draw_study(tmp_path)
    images = study.records.images.copy()
    images.loc[images["run"].isin([study.ids["soft, count=32", seed] for seed in (0, 1)]), "value"] -= 20
    results = arrange(replace(study, records=replace(study.records, images=images)))
    figure = draw_counts(results, results.primary)
    assert figure is not None
    axes = figure.axes[0]
    near = [results.mean(f"{kind}, count={n}", results.primary) for kind in ("hard", "soft") for n in (8, 16, 32)][:-1]
    low, high = axes.get_ylim()
    assert min(near) - 1.5 < low < min(near)
    assert max(near) < high < max(near) + 1.5
    (text,) = axes.texts
    assert float(text.get_text()) == pytest.approx(results.mean("soft, count=32", results.primary), abs=0.01)
    (mark,) = [line for line in axes.lines if line.get_marker() == "v"]
    assert points(mark)[1] == [low]


def test_named_counts_keep_their_order(tmp_path):
    text = GRID.replace("{8: [8], 16: [16], 32: [32]}", "{half: [16, 8], full: [16], double: [32]}")
    text = text.replace("count=16", "count=full").replace("count=8", "count=half").replace("count=32", "count=double")
    results = arrange(draw_study(tmp_path, text))
    figure = draw_counts(results, results.primary)
    assert figure is not None
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["half", "full", "double"]


def test_no_curve_where_none_is_declared_or_stored(tmp_path):
    results = arrange(draw_study(tmp_path, GRID.replace("  curve: model.prototypes.count\n", "")))
    assert draw_counts(results, results.primary) is None
    study = draw_study(tmp_path)
    study.statuses.clear()
    assert draw_counts(arrange(study), results.primary) is None


def test_equal_figures_give_equal_bytes(tmp_path):
    results = arrange(draw_study(tmp_path))
    family = compare_declared(results)
    saved = [
        save_figure(draw_forest(family, cell_styles(results)), tmp_path / name, "forest", "") for name in ("a", "b")
    ]
    for ending in ("svg", "png", "pdf"):
        assert saved[0].paths[ending].read_bytes() == saved[1].paths[ending].read_bytes()
    assert "<dc:date>" not in saved[0].svg


@pytest.mark.parametrize(("low", "high"), [(0.41, 0.43), (0.9, 1.4), (0.01, 30)])
def test_a_log_axis_has_two_to_seven_ticks(low, high):
    axes = Figure().subplots()
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    few_log_ticks(axes.yaxis)
    ticks = axes.get_yticks()
    assert 2 <= len(ticks) <= MOST_LOG_TICKS
    assert low <= min(ticks) < max(ticks) <= high
