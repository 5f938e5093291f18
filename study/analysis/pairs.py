"""Two networks outside any grid, compared image by image: what `study compare` says."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from study import StudyError
from study.analysis.comparisons import Comparison, compare, correct_family
from study.analysis.results import Results
from study.analysis.summaries import comparison_table
from study.analysis.tables import Column, Table
from study.analysis.verdicts import VERDICTS, decide, describe
from study.grid.plan import Cell, Plan
from study.grid.schema import Analysis, Grid, Run
from study.records.schemas import RUN_TABLES
from study.records.store import Records

CLAIM = "these_weights"
SHOWN = ("pseudo-median δ", "interval", "p", "p, corrected", "verdict", "improved")


def compare_pair(
    names: tuple[str, str], runs: tuple[Run, Run], rows: tuple[pd.DataFrame, pd.DataFrame], settings: Mapping[str, Any]
) -> list[Comparison]:
    """The first network against the second on every image set that both have values on.

    One training of each says nothing about retraining, so the claim is 'these trained weights'; the family is the
    image sets, and p is corrected by Holm's method over them.

    Args:
        names: of the two.
        runs: what they are.
        rows: per-image values: `dataset`, `image`, `protocol`, `metric`, `value`.
        settings: fields of the schema's `Analysis`, such as `metric`, `protocol`, `margin_db`.

    Raises:
        StudyError: the two have no value in common.
    """
    if names[0] == names[1]:
        names = names[0], f"{names[1]} (second)"
    analysis = Analysis(baseline=names[1], comparisons=((names[0], names[1]),), claim=CLAIM, **settings)
    keys = ["dataset", "image", "protocol", "metric"]
    common = rows[0].merge(rows[1], on=keys)
    wanted = common[(common["protocol"] == analysis.protocol) & (common["metric"] == analysis.metric)]
    datasets = list(dict.fromkeys(wanted["dataset"]))
    if not datasets:
        there = dict.fromkeys(zip(common["metric"], common["protocol"], strict=True))
        others = ", ".join(f"{metric} under {protocol}" for metric, protocol in there) or "nothing else"
        raise StudyError(
            f"{names[0]} and {names[1]} have no image with {analysis.metric} under {analysis.protocol} in common; "
            f"they have {others}"
        )
    results = _arranged(names, runs, rows, analysis)
    family = [
        compare(results, *names, replace(results.primary, dataset=dataset), CLAIM, len(datasets))
        for dataset in datasets
    ]
    return correct_family(family, analysis.correction)


def _arranged(
    names: tuple[str, str], runs: tuple[Run, Run], rows: tuple[pd.DataFrame, pd.DataFrame], analysis: Analysis
) -> Results:
    """The two as cells of a plan; they need not share a seed, so both get the same."""
    cells = tuple(Cell(name, {}, (run.model_copy(update={"seed": 0}),)) for name, run in zip(names, runs, strict=True))
    grid = Grid(question=f"Does {names[0]} differ from {names[1]}?", analysis=analysis, seeds=1)
    images = pd.concat([frame.assign(run=name) for name, frame in zip(names, rows, strict=True)], ignore_index=True)
    empty = {name: pd.DataFrame(columns=["run", *RUN_TABLES[name].names]) for name in ("scalars", "costs")}
    records = Records(images=images.reindex(columns=["run", *RUN_TABLES["images"].names]), **empty)
    ids = {(name, 0): name for name in names}
    return Results(Plan("compare", None, grid, cells), ids, records, {name: {"state": "done"} for name in names})


def pair_table(comparisons: list[Comparison]) -> Table:
    """One row per image set, with the paragraph of each as a note."""
    table = comparison_table(comparisons, "pair", "The first minus the second.")
    shown = [index for index, column in enumerate(table.columns) if column.name in SHOWN]
    rows = tuple(
        (comparison.measure.dataset, *(row[index] for index in shown))
        for comparison, row in zip(comparisons, table.rows, strict=True)
    )
    columns = (Column("image set"), *(table.columns[index] for index in shown))
    said = tuple(f"{comparison.measure.dataset}: {describe(comparison)}" for comparison in comparisons)
    meanings = tuple(f"{verdict}: {VERDICTS[verdict]}." for verdict in dict.fromkeys(map(decide, comparisons)))
    caption = f"{comparisons[0].label}: the first minus the second, {comparisons[0].measure.name}."
    return Table("pair", caption, columns, rows, (*said, *meanings))
