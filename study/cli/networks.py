"""Verbs of networks without a grid: evaluate, bench."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
import yaml
from rich.table import Table

from study import StudyError
from study.cli.options import CpuOnly, DataRoot, ResultsFolder, app, out
from study.grid.models import Model
from study.grid.schema import Metric, Protocol

if TYPE_CHECKING:
    from study.training.degradation_evaluation import CaseMeans

KINDS = [cls.model_fields["kind"].default for cls in get_args(get_args(Model)[0])]


def _seal(words: str, **more: Any) -> Any:
    """An option of `--protocol seal`."""
    return typer.Option(help=words, rich_help_panel="Over the space of degradations: --protocol seal", **more)


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Option(
            help=f"a kind ({', '.join(KINDS)}), a mapping '{{kind: catanet, weights: …}}', or a finished run's folder"
        ),
    ],
    data: Annotated[
        list[str], typer.Option(help="bundled, a folder of HR images, or a mapping '{kind: pairs, hr: …, lr: …}'")
    ],
    scale: Annotated[int | None, typer.Option(help="upscaling factor; when absent the run's, or 4")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="a .pth, .pt or .safetensors file; published layouts are known")
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help=f"repeatable; all when absent: {', '.join(get_args(Protocol))}; or seal")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help=f"repeatable; psnr, ssim when absent: {', '.join(get_args(Metric))}")
    ] = None,
    self_ensemble: Annotated[bool, typer.Option("--self-ensemble", help="average the eight flips and turns")] = False,
    data_root: DataRoot = Path(),
    results: ResultsFolder = Path("results"),
    cpu: CpuOnly = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="a list of {dataset, protocol, metric, mean, n}; not computed: mean null and a reason"
        ),
    ] = False,
    acceptance: Annotated[str | None, _seal("a small baseline, named as --model is; bicubic when absent")] = None,
    excellence: Annotated[str | None, _seal("a strong network, named as --model is")] = None,
    cases: Annotated[int | None, _seal("degradations to measure on; 100 when absent", min=1)] = None,
    draws: Annotated[int | None, _seal("degradations that these stand for; 1000 when absent", min=1)] = None,
    noise: Annotated[
        float | None, _seal("how far a score can be off, in its unit; 0.05 dB for psnr when absent")
    ] = None,
    figure: Annotated[Path | None, _seal("draw every case", metavar="FILE.png")] = None,
) -> None:
    """Measure a network under the protocols the papers used, or over the space of degradations."""
    from study.training.checkpoint_evaluation import evaluate_checkpoint

    sources = [_mapping(item) for item in data]
    if protocol == ["seal"]:
        from study.analysis.seal import check_figure, check_metric
        from study.training.degradation_evaluation import evaluate_cases

        chosen, noise = check_metric(metric or ["psnr"], noise)
        check_figure(figure)
        if excellence is None:
            raise StudyError("--excellence: --protocol seal needs a strong network, named as --model is")
        networks = {"--model": model, "--acceptance": acceptance or "bicubic", "--excellence": excellence}
        named = {option: _mapping(one) for option, one in networks.items()}
        drawn = draws or 1000, cases or 100
        cache = results / "cache"
        means = evaluate_cases(named, scale, weights, sources, chosen, self_ensemble, drawn, data_root, cache, cpu)
        _print_cases(means, noise, figure, as_json)
        return
    given = {"acceptance": acceptance, "excellence": excellence, "cases": cases, "draws": draws, "noise": noise}
    for name, value in {**given, "figure": figure}.items():
        if value is not None:
            raise StudyError(f"--{name} {value}: goes with --protocol seal, and with no other beside it")
    settings: dict[str, Any] = {"self_ensemble": self_ensemble}
    settings |= {"protocols": protocol} if protocol else {}
    settings |= {"metrics": metric} if metric else {}
    means = evaluate_checkpoint(_mapping(model), scale, weights, sources, settings, data_root, results / "cache", cpu)
    if as_json:
        typer.echo(json.dumps(means, indent=1))
        return
    view = Table()
    for name in ("dataset", "protocol", "metric", "mean", "n"):
        view.add_column(name, justify="right" if name in ("mean", "n") else "left")
    for row in means:
        digits = 4 if row["metric"] != "psnr" else 2
        mean = "not computed" if row["mean"] is None else f"{row['mean']:.{digits}f}"
        view.add_row(row["dataset"], row["protocol"], row["metric"], mean, str(row["n"]))
    out.print(view)
    for reason in dict.fromkeys(row["reason"] for row in means if "reason" in row):
        out.print(reason, highlight=False, markup=False, soft_wrap=True)


def _print_cases(means: "CaseMeans", noise: float, figure: Path | None, as_json: bool) -> None:
    from study.analysis.seal import ROLES, case_scores, cases_table, save_cases

    scores = case_scores(means.values, means.protocol, means.metric, noise)
    if figure is not None:
        save_cases(scores, means.names, figure)
    if as_json:
        cases = [
            {"draw": case.draw, "members": case.members, "degradation": case.parameters.describe()}
            for case in means.cases
        ]
        body = {
            "metric": means.metric,
            "protocol": means.protocol,
            "noise": noise,
            "networks": dict(zip(ROLES, means.names, strict=True)),
        }
        sets = [
            {"dataset": one.measure.dataset, "images": means.images[one.measure.dataset], **one.summary()}
            | {"cases": [{**case, **numbers} for case, numbers in zip(cases, one.per_case(), strict=True)]}
            for one in scores
        ]
        typer.echo(json.dumps({**body, "parameters": str(means.path), "datasets": sets}, indent=1))
        return
    table = cases_table(scores)
    view = Table(title=table.caption, title_justify="left", pad_edge=False, collapse_padding=True)
    for column in table.columns:
        view.add_column(column.heading, justify="left" if column is table.columns[0] else "right")
    for row in table.entries():
        values = zip(row, table.columns, strict=True)
        view.add_row(*("–" if entry.value is None else format(entry.value, column.format) for entry, column in values))
    out.print(view)
    for note in (*table.notes, f"Cases: {means.path}", *([] if figure is None else [f"Figure: {figure}"])):
        out.print(note, highlight=False, markup=False, soft_wrap=True)


def _mapping(text: str) -> str | dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StudyError(f"{text!r} is not a YAML mapping: {error}") from None
    return value


@app.command()
def bench(
    model: Annotated[
        list[str] | None, typer.Option(help="repeatable, such as 'spin' or 'catanet, soft dense'; all when absent")
    ] = None,
    switches: Annotated[
        bool, typer.Option(help="also with each optimisation off, and in bf16: CATANet and SPIN")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="interleaved measurements of each figure")] = 5,
    to: Annotated[Path | None, typer.Option("--to", help="folder to write bench.parquet and the machine to")] = None,
    cpu: CpuOnly = False,
) -> None:
    """Time training steps and inference against the floor: the operations over this machine's matrix rate.

    Everything is interleaved in one process. Use a machine that does nothing else: two CPU threads that others
    interrupt wait for each other.
    """
    from study.training.bench import MODELS, headline, measure, save, tables

    unknown = [name for name in model or () if name not in MODELS]
    if unknown:
        raise StudyError(f"--model {unknown[0]!r}: known are {', '.join(map(repr, MODELS))}")
    rows = measure(cpu=cpu, repeats=repeats, models=model or list(MODELS), switches=switches)
    if to is not None:
        save(rows, to, cpu=cpu)
    for view in tables(rows):
        out.print(view)
    out.print(headline(rows), highlight=False)
