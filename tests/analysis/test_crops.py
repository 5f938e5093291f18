import numpy as np
import pytest

from study.analysis.crops import Tile, colour_prototypes, draw_crops, picture_name, read_tiles
from study.records.store import RecordError
from tests.analysis.synthetic import arrange, draw_study, write_samples


@pytest.fixture
def study(tmp_path):
    study = draw_study(tmp_path)
    write_samples(study)
    return study


def test_tiles_run_from_input_to_truth(study):
    tiles = read_tiles(arrange(study), study.runs)["bundled", "image_00"]
    trained = [cell.name for cell in study.plan.cells if cell.name != "bicubic"]
    assert [tile.title for tile in tiles] == ["LR", "bicubic", *trained, "HR"]
    assert tiles[0].pixels.shape == (32, 32, 3)
    assert tiles[-1].pixels.shape == (64, 64, 3)
    assert tiles[0].map is None
    assert tiles[2].map is not None
    assert tiles[2].map.shape == (32, 32)
    rows = study.records.images.query("protocol == 'uint8_y' and metric == 'psnr' and image == 'image_00'")
    value = rows[(rows["run"] == study.ids[trained[0], 0]) & (rows["dataset"] == "bundled")]["value"].item()
    assert tiles[2].caption == f"{value:.2f} dB"


def test_cells_without_a_finished_run_have_no_tile(study):
    for seed in (0, 1):
        study.statuses[study.ids["soft, count=8", seed]]["state"] = "failed"
    titles = [tile.title for tile in read_tiles(arrange(study), study.runs)["bundled", "image_00"]]
    assert "soft, count=8" not in titles
    assert titles[-1] == "HR"


def test_a_missing_picture_is_named(study):
    (study.runs / study.ids["soft, count=8", 0] / "samples" / "bundled_image_00_sr.png").unlink()
    with pytest.raises(RecordError, match=r"bundled_image_00_sr.png is not a readable picture"):
        read_tiles(arrange(study), study.runs)


def test_no_samples_no_tiles(tmp_path):
    study = draw_study(tmp_path)
    assert read_tiles(arrange(study), study.runs) == {}


def test_prototypes_have_distinct_colours():
    colours = colour_prototypes(np.arange(128).reshape(8, 16)).reshape(-1, 3)
    assert len(np.unique(colours.round(4), axis=0)) == 128
    steps = np.abs(np.diff(colours, axis=0)).max(axis=1)
    assert steps.min() > 0.1  # neighbours in number are far apart
    assert (colours.min(), colours.max()) >= (0, 0)
    assert colours.max() <= 1


def test_maps_stand_below_their_variant():
    picture = np.zeros((4, 4, 3), np.uint8)
    tiles = [Tile("LR", "", picture), Tile("soft", "", picture, np.eye(4, dtype=int)), Tile("HR", "", picture)]
    grid = np.array(draw_crops(tiles).axes).reshape(2, 3)
    assert [len(axes.images) for axes in grid[0]] == [1, 1, 1]
    assert [len(axes.images) for axes in grid[1]] == [0, 1, 0]
    assert grid[1, 1].get_title() == "assignment"


def test_long_titles_are_broken_and_lose_their_middle():
    picture = np.zeros((4, 4, 3), np.uint8)
    titles = ["short", "soft, prototypes=128", "x" * 300, "a\nb\u200b"]
    shown = [axes.get_title() for axes in draw_crops([Tile(title, "27.00 dB", picture) for title in titles]).axes]
    assert shown[0] == "short\n27.00 dB"
    assert shown[1] == "soft,\nprototypes=128\n27.00 dB"
    assert max(map(len, shown[2].split("\n"))) == 18
    assert len(shown[2].split("\n")) == 4
    assert shown[3] == "a b[U+200B]\n27.00 dB"


def test_the_first_figure_has_number_zero():
    assert picture_name(0) == "crops-00"
