"""A generative grid with drawn results: two stages, realism measures, metrics that lacked their weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from study.grid.schema import Run
from study.records.store import write_json
from tests.analysis.synthetic import Study, draw_study

GRID = """
question: Does distribution trajectory matching help consistency training, and adaptive matching on top?
base:
  scale: 4
  model: {kind: unet, width: 16, multipliers: [1, 1], blocks: 1, attention_width: 16, heads: 2}
  objective: {kind: consistency}
  optimisation: {steps: 2000, batch: 32}
  evaluation:
    datasets: {bundled: {kind: bundled, split: test}, Set5: {kind: folder, path: Set5/HR}}
    protocols: [uint8_y, rgb]
    metrics: [psnr, ssim, swd, spectral_slope, high_band, lpips, niqe, clipiqa]
variants:
  CT: {}
  CT + DTM: {start: CT, objective: {kind: trajectory}, optimisation.steps: 160}
  CT + DTM + AMD: {start: CT, objective: {kind: adaptive}, optimisation.steps: 160}
  CT at 4 steps: {start: CT, model.inference_steps: 4, optimisation.steps: 0}
references:
  bicubic: {model: {kind: bicubic}}
seeds: 3
analysis:
  baseline: CT
  comparisons: [["CT + DTM", CT], ["CT + DTM + AMD", "CT + DTM"]]
"""
REASON = "weights of LPIPS missing, put them at weights/lpips_vgg.pth"
EFFECTS = {"CT": -0.9, "CT + DTM": -1.2, "CT + DTM + AMD": -1.1, "CT at 4 steps": -1.5}
MEANS = {  # bicubic, and what every later cell is nearer to natural images by
    "swd": (5.2, -0.9),
    "spectral_slope": (-0.45, 0.12),
    "high_band": (-6.2, 1.7),
    "niqe": (7.9, -0.9),
    "clipiqa": (0.31, 0.07),
}


def draw_generative(folder: Path, text: str = GRID, effects: Mapping[str, float] | None = None) -> Study:
    """A finished grid: CT, CT with a second stage of two kinds, CT at four inference steps, bicubic."""
    study = draw_study(folder, text, effects or EFFECTS, images=6)
    rng = np.random.default_rng(3)
    images, scalars = [study.records.images], [study.records.scalars]
    for rank, cell in enumerate(study.plan.cells):
        for run in cell.runs:
            name = study.ids[cell.name, run.seed]
            places = study.records.images.query("run == @name and protocol == 'rgb' and metric == 'psnr'")
            images += _realism(places, rank if run.model.trained else None, rng)
            if run.trains:
                scalars.append(pd.DataFrame(_curves(name, run, rng)))
            (study.runs / name).mkdir(parents=True, exist_ok=True)
            write_json(study.runs / name / "not_computed.json", {"lpips": REASON})
    tables = {"images": pd.concat(images, ignore_index=True), "scalars": pd.concat(scalars, ignore_index=True)}
    study.records = replace(study.records, **tables)
    return study


def _realism(places: pd.DataFrame, rank: int | None, rng: np.random.Generator) -> list[pd.DataFrame]:
    """Rows of every measure of `MEANS` on the images of `places`."""
    steps = 0 if rank is None else 1 + 0.5 * rank
    seed = 0 if rank is None else rng.normal(0, 0.05)
    return [
        places.assign(metric=metric, value=start + gain * (steps + seed + rng.normal(0, 0.2, len(places))))
        for metric, (start, gain) in MEANS.items()
    ]


def _curves(name: str, run: Run, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What the objectives report beside the loss, at its steps."""
    rows = []
    for step in range(10, run.optimisation.steps + 1, 10):
        falling, noise = float(np.exp(-step / 100)), np.exp(rng.normal(0, 0.08, 8))
        values = {"consistency": 0.05 + 0.2 * falling, "grid_points": 4, "learning_rate": 5e-5, "gradient_norm": 0.4}
        if run.objective.kind in ("trajectory", "adaptive"):
            values |= {"consistency": 0.048, "matching": 0.3 + 0.4 * falling}
        if run.objective.kind == "trajectory":
            values["direction_norm"] = 0.02 + 0.02 * falling
        if run.objective.kind == "adaptive":
            values |= {"pull_norm": 0.05, "push_norm": 0.04 + 0.02 * falling, "clipped_share": 0.2 * falling}
            values |= {"advantage_std": 0.8, "forbidden_share": 0.5, "fake_loss": 0.09 - 0.03 * falling}
        drawn = zip(values, values.values(), rng.permutation(np.resize(noise, len(values))), strict=True)
        rows += [{"run": name, "step": step, "name": key, "value": value * factor} for key, value, factor in drawn]
    return rows
