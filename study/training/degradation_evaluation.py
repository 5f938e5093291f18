"""A network over the space of degradations, between an acceptance and an excellence line (`evaluation.seal`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import Progress

from study import StudyError
from study.data.images import open_images
from study.evaluation.metrics import require
from study.evaluation.seal import Case, Measured, protocol_of, score_cases, stored_cases
from study.grid.schema import Bundled
from study.training.checkpoint_evaluation import name_source
from study.training.networks import Given, choose_device, open_network
from study.training.placement import keep_freed_memory

ROLES = ("measured", "acceptance", "excellence")
# Colour photographs with texture, edges and smooth areas, always at hand: so the cases do not depend on the test set.
DESCRIBED = ("astronaut", "chelsea", "coffee")


@dataclass(frozen=True)
class CaseMeans:
    """What three networks score on every case.

    Attributes:
        metric: what was computed.
        protocol: on what of the images.
        path: file with the cases.
        cases: degradations.
        names: of the networks, in the order of `ROLES`.
        images: dataset -> how many images.
        values: means over images: `dataset`, `case` and a column for each of `ROLES`.
    """

    metric: str
    protocol: str
    path: Path
    cases: list[Case]
    names: tuple[str, str, str]
    images: dict[str, int]
    values: pd.DataFrame


def evaluate_cases(
    networks: dict[str, Given],
    scale: int | None,
    weights: Path | None,
    data: list[str | dict[str, Any]],
    metric: str,
    self_ensemble: bool,
    drawn: tuple[int, int],
    root: Path,
    cache: Path,
    cpu: bool,
) -> CaseMeans:
    """Scores three networks on representative degradations of every dataset.

    Args:
        networks: option such as `--model` -> the network, in the order of `ROLES`; see `open_network`.
        scale: upscaling factor; that of the measured network's run, or 4, when None.
        weights: of the measured network, where it does not name them itself.
        data: as `evaluate_checkpoint` takes them; HR is used alone.
        metric: what is computed.
        self_ensemble: average the eight flips and turns, of all three networks.
        drawn: degradations that are drawn, and cases that stand for them.
        root: folder that relative paths of images and weights start from.
        cache: folder for decoded images and, in `seal/`, the cases.
        cpu: keep off the GPU.

    Raises:
        StudyError: any argument is not what it should be; the message names it.
    """
    sources = dict(name_source(item) for item in data)
    keep_freed_memory()
    device = choose_device(cpu)
    evaluation = {"datasets": sources, "metrics": [metric], "self_ensemble": self_ensemble}
    opened = {}
    for role, (option, given) in zip(ROLES, networks.items(), strict=True):
        own = weights if role == ROLES[0] else None
        opened[role] = open_network(option, given, evaluation, scale=scale, weights=own, root=root, device=device)
        scale = opened[role].run.scale
    assert scale is not None
    require([metric], device)
    sets = {name: open_images(source, root=root, cache=cache) for name, source in sources.items()}
    rows: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bundled = open_images(Bundled(split="test"), root=root, cache=cache)
        described = [bundled.whole(bundled.names.index(name)) for name in DESCRIBED]
        drawing = progress.add_task("drawing degradations", total=drawn[0])
        path, cases = stored_cases(cache / "seal", described, *drawn, scale, on_draw=lambda: progress.advance(drawing))
        progress.remove_task(drawing)
        measured = {role: Measured(one.network, one.run.evaluation) for role, one in opened.items()}
        for name, images in sets.items():
            task = progress.add_task(name, total=len(cases) * len(images))
            scored = score_cases(
                measured, images, cases, scale, metric, device, on_image=lambda t=task: progress.advance(t)
            )
            try:
                rows += [{"dataset": name, **row} for row in scored]
            except ValueError as error:
                raise StudyError(str(error)) from error
    names = tuple(opened[role].name for role in ROLES)
    means = pd.DataFrame(rows).pivot_table("value", ["dataset", "case"], "network", sort=False)
    counts = {name: len(images) for name, images in sets.items()}
    return CaseMeans(metric, protocol_of(metric), path, cases, names, counts, means.reset_index())
