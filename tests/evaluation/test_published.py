"""Published digits of published weights on the given images, through the whole evaluation (protocols.md)."""

import statistics
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

from study.data.images import open_images
from study.evaluation.rows import evaluate
from study.grid.models import CFSR as CFSRConfig
from study.grid.models import IMDN as IMDNConfig
from study.grid.models import Bicubic as BicubicConfig
from study.grid.schema import Evaluation, Folder
from study.models.bicubic import Bicubic
from study.models.cfsr import CFSR
from study.models.imdn import IMDN
from study.models.weights import load_weights
from tests.shared import shared

Means = dict[tuple[str, str], float]

IMDN_DIGITS = {
    "Set5": {"psnr": 32.21, "ssim": 0.8948},
    "Set14": {"psnr": 28.58, "ssim": 0.7811},
    "B100": {"psnr": 27.56, "ssim": 0.7353},
}
CFSR_DIGITS = {"Set5": {"psnr": 32.33}, "Set14": {"psnr": 28.73}}


def imdn() -> nn.Module:
    model = IMDN(IMDNConfig(), 4)
    load_weights(model, shared("weights/IMDN_x4.pth"))
    return model


def cfsr() -> nn.Module:
    model = CFSR(CFSRConfig(), 4)
    load_weights(model, shared("weights/CFSR_x4.pth"))
    return model.merged()


def measure(model: nn.Module, dataset: str, cache: Path, scale: int = 4, metrics: tuple[str, ...] = ("psnr",)) -> Means:
    """Mean over the images by (protocol, metric)."""
    images = open_images(Folder(path=str(shared(f"data/{dataset}/HR"))), root=cache, cache=cache)
    settings = Evaluation.model_validate({"metrics": metrics, "protocols": ("uint8_y", "matlab_y", "float_y")})
    values = defaultdict(list)
    for row in evaluate(model, images, dataset, scale, settings, torch.device("cpu")):
        values[row["protocol"], row["metric"]].append(row["value"])
    return {key: statistics.fmean(column) for key, column in values.items()}


def check(means: Means, digits: dict[str, float]) -> None:
    for metric, published in digits.items():
        places = 2 if metric == "psnr" else 4
        assert round(means["uint8_y", metric], places) == published, metric


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def test_imdn_set5_under_three_protocols(cache):
    means = measure(imdn(), "Set5", cache, metrics=("psnr", "ssim", "ssim_pyiqa"))
    check(means, IMDN_DIGITS["Set5"])
    expected = {"uint8_y": 32.2096, "matlab_y": 32.1867, "float_y": 32.2124}
    assert {name: round(means[name, "psnr"], 4) for name in expected} == expected
    assert round(means["uint8_y", "ssim_pyiqa"], 4) == 0.8936


def test_imdn_set14(cache):
    means = measure(imdn(), "Set14", cache, metrics=("psnr", "ssim"))
    check(means, IMDN_DIGITS["Set14"])
    assert round(means["uint8_y", "psnr"], 4) == 28.5820


@pytest.mark.parametrize(("dataset", "exact"), [("Set5", 32.3262), ("Set14", 28.7300)])
def test_cfsr(dataset, exact, cache):
    means = measure(cfsr(), dataset, cache)
    check(means, CFSR_DIGITS[dataset])
    assert round(means["uint8_y", "psnr"], 4) == exact


@pytest.mark.slow
def test_imdn_b100(cache):
    check(measure(imdn(), "B100", cache, metrics=("psnr", "ssim")), IMDN_DIGITS["B100"])


@pytest.mark.slow
def test_cfsr_b100(cache):
    means = measure(cfsr(), "B100", cache)
    assert round(means["uint8_y", "psnr"], 4) == 27.6361  # published: 27.63, does not round to it


@pytest.mark.parametrize(("scale", "expected"), [(2, 33.64), (3, 30.39), (4, 28.42)])
def test_bicubic_set5(scale, expected, cache):
    means = measure(Bicubic(BicubicConfig(), scale), "Set5", cache, scale)
    assert round(means["matlab_y", "psnr"], 2) == expected


def test_published_form_of_cfsr_is_the_training_form_with_its_branches_at_zero():
    training, merged = CFSR(CFSRConfig(), 4), cfsr()
    load_weights(training, shared("weights/CFSR_x4.pth"))
    x = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(training(x), merged(x), rtol=0, atol=1e-5)


def test_bf16_costs_imdn_at_most_two_hundredths(tmp_path: Path) -> None:
    plain = measure(imdn(), "Set5", tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = measure(imdn(), "Set5", tmp_path)
    assert narrow != plain
    assert narrow["uint8_y", "psnr"] == pytest.approx(plain["uint8_y", "psnr"], abs=0.02)
