import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from study import StudyError
from study.data.degradation import degrade, draw_degradation
from study.data.distortions import add_gaussian_noise, blur, compress, gaussian_kernel, quantised
from study.data.images import ImageSet, open_images
from study.data.sources import find_bundled
from study.evaluation.metrics import score
from study.evaluation.protocols import prepare
from study.evaluation.rows import image_tensor
from study.evaluation.seal import (
    LR_SIDE_PX,
    Case,
    Measured,
    features,
    medoids,
    protocol_of,
    representative_cases,
    score_cases,
    stored_cases,
)
from study.grid.models import Bicubic as BicubicConfig
from study.grid.schema import Evaluation, Folder
from study.models.bicubic import Bicubic
from study.records.store import RecordError

CPU = torch.device("cpu")
FIRST = 2**63
FEATURES = {"gradient": 8, "high_band": 8, "noise": 1, "blockiness": 1}


def photograph(name: str, side: int) -> np.ndarray:
    image = np.asarray(Image.open(find_bundled("test")[name]).convert("RGB"))
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    return [photograph(name, 2 * LR_SIDE_PX) for name in ("chelsea", "coffee")]


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    (tmp_path / "hr").mkdir()
    Image.fromarray(photograph("chelsea", 64)[:51]).save(tmp_path / "hr" / "cat.png")  # no multiple of 2
    Image.fromarray(photograph("coffee", 48)).save(tmp_path / "hr" / "cup.png")
    return open_images(Folder(path="hr"), root=tmp_path, cache=tmp_path / "cache")


def level(shares: np.ndarray) -> float:
    """Mean bin of a histogram."""
    return float(shares @ np.arange(len(shares)))


def after(change: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Features of a degraded photograph, histograms by their mean bin."""
    found = features(quantised(change(photograph("chelsea", LR_SIDE_PX).astype(np.float32))))
    assert {kind: len(values) for kind, values in found.items()} == FEATURES
    assert all(values.sum() == pytest.approx(1) for values in (found["gradient"], found["high_band"]))
    return {kind: level(values) if len(values) > 1 else float(values[0]) for kind, values in found.items()}


def rising(values: list[float]) -> bool:
    return values == sorted(values) and len(set(values)) == len(values)


def test_blur_lowers_gradients_high_band_and_noise_level() -> None:
    widths = [0.4, 0.8, 1.2, 2.0, 3.0]
    found = [after(lambda image, s=s: blur(image, gaussian_kernel(21, (s, s), 0.0, 1.0))) for s in widths]
    for kind in ("gradient", "high_band", "noise"):
        assert rising([one[kind] for one in found][::-1]), kind


def test_noise_raises_gradients_high_band_and_noise_level() -> None:
    found = [after(lambda image, s=s: add_gaussian_noise(image, s, True, 1)) for s in (0, 5, 10, 20, 30)]
    for kind in ("gradient", "high_band", "noise"):
        assert rising([one[kind] for one in found]), kind


def test_the_noise_level_is_the_standard_deviation_on_a_flat_image() -> None:
    flat = np.full((96, 96, 3), 128, dtype=np.float32)
    for sigma in (5.0, 15.0):
        noisy = quantised(add_gaussian_noise(flat, sigma, True, 0))
        assert np.exp(features(noisy)["noise"][0]) - 0.5 == pytest.approx(sigma, rel=0.05)


def test_compression_raises_blockiness() -> None:
    found = [after(lambda image, q=q: compress(image, q))["blockiness"] for q in (95, 70, 50, 30)]
    assert rising(found)
    assert found[0] == pytest.approx(0, abs=0.1)


def test_features_of_flat_and_of_blocks() -> None:
    flat = features(np.full((LR_SIDE_PX, LR_SIDE_PX, 3), 90, dtype=np.uint8))
    assert flat["gradient"].tolist() == flat["high_band"].tolist() == [1, *[0] * 7]
    assert flat["blockiness"][0] == 0
    place = np.arange(LR_SIDE_PX) // 8
    blocks = 20 * (np.add.outer(place, place) % 2)
    stepped = features(np.repeat(blocks[..., None], 3, axis=2).astype(np.uint8))
    assert stepped["blockiness"][0] == pytest.approx(np.log(20.5 / 0.5), rel=1e-6)


def test_flat_areas_beside_noise_are_flat() -> None:
    image = np.full((LR_SIDE_PX, LR_SIDE_PX, 3), 15, dtype=np.uint8)
    image[:, :20] = np.random.default_rng(0).integers(0, 256, (LR_SIDE_PX, 20, 3))
    found = features(image)
    assert found["high_band"][0] == pytest.approx(24 / LR_SIDE_PX)  # two px of either filter beside the noise are not
    assert found["high_band"].sum() == pytest.approx(1)


def test_medoids_of_two_groups() -> None:
    points = np.array([[0.0, 0.0], [10.0, 0.0], [1.0, 0.0], [0.0, 1.0], [10.0, 2.0], [0.3, 0.3], [10.0, 0.9]])
    assert medoids(points, 2) == [(5, 4), (6, 3)]
    assert medoids(points, 7) == [(i, 1) for i in range(7)]
    assert medoids(points[:1], 1) == [(0, 1)]


def test_as_many_clusters_as_asked_for_where_points_coincide() -> None:
    assert sum(members for _, members in medoids(np.zeros((6, 2)), 4)) == 6
    assert len(medoids(np.zeros((6, 2)), 4)) == 4


def test_cases_are_draws_of_their_number_and_the_same_every_time(crops: list[np.ndarray]) -> None:
    seen = []
    cases = representative_cases(crops, 14, 5, 2, on_draw=lambda: seen.append(1))
    assert len(seen) == 14
    assert len(cases) == len({case.draw for case in cases}) == 5
    assert sum(case.members for case in cases) == 14
    assert [case.draw for case in cases] == sorted(case.draw for case in cases)
    assert all(case.parameters == draw_degradation(0, FIRST + case.draw) for case in cases)
    assert representative_cases(crops, 14, 5, 2) == cases
    assert representative_cases(crops, 14, 5, 2, seed=1) != cases


def test_all_draws_are_cases_where_there_are_as_many(crops: list[np.ndarray]) -> None:
    cases = representative_cases(crops, 4, 4, 2)
    assert [(case.draw, case.members) for case in cases] == [(n, 1) for n in range(4)]


def test_cases_see_the_centre_of_an_image_alone(crops: list[np.ndarray]) -> None:
    framed = [np.pad(crop, ((10, 10), (6, 6), (0, 0))) for crop in crops]
    assert representative_cases(framed, 8, 3, 2) == representative_cases(crops, 8, 3, 2)


def test_fewer_draws_than_cases_and_small_images_are_refused(crops: list[np.ndarray]) -> None:
    with pytest.raises(StudyError, match="5 cases of 4 drawn degradations"):
        representative_cases(crops, 4, 5, 2)
    with pytest.raises(StudyError, match="96 × 96 px: degradations are described on 192 × 192 px"):
        representative_cases(crops, 4, 2, 4)


def test_stored_cases_are_read_again_and_not_drawn(tmp_path: Path, crops: list[np.ndarray]) -> None:
    path, cases = stored_cases(tmp_path, crops, 8, 3, 2)
    assert cases == representative_cases(crops, 8, 3, 2)

    def fail() -> None:
        raise AssertionError("drawn anew")

    assert stored_cases(tmp_path, crops, 8, 3, 2, on_draw=fail) == (path, cases)
    others = [
        stored_cases(tmp_path, crops, 7, 3, 2)[0],
        stored_cases(tmp_path, crops, 8, 2, 2)[0],
        stored_cases(tmp_path, crops, 8, 3, 1)[0],
        stored_cases(tmp_path, crops, 8, 3, 2, seed=1)[0],
        stored_cases(tmp_path, crops[::-1], 8, 3, 2)[0],
    ]
    assert len({path, *others}) == 6
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize(
    "body", ["{}", '{"cases": [{"draw": 1}]}', '{"cases": [{"draw": 1, "members": 1, "parameters": {}}]}']
)
def test_a_broken_file_of_cases_is_named(tmp_path: Path, crops: list[np.ndarray], body: str) -> None:
    path, _ = stored_cases(tmp_path, crops, 2, 1, 2)
    assert json.loads(path.read_text())["settings"]["count_drawn"] == 2
    path.write_text(body)
    with pytest.raises(RecordError, match=rf"{path.name} is not a file of degradation cases"):
        stored_cases(tmp_path, crops, 2, 1, 2)


class Grey(nn.Module):
    """Grey whatever it gets; keeps that."""

    scale = 2

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        self.level = level
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        assert not self.training
        self.inputs.append(x)
        return torch.full((1, 3, 2 * x.shape[-2], 2 * x.shape[-1]), self.level)


@pytest.mark.parametrize("metric", ["psnr", "gmsd"])
def test_every_network_is_scored_on_the_same_degraded_images(images: ImageSet, metric: str) -> None:
    cases = [Case(n, 1, draw_degradation(0, n)) for n in range(2)]
    settings, grey = Evaluation(), Grey()
    networks = {"bicubic": Measured(Bicubic(BicubicConfig(), 2), settings), "grey": Measured(grey.train(), settings)}
    counted: list[int] = []
    rows = list(score_cases(networks, images, cases, 2, metric, CPU, on_image=lambda: counted.append(1)))
    assert [(row["case"], row["image"], row["network"]) for row in rows] == [
        (case, image, network) for case in (0, 1) for image in ("cat", "cup") for network in ("bicubic", "grey")
    ]
    assert len(counted) == 4
    hr = images.whole(0)[:50]
    lr = image_tensor(degrade(hr, cases[1].parameters, 2), CPU, torch.float32)
    torch.testing.assert_close(grey.inputs[2], lr, rtol=0, atol=0)
    sr = Bicubic(BicubicConfig(), 2)(lr)
    pair = prepare(sr, image_tensor(hr, CPU, torch.float64), protocol_of(metric), 2)
    assert rows[4]["value"] == score(metric, *pair)


def test_metrics_of_rgb_images_are_scored_on_rgb() -> None:
    assert [protocol_of(metric) for metric in ("psnr", "ssim", "lpips", "swd")] == ["uint8_y", "uint8_y", "rgb", "rgb"]


def test_what_cannot_be_scored_is_named(images: ImageSet) -> None:
    cases = [Case(0, 1, draw_degradation(0, 0))]
    with pytest.raises(ValueError, match="image cat, degraded, by ours: the network's output is not finite"):
        list(score_cases({"ours": Measured(Grey(float("nan")), Evaluation())}, images, cases, 2, "psnr", CPU))
    with pytest.raises(ValueError, match="image cat: has 51 × 64 px, needs 56 px a side"):
        list(score_cases({"ours": Measured(Grey(), Evaluation())}, images, cases, 7, "psnr", CPU))
