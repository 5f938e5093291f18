"""Accelerate's trackers (TensorBoard and others) beside the tables: a view of the curves, and never their record."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration

from study import StudyError
from study.grid.messages import nearest
from study.grid.schema import Run

FOLDER = "trackers"  # below the results, for those that write files; each run has a folder of its own there


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """The trackers that were asked for, once each.

    Raises:
        StudyError: Accelerate has none of that name, or its package is not installed.
    """
    known, installed = sorted(map(str, LOGGER_TYPE_TO_CLASS)), {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise StudyError(f"--log-with {name}: {nearest(name, known)}")
        if name not in installed:
            raise StudyError(f"--log-with {name}: its package is not installed (pip install {name})")
    return tuple(dict.fromkeys(names))


def tracking(names: Sequence[str], run: Path) -> dict[str, Any]:
    """What an `Accelerator` is given so that it can tell trackers of the run in this folder."""
    if not names:
        return {}
    folder = run.parents[1] / FOLDER
    return {"log_with": list(names), "project_config": ProjectConfiguration(str(folder), logging_dir=str(folder))}


@contextmanager
def tracked(accelerator: Accelerator, run_id: str, run: Run) -> Iterator[None]:
    """Trackers are told of the run's settings first and closed in the end."""
    if accelerator.log_with:
        accelerator.init_trackers(run_id, config=dict(_flat(run.model_dump(mode="json"))))
    try:
        yield
    finally:
        for tracker in accelerator.trackers:  # not `end_training`, which would end the process group too
            tracker.finish()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Dotted keys and plain values: trackers take no others."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else str(value)
