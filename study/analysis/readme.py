"""README.md: its words from a template, its numbers and the demo's figure from stored results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.style import context as style_context

from study.analysis.calibration import where
from study.analysis.campaign import full_scale_table, weights_table
from study.analysis.comparisons import TEST_NAMES, compare_declared
from study.analysis.figures import draw_forest
from study.analysis.findings import FindingsError
from study.analysis.markup import Markdown
from study.analysis.pictures import save_figure
from study.analysis.published import Cited, load_published
from study.analysis.rendering import find_style, render
from study.analysis.results import Measure, Results
from study.analysis.verdicts import decide, interval, signed
from study.records.store import replace

DEMO, VERDICT = "soft vs hard", "inconclusive"  # the comparison that the text names, and what it was written for


GPU, GPU_RATE = "an A100", 19.5e12  # FLOP/s in fp32 outside its matrix units, by its data sheet


def write_readme(
    demo: Results,
    weights: Results,
    calibration: pd.DataFrame,
    speed: pd.DataFrame,
    summary: Sequence[Markdown],
    full_scale: Mapping[str, Mapping[str, float]],
    out: Path,
) -> list[Path]:
    """Writes README.md and the demo's figure.

    Args:
        demo: results of ablations/quickstart.yaml.
        weights: results of ablations/published_weights.yaml.
        calibration: as `study bench --calibration` writes it.
        speed: `ratio` to the floor by `model` and `phase`, as `study bench` sums it up.
        summary: what was found, a few sentences.
        full_scale: operations of every training of every question, see `campaign.full_scale_table`.
        out: the repository.

    Raises:
        FindingsError: the demo is not finished, or its verdict is not the one that the text was written for.
    """
    numbers = load_published()
    ratios = dict(zip(zip(speed["model"], speed["phase"], strict=True), speed["ratio"], strict=True))
    rate = GPU_RATE / ratios["catanet, hard", "training"]
    content = {
        "summary": summary,
        "scale": full_scale_table(full_scale, rate),
        "questions": list(full_scale),
        "gpu": GPU,
        "gpu_rate": GPU_RATE,
        "demo": _demo(demo),
        "weights": _weights(weights, numbers),
        "papers": len({cited.paper for cited in numbers}),
        "numbers": len(numbers),
        "rejected": _rejected(calibration),
        "ratios": ratios,
    }
    with mpl.rc_context(), style_context(["default", find_style("report")]):
        picture = save_figure(draw_forest(compare_declared(demo), {}), out / "docs", "quickstart-forest", "")
    replace(out / "README.md", render("readme", "md", content))
    return [out / "README.md", picture.paths["png"]]


def _demo(results: Results) -> Mapping[str, Any]:
    comparison = next(one for one in compare_declared(results) if one.label == DEMO)
    if decide(comparison) != VERDICT:
        raise FindingsError(f"reports/templates/readme.md.j2: the demo's {DEMO} is {decide(comparison)}, not {VERDICT}")
    seeds, images = comparison.deltas.values.shape
    run, costs = results.cells[comparison.cell].runs[0], results.rows("costs")
    return {
        "means": {cell: results.mean(cell, results.primary) for cell in results.cells},
        "trained": sum(run.trains for cell in results.plan.cells for run in cell.runs),
        "parameters": float(
            costs.loc[(costs["cell"] == comparison.cell) & (costs["name"] == "parameters"), "value"].max()
        ),
        "steps": run.optimisation.steps,
        "batch": run.optimisation.batch,
        "scale": run.scale,
        "seeds": seeds,
        "images": images,
        "effect": signed(comparison.estimate, comparison.measure.unit),
        "interval": interval(comparison.test.low, comparison.test.high),
    }


def _weights(results: Results, numbers: Sequence[Cited]) -> Mapping[str, Any]:
    """Mean of every measure, by cell and measure; how many printed numbers there are, and how many were met."""
    verdicts = [row[-1].value for row in weights_table(results, numbers).entries()]
    means = {
        (cell, *key): results.mean(cell, Measure(*key))
        for cell in results.cells
        for key in ((one.dataset, one.protocol, one.metric) for one in results.measures)
    }
    return {"means": means, "printed": len(verdicts), "reproduced": verdicts.count("reproduced")}


def _rejected(calibration: pd.DataFrame) -> Mapping[str, float]:
    """The highest rate of rejection where nothing is there: of the tests in use, and of two that are not."""
    rows = where(calibration, what="rejection")
    used = [where(rows, claim=claim, method=method) for claim, method in TEST_NAMES.items()]
    parts = {
        "used": [part[part["images"] == part["images"].max()] for part in used],
        "few": [part[part["images"] < part["images"].max()] for part in used],
        "bootstrap": [where(rows, method="bootstrap over seeds, percentile", seeds=3)],
        "wilcoxon": [where(rows, method="Wilcoxon over images", claim="new_images")],
    }
    return {name: max(part["rate"].to_numpy(float).max() for part in found) for name, found in parts.items()}
