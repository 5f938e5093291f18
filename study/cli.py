"""The command `study`: verbs only. Each imports what it needs, so that judging works without torch."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
import yaml
from rich.console import Console
from rich.table import Table

from study import StudyError
from study.grid.expand import load_plan
from study.grid.models import Model
from study.grid.plan import Plan, title
from study.grid.schema import Metric, Protocol

if TYPE_CHECKING:
    from study.training.degradation_evaluation import CaseMeans
    from study.training.execution import ImageSets

app = typer.Typer(
    help="Ablation studies of image super-resolution: declare a grid, run it, read the report.\n\n"
    "A first look: study plan ablations/quickstart.yaml, then run, status and report on the same file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out = Console(soft_wrap=False)


GridFile = Annotated[Path, typer.Argument(metavar="GRID", help="a grid file, such as ablations/quickstart.yaml")]
BudgetName = Annotated[
    str | None, typer.Option("--budget", "-b", help="a file of budgets/ beside the grid: ci, laptop, single_gpu, paper")
]
ResultsFolder = Annotated[Path, typer.Option("--results", help="folder of runs/, reports/ and the image cache")]
DataRoot = Annotated[
    Path, typer.Option("--data-root", envvar="STUDY_DATA", help="folder that relative image paths start from")
]
KINDS = [cls.model_fields["kind"].default for cls in get_args(get_args(Model)[0])]


def _load(grid: Path, budget: str | None, results: Path) -> Plan:
    """The grid's runs; those that start from a run in the results folder have found it."""
    from study.records.index import settle

    return settle(load_plan(grid, budget), results / "runs")


CpuOnly = Annotated[bool, typer.Option("--cpu", help="keep off the GPU even where there is one")]


@app.command()
def plan(
    grid: GridFile,
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    data_root: DataRoot = Path("datasets"),
    cpu: CpuOnly = False,
    time: Annotated[bool, typer.Option(help="time a training step of every network, to estimate the whole")] = True,
) -> None:
    """Print every run of a grid, what it costs, and what was declared; train nothing."""
    from study.data.images import DataError
    from study.training.estimate import duration, estimate
    from study.training.execution import ImageSets

    declared = _load(grid, budget, results)
    images = ImageSets(data_root, results / "cache")
    estimates = estimate(declared, root=data_root, cpu=cpu, timed=time)
    view = Table(title=f"{declared.name}: {declared.grid.question}", title_justify="left")
    for name, justify in (("cell", "left"), ("seed", "right"), ("id", "left"), ("parameters", "right")):
        view.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    view.add_column("multiply-adds", justify="right")
    view.add_column("time", justify="right")
    missing: str | None = None
    for cell, run in declared.runs():
        try:
            if missing is None:
                images.check(run, 1)
            run_id = images.identify(run)[-10:] if missing is None else "?"
        except DataError as error:
            missing, run_id = str(error), "?"
        cost = estimates[cell.name]
        seed = "" if "seed" in run.ineffective() else str(run.seed)
        parameters = "?" if cost.parameters is None else f"{cost.parameters:,}"
        products = "?" if cost.multiply_adds is None else f"{cost.multiply_adds / 1e9:.2f} G"
        view.add_row(cell.name, seed, run_id, parameters, products, duration(cost.seconds))
    out.print(view)
    count = sum(len(cell.runs) for cell in declared.cells)
    total = sum(estimates[cell.name].seconds or 0.0 for cell, _ in declared.runs())
    out.print(
        f"{count} runs" + (f", about {duration(total)} of training one after the other on this machine" if time else "")
    )
    out.print("multiply-adds: convolutions and linear layers for a 1280 x 720 output, attention products left out")
    _print_analysis(declared)
    if missing:
        out.print(f"ids are not known yet: {missing}", style="yellow", highlight=False)


def _print_analysis(declared: Plan) -> None:
    analysis = declared.grid.analysis
    claims = {
        "same_images": "retraining, on these images",
        "new_images": "retraining, and new images",
        "these_weights": "these trained weights, on new images",
    }
    out.print(
        f"declared: {analysis.metric} ({analysis.protocol}) against {analysis.baseline!r}; claim: "
        f"{claims[analysis.claim]}; alpha {analysis.alpha}, {analysis.correction}, margin {analysis.margin_db} dB",
        highlight=False,
    )


@app.command()
def run(
    grid: GridFile,
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    data_root: DataRoot = Path("datasets"),
    placement: Annotated[
        str,
        typer.Option(
            metavar="run-per-process|packed:K|ddp",
            help="each process takes whole runs, or K at once on its device (small networks), or all share every run",
        ),
    ] = "run-per-process",
    cpu: CpuOnly = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="processes per run that prepare samples [default: 0 on a CPU, 4 on a GPU]")
    ] = None,
) -> None:
    """Train and evaluate what is left of a grid. The same command resumes, on one process or many.

    On several GPUs: [bold]accelerate launch -m study run GRID[/bold] or
    [bold]torchrun --nproc-per-node 8 -m study run GRID[/bold].
    Exit code: 0 all done, 1 something failed, 130 interrupted.
    """
    from study.training.placement import read_placement
    from study.training.runner import Options, run_grid

    placed = read_placement(placement)
    declared = _load(grid, budget, results)
    first = int(os.environ.get("RANK", "0")) == 0
    ended = run_grid(declared, Options(results, data_root, placed, cpu, workers))
    if first:
        _print_end(ended, results, grid, budget)
    states = set(ended.values())
    raise typer.Exit(130 if "interrupted" in states else 1 if "failed" in states else 0)


def _print_end(ended: dict[str, str], results: Path, grid: Path, budget: str | None) -> None:
    from study.records.index import status

    for run_id, state in ended.items():
        if state == "failed":
            reason = status(results / "runs", run_id).get("reason", "")
            out.print(f"failed: {run_id}: {reason}", style="red", highlight=False, soft_wrap=True)
    counts = ", ".join(f"{list(ended.values()).count(state)} {state}" for state in sorted(set(ended.values())))
    again = "" if budget is None else f" --budget {budget}"
    again += "" if results == Path("results") else f" --results {results}"
    verb = "report" if set(ended.values()) == {"done"} else "run"
    out.print(f"{counts}; runs lie in {results / 'runs'}", highlight=False)
    out.print(f"next: study {verb} {grid}{again}", highlight=False, soft_wrap=True)


@app.command()
def status(grid: GridFile, budget: BudgetName = None, results: ResultsFolder = Path("results")) -> None:
    """Show the state of every run of a grid, from the results folder alone."""
    from study.records.index import locate
    from study.training.display import table

    declared = _load(grid, budget, results)
    ids = locate(results / "runs", declared)
    names = {ids.get((cell.name, run.seed), title(cell, run)): title(cell, run) for cell, run in declared.runs()}
    out.print(table(declared.name, names, results / "runs"))


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
def report(
    grid: GridFile,
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    to: Annotated[Path | None, typer.Option("--to", help="folder to write [default: RESULTS/reports/GRID]")] = None,
) -> None:
    """Write a grid's report as HTML, Markdown and LaTeX, from parquet alone; torch is not needed."""
    from study.analysis.report import build_report
    from study.records.index import locate, status
    from study.records.store import read

    declared = _load(grid, budget, results)
    runs = results / "runs"
    ids = locate(runs, declared)
    if not ids:
        raise StudyError(f"{runs} holds no run of {grid}; `study run {grid}` makes them")
    statuses = {run_id: status(runs, run_id) for run_id in ids.values()}
    done = [run_id for run_id in ids.values() if statuses[run_id]["state"] == "done"]
    command = f"study report {grid}" + (f" --budget {budget}" if budget else "")
    command += "" if results == Path("results") else f" --results {results}"
    written = build_report(
        declared, ids, read(runs, done), statuses, runs, to or results / "reports" / declared.name, command
    )
    for name in ("report.html", "report.md", "report.tex"):
        out.print(str(written[name]), highlight=False, soft_wrap=True)


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


@app.command()
def data(
    grid: GridFile,
    budget: BudgetName = None,
    results: ResultsFolder = Path("results"),
    data_root: DataRoot = Path("datasets"),
    samples: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="draw the first training samples as the network gets them")
    ] = None,
) -> None:
    """Open every image set of a grid, fill the cache, and print what is in it."""
    from study.grid.identity import sources
    from study.training.execution import ImageSets

    declared = _load(grid, budget, results)
    images = ImageSets(data_root, results / "cache")
    view = Table(title=f"{declared.name}: image sets", title_justify="left")
    for name in ("set", "images", "content"):
        view.add_column(name, justify="right" if name == "images" else "left")
    for source in dict.fromkeys(source for _, one in declared.runs() for source in sources(one)):
        opened = images[source]
        view.add_row(opened.name, str(len(opened)), opened.fingerprint[:16])
    out.print(view)
    if samples is not None:
        _draw_samples(declared, images, samples)


def _draw_samples(declared: Plan, images: "ImageSets", path: Path) -> None:
    """Draws what the first run that trains begins with."""
    from study.analysis.patches import Sample, save_samples
    from study.data.crops import Patches

    run = next((run for _, run in declared.runs() if run.trains), None)
    if run is None:
        raise StudyError(f"--samples: no run of {declared.name} trains")
    given = run.data
    patches = Patches(
        images[given.train], run.scale, given.lr_patch_px, given.augment, run.seed, degradation=given.degradation
    )
    drawn = []
    for n in range(12):
        lr, hr = ((patches[n][name] * 255).round().byte().permute(1, 2, 0).numpy() for name in ("lr", "hr"))
        drawn.append(Sample(hr, lr, patches.describe(n)))
    save_samples(drawn, path)
    out.print(str(path), highlight=False, soft_wrap=True)


def main() -> None:
    """Runs the command; what its user can put right is one message on standard error and exit code 2."""
    try:
        app()
    except ModuleNotFoundError as error:
        Console(stderr=True).print(f"{error}: this verb needs it; `pip install -e .` installs all", style="red")
        sys.exit(2)
    except StudyError as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False, emoji=False, soft_wrap=True)
        sys.exit(2)
