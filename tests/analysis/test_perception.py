from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from matplotlib.figure import Figure

from study.analysis.figures import cell_styles
from study.analysis.perception import against_bicubic, distance, draw_plane, realism_measures
from study.analysis.results import Measure
from study.analysis.statistics import mean_interval
from tests.analysis.generative import GRID, draw_generative
from tests.analysis.synthetic import arrange, draw_study

pytestmark = pytest.mark.usefixtures("style")

BAND = Measure("bundled", "rgb", "high_band")


@pytest.fixture
def study(tmp_path):
    return draw_generative(tmp_path)


def draw(study) -> Figure:
    results = arrange(study)
    figure = draw_plane(results, cell_styles(results), realism_measures(results))
    assert figure is not None
    return figure


def marks(axes):
    """Label -> (x, y) of a drawn point."""
    lines = (line for line in axes.lines if not str(line.get_label()).startswith("_"))
    return {line.get_label(): (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines}


def set_values(study, metric, values):
    """Every value of `metric` of a cell, constant over its images: (cell, seed) -> value."""
    images = study.records.images
    for key, value in values.items():
        images.loc[images["run"].eq(study.ids[key]) & images["metric"].eq(metric), "value"] = value


def test_panels_are_what_is_stored_on_the_primary_dataset(study):
    measures = realism_measures(arrange(study))
    assert [measure.metric for measure in measures] == ["swd", "spectral_slope", "high_band", "niqe", "clipiqa"]
    assert {measure.dataset for measure in measures} == {"bundled"}
    titles = [axes.get_title(loc="left") for axes in draw(study).axes if axes.get_visible()]
    assert titles == ["SWD (levels)", "|spectral slope|", "|high band| (dB)", "NIQE", "CLIPIQA, larger below"]


def test_lower_left_is_better(study):
    for axes, measure in zip(draw(study).axes, realism_measures(arrange(study)), strict=False):
        assert axes.xaxis_inverted()
        assert axes.yaxis_inverted() == (measure.best == "high")


def test_points_are_means_over_seeds_with_their_intervals(study):
    results = arrange(study)
    axes = draw(study).axes[0]
    x, y = marks(axes)["CT"]
    swd = Measure("bundled", "rgb", "swd")
    assert (x, y) == (results.mean("CT", results.primary), results.mean("CT", swd))
    _, low, high = mean_interval(results.means("CT", swd), 0.05)
    bars = [np.ravel(line.get_ydata()).tolist() for line in axes.lines if np.ravel(line.get_xdata()).tolist() == [x, x]]
    assert bars == [pytest.approx([low, high])]


def test_bicubic_has_a_mark_of_its_own(study):
    axes = draw(study).axes[0]
    markers = {str(line.get_label()): line.get_marker() for line in axes.lines if line.get_marker() != "none"}
    assert markers.pop("bicubic") == "+"
    assert len(set(markers.values())) == 4
    assert "+" not in markers.values()


def test_the_size_of_a_signed_difference_is_that_of_its_mean(study):
    set_values(study, "high_band", {("CT", 0): -0.4, ("CT", 1): 0.1, ("CT", 2): -0.3})
    found = distance(arrange(study), "CT", BAND)
    mean, low, high = mean_interval(np.array([-0.4, 0.1, -0.3]), 0.05)
    assert low < 0 < high
    assert found == pytest.approx((-mean, 0, -low))
    set_values(study, "high_band", {("CT", 0): -2.4, ("CT", 1): -2.1, ("CT", 2): -2.3})
    mean, low, high = mean_interval(np.array([-2.4, -2.1, -2.3]), 0.05)
    assert distance(arrange(study), "CT", BAND) == pytest.approx((-mean, -high, -low))


def test_values_that_are_not_finite_are_left_out(study):
    set_values(study, "high_band", {("CT", 0): np.nan, ("CT", 1): 1.0, ("CT", 2): 3.0})
    _, low, high = mean_interval(np.array([1.0, 3.0]), 0.05)
    assert low < 0
    assert distance(arrange(study), "CT", BAND) == pytest.approx((2, 0, high))
    set_values(study, "high_band", {("CT", seed): np.nan for seed in range(3)})
    assert distance(arrange(study), "CT", BAND) is None
    assert "CT" not in marks(draw(study).axes[2])


def test_nothing_overlaps(study):
    figure = draw(study)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    boxes = [box for axes in figure.axes if axes.get_visible() and (box := axes.get_tightbbox())]
    assert len(boxes) == 5
    assert not any(box.overlaps(legend) for box in boxes)
    assert not any(one.overlaps(other) for one, other in product(boxes, boxes) if one is not other)


def test_sentences_give_both_values_and_the_loss(study):
    for metric, mine, other in (("swd", 1.2, 1.9), ("niqe", 5.0, 4.0), ("clipiqa", 0.5, 0.4)):
        set_values(study, metric, {("CT + DTM", seed): mine for seed in range(3)} | {("bicubic", 0): other})
    for metric, mine, other in (("spectral_slope", 0.2, -0.1), ("high_band", -0.204, 0.196)):
        set_values(study, metric, {("CT + DTM", seed): mine for seed in range(3)} | {("bicubic", 0): other})
    results = arrange(study)
    loss = -results.deltas("CT + DTM", "bicubic", results.primary).values.mean()
    assert against_bicubic(results, realism_measures(results))[1] == (
        "CT + DTM (3 seeds): better than bicubic on SWD (1.200 against 1.900 levels) and "
        "CLIPIQA (0.5000 against 0.4000); worse on spectral slope (+0.200 against −0.100) and NIQE (5.000 against "
        f"4.000); equal on high band (−0.20 against +0.20 dB); PSNR lower by {loss:.2f} dB."
    )


def test_values_that_print_alike_are_equal_and_a_defeat_is_said(study):
    for metric in ("spectral_slope", "high_band", "niqe", "clipiqa"):
        set_values(study, metric, dict.fromkeys(study.ids, np.nan))
    set_values(study, "swd", {("CT", seed): 2.0001 for seed in range(3)} | {("bicubic", 0): 2.0})
    set_values(study, "psnr", dict.fromkeys(study.ids, 30.0))
    results = arrange(study)
    text = against_bicubic(results, realism_measures(results))[0]
    assert text == (
        "CT (3 seeds): better than bicubic on no measure; equal on SWD (2.000 against 2.000 levels); PSNR equal."
    )


def test_only_declared_cells_are_spoken_of(study):
    results = arrange(study)
    names = [text.split(" (")[0] for text in against_bicubic(results, realism_measures(results))]
    assert names == ["CT", "CT + DTM", "CT + DTM + AMD"]


def test_no_sentence_without_bicubic_and_no_figure_without_realism(tmp_path, study):
    plain = arrange(draw_study(tmp_path))
    assert realism_measures(plain) == []
    assert draw_plane(plain, cell_styles(plain), []) is None
    text = GRID.replace("references:\n  bicubic: {model: {kind: bicubic}}\n", "")
    results = arrange(draw_generative(tmp_path, text))
    assert against_bicubic(results, realism_measures(results)) == []
    study.statuses.clear()
    results = arrange(study)
    assert draw_plane(results, cell_styles(results), realism_measures(results)) is None


def test_one_seed_has_a_point_without_bars(tmp_path):
    study = draw_generative(tmp_path, GRID.replace("seeds: 3", "seeds: 1"))
    axes = draw(study).axes[0]
    assert len(axes.lines) == len(marks(axes)) == 5
    results = arrange(study)
    assert against_bicubic(results, realism_measures(results))[0].startswith("CT (1 seed): better")


def test_another_scale_is_not_compared(study):
    cells = tuple(
        replace(cell, runs=tuple(run.model_copy(update={"scale": 2}) for run in cell.runs))
        if cell.name == "bicubic"
        else cell
        for cell in study.plan.cells
    )
    results = arrange(replace(study, plan=replace(study.plan, cells=cells)))
    assert against_bicubic(results, realism_measures(results)) == []
