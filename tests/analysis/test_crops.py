import numpy as np
import pytest

from study.analysis import crops
from study.analysis.crops import Tile, colour_prototypes, draw_crops, pick_tiles, picture_name, read_tiles
from study.analysis.figures import WIDTH_IN
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


def canvas(figure):
    """The pictures' canvas, and its pixels per inch."""
    (axes,) = figure.axes
    pixels = np.asarray(axes.images[0].get_array())
    return pixels, pixels.shape[1] / axes.images[0].get_extent()[1]


def test_maps_stand_below_their_variant():
    grey = [np.full((32, 32, 3), level, np.uint8) for level in (10, 20, 30)]
    tiles = [Tile("LR", "", grey[0]), Tile("soft", "", grey[1], np.zeros((16, 16), int)), Tile("HR", "", grey[2])]
    figure = draw_crops(tiles)
    pixels, _ = canvas(figure)
    lefts = []
    for level in (10, 20, 30):
        rows, columns = np.nonzero((pixels == (level, level, level, 255)).all(axis=-1))
        assert len(rows) == 32 * 32
        lefts.append(columns.min())
    assert lefts == sorted(lefts)
    colour = np.rint(255 * colour_prototypes(np.zeros((1, 1), int))[0, 0]).astype(int)
    rows, columns = np.nonzero((pixels[..., :3] == colour).all(axis=-1) & (pixels[..., 3] == 255))
    assert len(rows) == 32 * 32  # 16 x 16 enlarged
    assert columns.min() == lefts[1]
    assert rows.min() > 32
    assert [text.get_text() for text in figure.axes[0].texts] == ["LR", "soft", "HR", "assignment"]


def test_pictures_keep_their_shape_and_all_are_there():
    tiles = [Tile(f"{k}", "27.00 dB", np.full((32, 24 + 8 * (k % 2), 3), 10 + k, np.uint8)) for k in range(14)]
    pixels, scale = canvas(draw_crops(tiles))
    assert scale == pytest.approx(32 / (WIDTH_IN / 5 - 0.08), rel=0.01)
    for k, tile in enumerate(tiles):
        inside = (pixels[..., :3] == 10 + k).all(axis=-1) & (pixels[..., 3] == 255)
        assert inside.sum() == tile.pixels.shape[0] * tile.pixels.shape[1]


def test_long_titles_are_broken_and_lose_their_middle():
    picture = np.zeros((4, 4, 3), np.uint8)
    titles = ["short", "soft, prototypes=128", "x" * 300, "a\nb\u200b"]
    (axes,) = draw_crops([Tile(title, "27.00 dB", picture) for title in titles]).axes
    shown = [text.get_text() for text in axes.texts]
    assert shown[0] == "short\n27.00 dB"
    assert shown[1] == "soft,\nprototypes=128\n27.00 dB"
    assert max(map(len, shown[2].split("\n"))) == 18
    assert len(shown[2].split("\n")) == 4
    assert shown[3] == "a b[U+200B]\n27.00 dB"


def test_the_first_figure_has_number_zero():
    assert picture_name(0) == "crops-00"


def test_of_many_the_baseline_and_the_best_are_pictured(tmp_path, monkeypatch):
    study = draw_study(tmp_path)
    write_samples(study)
    results = arrange(study)
    every = read_tiles(results, study.runs)
    assert pick_tiles(results, every) == (every, [])
    monkeypatch.setattr(crops, "MOST_PICTURED", 2)
    shown, notes = pick_tiles(results, every)
    trained = [name for name in results.cells if name != "bicubic"]
    baseline = results.plan.grid.analysis.baseline
    best = max((name for name in trained if name != baseline), key=lambda name: results.mean(name, results.primary))
    titles = [tile.title for tile in shown["bundled", "image_00"]]
    assert titles == ["LR", "bicubic", *(name for name in trained if name in (baseline, best)), "HR"]
    assert notes == [f"Pictured: 2 of {len(trained)} networks, {baseline!r} and the best by {results.primary}."]


def test_of_many_images_the_first_of_each_dataset_is_pictured(tmp_path, monkeypatch):
    results = arrange(draw_study(tmp_path))
    tile = Tile("LR", "", np.zeros((4, 4, 3), np.uint8))
    every = {(dataset, image): [tile] * 3 for dataset in ("Set5", "Set14") for image in ("a", "b")}
    monkeypatch.setattr(crops, "MOST_IMAGES", 3)
    shown, notes = pick_tiles(results, every)
    assert list(shown) == [("Set5", "a"), ("Set14", "a")]
    assert notes == ["Pictured: the first image of every dataset, 2 of 4 kept ones."]
