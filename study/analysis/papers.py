"""A paper's tables regenerated: published numbers, what our runs measured, and whether the one reproduces the other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from study.analysis.archive import Archive, Source, sources
from study.analysis.published import IMAGES, Cited, contradictions, legend, load_published, select
from study.analysis.rendering import FORMATS, find_style, render
from study.analysis.reproduction import TOLERANCES, TONES, Reproduction, reproduce
from study.analysis.results import Measure
from study.analysis.tables import Column, Entry, Table, Value
from study.analysis.verdicts import signed
from study.grid.papers import Paper, PaperTable, Row, load_paper
from study.grid.schema import Run
from study.records.store import replace

PARAMETERS = "parameters_k"
ANSWERS = {"reproduced": "yes", "not reproduced": "no", "inconclusive": "open", "not comparable": "not comparable"}


@dataclass(frozen=True)
class PaperCell:
    """One number of a table: where it stands, what measured it, and the comparison.

    `contradicted` where the published number cannot be right beside its neighbours.
    """

    row: Row
    scale: int
    dataset: str
    metric: str
    protocol: str
    source: Source
    result: Reproduction
    contradicted: bool = False


def paper_cells(
    paper: Paper, table: PaperTable, archive: Archive, numbers: Sequence[Cited], scale: int
) -> list[PaperCell]:
    """Every number of a table at a scale; a row that two sources measure has its numbers twice."""
    flagged = contradictions(numbers)
    cells = []
    for row in table.rows:
        expected = paper.expected(row, scale)
        printed = {"paper": row.paper or paper.paper, "table": row.table or table.table, "method": row.method}
        cited = select(numbers, **printed, steps=row.steps, scale=scale)
        for source in sources(archive, row, scale, expected):
            for dataset, metric in _places(table):
                one = next((c for c in cited if (c.dataset, c.metric) == (dataset, metric)), None)
                protocol = _protocol(table, one, metric)
                result = (
                    _parameters(archive, source, expected, one)
                    if metric == PARAMETERS
                    else _measured(paper, table, archive, source, one, (dataset, protocol, metric))
                )
                if one in flagged:
                    result = Reproduction(one, result.mean, verdict="not comparable", reason=flagged[one])
                cells.append(PaperCell(row, scale, dataset, metric, protocol, source, result, one in flagged))
    return cells


def _places(table: PaperTable) -> list[tuple[str, str]]:
    own = [("", PARAMETERS)] if PARAMETERS in table.metrics else []
    return own + [(dataset, metric) for dataset in table.datasets for metric in table.metrics if metric != PARAMETERS]


def _protocol(table: PaperTable, cited: Cited | None, metric: str) -> str:
    if metric not in ("psnr", "ssim"):
        return "" if metric == PARAMETERS else "rgb"
    return cited.protocol if cited and cited.protocol != "unknown" else table.protocol


def _parameters(archive: Archive, source: Source, expected: Run | None, cited: Cited | None) -> Reproduction:
    """Counted in any run of the network: they do not depend on its training."""
    runs = archive.of_network(expected) if expected is not None and source.trained else list(source.runs)
    count = archive.parameters(runs)
    means = np.array([count]) if np.isfinite(count) else np.empty(0)
    return reproduce(means, cited, trained=False, problem=source.problem if not len(means) else "")


def _measured(
    paper: Paper, table: PaperTable, archive: Archive, source: Source, cited: Cited | None, place: tuple[str, str, str]
) -> Reproduction:
    dataset, protocol, metric = place
    stored = table.stored.get(dataset, dataset)
    means, images = archive.means(source.runs, stored, protocol, metric)
    problem = source.problem
    if source.runs and not len(means):
        problem = f"not run: no {metric} on {stored} under {protocol} is stored"
    elif len(means) and images != IMAGES.get(dataset, images):
        problem = f"another image set: {images} images, {dataset} has {IMAGES[dataset]}"
    tolerance = paper.tolerances.get(metric, TOLERANCES.get(metric))
    return reproduce(means, cited, trained=source.trained, problem=problem, tolerance=tolerance)


def paper_table(table: PaperTable, scale: int, cells: Sequence[PaperCell]) -> Table:
    """A printed table beside our numbers: for each method a published line and, where measured, two more.

    Bold and underlined are the best and second among the published lines, and among the measured ones.
    """
    places = _places(table)
    columns = [Column("method"), Column("numbers")]
    for dataset, metric in places:
        digits = max((c.result.cited.digits for c in cells if c.metric == metric and c.result.cited), default=2)
        if metric == PARAMETERS:
            columns.append(Column("parameters", "K", f",.{digits}f"))
        else:
            measure = Measure(dataset, "", metric)
            columns.append(Column(measure.name, measure.unit, f".{digits}f", measure.best, group=dataset))
    rows: list[tuple[Value, ...]] = []
    for row, sources_of in _by_row(cells).items():
        shown = _published_line(row, sources_of, places)
        rows += [shown] if shown else []
        for source, part in sources_of.items():
            if any(np.isfinite(cell.result.mean) for cell in part.values()):
                rows += _measured_lines(row, source, part, places)
    used = [cell.result.cited for cell in cells if cell.result.cited]
    answers = "; ".join(f"{answer}: {verdict}" for verdict, answer in ANSWERS.items() if answer != verdict)
    return Table(
        f"{table.name}-x{scale}",
        table.caption,
        tuple(columns),
        tuple(rows),
        (
            f"Difference: measured minus published, and whether that reproduces it ({answers}).",
            *_remarks(cells),
            *([legend(used)] if used else []),
        ),
    )


Part = dict[tuple[str, str], PaperCell]


def _by_row(cells: Sequence[PaperCell]) -> dict[str, dict[Source, Part]]:
    rows: dict[str, dict[Source, Part]] = {}
    for cell in cells:
        name = cell.row.method + (f", {cell.row.steps} steps" if (cell.row.steps or 1) > 1 else "")
        rows.setdefault(name, {}).setdefault(cell.source, {})[cell.dataset, cell.metric] = cell
    return rows


def _published_line(row: str, sources_of: dict[Source, Part], places: Sequence[tuple[str, str]]) -> tuple[Value, ...]:
    """Nothing where the row has no published number."""
    part = next(iter(sources_of.values()))
    cited = {place: part[place].result.cited for place in places}
    if not any(cited.values()):
        return ()
    marks = " ".join(dict.fromkeys(one.mark for one in cited.values() if one))
    measured = any(np.isfinite(cell.result.mean) for of in sources_of.values() for cell in of.values())
    reasons = dict.fromkeys(source.problem for source in sources_of if not source.runs)
    words = [f"published {marks}", *([] if measured else reasons)]
    values = [
        Entry(one.number if one else None, _flag(part[place]), rank=None if _flag(part[place]) else "published")
        for place, one in cited.items()
    ]
    return (row, "; ".join(words), *values)


def _flag(cell: PaperCell) -> str:
    """A mark on a published number that contradicts its neighbours."""
    return "!" if cell.contradicted else ""


def _measured_lines(
    row: str, source: Source, part: Part, places: Sequence[tuple[str, str]]
) -> Iterator[tuple[Value, ...]]:
    results = {place: part[place].result for place in places}
    ids = ", ".join(one.id for one in source.runs)
    means: list[Value] = []
    differences: list[Value] = []
    for result in results.values():
        there = bool(np.isfinite(result.mean))
        means.append(Entry(result.mean if there else None, rank=source.name, detail=ids if there else result.reason))
        if not there or result.cited is None:
            differences.append(None)
            continue
        text = f"{signed(result.difference, digits=result.cited.digits + 1)} {ANSWERS[result.verdict]}"
        differences.append(Entry(text, tone=TONES.get(result.verdict, "warn"), detail=_detail(result)))
    yield (row, source.name, *means)
    if any(result.cited for result in results.values()):
        yield (row, "difference", *differences)


def _detail(result: Reproduction) -> str:
    assert result.cited is not None
    parts = [f"published {result.cited.value}, measured {result.mean:.{result.cited.digits + 2}f}"]
    if np.isfinite(result.low):
        low, high = (signed(end, digits=result.cited.digits + 1) for end in (result.low, result.high))
        parts.append(f"interval of the difference {low} to {high}")
    return "; ".join([*parts, *([result.reason] if result.reason else [])])


def _remarks(cells: Sequence[PaperCell]) -> list[str]:
    """One line for each reason a measured number does not reproduce, and for what is special about a published one."""
    said: dict[str, None] = {}
    for cell in cells:
        result, where = cell.result, f"{cell.row.method} {cell.dataset}".strip()
        if result.cited and result.cited.note:
            said[f"{cell.row.method}: {result.cited.note}."] = None
        if _flag(cell):
            said[f"! {where}: {result.reason}."] = None
        elif np.isfinite(result.mean) and result.reason:
            per_source = result.reason == cell.source.problem
            said[f"{cell.row.method if per_source else f'{where} {cell.metric}'}: {result.reason}."] = None
    return list(said)


def build_tables(folder: Path, name: str, runs: Path, out: Path, command: str) -> dict[str, Path]:
    """Writes a paper's tables as tables.html, .md, .tex and one CSV each, and every number in cells.csv, into `out`.

    Args:
        folder: of the papers' files.
        name: of the paper's file.
        runs: folder of the measured runs; it may be empty or absent.
        out: where to write.
        command: what rebuilds them.

    Returns:
        File name -> path.

    Raises:
        GridError: the paper's file is absent or not what it should be.
        PublishedError: a file of published numbers is not what it should be.
    """
    find_style("tables")
    paper, numbers, archive = load_paper(folder, name), load_published(), Archive(runs)
    tables: dict[str, Table] = {}
    every: list[PaperCell] = []
    for table in paper.tables:
        for scale in table.scales:
            cells = paper_cells(paper, table, archive, numbers, scale)
            tables[f"{table.table}, x{scale}"] = paper_table(table, scale, cells)
            every += cells
    page = {"title": paper.title, "notes": paper.notes, "tables": tables, "command": command}
    files = {f"tables.{kind}": render("tables", kind, page) for kind in FORMATS}
    files |= {f"{one.name}.csv": one.to_csv().encode() for one in (*tables.values(), cells_table("cells", every))}
    for file, content in files.items():
        replace(out / file, content)
    return {file: out / file for file in files}


def cells_table(name: str, cells: Iterable[PaperCell]) -> Table:
    """Every number in full, a row each: for CSV."""
    names = (
        "table",
        "method",
        "scale",
        "dataset",
        "metric",
        "protocol",
        "measured by",
        "measured",
        "seeds",
        "low",
        "high",
    )
    names += ("published", "confidence", "difference", "verdict", "reason", "source", "runs")
    rows = []
    for cell in cells:
        result, cited = cell.result, cell.result.cited
        runs = " ".join(one.id for one in cell.source.runs)
        numbers = [_finite(value) for value in (result.mean, result.low, result.high, result.difference)]
        rows.append(
            (
                cited.place if cited else "", cell.row.method, cell.scale, cell.dataset, cell.metric, cell.protocol,
                cell.source.name if cell.source.runs else "", numbers[0], result.seeds, numbers[1], numbers[2],
                cited.value if cited else "", cited.confidence if cited else "", numbers[3], result.verdict,
                result.reason, cited.source if cited else "", runs,
            )
        )  # fmt: skip
    return Table(name, "Every number.", tuple(Column(one) for one in names), tuple(rows))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
