from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from study import StudyError
from study.data.images import open_images
from study.evaluation.protocols import PROTOCOLS
from study.evaluation.rows import evaluate
from study.grid.models import IMDN, CATANet, Hard, Soft
from study.grid.schema import Folder
from study.training import networks
from study.training.networks import Given, open_network
from study.training.protocol_audit import audit_networks, switched
from tests.training.test_networks import CPU, write_run

HARD: dict[str, Any] = {
    "kind": "catanet", "width": 8, "blocks": 1, "qk_width": 8, "mlp_width": 8, "heads": 2, "windows": [8],
    "prototypes": {"count": [4]}, "assignment": {"kind": "hard", "group_sizes": [30]},
}  # fmt: skip
SWITCHES = ["blend: averaged", "padding: masked", "tie_order: similarity"]
KEYS = ["dataset", "setting", "protocol", "metric"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of small images, one in which one is cut into tiles, and three finished runs.

    The LR side of 21 px is one that two windows of 8 px and a third, pulled back, meet in: `blend` tells there alone.
    """
    for name, sizes in {"small": [(42, 52), (44, 48)], "large": [(32, 152), (40, 40)]}.items():
        (tmp_path / name).mkdir()
        for index, size in enumerate(sizes):
            noise = gaussian_filter(np.random.default_rng(index).normal(size=(*size, 3)), (1, 1, 0))
            pixels = 255 * (noise - noise.min()) / (noise.max() - noise.min())
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{index}.png")
    write_run(tmp_path / "hard", model=HARD, seed=1)
    write_run(tmp_path / "averaged", model={**HARD, "blend": "averaged"}, seed=1)
    write_run(tmp_path / "cfsr")
    return tmp_path


def audit(folder: Path, *runs: str, data: tuple[str, ...] = ("small",), **more: Any) -> pd.DataFrame:
    named: dict[str, Given] = dict(zip(("--model", "--reference"), (str(folder / run) for run in runs), strict=False))
    places = {"scale": None, "weights": None, "root": folder, "cache": folder / "cache", "cpu": True}
    return audit_networks(named, data=list(data), **{**places, **more})


def means(frame: pd.DataFrame, role: str = "model") -> dict[tuple[str, ...], float]:
    return frame[frame.role == role].groupby(KEYS).value.mean().to_dict()


def evaluated(folder: Path, given: Given, data: str, **settings: Any) -> dict[tuple[str, str], float]:
    """Means over images as a run's own evaluation gives them."""
    evaluation = {"datasets": {data: {"kind": "folder", "path": data}}, **settings}
    opened = open_network("--model", given, evaluation, scale=2, weights=None, root=folder, device=CPU)
    images = open_images(Folder(path=data), root=folder, cache=folder / "cache")
    rows = pd.DataFrame(evaluate(opened.network, images, data, 2, opened.run.evaluation, CPU))
    return rows.groupby(["protocol", "metric"]).value.mean().to_dict()


def test_protocols_and_self_ensemble_are_what_evaluate_says(folder: Path) -> None:
    found = means(audit(folder, "hard"))
    for setting, ensemble in (("plain", False), ("self-ensemble", True)):
        expected = evaluated(folder, str(folder / "hard"), "small", self_ensemble=ensemble)
        assert len(expected) == 2 * len(PROTOCOLS)
        for (protocol, metric), value in expected.items():
            assert found["small", setting, protocol, metric] == pytest.approx(value, abs=1e-12)


def test_each_switch_is_flipped_alone_with_the_same_weights(folder: Path) -> None:
    frame = audit(folder, "hard")
    found = means(frame)
    assert list(frame.setting.unique()) == ["plain", "border kept", "self-ensemble", *SWITCHES]
    weights = str(folder / "hard" / "weights.safetensors")
    for setting in SWITCHES:
        key, value = setting.split(": ")
        assignment = {**HARD["assignment"], **({key: value} if key != "blend" else {})}
        model = {**HARD, "assignment": assignment, **({key: value} if key == "blend" else {}), "weights": weights}
        expected = evaluated(folder, model, "small", metrics=["psnr"])["uint8_y", "psnr"]
        assert found["small", setting, "uint8_y", "psnr"] == pytest.approx(expected, abs=1e-12)
        assert expected != found["small", "plain", "uint8_y", "psnr"], setting


def test_a_switch_is_named_by_what_it_becomes() -> None:
    assert [name for name, _ in switched(CATANet(blend="averaged", assignment=Hard(padding="masked")))] == [
        "blend: published", "padding: mirrored", "tie_order: similarity"
    ]  # fmt: skip
    assert [name for name, _ in switched(CATANet(assignment=Soft()))] == ["blend: averaged"]
    assert [name for name, _ in switched(CATANet(assignment=Hard(fusion="irca")))] == ["blend: averaged"]
    assert list(switched(IMDN())) == []
    (_, only), *_ = switched(CATANet())
    assert only == CATANet(blend="averaged")


def test_tiles_are_scored_where_an_image_is_cut(folder: Path) -> None:
    frame = audit(folder, "hard", data=("small", "large"))
    assert "tiles of 72 px" not in set(frame[frame.dataset == "small"].setting)
    keys = ["image", "setting", "dataset", "protocol", "metric"]
    values = {tuple(row[key] for key in keys): row["value"] for row in frame.to_dict("records")}
    moves = [
        values[image, "tiles of 72 px", "large", "uint8_y", "psnr"] - values[image, "plain", "large", "uint8_y", "psnr"]
        for image in ("0", "1")
    ]
    assert moves[0] != 0
    assert moves[1] == 0
    expected = evaluated(folder, str(folder / "hard"), "large", tile_lr_px=72)
    found = means(frame)["large", "tiles of 72 px", "uint8_y", "psnr"]
    assert found == pytest.approx(expected["uint8_y", "psnr"], abs=1e-12)


class Grey(nn.Module):
    """Answers grey, counting how often."""

    scale = 2

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((1, 3, 2 * x.shape[2], 2 * x.shape[3]), 0.5)


def test_one_output_is_scored_under_all_protocols(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = Grey()
    monkeypatch.setattr(networks, "build", lambda run: grey)
    frame = audit_networks({"--model": "bicubic"}, 2, None, ["small"], folder, folder / "cache", True)
    assert grey.calls == 2 * (1 + 8)
    assert len(frame) == 2 * 2 * (2 * len(PROTOCOLS) + 1)
    weights = np.array([65.481, 128.553, 24.966]) / 255
    level = 128 * weights.sum()  # 127.5, rounded half up
    originals = [np.asarray(Image.open(folder / "small" / f"{index}.png"), float) @ weights for index in (0, 1)]
    for name, border in (("plain", 2), ("border kept", 0)):
        inside = [y[border : len(y) - border, border : y.shape[1] - border] for y in originals]
        expected = np.mean([10 * np.log10(255**2 / np.mean((y - level) ** 2)) for y in inside])
        assert means(frame)["small", name, "uint8_y", "psnr"] == pytest.approx(expected, abs=1e-9)


def test_two_networks_are_told_apart_and_a_flip_can_equal_the_other(folder: Path) -> None:
    frame = audit(folder, "hard", "averaged")
    assert dict(frame[["role", "network"]].drop_duplicates().values) == {"model": "hard", "reference": "averaged"}
    model, reference = means(frame), means(frame, "reference")
    assert model["small", "blend: averaged", "uint8_y", "psnr"] == reference["small", "plain", "uint8_y", "psnr"]
    assert reference["small", "blend: published", "uint8_y", "ssim"] == model["small", "plain", "uint8_y", "ssim"]
    assert ("small", "blend: averaged", "uint8_y", "psnr") not in reference


def test_the_first_network_s_scale_and_errors_are_named(folder: Path) -> None:
    write_run(folder / "x4", scale=4)
    with pytest.raises(StudyError, match=r"--reference: .*x4 is of scale 4, the scale asked for is 2"):
        audit(folder, "cfsr", "x4")
    (folder / "tiny").mkdir()
    Image.new("RGB", (40, 12)).save(folder / "tiny" / "strip.png")
    with pytest.raises(StudyError, match="tiny, image strip: an LR image of 6 x 20 px is too small"):
        audit(folder, "cfsr", data=("tiny",))


def test_weights_belong_to_the_first_network(folder: Path) -> None:
    named = {"--model": HARD, "--reference": str(folder / "cfsr")}
    places = (["small"], folder, folder / "cache", True)
    frame = audit_networks(named, 2, folder / "hard" / "weights.safetensors", *places)
    assert means(frame) == means(audit(folder, "hard"))
