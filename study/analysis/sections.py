"""The parts of a grid's report: which tables, figures and sentences stand in each."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from study.analysis import summaries
from study.analysis.bayes import bayes_table
from study.analysis.comparisons import Comparison, compare_exploratory
from study.analysis.complexity import Latencies, complexity_table, devices, draw_quality, network_costs
from study.analysis.crops import draw_crops, pick_tiles, picture_name, read_tiles
from study.analysis.dynamics import diagnostic_panels, draw_curves, outliers, staged, training_panels
from study.analysis.ends import draw_ends, ends_caption, read_thumbnails
from study.analysis.figures import cell_styles, draw_counts, draw_forest
from study.analysis.maps import draw_maps, maps_caption, occupancy_table, prototype_counts
from study.analysis.metrics import not_computed, other_metrics_table
from study.analysis.perception import against_bicubic, distortion_measure, draw_plane, realism_measures
from study.analysis.pictures import Picture, save_figure
from study.analysis.provenance import provenance_table
from study.analysis.published import load_published, select
from study.analysis.published_points import PublishedPoint, published_caption
from study.analysis.ranking import draw_ranking, rank_cells, ranking_caption
from study.analysis.results import Results
from study.analysis.scepticism import examine, overturned_by, power_table, scepticism_table
from study.analysis.significance import draw_significance, significance_caption
from study.analysis.sliders import Slider, make_sliders
from study.analysis.spectra import draw_spectra, spectra_caption
from study.analysis.tables import Table
from study.analysis.timing import latency_quartiles, timing_table
from study.analysis.verdicts import coverage, listed
from study.records.timings import read_timings

Block = str | Table | Picture | Slider
MOST_FOREST = 24  # rows of an exploratory forest plot; of more the table and the matrix tell as much
OUTPUT = "1280 x 720 output"  # the note of published multiply-adds that ours can stand beside


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        anchor: fragment name.
        title: heading.
        blocks: paragraphs (strings), tables, pictures and sliders, in order.
        exploratory: whether what it shows was not declared beforehand.
    """

    anchor: str
    title: str
    blocks: tuple[Block, ...]
    exploratory: bool = False


def build_sections(results: Results, comparisons: list[Comparison], runs: Path, folder: Path) -> list[Section]:
    """Every section that has something to show; figures are saved into `folder`."""
    styles = cell_styles(results)
    exploratory = list(compare_exploratory(results))
    sections = [
        Section("declared", "What was declared", (summaries.declaration_table(results),)),
        _comparison_section(results, comparisons, exploratory, styles, folder),
        _results_section(results, runs),
        _perception_section(results, styles, folder),
        Section("noise", "Noise floor", (summaries.noise_table(results),)),
        _complexity_section(results, styles, runs, folder),
        _images_section(results, comparisons, styles, runs, folder),
        _training_section(results, styles, folder),
        _counts_section(results, folder),
        *_pictures_sections(results, styles, runs, folder),
        _scepticism_section(results, comparisons),
        Section("protocols", "Protocol sensitivity", (summaries.protocol_table(results),), exploratory=True),
        _exploration_section(results, exploratory, styles, folder),
        Section("runs", "Runs", (summaries.runs_table(results),)),
        Section("costs", "Costs", (summaries.costs_table(results),)),
        Section("provenance", "Provenance", (provenance_table(results, runs),)),
    ]
    return [section for section in sections if section and any(_shows(block) for block in section.blocks)]


def _shows(block: Block) -> bool:
    return bool(block.rows) if isinstance(block, Table) else bool(block)


def _comparison_section(
    results: Results,
    comparisons: list[Comparison],
    exploratory: list[Comparison],
    styles: dict[str, Any],
    folder: Path,
) -> Section:
    """The declared pairs; the matrix shows the other datasets beside the declared one, hollow."""
    if not comparisons:
        return Section("comparisons", "Declared comparisons", ("No comparison was declared.",))
    what = "pseudo-median of the images' differences" if comparisons[0].claim == "these_weights" else "mean difference"
    caption = (
        f"Declared comparisons: {what}, first minus second, with the interval of the named claim's test; "
        "hollow: preliminary. The interval is not corrected for the number of comparisons, the verdict is."
    )
    blocks: list[Block] = [save_figure(draw_forest(comparisons, styles), folder, "forest", caption)]
    caption = "Declared comparisons: the first minus the second."
    blocks.append(summaries.comparison_table(comparisons, "comparisons", caption, results))
    matrix = draw_significance([*comparisons, *exploratory])
    if matrix is not None:
        caption = significance_caption([*comparisons, *exploratory])
        blocks.append(save_figure(matrix, folder, "significance", caption))
    equivalence = summaries.equivalence_table(comparisons)
    return Section("comparisons", "Declared comparisons", (*blocks, *([equivalence] if equivalence.rows else [])))


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
    level = coverage(results.plan.grid.analysis.alpha)
    signed = [f"|{measure.name}|" for measure in measures if measure.best == "zero"]
    caption = (
        "The perception-distortion plane (Blau & Michaeli, CVPR 2018): mean over seeds, bars: "
        f"{level} t interval over seeds, which may leave the panel. Lower left is better on both: "
        f"{distortion_measure(results)} grows to the left, and every panel's lower end is the more natural one."
        f"{f' {listed(signed)}: size of the mean difference to HR.' if signed else ''}"
    )
    picture = save_figure(figure, folder, "perception", caption)
    sentences = against_bicubic(results, measures)
    note = (f"Means on {results.primary.dataset}; none of it was tested.",) if sentences else ()
    return Section("perception", "Perception and distortion", (*note, *sentences, picture), exploratory=True)


def _complexity_section(results: Results, styles: dict[str, Any], runs: Path, folder: Path) -> Section:
    device = devices(results, runs)
    blocks: list[Block] = []
    published = _published(results)
    rows, machine = read_timings(runs.parent, results.plan)
    latencies = _whole(latency_quartiles(rows), results)
    figure = draw_quality(results, styles, published, latencies)
    if figure is not None:
        level, where = coverage(results.plan.grid.analysis.alpha), machine["device"] if latencies else device
        caption = (
            f"Quality against cost: {results.primary}, mean over seeds, bars: {level} t interval over seeds; the "
            "area of a mark: parameters. Multiply-adds: convolutions and linear layers, a line to the right: up to the "
            "count with attention and assignment products. Latency: median, a line through it: quartiles"
            f"{f'; on {where}' if where else ''}. Both axes of cost are logarithmic."
            f"{f' {published_caption(published)}' if published else ''}"
        )
        blocks.append(save_figure(figure, folder, "quality", caption))
    timing = [timing_table(rows, machine, results.plan.grid.analysis.baseline)] if len(rows) else []
    return Section("complexity", "Complexity", (*blocks, complexity_table(results, device, latencies), *timing))


def _whole(latencies: Latencies, results: Results) -> Latencies:
    """Latencies that were measured in turn, if those of all cells were: two kinds are not to be compared."""
    stored = network_costs(results)["latency_median"]
    cells = {cell for cell, latency in zip(results.cells, stored, strict=True) if np.isfinite(latency)}
    return latencies if cells <= set(latencies) else {}


def _published(results: Results) -> list[PublishedPoint]:
    """Published values of the primary measure at the grid's scale, of methods whose costs are comparable with ours."""
    primary, scales = results.primary, {run.scale for cell in results.plan.cells for run in cell.runs}
    if len(scales) > 1:
        return []
    numbers = select(load_published(), scale=min(scales))
    points = []
    for one in select(numbers, dataset=primary.dataset, metric=primary.metric):
        costs = {cost.metric: cost for cost in select(numbers, paper=one.paper, table=one.table, method=one.method)}
        adds, parameters = costs.get("multiply_adds_g"), costs.get("parameters_k")
        if adds and adds.note == OUTPUT:
            count = parameters.number * 1e3 if parameters else None
            points.append(PublishedPoint(one.method, count, adds.number * 1e9, one.number, one.confidence))
    return points


def _images_section(
    results: Results, comparisons: list[Comparison], styles: dict[str, Any], runs: Path, folder: Path
) -> Section:
    thumbnails = read_thumbnails(results, runs, results.primary.dataset)
    figure = draw_ends(comparisons, styles, thumbnails)
    if figure is None:
        return Section("images", "Per image", ("No declared comparison has values yet.",))
    picture = save_figure(figure, folder, "images", ends_caption(comparisons, thumbnails))
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
        f"{' A curve that ends far from all others leaves the panel.' if any(map(outliers, panels)) else ''}"
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
    level = coverage(results.plan.grid.analysis.alpha)
    caption = f"{results.primary} along {path}: mean over seeds, bars: {level} t interval over seeds."
    if figure.axes[0].texts:
        caption += " A mark at the edge: a value that lies far from all others."
    return Section("counts", f"Along {path}", (save_figure(figure, folder, "counts", caption),), exploratory=True)


def _pictures_sections(results: Results, styles: dict[str, Any], runs: Path, folder: Path) -> Iterator[Section]:
    """The kept crops, their spectra, and the maps of their tokens' assignment."""
    every = read_tiles(results, runs)
    tiles, notes = pick_tiles(results, every)
    pictures = []
    for index, ((dataset, image), part) in enumerate(tiles.items()):
        caption = (
            f"{dataset}, {image}: the most detailed crop, first finished seed; PSNR of the whole image. Assignment: "
            "one colour per prototype, numbered apart in every network."
        )
        pictures.append(save_figure(draw_crops(part), folder, picture_name(index), caption))
    yield Section("crops", "Crops", (*notes, *make_sliders(tiles), *pictures), exploratory=True)
    scales = {run.scale for cell in results.plan.cells for run in cell.runs}
    figure = draw_spectra(tiles, styles, min(scales)) if len(scales) == 1 else None
    if figure is not None:
        spectra = save_figure(figure, folder, "spectra", spectra_caption(tiles, min(scales)))
        yield Section("spectra", "Spectra", (spectra,), exploratory=True)
    counts = prototype_counts(results)
    blocks: list[Block] = []
    for index, ((dataset, image), part) in enumerate(tiles.items()):
        figure = draw_maps(part, counts)
        if figure is not None:
            blocks.append(save_figure(figure, folder, f"maps-{index:02d}", maps_caption(dataset, image, part)))
    table = occupancy_table(every, counts)
    yield Section("maps", "Assignment maps", (*([table] if table else []), *blocks), exploratory=True)


def _scepticism_section(results: Results, comparisons: list[Comparison]) -> Section:
    """What would overturn the verdicts, what the design could have found, and the Bayesian view."""
    shown = [comparison for comparison in comparisons if comparison.deltas.values.size]
    if not shown:
        return Section("scepticism", "", ())
    scrutinies = examine(results, comparisons)
    sentences = [
        f"{scrutiny.comparison.label}: {overturned_by(scrutiny)}"
        for scrutiny in scrutinies
        if scrutiny.comparison.deltas.values.size
    ]
    tables = scepticism_table(scrutinies), power_table(comparisons), bayes_table(comparisons)
    return Section("scepticism", "What would overturn this", (*sentences, *tables), exploratory=True)


def _exploration_section(
    results: Results, exploratory: list[Comparison], styles: dict[str, Any], folder: Path
) -> Section:
    blocks: list[Block] = []
    if any(comparison.deltas.values.size for comparison in exploratory):
        blocks.append("Nothing here was declared: p values are not corrected, and no verdict is given.")
        claim, primary = results.plan.grid.analysis.claim, results.primary.dataset
        for index, dataset in enumerate(results.datasets):
            part = [c for c in exploratory if c.measure.dataset == dataset and c.claim == claim and dataset != primary]
            if len(part) <= MOST_FOREST and any(comparison.deltas.values.size for comparison in part):
                caption = f"{dataset}: the same differences, not declared, not corrected."
                blocks.append(save_figure(draw_forest(part, styles), folder, f"forest-{index:02d}", caption))
        caption = "The declared pairs under the other claims and on the other datasets."
        blocks.append(summaries.comparison_table(exploratory, "exploratory", caption))
    blocks += _ranking(results, folder)
    return Section("exploration", "Other claims and datasets", tuple(blocks), exploratory=True)


def _ranking(results: Results, folder: Path) -> list[Block]:
    ranking, figure = rank_cells(results), draw_ranking(results)
    if ranking is None or figure is None:
        return []
    table = summaries.ranking_table(results)
    return [save_figure(figure, folder, "ranking", ranking_caption(ranking)), *([table] if table else [])]
