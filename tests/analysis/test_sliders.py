import base64
import io

import numpy as np
import pytest
from PIL import Image

from study.analysis import sliders
from study.analysis.crops import Tile, picture_name
from study.analysis.pictures import Picture
from study.analysis.rendering import render
from study.analysis.sections import Section
from study.analysis.sliders import MOST_BYTES, make_sliders

PAGE = {
    "title": "t",
    "question": "q",
    "answers": [],
    "counts": {},
    "problems": [],
    "declared": {},
    "codes": [],
    "changes": [],
    "command": "c",
}


def draw_tiles(variants=2, side=8, seed=0):
    rng = np.random.default_rng(seed)
    names = ["LR", "bicubic", *(f"variant {index}" for index in range(variants)), "HR"]
    return [Tile(name, "", rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for name in names]


def test_pictures_are_the_tiles_pixel_by_pixel():
    tiles = draw_tiles()
    (slider,) = make_sliders({("Set5", "baby"): tiles})
    assert [shot.label for shot in slider.shots] == ["LR", "bicubic", "variant 0", "variant 1", "HR"]
    assert (slider.before, slider.after, slider.picture) == (1, 2, picture_name(0))
    for shot, tile in zip(slider.shots, tiles, strict=True):
        head, _, code = shot.uri.partition(",")
        assert head == "data:image/png;base64"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))), tile.pixels)


def test_bicubic_alone_slides_to_the_truth():
    (slider,) = make_sliders({("Set5", "baby"): draw_tiles(0)})
    assert [shot.label for shot in slider.shots][slider.after] == "HR"


def test_every_dataset_has_a_picture_before_any_has_two(monkeypatch):
    tiles = {(dataset, f"{index}"): draw_tiles(side=16) for dataset in ("Set5", "Set14") for index in range(2)}
    size = sum(len(shot.uri) for shot in make_sliders(tiles)[0].shots)
    monkeypatch.setattr(sliders, "MOST_BYTES", int(2.5 * size))
    made = make_sliders(tiles)
    assert [bool(slider.shots) for slider in made] == [True, False, True, False]
    assert made[3].caption == "Set14, 1: left out here to keep the page small; figures/crops-03.png shows it."
    assert [slider.picture for slider in made] == [f"crops-{index:02d}" for index in range(4)]


@pytest.fixture
def large(tmp_path):
    tiles = {("Set5", f"{index}"): draw_tiles(8, 128, index) for index in range(6)}
    names = [*(f"maps-{index:02d}" for index in range(9)), "small", "crops-00"]
    svgs = {name: f"<svg >{'x' * (20_000 if name == 'small' else 500_000)}</svg>" for name in names}
    pictures = []
    for name, svg in svgs.items():
        paths = {ending: tmp_path / f"{name}.{ending}" for ending in ("svg", "png")}
        paths["svg"].write_text(svg)
        pictures.append(Picture(name, f"What {name} shows.", paths))
    return (*make_sliders(tiles), *pictures)


def test_a_page_of_many_pictures_stays_small_and_names_what_it_leaves_out(large):
    html = render("report", "html", {**PAGE, "sections": [Section("crops", "Crops", large)]})
    assert MOST_BYTES < len(html) < 5_000_000
    text = html.decode()
    assert text.count("<svg") == 4  # three large figures and the small one behind them
    assert "Left out here to keep the page small: figures/maps-08.png." in text
    assert text.count('<figure class="slider"') == 6
    assert "What crops-00 shows." not in text  # the slider stands for it


def test_other_formats_have_the_figures_alone(large):
    md = render("report", "md", {**PAGE, "sections": [Section("crops", "Crops", large)]}).decode()
    assert "figures/crops-00.png" in md
    assert "Slider" not in md
