"""The metrics beside PSNR and SSIM: which are stored, which could not be computed and why, and their table."""

from collections.abc import Mapping
from pathlib import Path

from study.analysis.results import Measure, Results
from study.analysis.summaries import mean_entry, metric_column, seeds_note
from study.analysis.tables import Column, Entry, Table, Value
from study.records.store import read_json

MAIN = ("psnr", "ssim")  # the results table shows them

Missing = Mapping[str, Mapping[str, str]]


def stored_measures(results: Results) -> list[Measure]:
    """Every stored metric but `MAIN`, by dataset; under the declared protocol where it is stored under that at all."""
    declared = results.plan.grid.analysis.protocol
    usual = {measure.metric for measure in results.measures if measure.protocol == declared}
    found = [
        measure
        for measure in results.measures
        if measure.metric not in MAIN and (measure.protocol == declared or measure.metric not in usual)
    ]
    return sorted(found, key=lambda measure: results.datasets.index(measure.dataset))


def not_computed(results: Results, runs: Path) -> dict[str, dict[str, str]]:
    """Cell -> metric -> reason, from the `not_computed.json` of the finished runs.

    Raises:
        RecordError: where such a file is broken.
    """
    missing: dict[str, dict[str, str]] = {}
    for cell, _, run in results.runs():
        path = runs / run / "not_computed.json"
        if results.state(run) == "done" and path.exists():
            missing.setdefault(cell.name, {}).update(read_json(path))
    return missing


def other_metrics_table(results: Results, missing: Missing) -> Table | None:
    """Every metric but `MAIN` that is stored, or that a run should have computed; None where there is none.

    Args:
        results: of the grid.
        missing: cell -> metric -> why it could not be computed.
    """
    wanted = _with_missing(results, missing)
    if not wanted:
        return None
    rows = [(cell, *(_entry(results, cell, measure, missing) for measure in wanted)) for cell in results.cells]
    return Table(
        "metrics",
        "Other metrics, mean over images, then over seeds.",
        (Column("cell"), *(metric_column(measure) for measure in wanted)),
        tuple(rows),
        (f"{seeds_note(results)}{_directions(wanted)}", *_reasons(missing)),
    )


def _with_missing(results: Results, missing: Missing) -> list[Measure]:
    """The stored measures, and one on every dataset of a cell for a metric that it lacks."""
    wanted = stored_measures(results)
    for cell, reasons in missing.items():
        for dataset in results.cells[cell].runs[0].evaluation.datasets:
            known = {measure.metric for measure in wanted if measure.dataset == dataset}
            protocol = results.plan.grid.analysis.protocol
            wanted += [Measure(dataset, protocol, metric) for metric in reasons if metric not in known]
    return sorted(wanted, key=lambda measure: results.datasets.index(measure.dataset))


def _entry(results: Results, cell: str, measure: Measure, missing: Missing) -> Value:
    absent = measure.metric in missing.get(cell, {}) and not results.has(cell, measure)
    evaluated = measure.dataset in results.cells[cell].runs[0].evaluation.datasets
    return Entry("not computed", tone="warn") if absent and evaluated else mean_entry(results, cell, measure)


def _directions(measures: list[Measure]) -> str:
    words = {"high": "higher is better", "low": "lower is better", "zero": "difference to HR, zero is best"}
    parts = []
    for best, meaning in (*words.items(), (None, "no end is best")):
        names = dict.fromkeys(measure.name for measure in measures if measure.best == best)
        parts += [f"{', '.join(names)}: {meaning}"] if names else []
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _reasons(missing: Missing) -> list[str]:
    """One note for each distinct reason, with the metrics it holds for."""
    named: dict[str, dict[str, None]] = {}
    for reasons in missing.values():
        for metric, reason in reasons.items():
            named.setdefault(reason, {})[Measure("", "", metric).name] = None
    return [f"Not computed: {', '.join(names)}: {why.removeprefix('not computed: ')}" for why, names in named.items()]
