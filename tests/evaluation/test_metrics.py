import math
import sys
import time

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from study.evaluation import metrics
from study.evaluation.metrics import MetricUnavailable, require, score, ssim
from study.grid.schema import Evaluation
from study.records.schemas import METRIC_UNITS

CPU = torch.device("cpu")


def pair(channels: int = 3, height: int = 70, width: int = 97, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    hr = torch.rand(1, channels, height // 4 + 1, width // 4 + 1, dtype=torch.float64, generator=generator)
    hr = torch.nn.functional.interpolate(hr, size=(height, width), mode="bilinear")
    return (hr + noise * torch.randn(hr.shape, dtype=torch.float64, generator=generator)).clamp(0, 1), hr


@pytest.mark.parametrize("step", [1, 2, 25])
def test_psnr_of_a_constant_difference(step):
    hr = torch.full((1, 1, 32, 32), 100 / 255, dtype=torch.float64)
    assert score("psnr", hr + step / 255, hr) == pytest.approx(20 * math.log10(255 / step), abs=1e-9)


def test_psnr_of_equal_images_is_finite():
    _, hr = pair()
    assert score("psnr", hr, hr) == pytest.approx(200)


def test_psnr_equals_pyiqa_on_its_own_y():
    import study.evaluation.protocols as protocols

    sr, hr = pair()
    require(["psnr"], CPU)
    import pyiqa

    theirs = pyiqa.create_metric("psnr", device=CPU, test_y_channel=True, color_space="ycbcr", check_input_range=False)
    ours = score("psnr", *protocols.prepare(sr, hr, "float_y", 4))
    assert ours == pytest.approx(float(theirs(sr[..., 4:-4, 4:-4], hr[..., 4:-4, 4:-4])), abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(11, 11), (12, 90), (74, 75), (138, 64), (200, 140)])
def test_ssim_equals_skimage(height, width):
    sr, hr = pair(1, height, width)
    full = structural_similarity(
        sr[0, 0].numpy(),
        hr[0, 0].numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )[1]
    assert ssim(sr, hr) == pytest.approx(full[5 : height - 5, 5 : width - 5].mean(), abs=1e-12)


def test_ssim_of_constant_images_is_the_luminance_term():
    low, high = (torch.full((1, 1, 20, 20), value) for value in (0.25, 0.75))
    c1 = 0.01**2
    expected = (2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1)
    assert ssim(low, high) == pytest.approx(expected, abs=1e-12)


def test_ssim_of_an_inverted_image_is_negative():
    _, hr = pair(1)
    assert ssim(1 - hr, hr) < 0  # pyiqa clips this at zero


def test_ssim_is_symmetric_and_the_mean_over_channels():
    sr, hr = pair(3)
    assert ssim(hr, hr) == pytest.approx(1, abs=1e-14)
    assert ssim(sr, hr) == pytest.approx(ssim(hr, sr), abs=1e-14)
    per_channel = [ssim(sr[:, [c]], hr[:, [c]]) for c in range(3)]
    assert ssim(sr, hr) == pytest.approx(np.mean(per_channel), abs=1e-14)
    assert ssim(sr.transpose(2, 3), hr.transpose(2, 3)) == pytest.approx(ssim(sr, hr), abs=1e-14)


def test_ssim_refuses_an_image_below_its_window():
    with pytest.raises(ValueError, match=r"at least 11 x 11 px inside the border, this image has 10 x 40"):
        ssim(torch.rand(1, 1, 10, 40), torch.rand(1, 1, 10, 40))


def test_ssim_pyiqa_is_near_ours():
    sr, hr = pair(1)
    assert score("ssim_pyiqa", sr, hr) == pytest.approx(ssim(sr, hr), abs=2e-3)
    sr, hr = pair(3)
    assert score("ssim_pyiqa", sr, hr) == pytest.approx(ssim(sr, hr), abs=2e-3)  # channels, not Y


@pytest.mark.parametrize(("metric", "best"), [("fsim", 1), ("vif", 1), ("gmsd", 0)])
def test_full_reference_metrics_order_images(metric, best):
    slight, hr = pair(noise=0.02)
    strong, _ = pair(noise=0.2)
    values = [score(metric, image, hr) for image in (hr, slight, strong)]
    assert values[0] == pytest.approx(best, abs=1e-5)
    assert values == sorted(values, reverse=best == 1)
    assert abs(values[1] - values[2]) > 0.01


def test_every_metric_has_a_unit():
    declared = Evaluation.model_fields["metrics"].annotation
    assert set(METRIC_UNITS) == set(declared.__args__[0].__args__)  # type: ignore[union-attr]


def refuse(*_: object, **__: object) -> None:
    raise OSError("no network in tests")


@pytest.mark.parametrize(
    ("metric", "file"),
    [
        ("lpips", "hub/checkpoints/alexnet-owt"),
        ("lpips", "hub/pyiqa/LPIPS_v0.1_alex"),
        ("musiq", "hub/pyiqa/musiq_koniq_ckpt"),
        ("maniqa", "hub/pyiqa/ckpt_koniq10k.pt"),
        ("maniqa", "snapshots/<commit>/model.safetensors"),
        ("niqe", "hub/pyiqa/niqe_modelparameters.mat"),
    ],
)
def test_missing_weights_are_named_at_once(metric, file, tmp_path, monkeypatch):
    require(["psnr"], CPU)
    import huggingface_hub.constants
    import pyiqa.utils.download_util as download_util

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "hub" / "pyiqa"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    begun = time.perf_counter()
    with pytest.raises(MetricUnavailable, match=f"not computed: weights of {metric} missing, put them at ") as error:
        require([metric], CPU)
    assert time.perf_counter() - begun < 10
    assert file in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_failing_download_is_named(tmp_path, monkeypatch):
    require(["psnr"], CPU)
    import pyiqa.utils.download_util as download_util

    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(metrics, "_answers", lambda url: True)
    monkeypatch.setattr(download_util, "download_url_to_file", refuse)
    with pytest.raises(MetricUnavailable, match="not computed: niqe cannot be set up: no network in tests"):
        require(["niqe"], CPU)


def test_weights_that_are_there_are_used_without_a_question(tmp_path, monkeypatch):
    """MUSIQ's own network with random weights under the expected name: the real path from file to score."""
    require(["psnr"], CPU)
    import pyiqa.utils.download_util as download_util
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.manual_seed(0)
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    (path,) = metrics._weights("musiq")
    torch.save(MUSIQ(pretrained=False).state_dict(), path)
    sr, hr = pair(3, 64, 64)
    try:
        value = score("musiq", sr, hr)
    finally:
        metrics._metric.cache_clear()  # the random network must not serve another test
    assert math.isfinite(value)


def test_clipiqa_names_the_package_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MetricUnavailable, match="clipiqa needs pkg_resources"):
        require(["clipiqa"], CPU)


def test_nothing_is_printed_on_stdout(capsys, tmp_path, monkeypatch):
    require(["psnr"], CPU)
    import pyiqa.utils.download_util as download_util

    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(metrics, "_answers", lambda url: True)
    monkeypatch.setattr(download_util, "download_url_to_file", refuse)
    with pytest.raises(MetricUnavailable):
        require(["musiq"], CPU)
    assert capsys.readouterr().out == ""
