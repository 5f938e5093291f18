import math
from itertools import pairwise

import numpy as np
import pytest

from study.analysis import dynamics
from study.analysis.dynamics import (
    diagnostic_panels,
    draw_curves,
    outliers,
    staged,
    steps_before,
    training_panels,
)
from study.analysis.figures import cell_styles
from study.grid.models import UNet
from study.grid.objectives import Adaptive, Consistency, Trajectory
from study.grid.schema import Optimisation, Run
from tests.analysis import generative
from tests.analysis.generative import draw_generative
from tests.analysis.synthetic import GRID, arrange, draw_study, points

pytestmark = pytest.mark.usefixtures("style")


def draw(results, scalars=None, panels=training_panels):
    own, stages = staged(results)
    return draw_curves(panels(own if scalars is None else scalars), cell_styles(results), stages)


def curves(axes):
    """Cell -> (steps, values) of its line."""
    return {line.get_label(): points(line) for line in axes.lines if not str(line.get_label()).startswith("_")}


def test_curves_average_over_seeds(tmp_path):
    results = arrange(draw_study(tmp_path))
    loss, validation = draw(results).axes
    assert (len(loss.lines), len(loss.collections)) == (6, 6)  # a line and a band for each cell
    mine = results.rows("scalars").query("cell == 'hard, count=8' and name == 'validation_psnr_y_db'")
    table = mine.pivot_table(index="step", columns="seed", values="value").to_numpy()
    assert np.allclose(points(validation.lines[0])[1], table.mean(axis=1))
    assert [axes.get_title(loc="left") for axes in (loss, validation)] == ["training loss", "validation PSNR (dB)"]


def test_where_a_seed_ended_early_the_others_go_on(tmp_path):
    results = arrange(draw_study(tmp_path, GRID.replace("steps: 400", "steps: 4000")))
    short = results.rows("scalars").query("not (cell == 'hard, count=8' and seed == 1 and step > 2000)")
    steps, values = points(draw(results, short).axes[0].lines[0])
    assert np.isfinite(values).all()
    assert steps[-1] == 4000


@pytest.mark.parametrize(("factor", "far"), [(1.0, []), (1e4, ["soft, count=8"])])
def test_a_curve_that_ends_far_from_all_others_leaves_the_panel(tmp_path, monkeypatch, factor, far):
    monkeypatch.setattr(dynamics, "LEAST_CURVES", 6)
    results = arrange(draw_study(tmp_path))
    rows = results.rows("scalars")
    rows.loc[(rows["cell"] == "soft, count=8") & (rows["name"] == "loss"), "value"] *= factor
    loss = training_panels(rows)[0]
    assert outliers(loss) == far
    axes = draw(results, rows).axes[0]
    low, high = axes.get_ylim()
    others = loss.rows.loc[~loss.rows["cell"].isin(far), "value"]
    assert low < others.min()
    assert others.max() < high < 2 * others.max()


def test_a_diverged_curve_is_drawn_up_to_its_end(tmp_path):
    results = arrange(draw_study(tmp_path))
    rows = results.rows("scalars")
    rows.loc[(rows["cell"] == "soft, count=8") & (rows["step"] > 200), "value"] = math.inf
    line = draw(results, rows).axes[0].lines[3]
    assert np.isfinite(points(line)[1]).sum() == 20


def test_steps_before_a_run_are_those_of_the_whole_chain():
    first = Run(model=UNet(), objective=Consistency(), optimisation=Optimisation(steps=500))
    again = Run(model=UNet(inference_steps=4), optimisation=Optimisation(steps=0), start=first)
    second = Run(model=UNet(), objective=Trajectory(), optimisation=Optimisation(steps=20), start=again)
    third = Run(model=UNet(), objective=Adaptive(), start=second)
    assert [steps_before(run) for run in (first, again, second, third)] == [0, 500, 500, 520]
    assert steps_before(Run(model=UNet(), objective=Trajectory(), start="unet-x4-s0-0123456789")) == 0


def test_a_second_stage_stands_right_of_its_first(tmp_path):
    results = arrange(draw_generative(tmp_path))
    loss, matching, validation = draw(results).axes
    assert list(curves(loss)) == ["CT", "CT + DTM", "CT + DTM + AMD"]
    assert curves(loss)["CT"][0][[0, -1]].tolist() == pytest.approx([10, 2000])
    for axes in (loss, validation):
        steps, _ = curves(axes)["CT + DTM"]
        assert (min(steps) > 2000, max(steps)) == (True, 2160)
        begins = [points(line)[0].tolist() for line in axes.lines if str(line.get_label()).startswith("_")]
        assert begins == [[2000, 2000]]
    assert list(curves(matching)) == ["CT + DTM", "CT + DTM + AMD"]
    assert matching.get_xlim()[0] == 2000


def test_a_start_that_is_not_in_the_grid_shifts_the_curve_all_the_same(tmp_path):
    results = arrange(draw_generative(tmp_path))
    scalars, stages = staged(results)
    alone = scalars.query("cell == 'CT + DTM'")
    axes = draw_curves(training_panels(alone), cell_styles(results), stages).axes[0]
    assert stages == [2000]
    assert axes.get_xlim()[0] == 2000
    assert curves(axes)["CT + DTM"][0].max() == 2160


def test_the_consistency_part_is_drawn_where_it_is_stored(tmp_path):
    results = arrange(draw_generative(tmp_path))
    scalars, _ = staged(results)
    first = training_panels(scalars)[0]
    assert (first.title, set(first.rows["name"])) == ("consistency loss", {"consistency"})
    mixed = training_panels(scalars.query("not (cell == 'CT' and name == 'consistency')"))[0]
    assert mixed.title == "loss or its consistency part"
    assert set(mixed.rows.query("cell == 'CT'")["name"]) == {"loss"}
    assert set(mixed.rows.query("cell == 'CT + DTM'")["name"]) == {"consistency"}


def test_a_short_stage_keeps_a_share_of_the_axis_and_labels_do_not_collide(tmp_path):
    third = "  third: {start: CT + DTM, objective: {kind: adaptive}, optimisation.steps: 3000}"
    text = generative.GRID.replace("references:", f"{third}\nreferences:")
    text = text.replace("steps: 2000", "steps: 20000").replace("optimisation.steps: 160", "optimisation.steps: 80")
    figure = draw(arrange(draw_generative(tmp_path, text.replace("seeds: 3", "seeds: 1"))))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    box = axes.get_window_extent()
    ends = axes.transData.transform([(20_000, 0.05), (20_080, 0.05)])[:, 0]
    assert np.ptp(ends) / box.width > 0.15
    labels = sorted((label.get_window_extent() for label in axes.get_xticklabels()), key=lambda label: label.x0)
    assert len(labels) >= 3
    assert all(left.x1 < right.x0 for left, right in pairwise(labels))


def test_diagnostics_are_what_is_stored(tmp_path):
    results = arrange(draw_generative(tmp_path))
    scalars, _ = staged(results)
    titles = [panel.title for panel in diagnostic_panels(scalars)]
    assert titles == [
        "matching direction (rms)", "pull (rms)", "push (rms)", "clipped directions (share)", "advantage (sd)",
        "forbidden zone (share)", "loss of the fake network",
    ]  # fmt: skip
    assert diagnostic_panels(scalars.query("cell == 'CT'")) == []
    figure = draw(results, panels=diagnostic_panels)
    assert [axes.get_yscale() for axes in figure.axes[:5]] == ["log", "log", "log", "linear", "linear"]
    assert list(curves(figure.axes[1])) == ["CT + DTM + AMD"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CT + DTM", "CT + DTM + AMD"]


def test_values_that_reach_zero_have_a_linear_axis(tmp_path):
    results = arrange(draw_generative(tmp_path))
    scalars, _ = staged(results)
    scalars.loc[scalars["name"].eq("push_norm") & scalars["step"].eq(2010), "value"] = 0.0
    panels = {panel.title: panel for panel in diagnostic_panels(scalars)}
    assert (panels["push (rms)"].logarithmic, panels["pull (rms)"].logarithmic) == (False, True)


def test_a_grid_without_curves_has_no_panel(tmp_path):
    study = draw_generative(tmp_path)
    study.ids.clear()
    scalars, stages = staged(arrange(study))
    assert (training_panels(scalars), diagnostic_panels(scalars), stages) == ([], [], [])
