"""How long a report of very many runs takes, and how much memory: a made-up results folder, and the command timed."""

import atexit
import hashlib
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from study import StudyError
from study.analysis.statistics import Array, bootstrap_interval
from study.analysis.tables import Column, Entry, Table
from study.grid.expand import load_plan
from study.grid.identity import inputs, run_id
from study.grid.plan import Cell, Plan
from study.grid.schema import SCHEMA_VERSION, Evaluation, Run
from study.records.provenance import describe
from study.records.schemas import TABLES
from study.records.store import replace, write_json, write_table

LIMIT_S, LIMIT_GIB = 30.0, 2.0
BOOTSTRAP_S, BOOTSTRAP_SEEDS, BOOTSTRAP_IMAGES = 0.2, 10, 100
REPEATS = 5
SEEDS = 10
LOGGED_EVERY = 10
_LEVELS_DB = {"uint8_y": 0.0, "matlab_y": -0.02, "clamped_y": 0.01, "float_y": 0.015, "rgb": -1.6}
_WATCHED = """
import runpy, sys
from study.analysis.scale import watch
watch(sys.argv.pop(1))
runpy.run_module("study", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Size:
    """How much a made-up study stores.

    Attributes:
        runs: trained runs, ten seeds each; a bicubic reference comes on top.
        datasets: image sets that each is evaluated on.
        images: in each of them.
        protocols: evaluation protocols of each image.
        metrics: of each image under each protocol.
        steps: optimiser steps of each run, with a row of the training curve every ten.
    """

    runs: int
    datasets: int
    images: int
    protocols: tuple[str, ...] = ("uint8_y",)
    metrics: tuple[str, ...] = ("psnr",)
    steps: int = 250_000

    @property
    def rows(self) -> int:
        """Per-image rows of the trained runs."""
        return self.runs * self.datasets * self.images * len(self.protocols) * len(self.metrics)


# What a published training stores: every protocol, both metrics.
PUBLISHED = {"protocols": Evaluation().protocols, "metrics": Evaluation().metrics}


def declare_study(size: Size, path: Path) -> Plan:
    """Writes the grid file of a study of this size, one variant for each ten runs, and returns its plan.

    Raises:
        StudyError: the runs are not a multiple of the seeds.
    """
    if size.runs < 2 * SEEDS or size.runs % SEEDS:
        raise StudyError(f"runs {size.runs}: a multiple of {SEEDS}, the seeds, and at least {2 * SEEDS}")
    sets = {f"Set{index:02d}": {"kind": "folder", "path": f"Set{index:02d}/HR"} for index in range(size.datasets)}
    evaluation = {"datasets": sets, "protocols": list(size.protocols), "metrics": list(size.metrics)}
    counts = [8 * (1 + index) for index in range(size.runs // SEEDS)]
    grid = {
        "question": "How long does a report of this many runs take?",
        "base": {"optimisation": {"steps": size.steps, "log_every": LOGGED_EVERY}, "evaluation": evaluation},
        "axes": {"model.prototypes.count": {str(count): [count] for count in counts}},
        "references": {"bicubic": {"model": {"kind": "bicubic"}}},
        "seeds": SEEDS,
        "analysis": {"baseline": "count=8", "curve": "model.prototypes.count"},
    }
    replace(path, yaml.safe_dump(grid, sort_keys=False).encode())
    return load_plan(path)


def write_study(plan: Plan, results: Path, size: Size, seed: int = 0, on_progress: Callable[[], Any] = int) -> None:
    """Writes every run of a plan as one that has finished: seeded values, the files of `records.store`.

    Only the first run of a cell has crops (no other's are read), and no weights are in the weights' file.
    """
    rng = np.random.default_rng(seed)
    levels = 27 + rng.normal(0, 3, (size.datasets, size.images))
    keys = _image_keys(size)
    provenance = describe("cpu, 1 threads; 1 processes", {})
    pictures = [_photograph(rng) for _ in range(size.datasets * plan.cells[0].runs[0].evaluation.samples)]
    for cell, run in plan.runs():
        fingerprints = {item: hashlib.sha256(repr(item).encode()).hexdigest() for item in inputs(run)}
        folder = results / "runs" / run_id(run, fingerprints)
        content = dict(zip(("data", "images"), fingerprints.values(), strict=False))
        body = {"schema_version": SCHEMA_VERSION, "run": run.model_dump(mode="json"), "data": content}
        write_json(folder / "run.json", body)
        write_json(folder / "provenance.json", {**provenance, "data": content})
        shift = 0.7 + 0.002 * plan.cells.index(cell) + rng.normal(0, 0.03) if run.trains else 0.0
        _write_images(folder, keys, size, levels + shift + run.trains * rng.normal(0, 0.05, levels.shape))
        write_table(folder, "costs", [dict(zip(("name", "value", "unit"), cost, strict=True)) for cost in _costs(run)])
        if run.trains:
            _write_curve(folder, size.steps, shift, rng)
            replace(folder / "weights.safetensors", (2).to_bytes(8, "little") + b"{}")
        if run is cell.runs[0]:
            _write_crops(folder / "samples", cell, run, pictures)
        files = ["run.json", "provenance.json", "images.parquet", "costs.parquet"]
        files += ["scalars.parquet", "weights.safetensors"] if run.trains else []
        steps = size.steps if run.trains else 0
        replace(folder / "DONE", "\n".join(files).encode())
        write_json(folder / "status.json", {"state": "done", "phase": "done", "step": steps, "steps": steps})
        on_progress()


def _image_keys(size: Size) -> dict[str, list[str]]:
    """The key columns of `images.parquet`, in the order in which a run is evaluated."""
    shape = [
        (f"Set{dataset:02d}", f"image_{image:04d}", protocol, metric)
        for dataset in range(size.datasets)
        for image in range(size.images)
        for protocol in size.protocols
        for metric in size.metrics
    ]
    return dict(zip(("dataset", "image", "protocol", "metric"), map(list, zip(*shape, strict=True)), strict=True))


def _write_images(folder: Path, keys: dict[str, list[str]], size: Size, psnr: Array) -> None:
    shown = psnr[..., None] + np.array([_LEVELS_DB[protocol] for protocol in size.protocols])
    values = np.stack([shown if metric == "psnr" else 0.9 + (shown - 27) / 100 for metric in size.metrics], axis=-1)
    _write_columns(folder, "images", {**keys, "value": values.ravel()})


def _write_curve(folder: Path, steps: int, shift: float, rng: np.random.Generator) -> None:
    """Loss, learning rate and gradient norm every ten steps, and ten validations."""
    at = np.arange(LOGGED_EVERY, steps + 1, LOGGED_EVERY)
    curves = {
        "loss": (0.02 + 0.06 * np.exp(-at / (steps / 5))) * np.exp(rng.normal(0, 0.05, len(at))),
        "learning_rate": np.where(at <= steps / 2, 2e-4, 1e-4),
        "gradient_norm": np.exp(rng.normal(-3, 0.3, len(at))),
    }
    validations = np.linspace(0, steps, 11)[1:].astype(int)
    columns = {
        "step": np.concatenate([np.repeat(at, len(curves)), validations]),
        "name": [*list(curves) * len(at), *["validation_psnr_y_db"] * len(validations)],
        "value": np.concatenate(
            [np.stack(list(curves.values()), 1).ravel(), 28 + shift * (1 - np.exp(-validations / steps))]
        ),
    }
    _write_columns(folder, "scalars", columns)


def _write_columns(folder: Path, name: str, columns: dict[str, Any]) -> None:
    """The bytes that `store.write_table` gives the same rows, without a dictionary for each of them."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=TABLES[name]), sink, compression="zstd", write_page_checksum=True)
    replace(folder / f"{name}.parquet", sink.getvalue())


def _costs(run: Run) -> list[tuple[str, float, str]]:
    own = [
        ("evaluation", 40.0, "s"),
        ("parameters", 5e5, "1"),
        ("multiply_adds_720p", 3e10, "1"),
        ("multiply_adds_products_720p", 4e10, "1"),
        ("activations_720p", 1.5e8, "1"),
        ("cost_lr_px", 256.0, "px"),
        ("inference_peak_memory", 4.5e8, "B"),
        ("latency_low_quartile", 24.0, "ms"),
        ("latency_median", 25.0 + run.seed / 10, "ms"),
        ("latency_high_quartile", 27.0, "ms"),
        ("throughput_batch", 4.0, "1"),
        ("throughput", 40.0, "Mpx/s"),
    ]
    training = [("training", 3600.0 + run.seed, "s"), ("training_validation", 30.0, "s")]
    training.append(("training_overhead", 2.0, "%"))
    return [*training, *own] if run.trains else own


def _photograph(rng: np.random.Generator, side: int = 128) -> np.ndarray:
    """(side, side, 3) uint8 with the spectrum of a photograph (amplitude falling as one over frequency)."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    amplitude = np.fft.rfft2(rng.normal(size=(side, side))) / np.maximum(frequency, 1 / side)
    amplitude[0, 0] = 0
    plane = np.fft.irfft2(amplitude, (side, side))
    grey = 128 + 45 * plane / plane.std()
    return np.clip(grey[..., None] + [0, 6, -9], 0, 255).astype(np.uint8)


def _write_crops(folder: Path, cell: Cell, run: Run, pictures: Sequence[np.ndarray]) -> None:
    """The crops of `samples/`: input, enlargement, output, truth and, of what was trained, a prototype map."""
    count = run.evaluation.samples
    entries = []
    for index, hr in enumerate(pictures):
        dataset, image = f"Set{index // count:02d}", f"image_{index % count:04d}"
        truth = Image.fromarray(hr)
        low = truth.resize((hr.shape[1] // run.scale, hr.shape[0] // run.scale), Image.Resampling.BICUBIC)
        blurred = low.resize(truth.size, Image.Resampling.BICUBIC)
        kept = {"lr": low, "bicubic": blurred, "sr": Image.blend(blurred, truth, 0.5) if run.trains else blurred}
        kept["hr"] = truth
        if run.trains:
            kept["map"] = low.convert("L").quantize(32)
        names: dict[str, str | None] = {"map": None}
        for kind, picture in kept.items():
            names[kind] = file = f"{dataset}_{image}_{kind}.png"
            sink = io.BytesIO()
            picture.save(sink, "PNG")
            replace(folder / file, sink.getvalue())
        entries.append({"dataset": dataset, "image": image, "scale": run.scale, **names})
    write_json(folder / "index.json", {"samples": entries})


def watch(path: str) -> None:
    """At the end of this process writes what it took: CPU seconds of all its threads, and its peak memory in bytes."""
    atexit.register(lambda: Path(path).write_text(json.dumps({"cpu_s": time.process_time(), "peak_b": _peak_b()})))


def _peak_b() -> int:
    """The most memory that was resident at once in this process.

    Where /proc is absent `getrusage` tells it; on Linux that would begin at the size of the process that started it.
    """
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Measurement:
    """What one thing took.

    Attributes:
        what: the thing.
        rows: per-image rows that it read.
        wall_s: seconds that passed.
        cpu_s: seconds of computing, over all threads.
        peak_b: most memory resident at once, bytes; NaN where it is not limited.
        page_b: size of the page, bytes; NaN where there is none.
        limit_s: the wall seconds that are allowed; NaN where there is no limit.
    """

    what: str
    rows: int
    wall_s: float
    cpu_s: float
    peak_b: float = np.nan
    page_b: float = np.nan
    limit_s: float = np.nan


def time_report(grid: Path, results: Path, rows: int) -> Measurement:
    """Runs `study report` over stored runs in a process of its own.

    Raises:
        StudyError: the command failed; the message holds its last words.
    """
    usage, out = results / "usage.json", results / "report"
    arguments = [str(usage), "report", str(grid), "--results", str(results), "--to", str(out)]
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _WATCHED, *arguments], capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - begun
    if done.returncode:
        raise StudyError(f"study report {grid} --results {results} failed: {done.stderr.strip()[-2000:]}")
    page_b = (out / "report.html").stat().st_size
    return Measurement("study report", rows, wall_s, page_b=page_b, limit_s=LIMIT_S, **json.loads(usage.read_text()))


def time_bootstrap() -> Measurement:
    """The two-level bootstrap of one comparison, 10,000 resamples; the median of several."""
    deltas = np.random.default_rng(0).normal(0.05, 0.1, (BOOTSTRAP_SEEDS, BOOTSTRAP_IMAGES))
    taken = []
    for _ in range(REPEATS):
        begun, computed = time.perf_counter(), time.process_time()
        bootstrap_interval(deltas, 0.05, 0)
        taken.append((time.perf_counter() - begun, time.process_time() - computed))
    wall_s, cpu_s = np.median(taken, axis=0)
    what = f"bootstrap of {BOOTSTRAP_SEEDS} × {BOOTSTRAP_IMAGES}"
    return Measurement(what, deltas.size, float(wall_s), float(cpu_s), limit_s=BOOTSTRAP_S)


def measure_report(size: Size, folder: Path, on_progress: Callable[[str], Any] = str) -> pd.DataFrame:
    """Writes a study of this size into an empty folder, and times its report and one bootstrap.

    Args:
        size: how much is stored.
        folder: where to; what is written stays.
        on_progress: told what is being done.

    Returns:
        A row for each `Measurement`, its attributes the columns.

    Raises:
        StudyError: the folder is not empty, or the report failed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StudyError(f"{folder} is not empty: the made-up runs must not lie among others")
    grid = folder / "scale.yaml"
    plan = declare_study(size, grid)
    total = sum(len(cell.runs) for cell in plan.cells)
    written = iter(range(1, total + 1))
    write_study(plan, folder / "results", size, on_progress=lambda: on_progress(f"run {next(written)} of {total}"))
    on_progress(f"study report of {size.rows:,} rows")
    return pd.DataFrame([asdict(one) for one in (time_report(grid, folder / "results", size.rows), time_bootstrap())])


def scale_table(measured: pd.DataFrame) -> Table:
    """What was measured beside what is allowed, a row for each measurement."""
    columns = (
        Column("what"),
        Column("values read", "", ",d"),
        Column("wall time", "s", ".3g"),
        Column("allowed", "s", "g"),
        Column("CPU time", "s", ".3g"),
        Column("peak memory", "GiB", ".2f"),
        Column("page", "MB", ".1f"),
    )
    rows = []
    for one in (Measurement(**row) for row in measured.to_dict("records")):  # type: ignore[arg-type]
        slow = one.wall_s > one.limit_s
        large = one.peak_b > LIMIT_GIB * 2**30
        rows.append(
            (
                one.what,
                int(one.rows),
                Entry(one.wall_s, tone="bad" if slow else "good"),
                one.limit_s,
                one.cpu_s,
                None if np.isnan(one.peak_b) else Entry(one.peak_b / 2**30, tone="bad" if large else "good"),
                None if np.isnan(one.page_b) else one.page_b / 1e6,
            )
        )
    note = f"Memory: resident, at most {LIMIT_GIB:g} GiB. CPU time: of all threads. Each report in a new process."
    return Table("scale", "Time and memory of a report of very many runs.", columns, tuple(rows), (note,))
