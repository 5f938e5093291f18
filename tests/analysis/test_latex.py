"""The report's LaTeX in pdfLaTeX."""

import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest

from study.analysis.markup import escape_tex
from study.analysis.rendering import render

PDFLATEX = shutil.which("pdflatex")
pytestmark = pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex command: the LaTeX was not compiled")


def compile_tex(path: Path) -> tuple[int, list[float]]:
    """Pages of the PDF, and by how many points each line is too wide."""
    assert PDFLATEX is not None
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", path.name]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, check=False, timeout=300)
    log = path.with_suffix(".log").read_text(encoding="latin-1")
    assert done.returncode == 0, re.findall(r"^!.*(?:\n.*){5}", log, re.MULTILINE)
    pages = re.search(r"Output written on \S+ \((\d+) pages?", log.replace("\n", " "))
    assert pages
    return int(pages[1]), [float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)]


def test_hostile_names_compile_and_fit(hostile, tmp_path):
    folder = tmp_path / "report"
    shutil.copytree(hostile["report.tex"].parent, folder)
    pages, overfull = compile_tex(folder / "report.tex")
    assert pages > 5
    assert max(overfull, default=0) < 5


def test_every_letter_that_is_not_spelled_out_is_known(tmp_path):
    letters = [chr(code) for code in range(32, 0x3000) if "LATIN" in unicodedata.name(chr(code), "")]
    known = [letter for letter in letters if "U+" not in escape_tex(letter)]
    assert len(known) > 200
    ascii_ = "".join(map(chr, range(127)))
    page = {"answers": [], "counts": {}, "problems": [], "declared": {}, "codes": [], "changes": [], "sections": []}
    texts = {"title": ascii_, "question": " ".join(known), "command": "-- ``x'' \"y\" ,, <<z>> ?` !`"}
    path = tmp_path / "letters.tex"
    path.write_bytes(render("report", "tex", page | texts))
    compile_tex(path)
