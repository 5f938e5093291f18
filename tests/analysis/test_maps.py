from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from study.analysis.crops import Tile, colour_prototypes, read_tiles
from study.analysis.maps import (
    MOST_CELLS,
    draw_maps,
    maps_caption,
    occupancy,
    occupancy_table,
    prototype_counts,
)
from study.analysis.pictures import save_figure
from tests.analysis.synthetic import GRID, arrange, draw_study, write_samples

pytestmark = pytest.mark.usefixtures("style")

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def tile(title, indices, pixels=PIXELS):
    return Tile(title, "", pixels, np.asarray(indices))


def quarters(shares):
    """A (32, 32) map in which prototype k holds shares[k] of the tokens."""
    return np.repeat(np.arange(len(shares)), (np.asarray(shares) * 1024).astype(int)).reshape(32, 32)


def test_even_use_of_n_prototypes_counts_as_n():
    for count in (1, 2, 8, 256):
        assert occupancy(np.arange(1024).reshape(32, 32) % count).effective == pytest.approx(count)


def test_a_known_entropy():
    spread = occupancy(quarters([0.25, 0.5, 0.125, 0.125]))
    assert spread.prototypes.tolist() == [1, 0, 2, 3]
    assert spread.shares.tolist() == [0.5, 0.25, 0.125, 0.125]
    assert np.log2(spread.effective) == pytest.approx(1.75)  # bits


def test_the_last_blocks_number_of_prototypes_is_taken(tmp_path):
    text = GRID.replace("{8: [8], 16: [16], 32: [32]}", "{8: [8], 16: [16, 24], 32: [32, 48, 64]}")
    others = "moe: {model.assignment: {kind: soft_moe, slots: [4, 12]}}\n  spin: {model: {kind: spin}}"
    text = text.replace("  bicubic: {", f"  {others}\n  bicubic: {{")
    counts = prototype_counts(arrange(draw_study(tmp_path, text, images=1)))
    assert counts["hard, count=8"] == 8
    assert counts["hard, count=16"] == 24
    assert counts["soft, count=32"] == 48  # two blocks: the second
    assert counts["moe"] == 12
    assert not counts.keys() & {"bicubic", "spin"}


def laid(figure):
    """Texts of the canvas; canvas pixels; pixels per inch."""
    axes = figure.axes[0]
    pixels = np.asarray(axes.images[0].get_array())
    return [text.get_text() for text in axes.texts], pixels, pixels.shape[1] / axes.images[0].get_extent()[1]


def panel(figure, title, side):
    """The (side, side, 3) picture below a title, 0 to 1, and the colour of its frame."""
    axes = figure.axes[0]
    _, pixels, scale = laid(figure)
    text = next(text for text in axes.texts if text.get_text() == title)
    left, top = text.get_position()[0], text.get_position()[1] + 0.04
    x, y, size = round(left * scale), round(top * scale), round(0.97 * scale)
    step = size // side
    frames = [patch for patch in axes.patches if np.allclose(patch.get_xy(), (left, top))]
    found = pixels[y : y + size, x : x + size, :3][step // 2 :: step, step // 2 :: step] / 255
    return found, to_rgb(frames[0].get_edgecolor()) if frames else None


def test_a_row_per_map_names_its_numbers():
    figure = draw_maps(
        [Tile("LR", "", PIXELS), tile("hard", quarters([0.5, 0.25, 0.25])), tile("soft", quarters([1]))], {"hard": 16}
    )
    assert figure is not None
    texts, _, _ = laid(figure)
    assert texts[:5] == ["output", "assignment", "#0: 50 %", "#1: 25 %", "#2: 25 %"]
    assert texts[5:8] == ["output", "assignment", "#0: 100 %"]
    assert texts[8:] == [
        "hard: prototypes used here 3 of 16, effective number 2.8",
        "soft: prototypes used here 1, effective number 1.0",
    ]
    assert [axes.get_title(loc="left") for axes in figure.axes[1:]] == ["share by rank (%)"] * 2


def test_multiples_light_the_tokens_of_their_prototype():
    indices = quarters([0.25, 0.5, 0.25])
    figure = draw_maps([tile("hard", indices)])
    assert figure is not None
    for title, prototype in (("#1: 50 %", 1), ("#0: 25 %", 0), ("#2: 25 %", 2)):
        drawn, frame = panel(figure, title, 32)
        assert drawn.shape == (32, 32, 3)
        coloured = np.ptp(drawn, axis=-1) > 0
        assert (coloured == (indices == prototype)).all()
        pale = drawn[~coloured]
        assert pale.min() >= 0.79  # of others only a hint
        assert np.ptp(pale) > 0.05
        assert frame == pytest.approx(colour_prototypes(np.array([[prototype]]))[0, 0])


def test_tokens_show_the_mean_of_their_pixels():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2, 2:] = [[[255] * 3, [0] * 3], [[0] * 3, [255] * 3]]
    pixels[2:, :2] = 255
    figure = draw_maps([tile("soft", [[0, 0], [0, 1]], pixels)])
    assert figure is not None
    drawn = panel(figure, "#1: 25 %", 2)[0][..., 0]  # the other three are pale grey
    assert drawn[0] == pytest.approx([0.8, 0.9], abs=0.003)
    assert drawn[1, 0] == pytest.approx(1)


def test_bars_are_the_shares_and_lines_the_even_share_and_the_effective_number():
    figure = draw_maps([tile("soft", quarters([0.25, 0.75]))], {"soft": 8})
    assert figure is not None
    axes = figure.axes[-1]
    bars = [np.asarray(path.vertices) for path in axes.collections[0].get_paths()]
    assert [float(bar[:, 1].max()) for bar in bars] == [75, 25]
    assert np.allclose([np.unique(bar[:, 0].round(9)) for bar in bars], [[0.57, 1.43], [1.57, 2.43]])
    even, effective = axes.lines
    assert np.asarray(even.get_ydata()).tolist() == [12.5, 12.5]
    spread = occupancy(quarters([0.25, 0.75]))
    assert np.asarray(effective.get_xdata())[0] == pytest.approx(0.5 + spread.effective)
    assert axes.get_xlim() == (0.5, 8.5)  # the unused are seen
    unknown = draw_maps([tile("soft", quarters([0.25, 0.75]))])
    assert unknown is not None
    assert len(unknown.axes[-1].lines) == 1
    assert unknown.axes[-1].get_xlim() == (0.5, 2.5)


@pytest.mark.parametrize("count", [8, 64, 256])
def test_nothing_overlaps_with_any_number_of_prototypes(count):
    name = "a very long name of a variant, with many labels, and more labels, and a few more"
    figure = draw_maps([tile(name, np.arange(1024).reshape(32, 32) % count) for _ in range(3)], {name: count})
    assert figure is not None
    figure.draw_without_rendering()
    axes, *bars = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    frames = [patch.get_window_extent() for patch in axes.patches]
    outer = [box for box in (one.get_tightbbox() for one in bars) if box is not None]
    assert not any(box.overlaps(other) for box in outer for other in (*boxes, *frames))
    assert not any(one.overlaps(other) for one, other in combinations(outer, 2))


def test_cells_beyond_a_page_are_named_in_the_caption():
    many = [tile(f"cell {k}", quarters([0.5, 0.5])) for k in range(MOST_CELLS + 2)]
    figure = draw_maps(many)
    assert figure is not None
    assert len(figure.axes) == 1 + MOST_CELLS
    caption = maps_caption("Set5", "baby", many)
    assert caption.startswith("Set5, baby: ")
    assert caption.endswith(f" Not drawn: cell {MOST_CELLS}; cell {MOST_CELLS + 1}.")
    assert "Not drawn" not in maps_caption("Set5", "baby", many[:MOST_CELLS])


def test_no_map_no_figure():
    assert draw_maps([Tile("LR", "", PIXELS), Tile("imdn", "", PIXELS)]) is None
    assert draw_maps([]) is None
    assert occupancy_table({("Set5", "baby"): [Tile("imdn", "", PIXELS)]}) is None


def test_stored_maps_are_drawn_alike_twice(tmp_path):
    study = draw_study(tmp_path)
    write_samples(study)
    results = arrange(study)
    drawn = read_tiles(results, study.runs)["bundled", "image_00"][:4]
    figures = [draw_maps(drawn, prototype_counts(results)) for _ in range(2)]
    assert figures[0] is not None
    assert figures[1] is not None
    one, other = (save_figure(figure, tmp_path, "maps", "") for figure in figures if figure is not None)
    assert one.svg == other.svg


def test_the_table_holds_means_over_crops():
    both = {
        ("Set5", "baby"): [tile("hard", quarters([0.5, 0.5])), tile("soft", quarters([1]))],
        ("Set5", "bird"): [tile("hard", quarters([0.25] * 4))],
    }
    table = occupancy_table(both, {"hard": 16})
    assert table is not None
    assert table.rows[0] == ("hard", 16.0, 3.0, pytest.approx(3), pytest.approx(37.5), 2.0)
    assert table.rows[1] == ("soft", None, 1.0, pytest.approx(1), pytest.approx(100), 1.0)
