"""The verb that measures networks without a grid: evaluate."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table as View

from study import StudyError
from study.cli.options import CpuOnly, DataRoot, ResultsFolder, app, named, out, show
from study.grid.messages import nearest
from study.grid.models import Model
from study.grid.schema import Metric, Protocol, Run

if TYPE_CHECKING:
    from study.training.checkpoint_evaluation import Checkpoint
    from study.training.degradation_evaluation import CaseMeans
    from study.training.networks import NamedNetwork

KINDS = [cls.model_fields["kind"].default for cls in get_args(get_args(Model)[0])]
MODES = ("seal", "audit")  # of `evaluate --protocol`, besides the protocols themselves
Network = Annotated[
    str,
    typer.Option(
        help=f"a kind ({', '.join(KINDS)}), a mapping '{{kind: catanet, weights: …}}', or a finished run's folder"
    ),
]
Protocols = Annotated[
    list[str] | None,
    typer.Option(help=f"repeatable; all when absent: {', '.join(get_args(Protocol))}; or seal, audit"),
]
Metrics = Annotated[
    list[str] | None, typer.Option(help=f"repeatable; psnr, ssim when absent: {', '.join(get_args(Metric))}")
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="a list of {dataset, protocol, metric, mean, n}, of published weights with {published, confidence, "
        "where, verdict, why}; not computed: mean null and a reason",
    ),
]


@dataclass(frozen=True)
class Asked:
    """What `evaluate` is to measure, on what, and where things lie."""

    model: str
    weights: Path | None
    scale: int | None
    data: list[str | dict[str, Any]]
    root: Path
    cache: Path
    cpu: bool


def _seal(words: str, **more: Any) -> Any:
    """An option of `--protocol seal`."""
    return typer.Option(help=words, rich_help_panel="Over the space of degradations: --protocol seal", **more)


@app.command()
def evaluate(
    model: Network,
    data: Annotated[
        list[str], typer.Option(help="bundled, a folder of HR images, or a mapping '{kind: pairs, hr: …, lr: …}'")
    ],
    scale: Annotated[int | None, typer.Option(help="upscaling factor; when absent the run's, or 4")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="a .pth, .pt or .safetensors file; published layouts are known")
    ] = None,
    protocol: Protocols = None,
    metric: Metrics = None,
    self_ensemble: Annotated[bool, typer.Option("--self-ensemble", help="average the eight flips and turns")] = False,
    data_root: DataRoot = Path(),
    results: ResultsFolder = Path("results"),
    cpu: CpuOnly = False,
    as_json: AsJson = False,
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
    mode = protocol[0] if protocol and len(protocol) == 1 and protocol[0] in MODES else ""
    seal = {"acceptance": acceptance, "excellence": excellence, "cases": cases, "draws": draws, "noise": noise}
    _refuse(mode, ("seal",), seal)
    _refuse(mode, ("audit",), {"reference": reference})
    _refuse(mode, ("seal", "audit"), {"figure": figure})
    _check_protocols(protocol or [])
    asked = Asked(model, weights, scale, read_sources(data), data_root, results / "cache", cpu)
    if mode == "seal":
        lines = model, acceptance or "bicubic", excellence
        _measure_cases(asked, lines, metric, self_ensemble, (draws or 1000, cases or 100), noise, figure, as_json)
    elif mode == "audit":
        _audit(asked, reference, metric, self_ensemble, figure, as_json)
    else:
        _measure(asked, protocol, metric, self_ensemble, as_json)


def _check_protocols(protocols: list[str]) -> None:
    """Refuses what is no protocol, and a mode beside another."""
    for name in protocols:
        if name in MODES and len(protocols) > 1:
            raise StudyError(f"--protocol {name}: goes alone; {len(protocols)} are given: {', '.join(protocols)}")
        if name not in (*get_args(Protocol), *MODES):
            raise StudyError(f"--protocol {name}: {nearest(name, (*get_args(Protocol), *MODES))}")


def _refuse(mode: str, modes: tuple[str, ...], given: Mapping[str, Any]) -> None:
    """Refuses options that only other modes read."""
    for name, value in given.items():
        if value is not None and mode not in modes:
            raise StudyError(f"--{name} {value}: goes with --protocol {' or '.join(modes)} alone")


def read_sources(data: list[str]) -> list[str | dict[str, Any]]:
    """The image sets of `--data`.

    Raises:
        StudyError: one is no image set, or two would be reported under one name.
    """
    from study.training.checkpoint_evaluation import name_source

    sources = [named(item) for item in data]
    names: dict[str, str] = {}
    for item, source in zip(data, sources, strict=True):
        name, _ = name_source(source)
        if name in names:
            raise StudyError(f"--data {item}: is reported as {name!r}, and so is {names[name]}; measure one at a time")
        names[name] = item
    return sources


def _measure(
    asked: Asked, protocol: list[str] | None, metric: list[str] | None, self_ensemble: bool, as_json: bool
) -> None:
    """Means under the protocols of the papers."""
    from study.training.checkpoint_evaluation import evaluate_checkpoint

    for name in metric or ():
        if name not in get_args(Metric):
            raise StudyError(f"--metric {name}: {nearest(name, get_args(Metric))}")
    settings: dict[str, Any] = {"self_ensemble": self_ensemble}
    settings |= {"protocols": list(dict.fromkeys(protocol))} if protocol else {}
    settings |= {"metrics": list(dict.fromkeys(metric))} if metric else {}
    where = asked.root, asked.cache, asked.cpu
    measured = evaluate_checkpoint(named(asked.model), asked.scale, asked.weights, asked.data, settings, *where)
    rows = measured.means() if trained_here(measured) else _beside_published(measured)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    _print_means(rows)


def trained_here(one: "Checkpoint | NamedNetwork") -> bool:
    """Whether a network is a training of our own: none of those was published."""
    return one.stored and one.run.model.trained


def _measure_cases(
    asked: Asked,
    networks: tuple[str, str, str | None],
    metric: list[str] | None,
    self_ensemble: bool,
    drawn: tuple[int, int],
    noise: float | None,
    figure: Path | None,
    as_json: bool,
) -> None:
    """`--protocol seal`: over the space of degradations, between an acceptance and an excellence line."""
    from study.analysis.seal import check_figure, check_metric
    from study.training.degradation_evaluation import evaluate_cases

    chosen, noise = check_metric(metric or ["psnr"], noise)
    check_figure(figure)
    model, acceptance, excellence = networks
    if excellence is None:
        raise StudyError("--excellence: --protocol seal needs a strong network, named as --model is")
    opened = {
        option: named(one)
        for option, one in {"--model": model, "--acceptance": acceptance, "--excellence": excellence}.items()
    }
    settings = asked.data, chosen, self_ensemble, drawn, asked.root, asked.cache, asked.cpu
    _print_cases(evaluate_cases(opened, asked.scale, asked.weights, *settings), noise, figure, as_json)


def _audit(
    asked: Asked,
    reference: str | None,
    metric: list[str] | None,
    self_ensemble: bool,
    figure: Path | None,
    as_json: bool,
) -> None:
    """`--protocol audit`: the same weights under every protocol and switch."""
    from study.analysis.audit import audit_records, audit_tables, save_audit
    from study.analysis.audit_citations import cite_audit, tell_apart
    from study.analysis.published import load_published
    from study.analysis.seal import check_figure
    from study.training.protocol_audit import METRICS, audit_networks

    if self_ensemble:
        raise StudyError("--self-ensemble: --protocol audit measures with and without it")
    wanted = metric or METRICS
    for name in wanted:
        if name not in METRICS:
            raise StudyError(f"--metric {name}: --protocol audit computes {' and '.join(METRICS)}")
    check_figure(figure)
    if figure is not None and "psnr" not in wanted:
        raise StudyError(f"--figure {figure}: --protocol audit draws psnr, and --metric leaves it out")
    networks = {"--model": named(asked.model)} | ({"--reference": named(reference)} if reference else {})
    runs = _published_candidates(asked, networks)
    frame = audit_networks(networks, asked.scale, asked.weights, asked.data, asked.root, asked.cache, asked.cpu)
    frame = tell_apart(frame.query("metric in @wanted"))
    cited, notes = cite_audit(frame, runs, load_published())
    if figure is not None:
        save_audit(frame, figure, cited)
    if as_json:
        typer.echo(json.dumps(audit_records(frame, cited), indent=1))
        return
    for table in audit_tables(frame, cited):
        show(table)
    for note in (*notes, *([] if figure is None else [f"Figure: {figure}"])):
        out.print(note, highlight=False, markup=False, soft_wrap=True)


def _published_candidates(asked: Asked, networks: Mapping[str, str | dict[str, Any]]) -> dict[str, Run]:
    """Role -> what the network is, without those that were trained here."""
    import torch

    from study.training.networks import open_network
    from study.training.protocol_audit import ROLES

    runs, scale = {}, asked.scale
    for role, (option, given) in zip(ROLES, networks.items(), strict=False):
        own = asked.weights if role == ROLES[0] else None
        one = open_network(option, given, {}, scale=scale, weights=own, root=asked.root, device=torch.device("cpu"))
        scale = one.run.scale
        runs |= {} if trained_here(one) else {role: one.run}
    return runs


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
