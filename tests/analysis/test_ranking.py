from dataclasses import replace

import numpy as np
import pytest

from study.analysis.pictures import save_figure
from study.analysis.ranking import CellRanking, draw_ranking, join_alike, rank_cells, ranking_caption
from study.analysis.statistics import Ranking
from tests.analysis.synthetic import GRID, arrange, draw_study, points
from tests.analysis.test_significance import LOW, rename_metric

pytestmark = pytest.mark.usefixtures("style")

SETS = "bundled: {kind: bundled, split: test}, Set5: {kind: folder, path: Set5/HR}"
EFFECTS = {"soft, count=16": 2.0, "soft, count=8": 1.5, "hard, count=32": -1.0, "hard, count=8": -2.0}


def with_datasets(count: int) -> str:
    more = "".join(f", D{i}: {{kind: folder, path: D{i}}}" for i in range(count - 2))
    return GRID.replace(SETS, SETS + more)


def with_variants(count: int) -> str:
    """A grid of so many variants on four datasets."""
    text = with_datasets(4).replace("axes:\n  model.prototypes.count: {8: [8], 16: [16], 32: [32]}\n", "")
    text = text.replace("  hard: {}\n", "  hard: {}\n" + "".join(
        f"  number {i:02d}: {{model.width: {32 + 8 * i}}}\n" for i in range(count - 2)
    ))  # fmt: skip
    return text[: text.index("analysis:")] + "analysis: {baseline: hard}\n"


def ranking(ranks, critical=1.0, p=0.01, datasets=12) -> CellRanking:
    ranks = np.asarray(ranks, float)
    names = tuple(f"cell {i}" for i in range(len(ranks)))
    sets = tuple(f"set {i}" for i in range(datasets))
    return CellRanking(names, ranks, sets, 0.05, Ranking(p, ranks, critical))


def test_cells_are_ranked_over_datasets(tmp_path):
    found = rank_cells(arrange(draw_study(tmp_path, with_datasets(4), EFFECTS)))
    assert found is not None
    assert found.datasets == ("bundled", "Set5", "D0", "D1")
    assert found.cells[:2] == ("soft, count=16", "soft, count=8")
    assert found.cells[-2:] == ("hard, count=32", "hard, count=8")
    assert found.mean_ranks[[0, 1, -2, -1]].tolist() == [1, 2, 5, 6]
    assert "bicubic" not in found.cells


def test_where_lower_is_better_the_lowest_is_first(tmp_path):
    study = draw_study(tmp_path, LOW, EFFECTS)
    rename_metric(study, "ssim", "gmsd")
    found = rank_cells(arrange(study))
    assert found is not None
    assert (found.cells[0], found.cells[-1]) == ("hard, count=8", "soft, count=16")


def test_nothing_with_two_cells_or_one_dataset(tmp_path):
    two = arrange(draw_study(tmp_path, with_variants(2)))
    assert rank_cells(two) is None
    assert draw_ranking(two) is None
    one = arrange(draw_study(tmp_path, GRID.replace(SETS, SETS.partition(", Set5")[0])))
    assert draw_ranking(one) is None
    study = draw_study(tmp_path)
    study.records = replace(study.records, images=study.records.images.query("dataset == 'bundled'"))
    assert draw_ranking(arrange(study)) is None


def test_bars_join_what_does_not_differ():
    assert join_alike(ranking([1, 1.5, 2, 4, 4.5, 8])) == [(0, 2), (3, 4)]
    assert join_alike(ranking([1, 1.8, 2.6])) == [(0, 1), (1, 2)]
    assert join_alike(ranking([1, 3, 5])) == []
    assert join_alike(ranking([2, 2, 2], critical=0.5)) == [(0, 2)]
    assert join_alike(ranking([1, 3, 5], p=0.2)) == [(0, 2)]


@pytest.mark.parametrize("seed", range(5))
def test_bars_are_the_pairs_within_the_critical_difference(seed):
    ranks = np.sort(np.random.default_rng(seed).integers(2, 40, 20) / 2)
    bars = join_alike(ranking(ranks, critical=3.0))
    joined = np.zeros((20, 20), bool)
    for first, last in bars:
        joined[first : last + 1, first : last + 1] = True
    near = np.abs(ranks[:, None] - ranks) <= 3
    assert (joined | np.eye(20, dtype=bool) == near).all()
    assert not any(a != b and a[0] <= b[0] and b[1] <= a[1] for a in bars for b in bars)


@pytest.mark.parametrize("variants", [3, 9, 20])
def test_every_cell_is_on_the_axis_and_named(variants, tmp_path):
    results = arrange(draw_study(tmp_path, with_variants(variants)))
    found, figure = rank_cells(results), draw_ranking(results)
    assert found is not None
    assert figure is not None
    axes = figure.axes[0]
    dots = [points(line) for line in axes.lines if line.get_linestyle() == "None"]
    assert sorted(x[0] for x, _ in dots) == pytest.approx(found.mean_ranks)
    assert all(y[0] == 0 for _, y in dots)
    named = " ".join(text.get_text().replace("\n", " ") for text in axes.texts)
    for cell, rank in zip(found.cells, found.mean_ranks, strict=True):
        assert f"{cell} ({rank:.2f})" in named
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_bars_do_not_touch_each_other(tmp_path):
    effects = {f"number {i:02d}": 0.5 * i for i in range(18)}
    results = arrange(draw_study(tmp_path, with_variants(20), effects))
    found, figure = rank_cells(results), draw_ranking(results)
    assert found is not None
    assert figure is not None
    bars = [points(line) for line in figure.axes[0].lines if line.get_linewidth() == 3]
    assert len(bars) == len(join_alike(found)) > 1
    spans = [(y[0], x[0], x[1]) for x, y in bars]
    assert not any(a[0] == b[0] and a[1] <= b[2] and b[1] <= a[2] for i, a in enumerate(spans) for b in spans[:i])


def test_equal_ranks_and_a_long_critical_difference(tmp_path):
    study = draw_study(tmp_path, image_noise_db=0, seed_noise_db=0)
    figure, found = draw_ranking(arrange(study)), rank_cells(arrange(study))
    assert figure is not None
    assert found is not None
    assert found.mean_ranks.tolist() == [3.5] * 6
    assert found.test.p == 1
    assert any("more than the whole axis" in text.get_text() for text in figure.axes[0].texts)


def test_the_caption_says_what_is_rough_and_what_was_not_found():
    assert "rough" in ranking_caption(ranking([1, 2, 3, 4, 5, 6], datasets=5))
    assert "rough" in ranking_caption(ranking([1, 2, 3]))
    assert "rough" not in ranking_caption(ranking([1, 2, 3, 4, 5, 6]))
    assert "finds no difference" in ranking_caption(ranking([1, 2, 3], p=0.3))
    assert "p < 0.0001" in ranking_caption(ranking([1, 2, 3], p=1e-6))


def test_equal_figures_give_equal_bytes(tmp_path):
    results = arrange(draw_study(tmp_path))
    figures = [draw_ranking(results) for _ in range(2)]
    one, other = (save_figure(f, tmp_path / n, "ranks", "") for f, n in zip(figures, "ab", strict=True) if f)
    for ending, path in one.paths.items():
        assert path.read_bytes() == other.paths[ending].read_bytes()
