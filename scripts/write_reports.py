"""Writes FINDINGS.md, the README's figure and reports/rendered/: python scripts/write_reports.py RESULTS [FOLDER].

Everything comes from the runs in RESULTS and from reports/findings.yaml; FOLDER is the repository when absent.
"""

import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError
from rich.progress import track

from study import StudyError
from study.analysis.findings import Page, write_findings
from study.analysis.report import build_report
from study.analysis.results import Results
from study.cli.options import stored_grid
from study.evaluation.complexity import multiply_adds
from study.grid.schema import Run

ROOT = Path(__file__).resolve().parents[1]
RATES = ROOT / "results" / "reference" / "bench" / "cpu-1-thread" / "bench.parquet"


def main(results: Path, out: Path = ROOT) -> None:
    """Writes a report of every grid that the page names, then the page."""
    page = Page.model_validate(yaml.safe_load((ROOT / "reports" / "findings.yaml").read_text(encoding="utf-8")))
    studies = {}
    for name, (grid, budget) in track(page.studies().items(), "reports"):
        path = Path("ablations") / f"{grid}.yaml"
        stored = stored_grid(ROOT / path, budget, results)
        folder = out / "reports" / "rendered" / name
        shutil.rmtree(folder, ignore_errors=True)  # a figure of yesterday's may not stay
        command = f"make reports, or study report {path}" + (f" --budget {budget}" if budget else "")
        build_report(*stored, results / "runs", folder, command)
        for figure in (folder / "figures").glob("*.svg"):  # the page holds them
            figure.unlink()
        studies[name] = Results(*stored)
    rates = pq.read_table(RATES, columns=["matrix_rate"]).to_pandas()["matrix_rate"]
    write_findings(page, studies, _forward, float(rates.median()), out)


def _forward(run: Run) -> int:
    """Multiply-adds of one training crop."""
    return multiply_adds(run, (run.data.lr_patch_px, run.data.lr_patch_px), products=True)


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:3]))
    except (StudyError, ValidationError) as error:
        raise SystemExit(f"reports: {error}") from None
