"""Verbs of networks without a grid: evaluate, bench."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table as View

from study import StudyError
from study.cli.options import CpuOnly, DataRoot, ResultsFolder, app, named, out
from study.grid.models import Model
from study.grid.schema import Metric, Protocol

if TYPE_CHECKING:
    from study.training.checkpoint_evaluation import Checkpoint
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
        list[str] | None,
        typer.Option(help=f"repeatable; all when absent: {', '.join(get_args(Protocol))}; or seal, audit"),
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
    reference: Annotated[
        str | None, typer.Option(help="--protocol audit: a second network, named as --model is, to audit the gain over")
    ] = None,
    acceptance: Annotated[str | None, _seal("a small baseline, named as --model is; bicubic when absent")] = None,
    excellence: Annotated[str | None, _seal("a strong network, named as --model is")] = None,
    cases: Annotated[int | None, _seal("degradations to measure on; 100 when absent", min=1)] = None,
    draws: Annotated[int | None, _seal("degradations that these stand for; 1000 when absent", min=1)] = None,
    noise: Annotated[
        float | None, _seal("how far a score can be off, in its unit; 0.05 dB for psnr when absent")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="--protocol seal, audit: draw every case or setting", metavar="FILE.png")
    ] = None,
) -> None:
    """Measure a network under the protocols the papers used, or over the space of degradations (seal).

    Published weights get what was published of them, and a verdict. [bold]--protocol audit[/bold] says how far every
    protocol and switch moves a level, and the gain over --reference.
    """
    from study.training.checkpoint_evaluation import evaluate_checkpoint

    sources = [named(item) for item in data]
    if protocol == ["seal"]:
        from study.analysis.seal import check_figure, check_metric
        from study.training.degradation_evaluation import evaluate_cases

        chosen, noise = check_metric(metric or ["psnr"], noise)
        check_figure(figure)
        if excellence is None:
            raise StudyError("--excellence: --protocol seal needs a strong network, named as --model is")
        networks = {"--model": model, "--acceptance": acceptance or "bicubic", "--excellence": excellence}
        opened = {option: named(one) for option, one in networks.items()}
        drawn = draws or 1000, cases or 100
        cache = results / "cache"
        means = evaluate_cases(opened, scale, weights, sources, chosen, self_ensemble, drawn, data_root, cache, cpu)
        _print_cases(means, noise, figure, as_json)
        return
    given = {"acceptance": acceptance, "excellence": excellence, "cases": cases, "draws": draws, "noise": noise}
    for name, value in given.items():
        if value is not None:
            raise StudyError(f"--{name} {value}: goes with --protocol seal, and with no other beside it")
    if protocol == ["audit"]:
        _audit(model, reference, scale, weights, sources, data_root, results / "cache", cpu, figure, as_json)
        return
    for name, value in {"reference": reference, "figure": figure}.items():
        if value is not None:
            raise StudyError(f"--{name} {value}: goes with --protocol audit{' or seal' * (name == 'figure')} alone")
    settings: dict[str, Any] = {"self_ensemble": self_ensemble}
    settings |= {"protocols": protocol} if protocol else {}
    settings |= {"metrics": metric} if metric else {}
    measured = evaluate_checkpoint(named(model), scale, weights, sources, settings, data_root, results / "cache", cpu)
    rows = measured.means() if measured.stored else _beside_published(measured)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    _print_means(rows)


def _audit(
    model: str,
    reference: str | None,
    scale: int | None,
    weights: Path | None,
    data: list[Any],
    root: Path,
    cache: Path,
    cpu: bool,
    figure: Path | None,
    as_json: bool,
) -> None:
    from study.analysis.audit import audit_records, audit_tables, save_audit
    from study.analysis.published import load_published
    from study.analysis.reproduction import METHODS, cite
    from study.analysis.seal import check_figure
    from study.cli.evidence import show
    from study.training.protocol_audit import audit_networks

    check_figure(figure)
    networks = {"--model": model} | ({"--reference": reference} if reference else {})
    opened = {option: named(one) for option, one in networks.items()}
    frame = audit_networks(opened, scale, weights, data, root, cache, cpu)
    published = {}
    for name, dataset, metric in frame[["network", "dataset", "metric"]].drop_duplicates().itertuples(index=False):
        method = METHODS.get(name)
        cited = cite(load_published(), method, scale or 4, dataset, metric) if method else None
        published |= {(name, dataset, metric): cited.number} if cited else {}
    if figure is not None:
        save_audit(frame, figure, published)
    if as_json:
        typer.echo(json.dumps(audit_records(frame, published), indent=1))
        return
    for table in audit_tables(frame, published):
        show(table)
    if figure is not None:
        out.print(f"Figure: {figure}", highlight=False, soft_wrap=True)


def _beside_published(measured: "Checkpoint") -> list[dict[str, Any]]:
    """The means, with what was published of these weights and the verdict."""
    from study.analysis.published import load_published
    from study.analysis.reproduction import reproduce_weights

    rows, numbers = measured.means(), load_published()
    for row in rows:
        if row["mean"] is None:
            continue
        place = row["dataset"], row["protocol"], row["metric"]
        found = reproduce_weights(measured.run, *place, row["mean"], row["n"], numbers)
        if found is not None and found.cited is not None:
            row |= {"published": found.cited.value, "confidence": found.cited.confidence, "where": found.cited.place}
            row |= {"verdict": found.verdict, "why": found.reason}
    return rows


def _print_means(rows: list[dict[str, Any]]) -> None:
    cited = any("published" in row for row in rows)
    view = View()
    for name in ("dataset", "protocol", "metric", "mean", "n", *(("published", "verdict") if cited else ())):
        view.add_column(name, justify="right" if name in ("mean", "n", "published") else "left")
    for row in rows:
        digits = 4 if row["metric"] != "psnr" else 2
        mean = "not computed" if row["mean"] is None else f"{row['mean']:.{digits}f}"
        verdict = row.get("verdict", "") + (f" ({row['why']})" if row.get("why") else "")
        more = (row.get("published", ""), verdict) if cited else ()
        view.add_row(row["dataset"], row["protocol"], row["metric"], mean, str(row["n"]), *more)
    out.print(view)
    sources = {f"published: {row['where']} ({row['confidence']})" for row in rows if "where" in row}
    for line in (*sorted(sources), *dict.fromkeys(row["reason"] for row in rows if "reason" in row)):
        out.print(line, highlight=False, markup=False, soft_wrap=True)


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
    view = View(title=table.caption, title_justify="left", pad_edge=False, collapse_padding=True)
    for column in table.columns:
        view.add_column(column.heading, justify="left" if column is table.columns[0] else "right")
    for row in table.entries():
        values = zip(row, table.columns, strict=True)
        view.add_row(*("–" if entry.value is None else format(entry.value, column.format) for entry, column in values))
    out.print(view)
    for note in (*table.notes, f"Cases: {means.path}", *([] if figure is None else [f"Figure: {figure}"])):
        out.print(note, highlight=False, markup=False, soft_wrap=True)


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
    report: Annotated[
        bool, typer.Option("--report", help="instead: time and memory of a report of 1,000,000 rows, and a bootstrap")
    ] = False,
    calibration: Annotated[
        bool,
        typer.Option("--calibration", help="instead: how often the tests err, on simulated grids (minutes)"),
    ] = False,
    cpu: CpuOnly = False,
) -> None:
    """Time training steps and inference against the floor: the operations over this machine's matrix rate.

    Everything is interleaved in one process. Use a machine that does nothing else: two CPU threads that others
    interrupt wait for each other.
    """
    if report and calibration:
        raise StudyError("--report and --calibration are two measurements; ask for one at a time")
    if report or calibration:
        (_bench_report if report else _bench_calibration)(to)
        return
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


def _bench_report(to: Path | None) -> None:
    """In `to`, where the made-up runs stay, or in a folder that is removed."""
    from study.analysis.scale import Size, measure_report, scale_table
    from study.cli.evidence import show

    with TemporaryDirectory() as temporary, out.status("writing 500 made-up runs") as view:
        measured = measure_report(Size(500, 5, 400), to or Path(temporary), lambda what: view.update(what))
    show(scale_table(measured))


def _bench_calibration(to: Path | None) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from study.analysis.calibration import GRIDS, calibrate, calibration_tables, save_calibration
    from study.cli.evidence import show

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("simulated designs", total=None)
        rows = calibrate(GRIDS, on_progress=lambda done, total: progress.update(task, completed=done, total=total))
    if to is not None:
        save_calibration(rows, to)
    for table in calibration_tables(rows):
        show(table)
