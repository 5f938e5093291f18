"""Writes FINDINGS.md and the README's figure from a results folder: python scripts/write_findings.py RESULTS."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from study.analysis.findings import Question, write_findings
from study.analysis.results import Results
from study.cli.options import stored_grid

ROOT = Path(__file__).resolve().parents[1]
RATES = ROOT / "results" / "reference" / "bench" / "cpu-1-thread" / "bench.parquet"


def main(results: Path) -> None:
    """Reads reports/findings.yaml, and the results of every grid that it names."""
    declared = yaml.safe_load((ROOT / "reports" / "findings.yaml").read_text(encoding="utf-8"))

    def stored(grid: str, budget: str | None) -> Results:
        return Results(*stored_grid(ROOT / "ablations" / f"{grid}.yaml", budget, results))

    questions = [Question.model_validate(item) for item in declared["questions"]]
    budget = declared["budget"]
    rates = pq.read_table(RATES, columns=["matrix_rate"]).to_pandas()["matrix_rate"]
    written = write_findings(
        [(question, stored(question.grid, budget)) for question in questions],
        stored(declared["weights"], None),
        stored(declared["lengths"], budget),
        float(rates.median()),
        ROOT,
    )
    print(*written, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
