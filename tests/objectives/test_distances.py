import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from study.evaluation import metrics
from study.evaluation.metrics import MetricUnavailable
from study.grid.objectives import Distance
from study.objectives import distances
from study.objectives.distances import Measure

CPU = torch.device("cpu")


class Stub(nn.Module):
    """In LPIPS' place: mean absolute difference, of images that must be in [0, 1]."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        assert min(x.min(), y.min()) >= 0
        assert max(x.max(), y.max()) <= 1
        return (x - y).abs().mean(dim=(1, 2, 3))


@pytest.fixture
def perceptual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "perceptual", lambda device, dtype: Stub())


def measure(**declared: Any) -> Measure:
    return Measure(Distance.model_validate(declared), CPU, torch.float64)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (2 * torch.rand(4, 3, 5, 6, generator=generator, dtype=torch.float64) - 1 for _ in range(2))
    return x, y


def test_squared_and_charbonnier_are_the_formulas() -> None:
    x, y = images()
    difference = x - y
    torch.testing.assert_close(measure(kind="squared")(x, y), difference.pow(2).flatten(1).mean(dim=1))
    expected = (difference.pow(2) + 1e-12).sqrt().flatten(1).mean(dim=1)
    torch.testing.assert_close(measure(kind="charbonnier")(x, y), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("kind", "floor"), [("squared", 0.0), ("charbonnier", 1e-6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_images_are_at_the_floor_with_a_gradient_of_zero(kind: str, floor: float, dtype: torch.dtype) -> None:
    x = images()[0].to(dtype).requires_grad_()
    distance = measure(kind=kind)(x, x.detach())
    torch.testing.assert_close(distance, torch.full_like(distance, floor))
    (gradient,) = torch.autograd.grad(distance.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_a_sample_does_not_see_the_others() -> None:
    x, y = images()
    for kind in ("squared", "charbonnier"):
        torch.testing.assert_close(measure(kind=kind)(x[1:2], y[1:2])[0], measure(kind=kind)(x, y)[1])


@pytest.mark.usefixtures("perceptual")
def test_a_mixture_is_a_share_of_lpips_and_the_rest_of_charbonnier() -> None:
    x, y = images()
    perceived = (x - y).abs().flatten(1).mean(dim=1) / 2  # of images in [0, 1]
    torch.testing.assert_close(measure(kind="lpips")(x, y), perceived)
    plain = measure(kind="charbonnier")(x, y)
    torch.testing.assert_close(measure(kind="mixture")(x, y), 0.5 * perceived + 0.5 * plain)
    torch.testing.assert_close(measure(kind="mixture", lpips_share=0.2)(x, y), 0.2 * perceived + 0.8 * plain)


@pytest.mark.parametrize("kind", ["lpips", "mixture"])
def test_lpips_without_its_weights_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.perceptual.cache_clear()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(metrics, "_answers", lambda url: False)
    with pytest.raises(MetricUnavailable, match="vgg16"):
        measure(kind=kind)
    assert math.isfinite(measure(kind="charbonnier")(*images()).sum())
