"""Whether a finished run's values can be had again from its weights, row by row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from study import StudyError
from study.evaluation.rows import evaluate, not_computed
from study.grid.models import External
from study.grid.schema import SCHEMA_VERSION, Run, Source
from study.models.external import placed
from study.records.index import finished
from study.records.provenance import changed_files, describe, differences
from study.records.schemas import METRIC_UNITS
from study.records.store import RecordError, read_json, read_table
from study.training.determinism import describe_machine, heed_request, request_determinism
from study.training.execution import NOT_COMPUTED, finished_network
from study.training.image_sets import ImageSets
from study.training.networks import choose_device
from study.training.placement import keep_freed_memory

KEY = ["dataset", "image", "protocol", "metric"]
TOLERANCE_DB = 0.01
TOLERANCE_RELATIVE = 1e-3  # of metrics that are not in dB
# what decides the last bits: of the record's `hardware` and `settings` by device, and packages
ALWAYS = ("hardware.accelerator", "settings.deterministic", "packages.torch", "packages.numpy", "packages.pyiqa")
ON_CPU = ("hardware.cpu", "hardware.cpu_instructions", "settings.threads")
ON_GPU = ("hardware.cuda", "hardware.cudnn", "settings.matmul_precision", "settings.tf32_matmul")
ON_GPU += ("settings.tf32_convolution", "settings.cudnn_deterministic", "settings.cudnn_benchmark")


@dataclass(frozen=True)
class Change:
    """Something that a run read or wrote, and that is another thing now.

    Attributes:
        what: a file of the run, or `evaluation.<dataset>`, `data.train`, `model.weights`.
        recorded: its SHA-256 when the run ended.
        found: its SHA-256 now, or `absent`.
    """

    what: str
    recorded: str
    found: str


@dataclass(frozen=True)
class Verification:
    """What came of it.

    Attributes:
        name: the run's id.
        changes: where there are any, nothing was computed.
        inexact: why equal bits are not to be expected; where there is no reason, they are.
        missing: metric -> why it cannot be computed here.
        notes: what else there is to say.
        rows: `KEY`, `recorded`, `found`, `difference`; see `compare_rows`.
    """

    name: str
    changes: tuple[Change, ...] = ()
    inexact: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rows: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*KEY, "recorded", "found", "difference"]))

    @property
    def disagreeing(self) -> pd.DataFrame:
        """The rows that differ beyond the tolerance, or that one side lacks."""
        within = self.rows["difference"] <= tolerances(self.rows, exact=not self.inexact)
        return self.rows.loc[~within]

    @property
    def agrees(self) -> bool:
        """Whether every recorded row was had again."""
        return not self.changes and self.disagreeing.empty


def read_record(folder: Path) -> tuple[Run, dict[str, Any], dict[str, Any]]:
    """A finished run's declaration, its `run.json` and its `provenance.json`.

    Raises:
        StudyError: it has not finished, or is not of this version.
    """
    if not finished(folder):
        raise StudyError(f"{folder} is not the folder of a finished run (it has no DONE, or a file that it lists)")
    path = folder / "run.json"
    body = read_json(path)
    if body.get("schema_version") != SCHEMA_VERSION:
        raise RecordError(f"{path} is of schema version {body.get('schema_version')}, this is {SCHEMA_VERSION}")
    try:
        return Run.model_validate(body["run"]), body, read_json(folder / "provenance.json")
    except (ValidationError, KeyError, TypeError) as error:
        raise RecordError(f"{path} does not describe a run: {error!r}") from None


def verify(
    folder: Path, images: ImageSets, cpu: bool, on_image: Callable[[str], None] = lambda _: None
) -> Verification:
    """Evaluates a finished run's stored weights again and compares every row with the recorded one.

    On a CPU it takes as many threads as the run had, since their number changes sums.

    Args:
        folder: the run's.
        images: where its image sets are found; the training images are not needed.
        cpu: keep off the GPU.
        on_image: called with the dataset at every image that is done.

    Raises:
        StudyError: the run has not finished, an image set is missing, or none of its metrics can be computed.
    """
    run, body, recorded = read_record(folder)
    changed = [*_changed_files(folder), *changed_data(run, body, images, evaluation_only=True)]
    if changed:
        return Verification(folder.name, tuple(changed))
    device = choose_device(cpu)
    adopt_settings(recorded, device)
    absent_then = _recorded_as_missing(folder)
    metrics = tuple(metric for metric in run.evaluation.metrics if metric not in absent_then)
    settings = run.evaluation.model_copy(update={"metrics": metrics})
    missing = not_computed(settings, device)
    network = finished_network(placed(run, images.root), folder, device)
    rows: list[dict[str, Any]] = []
    for name, source in settings.datasets.items():
        rows += evaluate(
            network, images[source], name, run.scale, settings, device, on_image=lambda _, name=name: on_image(name)
        )
    here = describe("", {}, describe_machine(device))
    notes = [] if changed_files(folder) is not None else ["no hashes of its files were recorded: they are not checked"]
    return Verification(
        folder.name,
        inexact=tuple(why_inexact(recorded, here, device)),
        missing=missing,
        notes=(*notes, *_code_changes(recorded, here)),
        rows=compare_rows(read_table(folder, "images"), pd.DataFrame(rows, columns=[*KEY, "value"])),
    )


def compare_rows(recorded: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Every row of two images tables side by side, with the absolute difference.

    The difference is 0 where both are the same bits, infinities and NaN among them; NaN where one side is absent.

    Raises:
        RecordError: a table has two values for one place.
    """
    for frame in (recorded, found):
        twice = frame.loc[frame.duplicated(KEY), KEY]
        if len(twice):
            raise RecordError(f"an images table has two values of {', '.join(map(str, twice.iloc[0]))}")
    one, other = (f.rename(columns={"value": n}) for f, n in ((recorded, "recorded"), (found, "found")))
    rows = one.reset_index(names="order").merge(other, on=KEY, how="outer", indicator=True)
    rows = rows.sort_values("order", kind="stable", ignore_index=True).drop(columns="order")  # a merge sorts by key
    a, b = rows["recorded"].to_numpy(float), rows["found"].to_numpy(float)
    both = (rows.pop("_merge") == "both").to_numpy()
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    difference = np.where(np.isnan(difference), np.inf, difference)  # a number here, and none there
    return rows.assign(difference=np.where(both, difference, np.nan))


def tolerances(rows: pd.DataFrame, *, exact: bool) -> pd.Series:
    """What each row of `compare_rows` may differ by: 0 if exact, else 0.01 dB, or 0.1% of what is not in dB."""
    if exact:
        return pd.Series(0.0, rows.index)
    decibel = np.array([METRIC_UNITS.get(metric) == "dB" for metric in rows["metric"]], bool)
    relative = TOLERANCE_RELATIVE * rows["recorded"].to_numpy(float)
    return pd.Series(np.where(decibel, TOLERANCE_DB, np.abs(relative)), rows.index)


def summarise(rows: pd.DataFrame, *, exact: bool) -> pd.DataFrame:
    """Per protocol and metric: `rows`, `equal`, `within` the tolerance, `largest` difference, `missing` on one side."""
    marked = rows.assign(
        rows=1,
        equal=rows["difference"] == 0,
        within=rows["difference"] <= tolerances(rows, exact=exact),
        missing=rows["difference"].isna(),
    )
    groups = marked.groupby(["protocol", "metric"], sort=False, as_index=False)
    return groups.agg(
        rows=("rows", "sum"),
        equal=("equal", "sum"),
        within=("within", "sum"),
        largest=("difference", "max"),
        missing=("missing", "sum"),
    )


def changed_data(run: Run, body: Mapping[str, Any], images: ImageSets, *, evaluation_only: bool) -> list[Change]:
    """What the run read and is not what it was; an image set that cannot be opened raises `DataError`.

    Args:
        run: the declaration.
        body: its `run.json`.
        images: the image sets as they are now.
        evaluation_only: leave out the training images.
    """
    named: dict[str, Source | External] = {f"evaluation.{n}": s for n, s in run.evaluation.datasets.items()}
    if "data" not in run.ineffective() and not evaluation_only:
        named["data.train"] = run.data.train
    if isinstance(run.model, External):
        named["model.weights"] = run.model
    recorded = body.get("data", {})
    found = {name: images.fingerprint(item) for name, item in named.items() if name in recorded}
    return [Change(name, recorded[name], now) for name, now in found.items() if recorded[name] != now]


def adopt_settings(recorded: Mapping[str, Any], device: torch.device) -> None:
    """Sets what the run had set and what costs nothing to set again: threads on a CPU, determinism."""
    settings = recorded.get("settings", {})
    if device.type == "cpu" and settings.get("threads"):
        torch.set_num_threads(settings["threads"])
    if settings.get("deterministic"):
        request_determinism()
    heed_request()
    keep_freed_memory()


def why_inexact(recorded: Mapping[str, Any], here: Mapping[str, Any], device: torch.device) -> list[str]:
    """Why a network's outputs here may differ in their last bits from those recorded: nothing on the same machine."""
    if "hardware" not in recorded:
        return ["the record does not say on which machine it was made"]
    keys = {*ALWAYS, *(ON_GPU if device.type == "cuda" else ON_CPU)}
    found = differences(recorded, here, ("hardware", "settings", "packages"))
    return [f"{key}: {then}, now {now}" for key, (then, now) in found.items() if key in keys]


def _changed_files(folder: Path) -> list[Change]:
    return [Change(name, *pair) for name, pair in (changed_files(folder) or {}).items()]


def _recorded_as_missing(folder: Path) -> set[str]:
    """Metrics that could not be computed when the run was evaluated, so that it has no rows of them."""
    return set(read_json(folder / NOT_COMPUTED)) if (folder / NOT_COMPUTED).exists() else set()


def _code_changes(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    if not differences(recorded, here, ("source_sha256",)):
        return []
    then, now = (f"commit {one.get('commit')}{' with changes' * bool(one.get('dirty'))}" for one in (recorded, here))
    return [f"the code is not what it was: {then}; now {now}"]
