"""One run from its declaration to its finished folder: train, evaluate, record."""

import functools
import gc
import os
import platform
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from pydantic import ValidationError
from torch import nn

from study import StudyError
from study.evaluation.complexity import measure_costs
from study.evaluation.rows import evaluate, not_computed
from study.evaluation.samples import save_crops
from study.evaluation.thumbnails import save_thumbnails
from study.grid.identity import specification
from study.grid.models import External
from study.grid.schema import SCHEMA_VERSION, Run, Source
from study.models import build
from study.models.external import placed
from study.models.weights import load_weights
from study.records.provenance import describe, keep, write_digests
from study.records.store import RecordError, read_json, read_table, replace, write_json, write_table
from study.training.checkpoints import STATE, WEIGHTS
from study.training.determinism import describe_machine, heed_request
from study.training.image_sets import ImageSets
from study.training.steps import refuse_half
from study.training.trackers import tracked, tracking
from study.training.trainer import Interrupted, Trainer

MIXED = {"fp32": "no", "fp64": "no", "bf16": "bf16", "fp16": "fp16"}
WRITE_STATUS_EVERY_S = 0.5
NOT_COMPUTED = "not_computed.json"


class Status:
    """A run's `status.json`, written at most twice a second while it runs."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.path = folder / "status.json"
        try:
            self.body: dict[str, Any] = {"attempt": 0, **read_json(self.path)}
        except (RecordError, TypeError):  # never begun, or torn
            self.body = {"attempt": 0}
        steps = run.optimisation.steps if run.trains else 0
        self.body |= {"steps": steps, "attempt": self.body.get("attempt", 0) + 1}
        self.body |= {"host": platform.node(), "process": os.getpid()}
        for stale in ("reason", "traceback"):
            self.body.pop(stale, None)
        self._written = 0.0

    def failed(self) -> bool:
        """Whether another process has written that this very attempt failed."""
        try:
            there = read_json(self.path)
        except (RecordError, TypeError):
            return False
        return there.get("state") == "failed" and there.get("attempt") == self.body["attempt"]

    def update(self, **values: Any) -> None:
        """Notes progress; writes it when the last writing is some time ago."""
        self.body |= values
        if time.monotonic() - self._written >= WRITE_STATUS_EVERY_S:
            self.write()

    def write(self, **values: Any) -> None:
        """Notes a change of state and writes it at once."""
        self.body |= values
        write_json(self.path, self.body)
        self._written = time.monotonic()


@dataclass(frozen=True)
class Machine:
    """What a launch gives each run.

    Attributes:
        images: the image sets.
        cpu: keep off the accelerator even where there is one.
        workers: processes that prepare samples.
        stop: asked whether to save and stop.
        trackers: names of Accelerate's trackers that are told of the curves too.
        lost: asked before results are written whether another process has taken the run over meanwhile.
    """

    images: ImageSets
    cpu: bool
    workers: int
    stop: Callable[[], bool]
    trackers: tuple[str, ...] = ()
    lost: Callable[[], bool] = lambda: False

    def keep_out(self) -> None:
        """Raises `Interrupted` where the run is another process's by now, whose files must stay as they are."""
        if self.lost():
            raise Interrupted("taken over by another process")

    def accelerate(self, run: Run, folder: Path) -> Accelerator:
        """A fresh accelerator at the run's precision; the process group, where there is one, stays.

        Raises:
            StudyError: the device does not have that precision (Accelerate would use another without a word), or the
                launcher asks for what would change the training.
        """
        heed_request()
        _refuse_launcher_settings()
        AcceleratorState._reset_state()
        os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)  # the run alone says how it accumulates
        accelerator = Accelerator(
            mixed_precision=MIXED[run.optimisation.precision], cpu=self.cpu, **tracking(self.trackers, folder)
        )
        refuse_half(run.optimisation, accelerator.device)
        return accelerator


def _refuse_launcher_settings() -> None:
    """Keeps out what `accelerate launch` or a user's default_config.yaml sets and a run's id does not know."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO_")]:
        del os.environ[name]  # `optimisation.compile` says whether
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("1", "true", "yes"):
            raise StudyError(f"the launcher asks for {name}, which runs here do not have: leave it out of its settings")


def execute(run: Run, folder: Path, machine: Machine, status: Status) -> None:
    """Trains, evaluates and records one run in its folder; `DONE` is written last.

    Raises:
        Diverged: see `Trainer.fit`.
        Interrupted: the machine's `stop` said so, in training or between images; what was trained is kept.
        RecordError: the folder holds another run.
    """
    torch.backends.cudnn.allow_tf32 = False  # fp32 is what is declared, and what matrix products have by default
    accelerator = machine.accelerate(run, folder)
    first = accelerator.is_main_process
    fingerprints = machine.images.fingerprints(run)
    if first:
        _declare(run, folder, fingerprints, accelerator)
    missing = not_computed(run.evaluation, accelerator.device)  # refused before training where nothing can be
    for reason in missing.values() if first else ():
        _say_once(reason)
    costs: list[tuple[str, float, str]] = []
    trained = [
        all((folder / name).exists() for name in (WEIGHTS, "scalars.parquet", "costs.parquet"))
        and not (folder / STATE).exists()
    ]
    broadcast_object_list(trained)  # over NFS another machine may see the folder as it was
    if run.trains and trained[0]:
        costs += _training_costs(folder)  # finished before, and evaluated anew
    elif run.trains:
        costs += _train(run, folder, machine, accelerator, status if first else None)
    elif run.model.trained and first:
        _adopt(_start(run, folder, machine), folder)
    accelerator.wait_for_everyone()
    stopped: list[str | None] = [None]
    if first:
        try:
            _conclude(run, folder, machine, accelerator, status, costs)
        except Interrupted as error:
            stopped = [str(error)]
    broadcast_object_list(stopped)  # the others wait here, and stop when the first does
    if stopped[0] is not None:
        raise Interrupted(stopped[0])


def _declare(run: Run, folder: Path, fingerprints: Mapping[str, str], accelerator: Accelerator) -> None:
    """Writes what is about to run, or checks that the folder already says the same."""
    path = folder / "run.json"
    if path.exists():
        content: Mapping[Source | External, str] = defaultdict(str)  # is in the folder's name; files may have moved
        try:
            stored = Run.model_validate(read_json(path)["run"])
            same = specification(stored, content) == specification(run, content)
        except (ValidationError, KeyError, TypeError):
            same = False
        if not same:
            raise RecordError(f"{path} describes another run than {folder.name}; move the folder away")
    body = {"schema_version": SCHEMA_VERSION, "run": run.model_dump(mode="json"), "data": dict(fingerprints)}
    write_json(path, body)
    device = accelerator.device
    words = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    processes = accelerator.num_processes
    record = describe(f"{words}; {processes} processes", dict(fingerprints), describe_machine(device, processes))
    _refuse_other_code(folder, record)
    keep(folder / "provenance.json", record)


def _refuse_other_code(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises `RecordError` where another version of the code has trained what this one would go on with."""
    if not (folder / STATE).exists() or (folder / WEIGHTS).exists():  # with the weights its training has ended
        return
    try:
        before = read_json(folder / "provenance.json")
    except RecordError:  # torn: nothing tells
        return
    key = "training_sha256"
    if before.get(key) and before[key] != record[key]:
        was, here = (f"commit {str(one.get('commit'))[:10]}, training code {one[key][:10]}" for one in (before, record))
        raise RecordError(
            f"{folder}: half trained by another version of the code ({was}); this is {here}. Check that one out to go "
            "on, or remove the folder to train it anew"
        )


def _train(
    run: Run, folder: Path, machine: Machine, accelerator: Accelerator, status: Status | None
) -> list[tuple[str, float, str]]:
    if accelerator.device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(accelerator.device)
        held = torch.cuda.memory_allocated(accelerator.device)  # by networks of metrics
    else:
        held = 0
    trainer = Trainer(
        run,
        machine.images[run.data.train],
        machine.images[next(iter(run.evaluation.datasets.values()))],
        folder,
        accelerator,
        workers=machine.workers,
        on_progress=status.update if status else lambda **_: None,
        stop=machine.stop,
        keep_out=machine.keep_out,
        start=_start(run, folder, machine),
    )
    if status:
        status.write(state="running", phase="training", step=trainer.step)
    with tracked(accelerator, folder.name, run):
        seconds = trainer.fit()
    overhead = 100 * (1 - seconds["core"] / max(seconds["training"] - seconds["validation"], 1e-9))
    costs = [
        ("training_images", len(trainer.patches.kept), "images"),
        ("training", seconds["training"], "s"),
        ("training_validation", seconds["validation"], "s"),
        ("training_overhead", overhead if accelerator.device.type == "cpu" else float("nan"), "%"),
    ]
    if accelerator.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(accelerator.device) - held
        costs.append(("training_peak_memory", float(peak), "B"))
        accelerator.free_memory()  # it would hold the network and the optimiser's moments while the run is evaluated
    return costs


def _training_costs(folder: Path) -> list[tuple[str, float, str]]:
    """What was recorded of a training that has ended."""
    rows = read_table(folder, "costs")
    rows = rows.loc[rows["name"].str.startswith("training")]
    return [(str(name), float(value), str(unit)) for name, value, unit in rows.itertuples(index=False)]


def lacks_no_longer(run: Run, folder: Path, device: torch.device) -> bool:
    """Whether a metric that a finished run could not compute can be computed by now."""
    try:
        missing = read_json(folder / NOT_COMPUTED)
    except RecordError:
        return False
    return bool(missing.keys() - not_computed(run.evaluation, device).keys())


def _start(run: Run, folder: Path, machine: Machine) -> Path | None:
    """The weights that the run begins from: those of the run it names, which lies beside it."""
    if run.start is None:
        return None
    assert isinstance(run.start, Run)  # ids were settled when the plan was made
    return folder.parent / machine.images.identify(run.start) / WEIGHTS


def _adopt(weights: Path | None, folder: Path) -> None:
    """Takes over the start's network, for a run that only evaluates."""
    assert weights is not None
    replace(folder / WEIGHTS, weights.read_bytes())
    write_table(folder, "scalars", [])


def _conclude(
    run: Run,
    folder: Path,
    machine: Machine,
    accelerator: Accelerator,
    status: Status,
    costs: list[tuple[str, float, str]],
) -> None:
    """Evaluates, and records that the run is done."""
    status.write(state="running", phase="evaluating")
    for source in run.evaluation.datasets.values():
        save_thumbnails(machine.images[source], folder.parents[1] / "thumbnails")
    network = finished_network(placed(run, machine.images.root), folder, accelerator.device)
    costs += _evaluate(run, network, folder, machine, accelerator, status)
    costs += measure_costs(network, run.scale, run.evaluation.cost_lr_px, accelerator.device)
    write_table(folder, "costs", [dict(zip(("name", "value", "unit"), cost, strict=True)) for cost in costs])
    files = ["run.json", "provenance.json", "images.parquet", "costs.parquet"]
    files += ["scalars.parquet", WEIGHTS] if run.model.trained else []
    write_digests(folder, files)
    replace(folder / "DONE", "\n".join(files).encode())
    status.write(state="done", phase="done")
    shutil.rmtree(folder / STATE.parent, ignore_errors=True)


def finished_network(run: Run, folder: Path, device: torch.device) -> nn.Module:
    """The network that is evaluated: built anew and loaded from the file that stays, without wrappers or autocast."""
    network = build(run)
    if run.model.trained:
        load_weights(network, folder / WEIGHTS)
    return network.to(device).eval()


def _evaluate(
    run: Run, network: nn.Module, folder: Path, machine: Machine, accelerator: Accelerator, status: Status
) -> list[tuple[str, float, str]]:
    begun = time.perf_counter()
    images = machine.images
    rows: list[dict[str, Any]] = []
    for name, source in run.evaluation.datasets.items():
        done = 0
        _heed(machine)

        def on_image(_: str, name: str = name, total: int = len(images[source])) -> None:
            nonlocal done
            done += 1
            status.update(evaluating=f"{name} {done}/{total}")
            if done < total:
                _heed(machine)

        rows += evaluate(
            network, images[source], name, run.scale, run.evaluation, accelerator.device, on_image=on_image
        )
        save_crops(network, images[source], name, run.scale, run.evaluation, accelerator.device, folder / "samples")
    machine.keep_out()
    (folder / "DONE").unlink(missing_ok=True)  # of an evaluation before, whose rows counted until now
    write_table(folder, "images", rows)
    missing, path = not_computed(run.evaluation, accelerator.device), folder / NOT_COMPUTED
    if missing:
        write_json(path, missing)
    else:
        path.unlink(missing_ok=True)
    return [("evaluation", time.perf_counter() - begun, "s")]


@functools.cache
def _say_once(reason: str) -> None:
    """Prints a line on standard error, however many runs it is true of."""
    print(reason, file=sys.stderr)


def _heed(machine: Machine) -> None:
    if machine.stop():
        raise Interrupted("stopped while evaluating; the same command evaluates the trained network")
