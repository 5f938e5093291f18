"""Writes results/reference/noise_floor/noise_floor.parquet from the finished runs of the grid beside it.

python scripts/write_noise_floor.py RESULTS
"""

import sys
from pathlib import Path

import pandas as pd

from study.grid.expand import load_plan
from study.records.index import finished
from study.records.location import locate
from study.records.store import read_table, write_table

FOLDER = Path(__file__).resolve().parents[1] / "results" / "reference" / "noise_floor"


def main(results: Path) -> None:
    """Collects the trained cell's per-image PSNR, of every seed."""
    plan = load_plan(FOLDER / "noise_floor.yaml")
    frames = []
    for (cell, seed), run in locate(results / "runs", plan).items():
        if cell == "bicubic":
            continue
        if not finished(results / "runs" / run):
            raise SystemExit(f"{cell}, seed {seed}: {results / 'runs' / run} is not finished")
        rows = read_table(results / "runs" / run, "images")
        kept = rows.query("metric == 'psnr' and protocol == 'uint8_y'")
        frames.append(kept.assign(seed=seed, psnr=kept["value"]).filter(["seed", "dataset", "image", "psnr"]))
    rows = pd.concat(frames).sort_values(["seed", "dataset", "image"])
    write_table(FOLDER, "noise_floor", rows.to_dict("records"))  # type: ignore[arg-type]
    print(f"{len(frames)} runs, {len(rows)} rows: {FOLDER / 'noise_floor.parquet'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
