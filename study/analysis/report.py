"""The report of a grid: one content, rendered as HTML, Markdown and LaTeX from the templates in reports/."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.style import context as style_context

from study.analysis.comparisons import Comparison, compare_declared
from study.analysis.pictures import Picture, writing_beside, writing_nothing
from study.analysis.provenance import training_codes
from study.analysis.rendering import FORMATS, find_style, render
from study.analysis.results import Results
from study.analysis.sections import Section, build_sections
from study.analysis.summaries import TONES
from study.analysis.tables import Table
from study.analysis.verdicts import VERDICTS, decide, describe
from study.grid.plan import Plan
from study.records.declaration import changes, declared
from study.records.store import Records, replace


@dataclass(frozen=True)
class Answer:
    """A declared comparison in words: its label, verdict, what that means, and the paragraph."""

    label: str
    verdict: str
    tone: str
    meaning: str
    text: str
    preliminary: bool


def build_report(
    plan: Plan,
    ids: Mapping[tuple[str, int], str],
    records: Records,
    statuses: Mapping[str, Mapping[str, Any]],
    runs: Path,
    out: Path,
    command: str,
) -> dict[str, Path]:
    """Writes report.html, report.md, report.tex, figures/ and tables/ into `out`, for a finished grid or not.

    Args:
        plan: the resolved grid.
        ids: (cell name, seed) -> run id.
        records: tables of the runs.
        statuses: run id -> {state, reason, traceback, step, steps}; a run without one is pending.
        runs: folder of the runs, for the crops and the provenance.
        out: where to write.
        command: what rebuilds the report.

    Returns:
        File name relative to `out` -> path.

    Raises:
        ReportError: where the templates or the style are absent.
        RecordError: where a stored file is broken.
    """
    style = find_style("report")
    results = Results(plan, ids, records, statuses)
    # Defaults first: neither a user's matplotlibrc nor an earlier figure may change the report's bytes.
    with mpl.rc_context(), style_context(["default", style]), _garbage_aside(), writing_beside() as start:
        comparisons = compare_declared(results)
        sections = build_sections(results, comparisons, runs, out / "figures")
        page = {
            "title": plan.name,
            "question": plan.grid.question,
            "answers": [_answer(comparison) for comparison in comparisons],
            "counts": results.counts(),
            "problems": _problems(results),
            "declared": declared(runs.parent, plan),
            "codes": training_codes(results, runs),
            "changes": changes(runs.parent, plan),
            "sections": sections,
            "command": command,
        }
        for kind in FORMATS:
            if kind != "html":  # which holds the figures, so that they must be there
                start(partial(_write_page, out, kind, page))
        files = {f"tables/{path.name}": path for path in _write_tables(sections, out / "tables")}
    _write_page(out, "html", page)
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                files |= {f"figures/{path.name}": path for path in block.paths.values()}
    return files | {f"report.{kind}": out / f"report.{kind}" for kind in FORMATS}


@contextmanager
def _garbage_aside() -> Iterator[None]:
    """What is there stays there: looking it through for garbage again and again is a tenth of a large report's time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _write_page(out: Path, kind: str, page: Mapping[str, Any]) -> None:
    replace(out / f"report.{kind}", render("report", kind, page))


def report_tables(
    plan: Plan,
    ids: Mapping[tuple[str, int], str],
    records: Records,
    statuses: Mapping[str, Mapping[str, Any]],
    runs: Path,
) -> list[Table]:
    """Every table of the report; arguments as in `build_report`. No figure is written."""
    results = Results(plan, ids, records, statuses)
    with mpl.rc_context(), style_context(["default", find_style("report")]), writing_nothing():
        sections = build_sections(results, compare_declared(results), runs, Path())
    return [block for section in sections for block in section.blocks if isinstance(block, Table)]


def _answer(comparison: Comparison) -> Answer:
    verdict = decide(comparison)
    preliminary = not comparison.complete and bool(comparison.deltas.values.size)
    tone = TONES.get(verdict, "warn")
    return Answer(comparison.label, verdict, tone, VERDICTS[verdict], describe(comparison), preliminary)


def _problems(results: Results) -> list[dict[str, str]]:
    """Runs that are not done, failures first, each with its reason."""
    rows = []
    for cell, seed, run in results.runs():
        state = results.state(run)
        if state != "done":
            status = results.statuses.get(run, {})
            reason, trace = status.get("reason") or "", status.get("traceback") or ""
            rows.append({"cell": cell.name, "seed": str(seed), "state": state, "reason": reason, "traceback": trace})
    return sorted(rows, key=lambda row: row["state"] != "failed")


def _write_tables(sections: list[Section], folder: Path) -> list[Path]:
    paths = []
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Table):
                paths.append(folder / f"{block.name}.csv")
                replace(paths[-1], block.to_csv().encode())
    return paths
