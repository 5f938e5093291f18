"""A grid with results drawn from a seeded two-way model: image difficulty, cell effect, seed effect, noise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from PIL import Image

from study.analysis.results import Results
from study.grid.expand import load_plan
from study.grid.plan import Plan
from study.records.store import Records, write_json

GRID = """
question: Does soft assignment help, and how many groups are needed?
base:
  scale: 2
  model: {kind: catanet, width: 24, blocks: 2, qk_width: 24, assignment: {kind: hard, group_sizes: [64]}}
  optimisation: {steps: 400, batch: 8}
  evaluation:
    datasets: {bundled: {kind: bundled, split: test}, Set5: {kind: folder, path: Set5/HR}}
    protocols: [uint8_y, matlab_y, float_y]
variants:
  hard: {}
  soft: {model.assignment: {kind: soft}}
axes:
  model.prototypes.count: {8: [8], 16: [16], 32: [32]}
references:
  bicubic: {model: {kind: bicubic}}
seeds: 2
analysis:
  baseline: hard, count=16
  comparisons:
    - ["soft, count=16", "hard, count=16"]
    - ["soft, count=32", "soft, count=16"]
    - ["hard, count=8", "hard, count=16"]
  curve: model.prototypes.count
"""
PROTOCOLS = {"uint8_y": 0.0, "matlab_y": -0.02, "clamped_y": 0.01, "float_y": 0.015, "rgb": -1.6}


@dataclass
class Study:
    """What `build_report` is given, and the folder of the runs."""

    plan: Plan
    ids: dict[tuple[str, int], str]
    records: Records
    statuses: dict[str, dict[str, Any]]
    runs: Path
    effects: Mapping[str, float] = field(default_factory=dict)


def declare(folder: Path, text: str = GRID) -> Plan:
    """The plan of a grid file with this text."""
    path = folder / "groups.yaml"
    path.write_text(text)
    return load_plan(path)


def draw_study(
    folder: Path,
    text: str = GRID,
    effects: Mapping[str, float] | None = None,
    images: int = 10,
    seed_noise_db: float = 0.03,
    image_noise_db: float = 0.05,
    seed: int = 0,
) -> Study:
    """A finished study: every run of the grid done, PSNR = 27 + difficulty + gain of the cell + seed + noise."""
    plan = declare(folder, text)
    rng = np.random.default_rng(seed)
    effects = effects or {}
    ids, rows, scalars, costs, statuses = {}, [], [], [], {}
    difficulty = {}
    for cell in plan.cells:
        for run in cell.runs:
            name = f"{run.model.kind}-{len(ids):02d}-s{run.seed}"
            ids[cell.name, run.seed] = name
            trained = run.model.trained
            steps = run.optimisation.steps if trained else 0
            statuses[name] = {"state": "done", "step": steps, "steps": steps}
            shift = effects.get(cell.name, 0.0) + (0.7 + rng.normal(0, seed_noise_db) if trained else 0.0)
            for dataset in run.evaluation.datasets:
                for index in range(images if dataset == next(iter(run.evaluation.datasets)) else 5):
                    key = (dataset, f"image_{index:02d}")
                    level = difficulty.setdefault(key, 27 + rng.normal(0, 3))
                    level += shift + (rng.normal(0, image_noise_db) if trained else 0.0)
                    for protocol in run.evaluation.protocols:
                        value = level + PROTOCOLS[protocol] * (1 + 0.2 * effects.get(cell.name, 0.0))
                        place = {"run": name, "dataset": dataset, "image": key[1], "protocol": protocol}
                        rows.append({**place, "metric": "psnr", "value": value})
                        rows.append({**place, "metric": "ssim", "value": 0.9 + (value - 27) / 100})
            if run.trains:
                scalars += _curve(name, steps, shift, rng)
                costs.append({"run": name, "name": "training", "value": 61.0 + rng.normal(), "unit": "s"})
            costs += [
                {"run": name, "name": key, "value": value, "unit": unit} for key, value, unit in _own(trained, rng)
            ]
    records = Records(images=pd.DataFrame(rows), scalars=pd.DataFrame(scalars), costs=pd.DataFrame(costs))
    return Study(plan, ids, records, statuses, folder / "runs", effects)


def _own(trained: bool, rng: np.random.Generator) -> list[tuple[str, float, str]]:
    """What `study.evaluation.complexity.measure_costs` says of a network."""
    latency = rng.uniform(20, 30) if trained else 1.0
    return [
        ("parameters", 61_234.0 * trained, "1"),
        ("multiply_adds_720p", 1.234e10 * trained, "1"),
        ("multiply_adds_products_720p", 2.1e10 * trained, "1"),
        ("activations_720p", 1.5e8 * trained, "1"),
        ("cost_lr_px", 64.0, "px"),
        ("inference_peak_memory", 4.5e6, "B"),
        ("latency_median", latency, "ms"),
        ("latency_low_quartile", 0.9 * latency, "ms"),
        ("latency_high_quartile", 1.2 * latency, "ms"),
        ("throughput_batch", 4.0, "1"),
        ("throughput", 16.384 / latency, "Mpx/s"),
    ]


def _curve(run: str, steps: int, shift: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for step in range(10, steps + 1, 10):
        loss = 0.02 + 0.06 * np.exp(-step / 80) * np.exp(rng.normal(0, 0.05))
        rows.append({"run": run, "step": step, "name": "loss", "value": loss})
        if step % 80 == 0:
            value = 28 + shift * (1 - np.exp(-step / 120))
            rows.append({"run": run, "step": step, "name": "validation_psnr_y_db", "value": value})
    return rows


def arrange(study: Study) -> Results:
    """The study as the analysis takes it."""
    return Results(study.plan, study.ids, study.records, study.statuses)


def points(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a drawn line."""
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def write_samples(
    study: Study, sources: Mapping[str, np.ndarray] | None = None, side: int = 32, scale: int = 2
) -> None:
    """Crops of one or more images in every run's samples/ folder, as `study.evaluation.samples` writes them."""
    rng = np.random.default_rng(1)
    sources = sources or {"image_00": rng.integers(0, 256, (side * scale, side * scale, 3), dtype=np.uint8)}
    for (cell, _), run in study.ids.items():
        folder = study.runs / run / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for image, hr in sources.items():
            low = Image.fromarray(hr).resize((side, side), Image.Resampling.BICUBIC)
            blurred = low.resize(hr.shape[1::-1], Image.Resampling.BICUBIC)
            pictures = {"lr": low, "bicubic": blurred, "sr": Image.blend(blurred, Image.fromarray(hr), 0.5)}
            pictures["hr"] = Image.fromarray(hr)
            if cell != "bicubic":
                grey = np.asarray(low.convert("L")).astype(int) // 16
                pictures["map"] = Image.fromarray(grey.astype(np.uint8))
            names: dict[str, str | None] = {"map": None}
            for kind, picture in pictures.items():
                names[kind] = f"bundled_{image}_{kind}.png"
                picture.save(folder / f"bundled_{image}_{kind}.png")
            entries.append({"dataset": "bundled", "image": image, "scale": scale, **names})
        write_json(folder / "index.json", {"samples": entries})


def write_provenance(study: Study, **changes: Any) -> None:
    """A provenance.json for every run; `changes` go into the first one."""
    for index, run in enumerate(study.ids.values()):
        body = {"commit": "0123abc", "dirty": False, "device": "cpu, 2 threads", "packages": {"torch": "2.15.0"}}
        (study.runs / run).mkdir(parents=True, exist_ok=True)
        write_json(study.runs / run / "provenance.json", body | (changes if index == 0 else {}))
