"""Writes README.md, FINDINGS.md with docs/findings.md, their figures, and reports/rendered/.

python scripts/write_reports.py RESULTS [FOLDER]

Everything comes from the runs in RESULTS, results/reference/, reports/findings.yaml and reports/templates/; FOLDER is
the repository when absent. The demo's own report is not among them: it shows crops, which are not packed.
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
from study.analysis.readme import write_readme
from study.analysis.report import build_report
from study.analysis.results import Results
from study.analysis.words import Words
from study.cli.options import stored_grid
from study.grid.expand import load_plan
from study.training.bench import summarise
from study.training.estimate import estimate
from study.training.steps import sample_operations

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "results" / "reference"


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
    bench = pq.read_table(REFERENCE / "bench" / "cpu-1-thread" / "bench.parquet").to_pandas()
    words = Words(studies)
    write_findings(page, words, sample_operations, float(bench["matrix_rate"].median()), out)
    demo = Results(*stored_grid(ROOT / "ablations" / "quickstart.yaml", None, results))
    calibration = pq.read_table(REFERENCE / "calibration" / "calibration.parquet").to_pandas()
    summary = [words(text) for text in page.summary]
    write_readme(demo, studies[page.weights], calibration, summarise(bench), summary, _full_scale(page.full_scale), out)


def _full_scale(grids: list[str]) -> dict[str, dict[str, float]]:
    """Operations of every training of a grid without a budget, by the run's settings."""
    found: dict[str, dict[str, float]] = {}
    for grid in track(grids, "operations at full scale"):
        plan = load_plan(ROOT / "ablations" / f"{grid}.yaml")
        estimates = estimate(plan, root=ROOT, cpu=True, timed=False)
        found[grid] = {}
        for cell, run in plan.runs():
            work = estimates[cell.name].operations
            if work is None:
                raise StudyError(f"reports/findings.yaml: full_scale: the operations of {grid} are not known")
            if run.trains:
                found[grid][run.model_dump_json()] = work
    return found


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:3]))
    except (StudyError, ValidationError) as error:
        raise SystemExit(f"reports: {error}") from None
