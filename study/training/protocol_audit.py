"""The same trained weights under every protocol, and under every switch that changes an output without training."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from torch import nn

from study import StudyError
from study.data.images import ImageSet, open_images
from study.evaluation.metrics import require, score
from study.evaluation.protocols import PROTOCOLS, prepare
from study.evaluation.rows import enlarge, image_tensor
from study.grid.models import CATANet, Hard, Model
from study.grid.schema import Analysis, Evaluation
from study.models import build
from study.training.checkpoint_evaluation import name_source
from study.training.networks import Given, NamedNetwork, choose_device, open_network
from study.training.placement import keep_freed_memory

ROLES = ("model", "reference")
METRICS = ("psnr", "ssim")
DECLARED: str = Analysis.model_fields["protocol"].default
# The smallest multiple of 8 that the default overlap allows: the most seams that `study evaluate` can cut.
TILE_LR_PX = 72
PLAIN, ENSEMBLE, UNCROPPED, TILED = "plain", "self-ensemble", "border kept", f"tiles of {TILE_LR_PX} px"
_VIEWS = 8  # that a self-ensemble averages
_CPU = torch.device("cpu")


class _Scored(NamedTuple):
    """What is scored of an output: the name of the setting, and how the image is prepared."""

    setting: str
    protocol: str
    border_px: int


class _Pass(NamedTuple):
    """One output of a network for every image, and all that is scored of it."""

    network: nn.Module
    evaluation: Evaluation
    scored: tuple[_Scored, ...]

    def forwards(self) -> int:
        return _VIEWS if self.evaluation.self_ensemble else 1

    def tiled(self) -> bool:
        return self.scored[0].setting == TILED


def audit_networks(
    named: Mapping[str, Given],
    scale: int | None,
    weights: Path | None,
    data: Sequence[str | dict[str, Any]],
    root: Path,
    cache: Path,
    cpu: bool,
) -> pd.DataFrame:
    """PSNR and SSIM of every image under every setting; where only the protocol differs, one output is scored.

    `plain` and `self-ensemble` are scored under every protocol. All others differ from `plain` in one thing and are
    scored under the declared protocol: the border of `scale` px not cropped; tiles of 72 px, where an image is larger;
    and each switch of a CATANet that leaves its weights as they are (`blend`, `padding`, `tie_order`).

    Args:
        named: option such as `--model` -> the network, as `open_network` takes it; one, or a second as its reference.
        scale: upscaling factor; that of the first network's run, or 4, when None.
        weights: of the first network, where it does not name them itself.
        data: as `evaluate_checkpoint` takes them.
        root: folder that relative paths of images and weights start from.
        cache: folder for decoded images.
        cpu: keep off the GPU.

    Returns:
        `role` (of `ROLES`), `network` (its name), `dataset`, `image`, `setting`, `protocol`, `metric`, `value`.

    Raises:
        StudyError: any argument is not what it should be; the message names it.
    """
    sources = dict(name_source(item) for item in data)
    keep_freed_memory()
    device = choose_device(cpu)
    opened = {}
    for role, (option, given) in zip(ROLES, named.items(), strict=False):
        own = weights if role == ROLES[0] else None
        settings = {"datasets": sources}
        opened[role] = open_network(option, given, settings, scale=scale, weights=own, root=root, device=device)
        scale = opened[role].run.scale
    assert scale is not None
    require(METRICS, _CPU)
    passes = {role: _passes(one, device) for role, one in opened.items()}
    sets = {name: open_images(source, root=root, cache=cache) for name, source in sources.items()}
    rows = pd.DataFrame(_measure(opened, passes, sets, scale, device))
    return _without_untiled(rows, sets, scale)


def _measure(
    opened: Mapping[str, NamedNetwork],
    passes: Mapping[str, Sequence[_Pass]],
    sets: Mapping[str, ImageSet],
    scale: int,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        forwards = sum(one.forwards() for outputs in passes.values() for one in outputs)
        lr_pixels = sum(_pixels(images, index, scale) for images in sets.values() for index in range(len(images)))
        task = progress.add_task("", total=forwards * lr_pixels)
        for dataset, index, role in _in_turn(sets, passes):
            images, outputs = sets[dataset], passes[role]
            image = images.names[index]
            progress.update(task, description=escape(f"{dataset}, {image}"))
            head = {"role": role, "network": opened[role].name, "dataset": dataset, "image": image}
            try:
                for row in _score_image(outputs, *images.pair(index, scale), device, index):
                    yield {**head, **row}
            except ValueError as error:
                raise StudyError(f"{dataset}, image {image}: {error}") from error
            progress.advance(task, _pixels(images, index, scale) * sum(one.forwards() for one in outputs))


def _passes(opened: NamedNetwork, device: torch.device) -> list[_Pass]:
    """All outputs of one network, the plain one first."""
    scale, network = opened.run.scale, opened.network.eval()
    plain = opened.run.evaluation.model_copy(update={"self_ensemble": False})
    ensemble = plain.model_copy(update={"self_ensemble": True})
    scored = [_Scored(PLAIN, protocol, scale) for protocol in PROTOCOLS]
    found = [
        _Pass(network, plain, (*scored, _Scored(UNCROPPED, DECLARED, 0))),
        _Pass(network, ensemble, tuple(one._replace(setting=ENSEMBLE) for one in scored)),
    ]
    if plain.tile_lr_px > TILE_LR_PX:
        overlap = Evaluation.model_fields["overlap_lr_px"].default
        small = plain.model_copy(update={"tile_lr_px": TILE_LR_PX, "overlap_lr_px": overlap})
        found.append(_Pass(network, small, (_Scored(TILED, DECLARED, scale),)))
    for setting, model in switched(opened.run.model):
        other = build(opened.run.model_copy(update={"model": model}))
        other.load_state_dict(network.state_dict())
        found.append(_Pass(other.to(device).eval(), plain, (_Scored(setting, DECLARED, scale),)))
    return found


def switched(model: Model) -> Iterator[tuple[str, Model]]:
    """Every model with the same weights and one switch the other way, under a name such as `blend: averaged`."""
    if not isinstance(model, CATANet):
        return
    for value in _others(model, "blend"):
        yield f"blend: {value}", model.model_copy(update={"blend": value})
    if isinstance(hard := model.assignment, Hard):
        for name in ("padding", "tie_order"):
            for value in _others(hard, name) if name not in hard.ineffective() else ():
                yield f"{name}: {value}", model.model_copy(update={"assignment": hard.model_copy(update={name: value})})


def _others(declared: CATANet | Hard, name: str) -> list[str]:
    """What the switch `name` can be besides what it is."""
    values = get_args(type(declared).model_fields[name].annotation)
    return [value for value in values if value != getattr(declared, name)]


def _in_turn(sets: Mapping[str, ImageSet], roles: Iterable[str]) -> Iterator[tuple[str, int, str]]:
    """Networks take turns on each image, so that the time left is right though one of them is slower."""
    for dataset, images in sets.items():
        for index in range(len(images)):
            for role in roles:
                yield dataset, index, role


def _pixels(images: ImageSet, index: int, scale: int) -> int:
    height, width = images.pair(index, scale)[0].shape[:2]
    return height * width


def _score_image(
    passes: Sequence[_Pass], lr: np.ndarray, hr: np.ndarray, device: torch.device, index: int
) -> Iterator[dict[str, Any]]:
    """Scores on the CPU, in float64, as there is on every machine."""
    target = image_tensor(hr, _CPU, torch.float64)
    plain = None
    for one in passes:
        if plain is not None and one.tiled() and not _is_cut(lr):
            sr = plain
        else:
            sr = enlarge(one.network, lr, one.evaluation, device, index).to(_CPU)
        plain = sr if plain is None else plain
        for setting, protocol, border_px in one.scored:
            pair = prepare(sr, target, protocol, border_px)
            for metric in METRICS:
                value = score(metric, *pair)
                yield {"setting": setting, "protocol": protocol, "metric": metric, "value": value}


def _is_cut(lr: np.ndarray) -> bool:
    return max(lr.shape[:2]) > TILE_LR_PX


def _without_untiled(rows: pd.DataFrame, sets: Mapping[str, ImageSet], scale: int) -> pd.DataFrame:
    """Leaves tiles out of datasets in which no image is cut into any."""
    whole = [
        name
        for name, images in sets.items()
        if not any(_is_cut(images.pair(index, scale)[0]) for index in range(len(images)))
    ]
    return rows.drop(rows.index[rows.dataset.isin(whole) & (rows.setting == TILED)]).reset_index(drop=True)
