"""Writes one of the tables that `study bench --calibration` draws from, out of finished runs.

python scripts/write_noise_floor.py noise_floor RESULTS: PSNR of every seed and image, of the grid that lies beside it.
python scripts/write_noise_floor.py differences RESULTS: CATANet less IMDN, two networks that have little in common, of
ablations/architectures.yaml at the reduced budget; `study unpack results/reference/study` makes such RESULTS.
"""

import sys
from pathlib import Path

import pandas as pd

from study.cli.options import stored_grid
from study.records.store import write_table

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "reference" / "noise_floor"
PLACE = ["seed", "dataset", "image"]


def psnr(grid: Path, budget: str | None, results: Path) -> pd.DataFrame:
    """Columns `cell`, `seed`, `dataset`, `image` and `psnr` of a grid's finished runs."""
    plan, ids, records, statuses = stored_grid(grid, budget, results)
    for cell, run in plan.runs():
        if statuses.get(ids.get((cell.name, run.seed), ""), {}).get("state") != "done":
            raise SystemExit(f"{grid}: {cell.name}, seed {run.seed} is not finished in {results}")
    rows = records.images.query("metric == 'psnr' and protocol == 'uint8_y'").astype({"run": str})
    places = pd.DataFrame([(run, cell, seed) for (cell, seed), run in ids.items()], columns=["run", "cell", "seed"])
    return rows.merge(places, on="run").rename(columns={"value": "psnr"})


def main(table: str, results: Path) -> None:
    """Writes the table into `FOLDER`."""
    if table == "noise_floor":
        every = psnr(FOLDER / "noise_floor.yaml", None, results)
        rows = every[every["cell"] != "bicubic"]
    else:
        every = psnr(ROOT / "ablations" / "architectures.yaml", "reduced", results)
        one, other = (every[every["cell"] == cell].set_index(PLACE)["psnr"] for cell in ("CATANet", "IMDN"))
        rows = pd.DataFrame({"difference": one - other}).reset_index().query("dataset == 'B100'")
    rows = pd.DataFrame(rows).filter([*PLACE, "psnr", "difference"]).sort_values(by=PLACE)
    write_table(FOLDER, table, rows.to_dict("records"))  # type: ignore[arg-type]
    print(f"{rows['seed'].nunique()} seeds, {len(rows)} rows: {FOLDER / table}.parquet")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
