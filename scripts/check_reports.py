"""Are the pages and figures what scripts/write_reports.py makes of the packed results?

python scripts/check_reports.py REBUILT compares every file below the folder with the repository's. Text has to be
equal, numbers of a CSV table and of an HTML page to nine digits: another processor adds in another order. A PNG that
the same version of matplotlib drew has to show the same; the figures of an HTML page are in these, too. PDFs have to
be there, and nothing else.
"""

import csv
import itertools
import math
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"(-?\d+\.\d+(?:e[-+]?\d+)?)")
FIGURES = re.compile(r"<svg.*?</svg>|data:[\w/+-]+;base64,[\w/+=]+", re.DOTALL)
GREY_LEVELS = 0.02  # on average: less than a mark that has moved


def differs(one: Path, other: Path) -> str:
    """Why a file is not what it should be, or nothing."""
    if not other.is_file():
        return "is missing"
    if one.suffix == ".png":
        return _pictures_differ(one, other)
    if one.suffix not in (".md", ".tex", ".csv", ".html"):
        return ""
    texts = [path.read_text(encoding="utf-8") for path in (one, other)]
    if texts[0] == texts[1]:
        return ""
    if one.suffix == ".csv":
        tables = [list(csv.reader(text.splitlines())) for text in texts]
        alike = [len(row) for row in tables[0]] == [len(row) for row in tables[1]]
        cells = (pair for rows in zip(*tables, strict=True) for pair in zip(*rows, strict=True)) if alike else ()
        return "" if alike and all(_equal(*pair) for pair in cells) else "has other numbers"
    if one.suffix == ".html":
        texts = [FIGURES.sub("", text) for text in texts]
    lines = enumerate(itertools.zip_longest(*(text.split("\n") for text in texts)), 1)
    first = next(((n, *pair) for n, pair in lines if not _same_line(*pair, exact=one.suffix != ".html")), None)
    if first is None:
        return ""
    number, new, _ = first
    return f"should end before line {number}" if new is None else f"line {number} should be: {new[:200]}"


def _same_line(one: str | None, other: str | None, *, exact: bool) -> bool:
    if one == other or exact or one is None or other is None:
        return one == other
    parts = [NUMBER.split(line) for line in (one, other)]
    return len(parts[0]) == len(parts[1]) and all(_equal(*pair) for pair in zip(*parts, strict=True))


def _pictures_differ(one: Path, other: Path) -> str:
    pictures, drawn_by = [], set()
    for path in (one, other):
        with Image.open(path) as image:
            pictures.append(np.asarray(image.convert("L"), float))
            drawn_by.add(image.info.get("Software"))
    if len(drawn_by) > 1:
        return ""
    if pictures[0].shape != pictures[1].shape:
        return f"should have {pictures[0].shape[1]} x {pictures[0].shape[0]} px"
    away = float(np.abs(pictures[0] - pictures[1]).mean())
    return f"differs by {away:.2g} grey levels on average" if away > GREY_LEVELS else ""


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
