"""Metrics of one image: SSIM (protocols.md says why) and those of `realism` our own, PSNR and the rest through pyiqa.

pyiqa is imported where it is first needed: it takes seconds, and warns. Its licence is non-commercial.
"""

import contextlib
import functools
import importlib.util
import pickle
import sys
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study import StudyError
from study.evaluation.realism import high_band, spectral_slope, swd
from study.models.layers import full_precision

# These follow the protocol's preprocessing, Y included; the others take RGB images and are computed under `rgb` only.
PER_PROTOCOL = frozenset({"psnr", "ssim", "ssim_pyiqa"})
# Needs several outputs of the network for one image: `rows` computes it.
DIVERSITY = "diversity"

_NO_REFERENCE = frozenset({"clipiqa", "musiq", "maniqa", "niqe"})
_PYIQA_NAMES = {"ssim_pyiqa": "ssim"}
# Images arrive as the protocol's channels, so pyiqa must not make a Y of three RGB channels once more. Its epsilon of
# 1e-8 on the squared error costs 1e-4 dB, enough to move published digits; this one only keeps equal images finite.
_PYIQA_OPTIONS = {"psnr": {"test_y_channel": False, "eps": 1e-20}, "ssim_pyiqa": {"test_y_channel": False}}
_BACKBONES = {
    "lpips": ("alex", "AlexNet_Weights.IMAGENET1K_V1"),
    "lpips-vgg": ("vgg", "VGG16_Weights.IMAGENET1K_V1"),
}
_WINDOW_PX, _SIGMA_PX = 11, 1.5
_PROBE_SECONDS = 5
_HOSTS: dict[str, bool] = {}  # whether each has answered


class MetricUnavailable(StudyError):
    """A metric cannot be computed here; the message says what is missing and where to put it."""


def require(metrics: Iterable[str], device: torch.device) -> None:
    """Makes every metric ready on `device`; raises `MetricUnavailable` now rather than after a training run."""
    for metric in metrics:
        if metric not in _OWN and metric != DIVERSITY:
            _metric(metric, device)


def find_unavailable(metrics: Iterable[str], device: torch.device) -> dict[str, str]:
    """Makes ready what can be computed on `device`; of every other metric, says why not and what would help.

    Raises:
        MetricUnavailable: that is so of all of them.
    """
    metrics = tuple(metrics)
    reasons = {}
    for metric in metrics:
        try:
            require([metric], device)
        except MetricUnavailable as error:
            reasons[metric] = str(error)
    if reasons and set(reasons) == set(metrics):
        raise MetricUnavailable("\n".join(reasons.values()))
    return reasons


def score(metric: str, sr: Tensor, hr: Tensor) -> float:
    """Value of `metric` for one image, both (1, C, H, W) as `protocols.prepare` gives them.

    C is 1 or 3 for the metrics in `PER_PROTOCOL`, 3 for the others. No-reference metrics ignore `hr`. Higher is not
    always better: gmsd, lpips, niqe and swd fall as images improve, spectral_slope and high_band near 0. The PSNR of
    equal images is 200 dB.

    Raises:
        MetricUnavailable: weights are missing and cannot be downloaded.
        ValueError: the image is too small for the metric.
    """
    if metric in _OWN:
        return _OWN[metric](sr, hr)
    compute = _metric(metric, sr.device)
    if metric not in PER_PROTOCOL:
        sr, hr = sr.float(), hr.float()
    with warnings.catch_warnings(), _warned_of_nondeterminism():
        warnings.simplefilter("ignore")
        return float(compute(sr) if metric in _NO_REFERENCE else compute(sr, hr))


def ssim(x: Tensor, y: Tensor) -> float:
    """Structural similarity of two images (1, C, H, W) of range 1, mean over channels and places (Wang et al., 2004).

    Gaussian window 11x11, sigma 1.5, only where it lies inside the image; population moments, no downsampling, no
    clipping; float64. Gives the published digits of IMDN (protocols.md).

    Raises:
        ValueError: a side is shorter than the window.
    """
    if min(x.shape[-2:]) < _WINDOW_PX:
        size = " x ".join(map(str, x.shape[-2:]))
        raise ValueError(f"ssim needs at least {_WINDOW_PX} x {_WINDOW_PX} px inside the border, this image has {size}")
    x, y = x.to(torch.float64), y.to(torch.float64)
    mean_x, mean_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return (luminance * structure).mean().item()


_OWN: dict[str, Callable[[Tensor, Tensor], float]] = {
    "ssim": ssim,
    "swd": swd,
    "spectral_slope": spectral_slope,
    "high_band": high_band,
}


def _blur(images: Tensor) -> Tensor:
    """Gaussian means over all windows that lie inside, as products with a banded matrix.

    The matrix covers 64 outputs at a time, which is several times faster than a float64 convolution on a CPU.
    """
    step = 64
    offsets = torch.arange(_WINDOW_PX, dtype=images.dtype, device=images.device) - _WINDOW_PX // 2
    window = torch.exp(-0.5 * (offsets / _SIGMA_PX) ** 2)
    window = window / window.sum()
    band = torch.stack([F.pad(window, (k, step - 1 - k)) for k in range(step)], dim=1)
    for _ in range(2):
        length = images.shape[-1] - _WINDOW_PX + 1
        padded = F.pad(images, (0, -length % step))
        images = (padded.unfold(-1, len(band), step) @ band).flatten(-2)[..., :length].transpose(-1, -2)
    return images


class Perceptual(nn.Module):
    """LPIPS with VGG as a loss, differentiable by both images (Zhang et al., CVPR 2018); its weights stay fixed.

    The network and its weights are pyiqa's, and so are the values. Its normalisation of features is not: it divides by
    a square root whose gradient is not a number where all features of a place are zero.

    Args:
        network: pyiqa's LPIPS.
        dtype: what is computed in, autocast or not.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype).requires_grad_(False).eval()
        self.dtype = dtype

    def train(self, mode: bool = True) -> "Perceptual":
        """Leaves it as it is: a loss has no dropout."""
        return self

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of every pair of images (B, 3, H, W) in [0, 1], sides of at least 16 px: (B,)."""
        with full_precision(x):
            one, other = (self._features(image) for image in (x, y))
            weighted = [
                linear((a - b).square()).mean(dim=(1, 2, 3))
                for linear, a, b in zip(self.network.lins, one, other, strict=True)  # type: ignore[arg-type]
            ]
        return torch.stack(weighted).sum(dim=0)

    def _features(self, image: Tensor) -> list[Tensor]:
        scaled = self.network.scaling_layer(2 * image.to(self.dtype) - 1)  # type: ignore[operator]
        layers = self.network.net(scaled)  # type: ignore[operator]
        return [layer / (torch.linalg.vector_norm(layer, dim=1, keepdim=True) + 1e-10) for layer in layers]


@functools.cache
def perceptual(device: torch.device, dtype: torch.dtype) -> Perceptual:
    """LPIPS with VGG as a loss on `device`, with pretrained weights.

    Raises:
        MetricUnavailable: weights of VGG-16, or of the linear layers on it, are missing and cannot be downloaded.
    """
    with _loading("lpips-vgg"):
        from pyiqa.archs.lpips_arch import LPIPS

        return Perceptual(LPIPS(net="vgg"), dtype).to(device)


@contextlib.contextmanager
def _warned_of_nondeterminism() -> Iterator[None]:
    """Lets operations run that are not deterministic, where only such may: FSIM's median on a GPU, for its indices."""
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(strict, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)


def _metric(metric: str, device: torch.device) -> Callable[..., Tensor]:
    if device.type == "cuda" and device.index is None:  # one metric for `cuda` and for the `cuda:0` of a tensor
        device = torch.device("cuda", torch.cuda.current_device())
    found = _created(metric, device)
    if isinstance(found, str):
        raise MetricUnavailable(found)
    return found


@functools.cache
def _created(metric: str, device: torch.device) -> Callable[..., Tensor] | str:
    """The metric, or why there is none: what cannot be had is not tried again for every run."""
    try:
        with _loading(metric):
            import pyiqa

            return pyiqa.create_metric(
                _PYIQA_NAMES.get(metric, metric),
                device=device,
                check_input_range=False,  # `float_y` leaves [0, 1] on purpose
                **_PYIQA_OPTIONS.get(metric, {}),
            )
    except MetricUnavailable as error:
        return str(error)


@contextlib.contextmanager
def _loading(metric: str) -> Iterator[None]:
    """Sets up a network of pyiqa's inside; refuses at once what cannot be."""
    # pyiqa warns while it is imported and prints what it loads, which has no place among a command's output.
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        _find_weights(metric)
        try:
            yield
        except torch.OutOfMemoryError:  # nothing is missing: the run fails, and may succeed another time
            raise
        except (OSError, ImportError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise MetricUnavailable(f"not computed: {metric} cannot be set up: {error}") from error


def _find_weights(metric: str) -> None:
    """Refuses a metric whose weights are neither here nor to be had, before a library tries for minutes."""
    if metric == "clipiqa" and importlib.util.find_spec("pkg_resources") is None:
        raise MetricUnavailable(
            "not computed: clipiqa needs pkg_resources, which setuptools no longer has: pip install 'setuptools<82'"
        )
    missing = {path: url for path, url in _weights(metric).items() if not path.exists()}
    if not all(map(_answers, missing.values())):
        places = " and ".join(f"{path} (from {url})" for path, url in missing.items())
        raise MetricUnavailable(
            f"not computed: weights of {metric} missing, put them at {places}: downloading them does not work here"
        )


def _weights(metric: str) -> dict[Path, str]:
    """Files that pyiqa will load for `metric`, and where it downloads them from: both as the libraries state them."""
    from pyiqa.archs import lpips_arch, maniqa_arch, musiq_arch, niqe_arch
    from pyiqa.utils.download_util import DEFAULT_CACHE_DIR

    own, hub = Path(DEFAULT_CACHE_DIR), Path(torch.hub.get_dir())
    if metric in _BACKBONES:
        import torchvision.models

        name, backbone = _BACKBONES[metric]
        sources = [
            (hub / "checkpoints", torchvision.models.get_weight(backbone).url),
            (own, lpips_arch.default_model_urls[f"0.1_{name}"]),
        ]
    elif metric == "musiq":
        sources = [(own, musiq_arch.default_model_urls["koniq10k"])]
    elif metric == "niqe":
        sources = [(own, niqe_arch.default_model_urls["niqe"])]
    elif metric == "maniqa":
        sources = [_vision_transformer(), (own, maniqa_arch.default_model_urls["koniq"])]
    elif metric == "clipiqa":
        from pyiqa.archs import clip_model

        sources = [(hub / "clip", clip_model._MODELS["RN50"])]
    else:
        sources = []
    return {folder / Path(urllib.parse.urlparse(url).path).name: url for folder, url in sources}


def _vision_transformer() -> tuple[Path, str]:
    """Folder and URL of the backbone that MANIQA takes from timm, kept in the Hugging Face cache."""
    import timm
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    name = "model.safetensors"
    repository = str(getattr(timm.get_pretrained_cfg("vit_base_patch8_224"), "hf_hub_id", None))
    cached = try_to_load_from_cache(repository, name)
    if isinstance(cached, str):
        return Path(cached).parent, hf_hub_url(repository, name)
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))
    return folder / "snapshots" / "<commit>", hf_hub_url(repository, name)


def _answers(url: str) -> bool:
    """Whether the host of `url` is there; each host is asked once."""
    host = urllib.parse.urlparse(url).netloc
    if host not in _HOSTS:
        _HOSTS[host] = _probe(url)
    return _HOSTS[host]


def _probe(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:  # the host is there; whether the file is, the library finds out
        return True
    except OSError:
        return False
