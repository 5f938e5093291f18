from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from study.analysis.comparisons import Comparison, compare_declared, compare_exploratory
from study.analysis.pictures import save_figure
from study.analysis.significance import MARKS, draw_significance, significance_caption
from tests.analysis.synthetic import GRID, Study, arrange, draw_study, points

pytestmark = pytest.mark.usefixtures("style")

EFFECTS = {"soft, count=16": 0.3, "soft, count=32": -0.4}  # so the second declared pair is 0.7 dB worse
LOW = GRID.replace("[uint8_y, matlab_y, float_y]", "[rgb]\n    metrics: [psnr, gmsd]").replace(
    "analysis:\n", "analysis:\n  metric: gmsd\n  protocol: rgb\n"
)


def rename_metric(study: Study, old: str, new: str) -> None:
    """Passes a metric's values off as those of one that `draw_study` does not have."""
    images = study.records.images
    study.records = replace(study.records, images=images.assign(metric=images["metric"].replace(old, new)))


def compared(folder, text=GRID, seeds=5, failed=(), low=False, effects=EFFECTS) -> list[Comparison]:
    study = draw_study(folder, text.replace("seeds: 2", f"seeds: {seeds}"), effects)
    for cell, seed in failed:
        study.statuses[study.ids[cell, seed]]["state"] = "failed"
    if low:
        rename_metric(study, "ssim", "gmsd")
    results = arrange(study)
    return [*compare_declared(results), *compare_exploratory(results)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Everything has run; not to be changed."""
    return compared(tmp_path_factory.mktemp("plain"))


def drawn(comparisons) -> Figure:
    figure = draw_significance(comparisons)
    assert figure is not None
    return figure


def tiles(figure: Figure) -> dict[tuple[int, int], Rectangle]:
    """(column, row) -> its rectangle."""
    found = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_width() < 1]
    return {(round(t.get_x() + t.get_width() / 2), round(t.get_y() + t.get_height() / 2)): t for t in found}


def words(figure: Figure) -> dict[tuple[int, int], list[str]]:
    """(column, row) -> what is written there, the lower line first."""
    found: dict[tuple[int, int], list[str]] = {}
    for text in figure.axes[0].texts:
        x, y = text.xy if hasattr(text, "xy") else text.get_position()  # type: ignore[attr-defined]
        found.setdefault((round(x), round(y)), []).append(text.get_text())
    return found


def marks(figure: Figure) -> dict[tuple[int, int], tuple[str, bool]]:
    """(column, row) -> marker and whether it is filled."""
    found = {}
    for line in figure.axes[0].lines:
        (x,), (y,) = points(line)
        found[round(x), round(y)] = str(line.get_marker()), line.get_markerfacecolor() != "none"
    return found


def test_a_row_for_each_pair_and_a_column_for_each_dataset(plain):
    figure = drawn(plain)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["bundled\ndeclared", "Set5\nexploratory"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "soft, count=16 vs hard, count=16",
        "soft, count=32 vs soft, count=16",
        "hard, count=8 vs hard, count=16",
    ]
    (frame,) = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_width() == 1]
    assert (frame.get_xy(), frame.get_height()) == ((-0.5, -0.5), 3)


def test_numbers_verdicts_and_uncorrected_p(plain):
    figure = drawn(plain)
    found, declared = words(figure), plain[0]
    assert found[0, 0] == ["better", f"{declared.mean:+.3f}"]
    assert found[0, 1][0] == "worse"
    assert found[1, 0][0].startswith("p ")
    assert all("better" not in found[1, row] for row in range(3))
    assert marks(figure)[0, 0] == (MARKS["better"], True)
    assert marks(figure)[0, 1] == (MARKS["worse"], True)
    assert marks(figure)[1, 0] == (MARKS["better"], False)
    assert marks(figure)[1, 1] == (MARKS["worse"], False)


def test_colour_is_symmetric_around_zero(plain):
    figure = drawn(plain)
    scale = figure.axes[1]._colorbar  # type: ignore[attr-defined]
    largest = max(abs(c.mean) for c in plain if c.claim == plain[0].claim)
    assert (scale.norm.vmin, scale.norm.vmax) == (-largest, largest)
    red, _, blue = to_rgb(tiles(figure)[0, 0].get_facecolor())
    assert blue > red
    red, _, blue = to_rgb(tiles(figure)[0, 1].get_facecolor())
    assert red > blue
    middle = scale.cmap(0.5)
    assert np.ptp(middle[:3]) < 0.01
    assert min(middle[:3]) > 0.9


def test_what_the_margin_hides_is_pale(tmp_path):
    quiet = [replace(c, mean=0.001 if np.isfinite(c.mean) else c.mean) for c in compared(tmp_path, effects={})]
    assert min(to_rgb(tiles(drawn(quiet))[0, 0].get_facecolor())) > 0.85


def test_where_lower_is_better_the_colours_change_sides(tmp_path):
    comparisons = compared(tmp_path, LOW, low=True)
    figure = drawn(comparisons)
    assert comparisons[0].mean > 0
    assert words(figure)[0, 0][0] == "worse"
    red, _, blue = to_rgb(tiles(figure)[0, 0].get_facecolor())
    assert red > blue
    assert figure.axes[1].get_title() == "worse"
    assert "a difference below 0 is better" in significance_caption(comparisons)


def test_not_run_and_n_too_small_are_told_apart(tmp_path):
    figure = drawn(compared(tmp_path, failed=[("hard, count=8", seed) for seed in range(5)]))
    assert words(figure)[0, 2] == ["not run"]
    assert tiles(figure)[0, 2].get_hatch()
    assert not tiles(figure)[0, 0].get_hatch()
    figure = drawn(compared(tmp_path, seeds=1))
    assert words(figure)[0, 0][0] == words(figure)[1, 0][0] == "n too small"
    assert not tiles(figure)[0, 0].get_hatch()
    assert marks(figure) == {}


def test_a_missing_seed_makes_it_preliminary(tmp_path):
    found = words(drawn(compared(tmp_path, failed=[("soft, count=32", 0)])))
    assert found[0, 1][1].endswith("*")
    assert not found[0, 0][1].endswith("*")


def test_text_stands_out_from_its_colour(plain):
    figure = drawn(plain)
    inks = {text.get_text(): to_rgb(text.get_color()) for text in figure.axes[0].texts}
    assert inks["inconclusive"] == to_rgb("#1b1b1f")
    place = {text: key for key, texts in words(figure).items() for text in texts}
    strongest = max(tiles(figure).items(), key=lambda item: np.ptp(to_rgb(item[1].get_facecolor())))[0]
    (number,) = [text for text, key in place.items() if key == strongest and text[0] in "+−"]
    grey = np.dot(to_rgb(tiles(figure)[strongest].get_facecolor()), (0.3, 0.59, 0.11))
    assert abs(np.dot(inks[number], (0.3, 0.59, 0.11)) - grey) > 0.35


def test_nothing_without_values_or_with_one_dataset(plain):
    assert draw_significance([]) is None
    assert draw_significance([c for c in plain if not c.family]) is None
    assert draw_significance([c for c in plain if c.measure.dataset == "bundled"]) is None
    assert draw_significance([replace(c, mean=np.nan) for c in plain]) is None


def test_the_caption_says_what_was_declared(plain):
    caption = significance_caption(plain)
    assert "Claim: retraining on these images" in caption
    assert "the declared dataset (bundled)" in caption
    assert "p is not corrected" in caption


def test_equal_figures_give_equal_bytes(plain, tmp_path):
    one, other = (save_figure(drawn(plain), tmp_path / name, "matrix", "") for name in "ab")
    for ending, path in one.paths.items():
        assert path.read_bytes() == other.paths[ending].read_bytes()
