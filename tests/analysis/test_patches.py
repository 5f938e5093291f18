from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from study import StudyError
from study.analysis.patches import CAPTION_CHARACTERS, Sample, draw_samples, save_samples
from study.cli import app

RNG = np.random.default_rng(0)
GRID = """\
question: q
base:
  scale: 4
  data: {train: {kind: bundled, split: train}, lr_patch_px: 32, degradation: {kind: real_esrgan}}
  evaluation.datasets: {b: {kind: bundled, split: test}}
variants: {hard: {model: {kind: MODEL}}}
seeds: 2
analysis: {baseline: hard}
"""
SAMPLES = [
    Sample(RNG.integers(0, 256, (32, 32, 3), np.uint8), RNG.integers(0, 256, (8, 8, 3), np.uint8), f"{n} | iso 1.0")
    for n in range(4)
]


def test_every_sample_is_an_hr_and_an_lr_picture_side_by_side() -> None:
    grid = np.array(draw_samples(SAMPLES).axes).reshape(2, 6)
    for index, sample in enumerate(SAMPLES):
        left, right = grid[index // 3, 2 * (index % 3) :][:2]
        assert np.array_equal(left.images[0].get_array(), sample.hr)
        assert np.array_equal(right.images[0].get_array(), sample.lr)
        assert right.images[0].get_interpolation() == "nearest"
        assert left.get_title() == f"{index}\niso 1.0"
    assert not any(axes.images for axes in grid[1, 2:])


def test_a_long_stage_is_broken() -> None:
    caption = "brick | " + ", ".join(["plat-aniso 1.6/2.9"] * 5)
    title = draw_samples([Sample(SAMPLES[0].hr, SAMPLES[0].lr, caption)]).axes[0].get_title()
    assert title.replace("\n", " ") == caption.replace(" | ", " ")
    assert max(map(len, title.split("\n"))) <= CAPTION_CHARACTERS


def test_samples_are_saved_as_png_of_equal_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / name for name in ("a.png", "b.PNG")]
    for path in paths:
        save_samples(SAMPLES, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as image:
        assert image.format == "PNG"
        assert image.width > 1000
    with pytest.raises(StudyError, match=r"a\.jpg: .* ends in \.png"):
        save_samples(SAMPLES, tmp_path / "a.jpg")


@pytest.mark.parametrize("model", ["catanet", "bicubic"])
def test_the_verb_draws_the_first_samples_of_what_trains(tmp_path: Path, model: str) -> None:
    (tmp_path / "grid.yaml").write_text(GRID.replace("MODEL", model))
    words = ("data", tmp_path / "grid.yaml", "--results", tmp_path / "results", "--samples", tmp_path / "samples.png")
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert (tmp_path / "samples.png").exists() == (model == "catanet"), done.output
    if model == "bicubic":
        assert str(done.exception) == "--samples: no run of grid trains"
