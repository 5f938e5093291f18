import math
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torchvision.models.vgg import cfgs, make_layers

from study.evaluation import metrics
from study.evaluation.metrics import MetricUnavailable, find_unavailable, perceptual, require, score, ssim
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


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test asks anew what can be had, and what it has set up serves no other."""
    monkeypatch.setattr(metrics, "_HOSTS", {})
    metrics._created.cache_clear()
    yield
    metrics._created.cache_clear()


def test_a_metric_may_use_what_is_not_deterministic_and_nothing_else_may(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compute(sr: Tensor, hr: Tensor) -> Tensor:
        seen.append(torch.is_deterministic_algorithms_warn_only_enabled())
        return (sr - hr).abs().mean()

    monkeypatch.setattr(metrics, "_metric", lambda *_: compute)
    torch.use_deterministic_algorithms(True)
    try:
        score("fsim", *pair())
        assert seen == [True]
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_full_device_is_no_missing_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyiqa

    def fill(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(pyiqa, "create_metric", fill)
        with pytest.raises(torch.OutOfMemoryError):
            score("fsim", *pair())
    assert score("fsim", *pair()) > 0.5


def refuse(*_: object, **__: object) -> None:
    raise OSError("no network in tests")


def without_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches below `folder`, and no network."""
    require(["psnr"], CPU)
    import huggingface_hub.constants
    import pyiqa.utils.download_util as download_util

    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(folder / "hub" / "pyiqa"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hf"))
    monkeypatch.setattr("urllib.request.urlopen", refuse)


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
    without_weights(tmp_path, monkeypatch)
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
    assert math.isfinite(score("musiq", sr, hr))


def test_weights_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    require(["psnr"], CPU)
    import pyiqa.utils.download_util as download_util

    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    (path,) = metrics._weights("musiq")
    path.write_bytes(b"half a file")
    with pytest.raises(MetricUnavailable, match="not computed: musiq cannot be set up: "):
        require(["musiq"], CPU)


def test_every_host_is_asked_once_and_not_for_long(tmp_path, monkeypatch):
    without_weights(tmp_path, monkeypatch)
    asked: list[tuple[str, float]] = []

    def ask(request: urllib.request.Request, timeout: float) -> None:
        asked.append((request.host, timeout))
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", ask)
    for _ in range(3):
        found = find_unavailable(["psnr", "lpips", "musiq", "swd", "niqe", "diversity"], CPU)
        assert list(found) == ["lpips", "musiq", "niqe"]
        with pytest.raises(MetricUnavailable):
            require(["psnr", "niqe"], CPU)
    assert asked == [("download.pytorch.org", 5), ("huggingface.co", 5)]


def test_what_cannot_be_had_is_not_tried_again(monkeypatch):
    tried = []

    def refused(metric: str) -> None:
        tried.append(metric)
        raise MetricUnavailable(f"not computed: {metric}")

    monkeypatch.setattr(metrics, "_find_weights", refused)
    for _ in range(3):
        assert find_unavailable(["ssim", "niqe"], CPU) == {"niqe": "not computed: niqe"}
        with pytest.raises(MetricUnavailable, match="not computed: niqe\nnot computed: musiq"):
            find_unavailable(["niqe", "musiq"], CPU)
    assert tried == ["niqe", "musiq"]
    assert find_unavailable([], CPU) == {}


@pytest.fixture(autouse=True)
def forget_networks() -> Iterator[None]:
    """A network with made-up weights must not be another test's."""
    perceptual.cache_clear()
    yield
    perceptual.cache_clear()


def test_the_perceptual_loss_names_both_weights_files(tmp_path, monkeypatch):
    without_weights(tmp_path, monkeypatch)
    with pytest.raises(MetricUnavailable, match="weights of lpips-vgg missing, put them at ") as error:
        perceptual(CPU, torch.float32)
    for name in ("hub/checkpoints/vgg16-397923af.pth", "hub/pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"):
        assert f"{tmp_path}/{name} (from https://" in str(error.value)


def random_vgg(**_: object) -> SimpleNamespace:
    torch.manual_seed(0)
    return SimpleNamespace(features=make_layers(cfgs["D"]))


@pytest.fixture
def random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights where pyiqa looks for those of VGG-16 and of the linear layers on it."""
    without_weights(tmp_path, monkeypatch)
    from pyiqa.archs import lpips_arch

    monkeypatch.setattr(lpips_arch.models, "vgg16", random_vgg)
    backbone, linear = metrics._weights("lpips-vgg")
    for path in (backbone, linear):
        path.parent.mkdir(parents=True)
    backbone.touch()  # torchvision would read it; the layers above are random
    layers = lpips_arch.LPIPS(pretrained=False, net="vgg").state_dict()
    torch.save({name: value.abs() for name, value in layers.items() if name.startswith("lin")}, linear)


@pytest.mark.usefixtures("random_weights")
def test_the_perceptual_loss_has_the_values_of_pyiqa_and_a_gradient():
    loss = perceptual(CPU, torch.float32).train()
    x, y = torch.rand(2, 3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    y[2] = x[2]
    x.requires_grad_()
    values = loss(x, y)
    assert values.shape == (3,)
    assert values[2] == 0 < values[:2].min()
    torch.testing.assert_close(values, loss.network(x, y)[:, 0], rtol=1e-5, atol=0)
    assert torch.equal(values, loss(x, y))  # no dropout, though it was told to train
    values[1].backward()
    assert x.grad is not None
    assert x.grad[[0, 2]].abs().max() == 0 < x.grad[1].abs().max()
    assert not any(parameter.requires_grad for parameter in loss.parameters())


@pytest.mark.usefixtures("random_weights")
def test_the_perceptual_loss_is_differentiable_where_no_feature_answers():
    loss = perceptual(CPU, torch.float64)
    for name, parameter in loss.network.net.named_parameters():  # type: ignore[union-attr]
        if name.endswith("bias"):
            parameter.fill_(-1e3)
    x = torch.rand(1, 3, 16, 16).requires_grad_()
    loss(x, torch.rand(1, 3, 16, 16)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.usefixtures("random_weights")
def test_the_perceptual_loss_is_computed_in_its_own_type():
    x, y = torch.rand(2, 1, 3, 16, 16)
    assert perceptual(CPU, torch.float64)(x, y).dtype == torch.float64
    loss = perceptual(CPU, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(x, y)
    assert torch.equal(inside, loss(x, y))


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
