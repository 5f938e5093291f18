"""Writes FINDINGS.md, the README's figure and reports/rendered/: python scripts/write_reports.py RESULTS [FOLDER].

Everything comes from the runs in RESULTS and from reports/findings.yaml; FOLDER is the repository when absent.
"""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from rich.progress import track

from study.analysis.findings import Page, write_findings
from study.analysis.report import build_report
from study.analysis.results import Results
from study.cli.options import stored_grid

ROOT = Path(__file__).resolve().parents[1]
RATES = ROOT / "results" / "reference" / "bench" / "cpu-1-thread" / "bench.parquet"


def main(results: Path, out: Path = ROOT) -> None:
    """Writes a report of every grid that the page names, then the page."""
    page = Page.model_validate(yaml.safe_load((ROOT / "reports" / "findings.yaml").read_text(encoding="utf-8")))
    studies = {}
    for grid, budget in track(page.grids().items(), "reports"):
        path = Path("ablations") / f"{grid}.yaml"
        stored = stored_grid(ROOT / path, budget, results)
        folder = out / "reports" / "rendered" / grid
        command = f"make reports, or study report {path}" + (f" --budget {budget}" if budget else "")
        build_report(*stored, results / "runs", folder, command)
        for figure in (folder / "figures").glob("*.svg"):  # the page holds them
            figure.unlink()
        studies[grid] = Results(*stored)
    rates = pq.read_table(RATES, columns=["matrix_rate"]).to_pandas()["matrix_rate"]
    write_findings(page, studies, float(rates.median()), out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
