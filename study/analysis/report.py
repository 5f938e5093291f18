"""The report of a grid: one content, rendered as HTML, Markdown and LaTeX from the templates in reports/."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.style import context as style_context

import study
from study.analysis import summaries
from study.analysis.comparisons import Comparison, compare_declared, compare_exploratory
from study.analysis.complexity import complexity_table, devices, draw_quality
from study.analysis.crops import draw_crops, read_tiles
from study.analysis.dynamics import diagnostic_panels, draw_curves, staged, training_panels
from study.analysis.figures import (
    Picture,
    cell_styles,
    draw_counts,
    draw_forest,
    draw_images,
    save_figure,
)
from study.analysis.markup import escape_markdown, escape_tex, inline_svg
from study.analysis.metrics import not_computed, other_metrics_table
from study.analysis.perception import against_bicubic, distortion_measure, draw_plane, realism_measures
from study.analysis.provenance import provenance_table
from study.analysis.results import Results
from study.analysis.tables import Table
from study.analysis.verdicts import VERDICTS, decide, describe, listed
from study.grid.plan import Plan
from study.records.declaration import changes
from study.records.store import Records, replace

REPORTS = Path(study.__file__).parents[1] / "reports"
FORMATS = ("html", "md", "tex")


class ReportError(Exception):
    """The report cannot be rendered; the message names what is missing."""


@dataclass(frozen=True)
class Answer:
    """A declared comparison in words: its label, verdict, what that means, and the paragraph."""

    label: str
    verdict: str
    tone: str
    meaning: str
    text: str
    preliminary: bool


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        anchor: fragment name.
        title: heading.
        blocks: paragraphs (strings), tables and pictures, in order.
        exploratory: whether what it shows was not declared beforehand.
    """

    anchor: str
    title: str
    blocks: tuple[str | Table | Picture, ...]
    exploratory: bool = False


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
    style = REPORTS / "study.mplstyle"
    missing = [path for path in (style, *(_template(kind) for kind in FORMATS)) if not path.is_file()]
    if missing:
        raise ReportError(f"{missing[0]} is missing: reports are rendered from a checkout that has its reports/ folder")
    results = Results(plan, ids, records, statuses)
    # Defaults first: neither a user's matplotlibrc nor an earlier figure may change the report's bytes.
    with mpl.rc_context(), style_context(["default", style]):
        comparisons = compare_declared(results)
        sections = _sections(results, comparisons, runs, out / "figures")
    written = {path.name: path for path in _write_tables(sections, out / "tables")}
    page = {
        "title": plan.name,
        "question": plan.grid.question,
        "answers": [_answer(comparison) for comparison in comparisons],
        "counts": results.counts(),
        "problems": _problems(results),
        "changes": changes(runs.parent, plan),
        "sections": sections,
        "command": command,
    }
    files = {f"tables/{name}": path for name, path in written.items()}
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                files |= {f"figures/{path.name}": path for path in block.paths.values()}
    for kind in FORMATS:
        files[f"report.{kind}"] = out / f"report.{kind}"
        replace(files[f"report.{kind}"], _environment(kind).get_template(_template(kind).name).render(page).encode())
    return files


def _template(kind: str) -> Path:
    return REPORTS / "templates" / f"report.{kind}.j2"


def _environment(kind: str) -> jinja2.Environment:
    common: dict[str, Any] = {
        "loader": jinja2.FileSystemLoader(REPORTS / "templates"),
        "undefined": jinja2.StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "keep_trailing_newline": True,
    }
    if kind == "html":
        common["autoescape"] = True
    else:  # escaping is for HTML only in Jinja; here every printed value passes through its format's own
        common["finalize"] = escape_markdown if kind == "md" else escape_tex
    if kind == "tex":
        common |= {"block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<"}
        common |= {"variable_end_string": ">>", "comment_start_string": "<#", "comment_end_string": "#>"}
    environment = jinja2.Environment(**common)
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    environment.filters["svg"] = lambda picture: inline_svg(picture.svg, picture.name, picture.caption)
    return environment


def _answer(comparison: Comparison) -> Answer:
    verdict = decide(comparison)
    preliminary = not comparison.complete and bool(comparison.deltas.values.size)
    tone = summaries.TONES.get(verdict, "warn")
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


def _sections(results: Results, comparisons: list[Comparison], runs: Path, folder: Path) -> list[Section]:
    styles = cell_styles(results)
    exploratory = list(compare_exploratory(results))
    sections = [
        Section("declared", "What was declared", (summaries.declaration_table(results),)),
        _comparison_section(comparisons, styles, folder),
        _results_section(results, runs),
        _perception_section(results, styles, folder),
        Section("noise", "Noise floor", (summaries.noise_table(results),)),
        _complexity_section(results, styles, runs, folder),
        _images_section(comparisons, styles, folder),
        _training_section(results, styles, folder),
        _counts_section(results, folder),
        _crops_section(results, runs, folder),
        Section("protocols", "Protocol sensitivity", (summaries.protocol_table(results),), exploratory=True),
        _exploration_section(results, exploratory, styles, folder),
        Section("runs", "Runs", (summaries.runs_table(results),)),
        Section("costs", "Costs", (summaries.costs_table(results),)),
        Section("provenance", "Provenance", (provenance_table(results, runs),)),
    ]
    return [section for section in sections if section and any(_shows(block) for block in section.blocks)]


def _shows(block: str | Table | Picture) -> bool:
    return bool(block.rows) if isinstance(block, Table) else bool(block)


def _comparison_section(comparisons: list[Comparison], styles: dict[str, Any], folder: Path) -> Section:
    if not comparisons:
        return Section("comparisons", "Declared comparisons", ("No comparison was declared.",))
    caption = (
        "Declared comparisons: mean difference, first minus second, with the interval of the named claim's test; "
        "hollow: preliminary. The interval is not corrected for the number of comparisons, the verdict is."
    )
    forest = save_figure(draw_forest(comparisons, styles), folder, "forest", caption)
    table = summaries.comparison_table(comparisons, "comparisons", "Declared comparisons: the first minus the second.")
    equivalence = summaries.equivalence_table(comparisons)
    return Section("comparisons", "Declared comparisons", (forest, table, *([equivalence] if equivalence.rows else [])))


def _results_section(results: Results, runs: Path) -> Section:
    table = summaries.results_table(results)
    names = [column.name for column in table.columns]
    below = []
    if "gain over bicubic" in names:
        place = names.index("gain over bicubic")
        below = [str(row[0].value) for row in table.entries() if row[place].suffix == "▼"]
    note = (f"Below bicubic enlargement on the primary dataset: {', '.join(below)}.",) if below else ()
    other = other_metrics_table(results, not_computed(results, runs))
    return Section("results", "Results", (*note, table, *([other] if other else [])))


def _perception_section(results: Results, styles: dict[str, Any], folder: Path) -> Section:
    measures = realism_measures(results)
    figure = draw_plane(results, styles, measures)
    if figure is None:
        return Section("perception", "", ())
    level = 1 - results.plan.grid.analysis.alpha
    signed = [f"|{measure.name}|" for measure in measures if measure.best == "zero"]
    caption = (
        "The perception-distortion plane (Blau & Michaeli, CVPR 2018): mean over seeds, bars: "
        f"{level:.0%} t interval over seeds, which may leave the panel. Lower left is better on both: "
        f"{distortion_measure(results)} grows to the left, and every panel's lower end is the more natural one."
        f"{f' {listed(signed)}: size of the mean difference to HR.' if signed else ''}"
    )
    picture = save_figure(figure, folder, "perception", caption)
    sentences = against_bicubic(results, measures)
    note = (f"Means on {results.primary.dataset}; none of it was tested.",) if sentences else ()
    return Section("perception", "Perception and distortion", (*note, *sentences, picture), exploratory=True)


def _complexity_section(results: Results, styles: dict[str, Any], runs: Path, folder: Path) -> Section:
    device = devices(results, runs)
    blocks: list[Table | Picture] = []
    figure = draw_quality(results, styles)
    if figure is not None:
        level = 1 - results.plan.grid.analysis.alpha
        caption = (
            f"Quality against cost: {results.primary}, mean over seeds, bars: {level:.0%} t interval over seeds; the "
            "area of a mark: parameters. Multiply-adds: convolutions and linear layers, a line to the right: up to the "
            "count with attention and assignment products. Latency: median, a line through it: quartiles"
            f"{f'; on {device}' if device else ''}. Both axes of cost are logarithmic."
        )
        blocks.append(save_figure(figure, folder, "quality", caption))
    return Section("complexity", "Complexity", (*blocks, complexity_table(results, device)))


def _images_section(comparisons: list[Comparison], styles: dict[str, Any], folder: Path) -> Section:
    shown = [comparison for comparison in comparisons if comparison.deltas.values.size]
    if not shown:
        return Section("images", "Per image", ("No declared comparison has values yet.",))
    caption = "Difference on every image: a dot for each seed, a large mark for their mean; shaded: the margin."
    picture = save_figure(draw_images(shown, styles), folder, "images", caption)
    return Section("images", "Per image", (picture,))


def _training_section(results: Results, styles: dict[str, Any], folder: Path) -> Section:
    scalars, stages = staged(results)
    panels = training_panels(scalars)
    if not panels:
        return Section("training", "Training", ("No training curve has been stored yet.",))
    names = listed([panel.title.removesuffix(" (dB)") for panel in panels])
    later = " A run that starts from another is drawn after it; a thin line: where that begins, and the scale changes."
    caption = (
        f"{names[0].upper()}{names[1:]}: mean over seeds, the band is their range. "
        "Validation sees the centres of the first dataset's images; nothing is selected by it."
        f"{later if stages else ''}"
    )
    blocks = [save_figure(draw_curves(panels, styles, stages), folder, "training", caption)]
    panels = diagnostic_panels(scalars)
    if panels:
        caption = (
            "What the matching objectives report of themselves: mean over seeds, the band is their range; rms: root "
            "mean square over an image in [−1, 1]."
        )
        blocks.append(save_figure(draw_curves(panels, styles, stages), folder, "diagnostics", caption))
    return Section("training", "Training", tuple(blocks))


def _counts_section(results: Results, folder: Path) -> Section:
    path = results.plan.grid.analysis.curve
    if path is None:
        return Section("counts", "", ())
    figure = draw_counts(results, results.primary)
    if figure is None:
        return Section("counts", f"Along {path}", ("No cell on this axis has values yet.",), exploratory=True)
    level = 1 - results.plan.grid.analysis.alpha
    caption = f"{results.primary} along {path}: mean over seeds, bars: {level:.0%} t interval over seeds."
    return Section("counts", f"Along {path}", (save_figure(figure, folder, "counts", caption),), exploratory=True)


def _crops_section(results: Results, runs: Path, folder: Path) -> Section:
    pictures = []
    for index, ((dataset, image), tiles) in enumerate(read_tiles(results, runs).items()):
        caption = (
            f"{dataset}, {image}: the most detailed crop, first finished seed; PSNR of the whole image. Assignment: "
            "one colour per prototype, numbered apart in every network."
        )
        pictures.append(save_figure(draw_crops(tiles), folder, f"crops-{index:02d}", caption))
    return Section("crops", "Crops", tuple(pictures), exploratory=True)


def _exploration_section(
    results: Results, exploratory: list[Comparison], styles: dict[str, Any], folder: Path
) -> Section:
    ranking = summaries.ranking_table(results)
    blocks: list[str | Table | Picture] = []
    if any(comparison.deltas.values.size for comparison in exploratory):
        blocks.append("Nothing here was declared: p values are not corrected, and no verdict is given.")
        claim, primary = results.plan.grid.analysis.claim, results.primary.dataset
        for index, dataset in enumerate(results.datasets):
            part = [c for c in exploratory if c.measure.dataset == dataset and c.claim == claim and dataset != primary]
            if any(comparison.deltas.values.size for comparison in part):
                caption = f"{dataset}: the same differences, not declared, not corrected."
                blocks.append(save_figure(draw_forest(part, styles), folder, f"forest-{index:02d}", caption))
        caption = "The declared pairs under the other claims and on the other datasets."
        blocks.append(summaries.comparison_table(exploratory, "exploratory", caption))
    return Section(
        "exploration", "Other claims and datasets", (*blocks, *([ranking] if ranking else [])), exploratory=True
    )


def _write_tables(sections: list[Section], folder: Path) -> list[Path]:
    paths = []
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Table):
                paths.append(folder / f"{block.name}.csv")
                replace(paths[-1], block.to_csv().encode())
    return paths
