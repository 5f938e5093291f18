"""A network's rows of the images table: one per image, protocol and metric."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from study import StudyError
from study.data.images import ImageSet
from study.evaluation.inference import draws_noise, super_resolve
from study.evaluation.metrics import DIVERSITY, PER_PROTOCOL, find_unavailable, score
from study.evaluation.protocols import prepare
from study.grid.schema import Evaluation

DRAWS = 4  # outputs of one image that diversity compares


def evaluate(
    model: nn.Module,
    images: ImageSet,
    dataset: str,
    scale: int,
    settings: Evaluation,
    device: torch.device,
    *,
    on_image: Callable[[str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of `records.schemas.IMAGES` of one network on one image set.

    `psnr`, `ssim` and `ssim_pyiqa` have a row under every protocol of `settings`; the other metrics take RGB images
    and have one, under `rgb`. Grey images are three equal channels, scored as RGB. A metric that cannot be computed
    here has none; `not_computed` says why.

    Args:
        model: the network on `device`, put in eval mode; it runs in its own floating-point type.
        images: the set, LR and HR.
        dataset: the set's name under `evaluation.datasets`.
        scale: the network's factor, and the border that is left out of the score, px.
        settings: protocols, metrics, tiling and self-ensemble.
        device: where the network is.
        on_image: called with the name of each image that has been scored, before its rows are yielded.

    Raises:
        MetricUnavailable: none of the metrics can be computed; before anything runs.
        StudyError: an image is too small, or the network's output is not finite; names the image.
    """
    torch.backends.cudnn.allow_tf32 = False  # a GPU would round the inputs of convolutions to ten bits
    missing = not_computed(settings, device)
    metrics = [metric for metric in settings.metrics if metric not in missing]
    draws = DRAWS if DIVERSITY in metrics and draws_noise(model) else 1
    model.eval()
    for index, name in enumerate(images.names):
        lr, hr = images.pair(index, scale)
        try:
            outputs = [enlarge(model, lr, settings, device, index, draw) for draw in range(draws)]
            rows = list(_scores(outputs, hr, scale, settings.protocols, metrics))
        except ValueError as error:
            raise StudyError(f"{dataset}, image {name}: {error}") from error
        if on_image is not None:
            on_image(name)
        for protocol, metric, value in rows:
            yield {"dataset": dataset, "image": name, "protocol": protocol, "metric": metric, "value": value}


def not_computed(settings: Evaluation, device: torch.device) -> dict[str, str]:
    """The metrics of `settings` that `evaluate` leaves out for a network on `device`, and why.

    Raises:
        MetricUnavailable: it would leave out all.
    """
    return find_unavailable(settings.metrics, _scoring(device))


@torch.inference_mode()
def enlarge(
    model: nn.Module, lr: np.ndarray, settings: Evaluation, device: torch.device, index: int, draw: int = 0
) -> Tensor:
    """The network's output (1, 3, sh, sw) for image `index`, `lr` (h, w, 3) uint8; neither clamped nor rounded.

    Draw 0 is what every metric but diversity measures; the others have other noise.

    Raises:
        ValueError: the image is too small, or the output is not finite.
    """
    sr = super_resolve(
        model,
        image_tensor(lr, device, _dtype(model)),
        tile_lr_px=settings.tile_lr_px,
        overlap_lr_px=settings.overlap_lr_px,
        self_ensemble=settings.self_ensemble,
        key=image_key(index, draw),
    )
    if not torch.isfinite(sr).all():
        raise ValueError("the network's output is not finite")
    return sr


def image_tensor(image: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`image` (h, w, 3) uint8 as (1, 3, h, w) in [0, 1]."""
    return torch.tensor(image, device=device).permute(2, 0, 1)[None].to(dtype) / 255


def image_key(index: int, draw: int = 0) -> int:
    """The seed of a test image for what draws: 63 bits of the SHA-256 of 'evaluation:<index>', or with ':<draw>'."""
    name = f"evaluation:{index}:{draw}" if draw else f"evaluation:{index}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _scores(
    draws: Sequence[Tensor], hr: np.ndarray, scale: int, protocols: Sequence[str], metrics: Sequence[str]
) -> Iterator[tuple[str, str, float]]:
    device = _scoring(draws[0].device)
    target = image_tensor(hr, device, torch.float64)
    draws = [draw.to(device) for draw in draws]
    sr = draws[0]
    for protocol in protocols:
        pair = prepare(sr, target, protocol, scale)
        for metric in metrics:
            if metric in PER_PROTOCOL:
                yield protocol, metric, score(metric, *pair)
    others = [metric for metric in metrics if metric not in PER_PROTOCOL]
    if others:
        pair = prepare(sr, target, "rgb", scale)
        for metric in others:
            yield "rgb", metric, _diversity(draws, scale) if metric == DIVERSITY else score(metric, *pair)


def _diversity(draws: Sequence[Tensor], scale: int) -> float:
    """How much the output depends on its noise, in 8-bit levels; 0 for a network that takes none.

    The standard deviation over the draws of the clamped, unrounded output: its mean over channels and over the pixels
    inside the border. Neither high nor low is best.
    """
    height, width = draws[0].shape[-2:]
    inside = torch.cat(list(draws))[..., scale : height - scale, scale : width - scale]
    return 255 * inside.to(torch.float64).clamp(0, 1).std(dim=0, correction=0).mean().item()


def _dtype(model: nn.Module) -> torch.dtype:
    parameter = next(model.parameters(), None)
    return torch.float32 if parameter is None else parameter.dtype


def _scoring(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device  # Apple's GPUs have no float64
