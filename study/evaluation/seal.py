"""Evaluation over the space of degradations: representative cases, and networks' scores on them.

After Zhang et al., 'SEAL' (2023, arXiv 2309.03020), our reading: the degradations are those of `data.degradation`; the
features and the clustering are our own. A case is one drawn degradation, the medoid of its cluster, kept by its
parameters. `analysis.seal` judges the scores.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.ndimage import convolve, correlate1d, uniform_filter
from scipy.spatial.distance import cdist
from torch import nn

from study import StudyError
from study.data.degradation import VERSION, Parameters, degrade, draw_degradation
from study.data.images import ImageSet
from study.evaluation.inference import SMALLEST_SIDE_PX
from study.evaluation.metrics import PER_PROTOCOL, require, score
from study.evaluation.protocols import prepare
from study.evaluation.rows import enlarge, image_tensor
from study.grid.schema import Evaluation
from study.records.store import RecordError, read_json, write_json

LR_SIDE_PX = 48  # of the crops that are described; blocks of 8 fit in
_CASES_VERSION = 1  # raised when equal settings give other cases
_FIRST = 2**63  # training counts its samples from 0, and meets none of these draws
_LUMA = (0.299, 0.587, 0.114)
_GRADIENT_EDGES = (1, 2, 4, 8, 16, 32, 64)  # levels per px
_BAND_EDGES = (0.5, 1, 2, 4, 8, 16, 32)  # root mean square, levels
_SMOOTH = np.array([1, 4, 6, 4, 1]) / 16  # halves the amplitude near 1/5 cycles per px
_PLANE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6  # sees no plane; unit noise gives unit variance
_BLOCK_PX = 8


@dataclass(frozen=True)
class Case:
    """A degradation that stands for its cluster.

    Attributes:
        draw: its number among those drawn.
        members: drawn degradations in its cluster, itself included.
        parameters: what `degrade` takes.
    """

    draw: int
    members: int
    parameters: Parameters


@dataclass(frozen=True)
class Measured:
    """A network in eval mode on its device, and how its inputs are tiled."""

    network: nn.Module
    settings: Evaluation


def stored_cases(
    folder: Path,
    images: Sequence[np.ndarray],
    count_drawn: int,
    clusters: int,
    scale: int,
    *,
    seed: int = 0,
    on_draw: Callable[[], None] | None = None,
) -> tuple[Path, list[Case]]:
    """The file with the representative cases, and they; made and written where it is absent.

    Its name is a hash of the settings and of the images' pixels. For the arguments see `representative_cases`.

    Raises:
        RecordError: the file is not what was once written there.
        StudyError: see `representative_cases`.
    """
    crops = [_crop(image, scale) for image in images]
    settings = {"count_drawn": count_drawn, "clusters": clusters, "seed": seed, "scale": scale}
    settings |= {"lr_side_px": LR_SIDE_PX, "version": _CASES_VERSION, "degradation_version": VERSION}
    settings |= {"images": [hashlib.sha256(crop.tobytes()).hexdigest() for crop in crops]}
    path = folder / f"{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:20]}.json"
    if not path.exists():
        cases = representative_cases(images, count_drawn, clusters, scale, seed=seed, on_draw=on_draw)
        entries = [{"draw": c.draw, "members": c.members, "parameters": c.parameters.as_dict()} for c in cases]
        write_json(path, {"settings": settings, "cases": entries})
    try:
        entries = read_json(path)["cases"]
        return path, [Case(e["draw"], e["members"], Parameters.from_dict(e["parameters"])) for e in entries]
    except (KeyError, TypeError) as error:
        raise RecordError(
            f"{path} is not a file of degradation cases ({error!r}); delete it to have it made anew"
        ) from None


def representative_cases(
    images: Sequence[np.ndarray],
    count_drawn: int,
    clusters: int,
    scale: int,
    *,
    seed: int = 0,
    on_draw: Callable[[], None] | None = None,
) -> list[Case]:
    """The medoids of clusters of drawn degradations, in the order of their draws.

    Every draw degrades the centres of the same images; what comes out is described by `features`, averaged over the
    images and standardised over the draws, each of the four kinds with the same weight. Ward's clustering merges what
    adds the least to the squared distance from the clusters' means, the criterion of k-means; it needs no random start.

    Args:
        images: (H, W, 3) uint8 HR images, each side at least `LR_SIDE_PX` * scale.
        count_drawn: degradations that are drawn.
        clusters: cases wanted.
        scale: HR pixels per LR pixel.
        seed: of the draws; equal arguments give equal cases.
        on_draw: called after each draw.

    Raises:
        StudyError: more clusters are asked for than draws, or none, or an image is too small.
    """
    if not 1 <= clusters <= count_drawn:
        raise StudyError(
            f"{clusters} cases of {count_drawn} drawn degradations: needs at least 1 case, and as many draws"
        )
    crops = [_crop(image, scale) for image in images]
    drawn, described = [], []
    for number in range(count_drawn):
        parameters = draw_degradation(seed, _FIRST + number)
        drawn.append(parameters)
        described.append([features(degrade(crop, parameters, scale)) for crop in crops])
        if on_draw is not None:
            on_draw()
    points = _standardised(described)
    return [Case(medoid, members, drawn[medoid]) for medoid, members in medoids(points, clusters)]


def score_cases(
    networks: Mapping[str, Measured],
    images: ImageSet,
    cases: Sequence[Case],
    scale: int,
    metric: str,
    device: torch.device,
    *,
    on_image: Callable[[], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields `{case, image, network, value}` for every case's index, image and network; all see the same LR images.

    Args:
        networks: by name, on `device`.
        images: the set, of which HR is used.
        cases: degradations.
        scale: the networks' factor, and the border that is left out of the score, px.
        metric: what is computed, under `protocol_of(metric)`.
        device: where the networks are.
        on_image: called after each image of each case.

    Raises:
        MetricUnavailable: before anything runs.
        ValueError: an image is too small, before anything runs; or a network's output is not finite; names it.
    """
    scoring = torch.device("cpu") if device.type == "mps" else device  # Apple's GPUs have no float64
    require([metric], scoring)
    for index, image in enumerate(images.names):
        height, width = images.whole(index).shape[:2]
        if min(height, width) < SMALLEST_SIDE_PX * scale:
            least = SMALLEST_SIDE_PX * scale
            raise ValueError(f"{images.name}, image {image}: has {height} × {width} px, needs {least} px a side")
    for measured in networks.values():
        measured.network.eval()
    for number, case in enumerate(cases):
        for index, image in enumerate(images.names):
            hr = images.whole(index)
            height, width = (side - side % scale for side in hr.shape[:2])
            target = image_tensor(hr[:height, :width], scoring, torch.float64)
            lr = degrade(hr, case.parameters, scale)
            for name, measured in networks.items():
                try:
                    sr = enlarge(measured.network, lr, measured.settings, device, index).to(scoring)
                    value = score(metric, *prepare(sr, target, protocol_of(metric), scale))
                except ValueError as error:
                    raise ValueError(f"{images.name}, image {image}, degraded, by {name}: {error}") from error
                yield {"case": number, "image": image, "network": name, "value": value}
            if on_image is not None:
                on_image()


def protocol_of(metric: str) -> str:
    """The protocol that cases are scored under: the primary one, or `rgb` for metrics that take RGB images."""
    return "uint8_y" if metric in PER_PROTOCOL else "rgb"


def features(image: np.ndarray) -> dict[str, np.ndarray]:
    """What of an LR image shows its degradation, in four kinds; definitions ours.

    Args:
        image: (h, w, 3) uint8.

    Returns:
        By kind, one or more numbers.
        `gradient`: shares of pixels by gradient magnitude of the luma, in octaves.
        `high_band`: shares of pixels by local amplitude of what a 5-tap binomial filter takes off the luma, in octaves.
        `noise`: logarithm of the luma's noise level (Immerkær, 1996).
        `blockiness`: logarithm of the mean step across the borders of blocks of 8 px over that inside, for the luma.
    """
    luma = image @ np.array(_LUMA)
    down, across = np.diff(luma, axis=0)[:, :-1], np.diff(luma, axis=1)[:-1]
    high = luma - correlate1d(correlate1d(luma, _SMOOTH, axis=0, mode="mirror"), _SMOOTH, axis=1, mode="mirror")
    amplitude = np.sqrt(np.maximum(uniform_filter(high**2, 5, mode="mirror"), 0))  # running sums leave -1e-15
    return {
        "gradient": _shares(np.hypot(down, across), _GRADIENT_EDGES),
        "high_band": _shares(amplitude, _BAND_EDGES),
        "noise": np.log([_noise(luma) + 0.5]),
        "blockiness": np.array([_blockiness(luma)]),
    }


def _shares(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Shares of the values in the bins that the edges part; the outer ones are open."""
    return np.bincount(np.searchsorted(edges, values.ravel(), side="right"), minlength=len(edges) + 1) / values.size


def _noise(luma: np.ndarray) -> float:
    """Standard deviation of white noise on a smooth image, levels."""
    return float(np.sqrt(np.pi / 2) * np.abs(convolve(luma, _PLANE, mode="mirror")).mean())


def _blockiness(luma: np.ndarray) -> float:
    border, inside = [], []
    for steps in (np.abs(np.diff(luma, axis=0)), np.abs(np.diff(luma, axis=1)).T):
        on_border = np.arange(1, len(steps) + 1) % _BLOCK_PX == 0
        border.append(steps[on_border].mean())
        inside.append(steps[~on_border].mean())
    return float(np.log((np.mean(border) + 0.5) / (np.mean(inside) + 0.5)))


def _crop(image: np.ndarray, scale: int) -> np.ndarray:
    """The centre of an image, of `LR_SIDE_PX` LR pixels a side."""
    side = LR_SIDE_PX * scale
    height, width = image.shape[:2]
    if min(height, width) < side:
        raise StudyError(f"an image of {height} × {width} px: degradations are described on {side} × {side} px")
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _standardised(described: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> np.ndarray:
    """(draws, numbers): for each kind zero means, and variances that sum to one."""
    parts = []
    for kind in described[0][0]:
        values = np.array([np.mean([one[kind] for one in of_draw], axis=0) for of_draw in described])
        spread = values.std(axis=0)
        varied = spread > 1e-12
        parts.append(
            (values[:, varied] - values[:, varied].mean(axis=0)) / (spread[varied] * np.sqrt(max(varied.sum(), 1)))
        )
    return np.concatenate(parts, axis=1)


def medoids(points: np.ndarray, clusters: int) -> list[tuple[int, int]]:
    """Clusters `points` (n, numbers) by Ward's criterion; of each the medoid's index and how many members there are.

    The medoid is the member with the least summed distance to the others, the first of them where several have it.
    """
    labels = cut_tree(linkage(points, "ward"), n_clusters=clusters).ravel() if len(points) > 1 else np.zeros(1, int)
    found = []
    for label in range(clusters):
        (members,) = np.nonzero(labels == label)
        distances = cdist(points[members], points[members]).sum(axis=1)
        found.append((int(members[distances.argmin()]), len(members)))
    return sorted(found)
