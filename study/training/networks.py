"""A network as the command line names it: a kind with its weights, or the folder of a finished run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from study import StudyError
from study.grid.messages import explain
from study.grid.models import Bicubic
from study.grid.schema import SCHEMA_VERSION, Run
from study.models import MODELS, build
from study.models.external import placed
from study.models.weights import load_weights
from study.records.store import RecordError, read_json
from study.training.checkpoints import WEIGHTS

Given = str | dict[str, Any]


@dataclass(frozen=True)
class NamedNetwork:
    """A network on its device.

    Attributes:
        name: for tables and figures: the kind, or the run's id.
        run: what it is and how it is evaluated.
        network: loaded.
        stored: whether it is a finished run's.
    """

    name: str
    run: Run
    network: nn.Module
    stored: bool


def choose_device(cpu: bool) -> torch.device:
    """The GPU where there is one and it is not to be kept off."""
    return torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")


def open_network(
    option: str,
    given: Given,
    evaluation: dict[str, Any],
    *,
    scale: int | None,
    weights: Path | None,
    root: Path,
    device: torch.device,
) -> NamedNetwork:
    """Builds a network and loads its weights.

    Args:
        option: what an error calls it, such as `--model`.
        given: a kind of the schema, a mapping with a `kind` and perhaps `weights`, or the folder of a finished run,
            whose tiling is kept.
        evaluation: fields of `Evaluation`.
        scale: upscaling factor; the run's, or 4, when None.
        weights: weights file, where `given` names none.
        root: folder that relative paths of weights named in a mapping start from.
        device: where it is put.

    Raises:
        StudyError: any argument is not what it should be; the message names it.
    """
    if stored := _is_folder(given):
        name, (tree, weights) = Path(str(given)).name, _finished(option, Path(str(given)), scale, weights)
    else:
        tree, weights = _declared(option, {"kind": given} if isinstance(given, str) else given, scale, weights, root)
        name = str(tree["model"].get("kind"))
    tree["evaluation"] = {**tree.get("evaluation", {}), **evaluation, "samples": 0}
    try:
        run = Run.model_validate(tree)
    except ValidationError as error:
        names = {"model": option, "scale": "--scale", "evaluation": "option"}
        raise StudyError(
            explain(error, Run, lambda path: (names.get(str(path[0]) if path else "", option), _key(path)))
        ) from None
    if stored and not run.model.trained:
        weights = None
    if run.model.trained and weights is None:
        if option == "--model":
            raise StudyError(f"--weights: {name} is a trained network: name its checkpoint")
        raise StudyError(f"{option}: {name} is a trained network: name its checkpoint, '{{kind: {name}, weights: …}}'")
    if isinstance(run.model, Bicubic) and weights is not None:
        raise StudyError(f"--weights: {name} has none to load")
    network = build(placed(run, root))
    if run.model.trained and weights is not None:
        load_weights(network, weights)
    return NamedNetwork(name, run, network.to(device), stored)


def _is_folder(given: Given) -> bool:
    return isinstance(given, str) and given not in MODELS and (Path(given).is_dir() or len(Path(given).parts) > 1)


def _key(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path[1:]))


def _declared(
    option: str, model: dict[str, Any], scale: int | None, weights: Path | None, root: Path
) -> tuple[dict[str, Any], Path | None]:
    """The tree of a run with that model, and its weights; those of an external one are part of the model."""
    if weights is not None and "weights" in model:
        raise StudyError(f"--weights: {weights}: {option} names {model['weights']} already; keep one of them")
    external = model.get("kind") == "external"
    if external and weights is not None:
        model, weights = {**model, "weights": str(weights.absolute())}, None
    elif external and "weights" not in model:
        raise StudyError(
            f"{'--weights' if option == '--model' else option}: external is a trained network: name its checkpoint"
        )
    elif not external and "weights" in model:
        weights = root / str(model["weights"])
        model = {key: value for key, value in model.items() if key != "weights"}
    tree = {"model": model, "scale": 4 if scale is None else scale}
    if model.get("kind") == "unet":
        tree["objective"] = {"kind": "consistency"}  # no other trains it; nothing is trained here
    return tree, weights


def _finished(option: str, folder: Path, scale: int | None, weights: Path | None) -> tuple[dict[str, Any], Path | None]:
    """The tree of a stored run, of its evaluation the tiling alone, and the place of its weights."""
    if weights is not None:
        raise StudyError(f"--weights: {weights}: {option} names the run {folder}, which has its own; keep one of them")
    if not (folder / "DONE").exists():
        raise StudyError(
            f"{option}: {folder} is not the folder of a finished run (it has no DONE); `study run` makes it"
        )
    path = folder / "run.json"
    body = read_json(path)
    if body.get("schema_version") != SCHEMA_VERSION:
        raise RecordError(f"{path} is of schema version {body.get('schema_version')}, this is {SCHEMA_VERSION}")
    try:
        tree = {key: value for key, value in body["run"].items() if key != "evaluation"}
        tiling = {key: body["run"]["evaluation"][key] for key in ("tile_lr_px", "overlap_lr_px")}
        trained_for = tree["scale"]
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} does not describe a run: {error!r}") from None
    if scale is not None and scale != trained_for:
        raise StudyError(f"{option}: {folder} is of scale {trained_for}, the scale asked for is {scale}")
    return {**tree, "evaluation": tiling}, folder / WEIGHTS
