from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from study.data.images import ImageSet, open_images
from study.evaluation.samples import crops, save_crops
from study.grid.models import Bicubic as BicubicConfig
from study.grid.schema import Evaluation, Folder
from study.models.bicubic import Bicubic
from study.records.store import read_json

CPU = torch.device("cpu")
SCALE = 2


class Mapped(nn.Module):
    """Repeats pixels; its 'assignment' is the red level of the LR pixel, so a crop of the map is known."""

    def __init__(self, many: bool = False, maps: int = 2) -> None:
        super().__init__()
        self.scale, self.many, self.maps = SCALE, many, maps
        self.sides: list[int] = []

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        return x.repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2)

    def assignment_maps(self, x: Tensor, keys: Tensor) -> list[Tensor]:
        assert keys.shape == (1,)
        self.sides.append(max(x.shape[-2:]))
        red = (x[:, 0] * 255).round().long() * (100 if self.many else 1)
        return [torch.zeros_like(red)] * (self.maps - 1) + [red] * bool(self.maps)


def photograph(folder: Path, height: int, width: int, corner: tuple[int, int], name: str = "image") -> None:
    """Flat grey with one square of noise, 64 HR px wide, at `corner`."""
    pixels = np.full((height, width, 3), 128, dtype=np.uint8)
    row, column = corner
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    pixels[row : row + 64, column : column + 64] = noise[: height - row, : width - column]
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}.png")


def opened(folder: Path) -> ImageSet:
    return open_images(Folder(path="HR"), root=folder, cache=folder / "cache")


@pytest.mark.parametrize("corner", [(0, 0), (80, 120), (136, 232), (40, 8)])
def test_the_crop_is_where_the_detail_is(corner, tmp_path):
    photograph(tmp_path / "HR", 200, 296, corner)
    images = opened(tmp_path)
    (sample,) = crops(Mapped(), images, SCALE, Evaluation(), CPU)
    assert (sample.row_lr_px * 2, sample.column_lr_px * 2) == corner
    lr, hr = images.pair(0, SCALE)
    row, column = corner
    assert np.array_equal(sample.hr, hr[row : row + 64, column : column + 64])
    assert np.array_equal(sample.lr, lr[row // 2 : row // 2 + 32, column // 2 : column // 2 + 32])
    assert np.array_equal(sample.sr, sample.lr.repeat(2, 0).repeat(2, 1))
    assert sample.map is not None
    assert np.array_equal(sample.map, sample.lr[..., 0])
    assert {array.dtype for array in (sample.lr, sample.bicubic, sample.sr, sample.hr)} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("corner", [(0, 0), (0, 280), (144, 504), (96, 232)])
def test_the_map_of_a_large_image_comes_from_a_window(corner, tmp_path):
    photograph(tmp_path / "HR", 211, 571, corner)
    model = Mapped()
    (sample,) = crops(model, opened(tmp_path), SCALE, Evaluation(tile_lr_px=64, overlap_lr_px=8), CPU)
    assert (sample.row_lr_px * 2, sample.column_lr_px * 2) == corner
    assert sample.map is not None
    assert np.array_equal(sample.map, sample.lr[..., 0])
    assert model.sides[0] <= 64 + 8


def test_bicubic_is_cut_from_the_whole_image(tmp_path):
    photograph(tmp_path / "HR", 200, 296, (80, 120))
    (sample,) = crops(Bicubic(BicubicConfig(), SCALE), opened(tmp_path), SCALE, Evaluation(), CPU)
    assert np.array_equal(sample.bicubic, sample.sr)
    assert sample.map is None


def test_small_images_give_small_crops_and_the_count_is_kept(tmp_path):
    for name in "abc":
        photograph(tmp_path / "HR", 40, 70, (0, 0), name)
    images = opened(tmp_path)
    samples = crops(Mapped(), images, SCALE, Evaluation(samples=2), CPU)
    assert [sample.image for sample in samples] == list(images.names[:2])
    assert samples[0].hr.shape == (40, 40, 3)
    assert crops(Mapped(), images, SCALE, Evaluation(samples=0), CPU) == []
    assert len(crops(Mapped(), images, SCALE, Evaluation(samples=9), CPU)) == 3


def test_a_network_without_assigning_blocks_has_no_map(tmp_path):
    photograph(tmp_path / "HR", 80, 80, (0, 0))
    (sample,) = crops(Mapped(maps=0), opened(tmp_path), SCALE, Evaluation(), CPU)
    assert sample.map is None


@pytest.mark.parametrize("many", [False, True])
def test_files_and_index(many, tmp_path):
    photograph(tmp_path / "HR", 100, 120, (8, 16), "bird")
    images, folder = opened(tmp_path), tmp_path / "samples"
    model = Mapped(many)
    save_crops(model, images, "Set5", SCALE, Evaluation(), CPU, folder)
    save_crops(Bicubic(BicubicConfig(), SCALE), images, "Set14", SCALE, Evaluation(), CPU, folder)
    save_crops(model, images, "Set5", SCALE, Evaluation(), CPU, folder)
    other, entry = read_json(folder / "index.json")["samples"]
    assert (other["dataset"], other["map"], other["lr"]) == ("Set14", None, "Set14_bird_lr.png")
    (sample,) = crops(model, images, SCALE, Evaluation(), CPU)
    for kind in ("lr", "bicubic", "sr", "hr", "map"):
        assert entry[kind] == f"Set5_bird_{kind}.png"
        assert np.array_equal(np.asarray(Image.open(folder / entry[kind])), getattr(sample, kind))
    place = {name: entry[name] for name in ("dataset", "image", "scale", "row_lr_px", "column_lr_px", "side_lr_px")}
    assert place == {
        "dataset": "Set5",
        "image": "bird",
        "scale": 2,
        "row_lr_px": 4,
        "column_lr_px": 8,
        "side_lr_px": 32,
    }
    assert len(list(folder.iterdir())) == 5 + 4 + 1  # nothing half-written
