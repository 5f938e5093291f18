"""A checkpoint, measured without a grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress

from study import StudyError
from study.data.images import open_images
from study.evaluation.rows import evaluate, not_computed
from study.grid.schema import Bundled, Folder, Run, Source
from study.training.networks import Given, choose_device, open_network
from study.training.placement import keep_freed_memory


@dataclass(frozen=True)
class Checkpoint:
    """A network's values on image sets.

    Attributes:
        name: the kind, or the run's id.
        run: what it is, and what it was measured on.
        stored: whether it is a run that was trained here.
        rows: one per dataset, image, protocol and metric, with its `value`.
        missing: metric -> why it cannot be computed.
    """

    name: str
    run: Run
    stored: bool
    rows: pd.DataFrame
    missing: Mapping[str, str]

    def means(self) -> list[dict[str, Any]]:
        """`{dataset, protocol, metric, mean, n}`, one per combination, over images.

        Those of a metric that cannot be computed have mean None, n 0 and a `reason`.
        """
        groups = self.rows.groupby(["dataset", "protocol", "metric"], sort=False)["value"]
        means = groups.agg(["mean", "size"]).reset_index().rename(columns={"size": "n"}).to_dict("records")
        return means + [
            {"dataset": name, "protocol": "rgb", "metric": metric, "mean": None, "n": 0, "reason": reason}
            for name in self.run.evaluation.datasets
            for metric, reason in self.missing.items()
        ]


def evaluate_checkpoint(
    model: Given,
    scale: int | None,
    weights: Path | None,
    data: list[str | dict[str, Any]],
    settings: dict[str, Any],
    root: Path,
    cache: Path,
    cpu: bool,
    option: str = "--model",
) -> Checkpoint:
    """Measures a network on every image of some image sets.

    Args:
        model: a kind of the schema, a mapping with a `kind` and perhaps `weights`, or the folder of a finished run.
        scale: upscaling factor; the run's, or 4, when None.
        weights: weights file; None only for what needs none, or names its own.
        data: `bundled`, folders of HR images, or mappings of the schema's sources.
        settings: fields of `Evaluation` other than the datasets.
        root: folder that relative paths of images, and of weights named in `model`, start from.
        cache: folder for decoded images.
        cpu: keep off the GPU.
        option: what an error calls the network.

    Raises:
        StudyError: any argument is not what it should be; the message names it.
    """
    sources = dict(name_source(item) for item in data)
    keep_freed_memory()
    device = choose_device(cpu)
    opened = open_network(
        option, model, {**settings, "datasets": sources}, scale=scale, weights=weights, root=root, device=device
    )
    run, network = opened.run, opened.network
    missing = not_computed(run.evaluation, device)
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name, source in run.evaluation.datasets.items():
            images = open_images(source, root=root, cache=cache)
            task = progress.add_task(name, total=len(images))
            rows += evaluate(
                network, images, name, run.scale, run.evaluation, device, on_image=lambda _, t=task: progress.advance(t)
            )
    return Checkpoint(opened.name, run, opened.stored, pd.DataFrame(rows), missing)


def name_source(item: str | dict[str, Any]) -> tuple[str, Source]:
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
