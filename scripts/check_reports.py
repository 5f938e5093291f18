"""Are README.md, FINDINGS.md and reports/rendered/ what scripts/write_reports.py makes of the packed results?

python scripts/check_reports.py REBUILT compares every .md, .tex and .csv file below the folder with the repository's.
Text has to be equal, numbers of a CSV table to nine digits: another processor adds in another order. Figures and HTML
pages have to be there, and nothing else.
"""

import csv
import itertools
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def differs(one: Path, other: Path) -> str:
    """Why a file is not what it should be, or nothing."""
    if not other.is_file():
        return "is missing"
    if one.suffix not in (".md", ".tex", ".csv"):
        return ""
    texts = [path.read_text(encoding="utf-8") for path in (one, other)]
    if texts[0] == texts[1]:
        return ""
    if one.suffix != ".csv":
        lines = itertools.zip_longest(*(text.split("\n") for text in texts))
        number, (new, _) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
        return f"should end before line {number}" if new is None else f"line {number} should be: {new[:200]}"
    tables = [list(csv.reader(text.splitlines())) for text in texts]
    alike = [len(row) for row in tables[0]] == [len(row) for row in tables[1]]
    if alike and all(_equal(a, b) for rows in zip(*tables, strict=True) for a, b in zip(*rows, strict=True)):
        return ""
    return "has other numbers"


def _equal(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-9, abs_tol=1e-12)
    except ValueError:
        return False


def main(rebuilt: Path) -> None:
    """Exits with 1, naming what is out of date, unless everything is as it should be."""
    files = sorted(path.relative_to(rebuilt) for path in rebuilt.rglob("*") if path.is_file())
    old = {path: why for path in files if (why := differs(rebuilt / path, ROOT / path))}
    for report in {path.parent for path in files if path.name == "report.md"}:
        for path in sorted((ROOT / report).rglob("*")):
            if path.is_file() and not (rebuilt / path.relative_to(ROOT)).exists():
                old[path.relative_to(ROOT)] = "belongs to nothing"
    for path, why in old.items():
        print(f"{path} {why}")
    if old or not files:
        raise SystemExit(f"{len(old)} of {len(files)} files are out of date: `make reports` writes them")
    print(f"{len(files)} files are up to date")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
