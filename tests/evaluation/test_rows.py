from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from study import StudyError
from study.data.draws import normal
from study.data.images import ImageSet, open_images
from study.evaluation import metrics
from study.evaluation.metrics import MetricUnavailable
from study.evaluation.protocols import prepare
from study.evaluation.realism import high_band, spectral_slope, swd
from study.evaluation.rows import DRAWS, evaluate, image_key, image_tensor, not_computed
from study.grid.models import Bicubic as BicubicConfig
from study.grid.schema import Evaluation, Folder
from study.models.bicubic import Bicubic
from study.records.store import read_table, write_table

CPU = torch.device("cpu")


class Nearest(nn.Module):
    """Repeats pixels, plus an offset; remembers keys, types and modes."""

    def __init__(self, scale: int, offset: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.offset = nn.Parameter(torch.tensor(offset))
        self.calls: list[tuple[int, torch.dtype, bool, bool]] = []

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        self.calls.append((int(keys), x.dtype, self.training, torch.is_inference_mode_enabled()))
        return x.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2) + self.offset


class Drawing(nn.Module):
    """Its output is grey plus noise, or else a level of its own for every call."""

    scale = 2

    def __init__(self, levels: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.levels = list(levels)
        self.keys: list[int] = []

    def noise(self, keys: Tensor, height: int, width: int) -> Tensor:
        return normal(keys, (3, height, width), torch.float32)

    def forward(self, x: Tensor, keys: Tensor, noise: Tensor) -> Tensor:
        self.keys.append(int(keys))
        return torch.full_like(noise, self.levels.pop(0)) if self.levels else 0.5 + 0.3 * noise


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return photographs(tmp_path, {"one": (41, 50, 3), "two": (36, 44, 3), "grey": (40, 40)})


def photographs(folder: Path, sizes: dict[str, tuple[int, ...]]) -> ImageSet:
    rng = np.random.default_rng(0)
    (folder / "HR").mkdir()
    for name, size in sizes.items():
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / "HR" / f"{name}.png")
    return open_images(Folder(path="HR"), root=folder, cache=folder / "cache")


def test_one_row_per_image_protocol_and_metric(images, tmp_path):
    settings = Evaluation(metrics=("psnr", "ssim", "ssim_pyiqa", "gmsd"))
    rows = list(evaluate(Nearest(2), images, "noise", 2, settings, CPU))
    keys = [(row["image"], row["protocol"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys) == 3 * (5 * 3 + 1)
    assert {(protocol, metric) for _, protocol, metric in keys if metric == "gmsd"} == {("rgb", "gmsd")}
    write_table(tmp_path, "images", rows)
    assert list(read_table(tmp_path, "images").value) == [row["value"] for row in rows]


def test_metrics_outside_the_protocols_do_not_need_rgb_among_them(images):
    settings = Evaluation(metrics=("psnr", "gmsd"), protocols=("uint8_y",))
    rows = list(evaluate(Nearest(2), images, "noise", 2, settings, CPU))
    assert {(row["protocol"], row["metric"]) for row in rows} == {("uint8_y", "psnr"), ("rgb", "gmsd")}


def test_psnr_is_what_numpy_says(images):
    rows = list(evaluate(Nearest(2), images, "noise", 2, Evaluation(), CPU))
    for index, name in enumerate(images.names):
        lr, hr = (np.asarray(image, dtype=np.float64) for image in images.pair(index, 2))
        sr = lr.repeat(2, 0).repeat(2, 1)
        y = (16 + (image[2:-2, 2:-2] @ [65.481, 128.553, 24.966]) / 255 for image in (sr, hr))
        squared = np.mean(np.subtract(*y) ** 2)
        expected = 10 * np.log10(255**2 / squared)
        (value,) = (
            row["value"] for row in rows if (row["image"], row["protocol"], row["metric"]) == (name, "uint8_y", "psnr")
        )
        assert value == pytest.approx(expected, abs=1e-9)


def test_every_image_has_a_fixed_key_of_its_own(images):
    model = Nearest(2)
    list(evaluate(model.train(), images, "noise", 2, Evaluation(), CPU))
    assert [call[0] for call in model.calls] == [image_key(index) for index in range(3)]
    assert len({image_key(index) for index in range(1000)}) == 1000
    assert all(0 <= image_key(index) < 2**63 for index in range(1000))
    assert image_key(0) == 3351542706150068371  # keys never change: results with drawn priors depend on them
    assert {call[1:] for call in model.calls} == {(torch.float32, False, True)}


def test_a_float64_network_runs_in_float64(images):
    model = Nearest(2).double()
    list(evaluate(model, images, "noise", 2, Evaluation(), CPU))
    assert {call[1] for call in model.calls} == {torch.float64}


def test_progress_is_reported_by_name(images):
    seen: list[str] = []
    list(evaluate(Nearest(2), images, "noise", 2, Evaluation(), CPU, on_image=seen.append))
    assert tuple(seen) == images.names


def test_no_inference_mode_leaks_to_the_caller(images):
    rows = evaluate(Nearest(2), images, "noise", 2, Evaluation(), CPU)
    next(rows)
    assert not torch.is_inference_mode_enabled()


def test_a_non_finite_output_names_the_image(images):
    name = images.names[0]
    with pytest.raises(StudyError, match=f"noise, image {name}: the network's output is not finite"):
        list(evaluate(Nearest(2, float("nan")), images, "noise", 2, Evaluation(), CPU))


def test_a_small_image_is_named(tmp_path):
    images = photographs(tmp_path, {"fine": (40, 40, 3), "tiny": (15, 40, 3)})
    with pytest.raises(StudyError, match="noise, image tiny: an LR image of 7 x 20 px is too small"):
        list(evaluate(Nearest(2), images, "noise", 2, Evaluation(), CPU))


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(metric: str) -> None:
        if metric in ("niqe", "musiq"):
            raise MetricUnavailable(f"not computed: weights of {metric} missing")

    metrics._created.cache_clear()
    monkeypatch.setattr(metrics, "_find_weights", refuse)
    yield
    metrics._created.cache_clear()


@pytest.mark.usefixtures("without_weights")
def test_a_metric_that_cannot_be_computed_has_no_rows(images):
    settings = Evaluation(metrics=("psnr", "niqe", "ssim"), protocols=("rgb",))
    rows = list(evaluate(Nearest(2), images, "noise", 2, settings, CPU))
    assert not_computed(settings, CPU) == {"niqe": "not computed: weights of niqe missing"}
    fewer = Evaluation(metrics=("psnr", "ssim"), protocols=("rgb",))
    assert rows == list(evaluate(Nearest(2), images, "noise", 2, fewer, CPU))
    assert not_computed(fewer, CPU) == {}


@pytest.mark.usefixtures("without_weights")
def test_where_no_metric_can_be_computed_nothing_runs(images):
    model = Nearest(2)
    with pytest.raises(MetricUnavailable, match=r"weights of niqe missing\nnot computed: weights of musiq missing"):
        next(evaluate(model, images, "noise", 2, Evaluation(metrics=("niqe", "musiq")), CPU))
    assert model.calls == []


def test_realism_is_measured_once_on_the_rounded_image(images):
    settings = Evaluation(metrics=("swd", "spectral_slope", "high_band"), protocols=("uint8_y", "float_y"))
    rows = list(evaluate(Nearest(2), images, "noise", 2, settings, CPU))
    assert len(rows) == 3 * len(images)
    lr, hr = (image_tensor(image, CPU, torch.float64) for image in images.pair(0, 2))
    pair = prepare(Nearest(2)(lr, torch.tensor([0])).detach(), hr, "rgb", 2)
    found = [(row["protocol"], row["value"]) for row in rows if row["image"] == images.names[0]]
    assert found == [("rgb", measure(*pair)) for measure in (swd, spectral_slope, high_band)]


@pytest.mark.parametrize(
    ("levels", "deviation"), [((0.2, 0.4, 0.6, 0.8), 0.05**0.5), ((-1, 0.5, 0.5, 2), 0.125**0.5), ((0.3,) * 4, 0)]
)
def test_diversity_of_known_levels(levels, deviation, tmp_path):
    images = photographs(tmp_path, {"one": (40, 50, 3)})
    (row,) = evaluate(Drawing(levels), images, "noise", 2, Evaluation(metrics=("diversity",)), CPU)
    assert (row["protocol"], row["metric"]) == ("rgb", "diversity")
    assert row["value"] == pytest.approx(255 * deviation, abs=1e-5)


def test_diversity_is_the_spread_over_four_draws_of_their_own_keys(images):
    model = Drawing()
    rows = list(evaluate(model, images, "noise", 2, Evaluation(metrics=("diversity",)), CPU))
    keys = [[image_key(index, draw) for draw in range(DRAWS)] for index in range(3)]
    assert DRAWS == 4
    assert model.keys == list(chain(*keys))
    assert len(set(model.keys)) == 12
    assert [image_key(index, 0) for index in range(3)] == [image_key(index) for index in range(3)]
    for index, row in enumerate(rows):
        height, width = images.pair(index, 2)[1].shape[:2]
        noise = normal(torch.tensor(keys[index]), (3, height, width), torch.float32).numpy()
        outputs = np.clip(0.5 + 0.3 * noise, 0, 1)[..., 2:-2, 2:-2]
        assert row["value"] == pytest.approx(255 * outputs.std(axis=0).mean(), rel=1e-5)


def test_the_other_metrics_measure_the_first_draw(images):
    alone = list(evaluate(Drawing(), images, "noise", 2, Evaluation(metrics=("psnr",)), CPU))
    model = Drawing()
    both = list(evaluate(model, images, "noise", 2, Evaluation(metrics=("psnr", "diversity")), CPU))
    assert [row for row in both if row["metric"] == "psnr"] == alone
    assert len(model.keys) == 12


def test_a_network_without_noise_has_no_diversity_and_runs_once(images):
    model = Nearest(2)
    rows = list(evaluate(model, images, "noise", 2, Evaluation(metrics=("diversity",)), CPU))
    assert [row["value"] for row in rows] == [0, 0, 0]
    assert len(model.calls) == 3


def test_bicubic_goes_the_same_way(images):
    model = Bicubic(BicubicConfig(), 4)
    rows = list(evaluate(model, images, "noise", 4, Evaluation(metrics=("psnr",), protocols=("rgb",)), CPU))
    assert len(rows) == 3
    assert all(5 < row["value"] < 30 for row in rows)
