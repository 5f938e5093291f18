"""A checkpoint, measured without a grid."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress

from study import StudyError
from study.data.images import open_images
from study.evaluation.rows import evaluate
from study.grid.messages import explain
from study.grid.models import Bicubic
from study.grid.schema import Bundled, Folder, Run, Source
from study.models import build
from study.models.external import placed
from study.models.weights import load_weights
from study.training.placement import keep_freed_memory


def evaluate_checkpoint(
    model: str | dict[str, Any],
    scale: int,
    weights: Path | None,
    data: list[str | dict[str, Any]],
    settings: dict[str, Any],
    root: Path,
    cache: Path,
    cpu: bool,
) -> list[dict[str, Any]]:
    """Means over images of every dataset, protocol and metric.

    Args:
        model: a kind of the schema, or a mapping with a `kind`.
        scale: upscaling factor.
        weights: weights file; None only for what needs none, or names its own.
        data: `bundled`, folders of HR images, or mappings of the schema's sources.
        settings: fields of `Evaluation` other than the datasets.
        root: folder that relative paths of images, and of weights named in `model`, start from.
        cache: folder for decoded images.
        cpu: keep off the GPU.

    Returns:
        `{dataset, protocol, metric, mean, n}`, one per combination.

    Raises:
        StudyError: any argument is not what it should be; the message names it.
    """
    sources = dict(_named(item) for item in data)
    tree = {"model": _with_weights({"kind": model} if isinstance(model, str) else model, weights), "scale": scale}
    try:
        run = Run.model_validate({**tree, "evaluation": {**settings, "datasets": sources, "samples": 0}})
    except ValidationError as error:
        names = {"model": "--model", "scale": "--scale", "evaluation": "option"}
        raise StudyError(
            explain(error, Run, lambda path: (names.get(str(path[0]), ""), ".".join(map(str, path[1:]))))
        ) from None
    if run.model.trained and weights is None:
        raise StudyError(f"--weights: {run.model.kind} is a trained network: name its checkpoint")
    if isinstance(run.model, Bicubic) and weights is not None:
        raise StudyError(f"--weights: {run.model.kind} has none to load")
    keep_freed_memory()
    network = build(placed(run, root))
    if run.model.trained and weights is not None:
        load_weights(network, weights)
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    network.to(device)
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name, source in run.evaluation.datasets.items():
            images = open_images(source, root=root, cache=cache)
            task = progress.add_task(name, total=len(images))
            rows += evaluate(
                network, images, name, scale, run.evaluation, device, on_image=lambda _, t=task: progress.advance(t)
            )
    return _means(pd.DataFrame(rows))


def _with_weights(model: dict[str, Any], weights: Path | None) -> dict[str, Any]:
    """The mapping of a model; that of an external one with the weights file, which is part of it."""
    if model.get("kind") != "external":
        return model
    if weights is not None and "weights" in model:
        raise StudyError(f"--weights: {weights}: --model names {model['weights']} already; keep one of them")
    if weights is None and "weights" not in model:
        raise StudyError("--weights: external is a trained network: name its checkpoint")
    return model if weights is None else {**model, "weights": str(weights.absolute())}


def _named(item: str | dict[str, Any]) -> tuple[str, Source]:
    """A source and the name it is reported under: that of the last folder which is not called HR."""
    if item == "bundled":
        return "bundled", Bundled(split="test")
    if isinstance(item, str):
        parts = [part for part in Path(item).parts if part.lower() not in ("hr", "/", ".", "..")]
        return _plain(parts[-1] if parts else "images"), Folder(path=item)
    try:
        source: Source = TypeAdapter(Source).validate_python(item)
    except ValidationError as error:
        raise StudyError(f"--data {item}: {error.errors()[0]['msg']}") from None
    named = item.get("hr") or item.get("path") or item.get("name") or source.kind
    return _plain(Path(str(named)).name), source


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in name)


def _means(rows: pd.DataFrame) -> list[dict[str, Any]]:
    means = rows.groupby(["dataset", "protocol", "metric"], sort=False)["value"].agg(["mean", "size"]).reset_index()
    return means.rename(columns={"size": "n"}).to_dict("records")
