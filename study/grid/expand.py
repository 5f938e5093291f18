"""From a grid file to the runs it asks for, checked before anything is trained."""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from study.grid.identity import specification
from study.grid.loading import LIMIT_DEPTH, Document, GridError, KeyPath, merge, nested, read_document
from study.grid.messages import explain, nearest
from study.grid.plan import Cell, Plan
from study.grid.schema import Budget, Grid, Run
from study.grid.starts import chain

LIMIT_RUNS = 100_000


@dataclass(frozen=True)
class _Combination:
    labels: dict[str, str]
    layers: tuple[tuple[KeyPath, KeyPath, dict[str, Any]], ...]  # (prefix in the run, path in the file, settings)


def load_plan(path: Path, budget: str | None = None) -> Plan:
    """Reads a grid file, lays a budget over it, and resolves every run.

    Args:
        path: the grid file.
        budget: name of a file in `budgets/` beside the grid or, failing that, in the project's `ablations/`; or None.

    Raises:
        GridError: with one line per problem, each naming file, line and key.
    """
    if budget is not None and not re.fullmatch(r"[\w.+-]{1,64}", budget):
        raise GridError(f"budget {budget!r}: a name of letters, digits, dots, dashes and underscores is needed")
    document = read_document(path)
    overlay = _read_budget(path, budget) if budget else Document({"description": ""}, {(): (path, 1)})
    grid, tree = _validated(document, overlay)
    combinations = _combinations(document, grid)
    cells = [_resolve(document, overlay, grid, tree, combination) for combination in combinations]
    cells = chain(cells, partial(_place_of_start, document))
    _check_duplicates(document, cells)
    plan = Plan(f"{path.stem}-{budget}" if budget else path.stem, budget, grid, tuple(cells))
    _check_analysis(document, overlay, plan)
    return plan


def _read_budget(path: Path, budget: str) -> Document:
    folders = (path.parent / "budgets", Path(__file__).resolve().parents[2] / "ablations" / "budgets")
    file = next((file for folder in folders if (file := folder / f"{budget}.yaml").is_file()), None)
    if file is None:
        known = {file.stem for folder in folders for file in folder.glob("*.yaml")}
        raise GridError(f"no budget {budget!r} in {folders[0]} or among the project's own; {nearest(budget, known)}")
    document = read_document(file)
    try:
        Budget.model_validate(document.tree)
    except ValidationError as error:
        raise GridError(explain(error, Budget, lambda p: (document.place(p), _dotted(p)))) from None
    return document


def _validated(document: Document, overlay: Document) -> tuple[Grid, dict[str, Any]]:
    """The grid, and the base run as a complete tree with the budget laid over it."""
    shared = {key: overlay.tree[key] for key in Budget.RUN_KEYS if key in overlay.tree}
    base = document.tree.get("base", {})
    if not isinstance(base, dict):
        raise GridError(f"{document.place(('base',))}: base: must be a mapping, got {base!r}")
    tree = merge(Run().model_dump(), merge(base, shared))
    tree = merge(tree, {"model": overlay.tree.get("models", {}).get(_kind(tree, "model"), {})})
    tree = merge(tree, overlay.tree.get("objectives", {}).get(_kind(tree, "objective"), {}))
    if _assignment(tree):
        own = overlay.tree.get("assignments", {}).get(_assignment(tree), {})
        tree = merge(tree, {"model": {"assignment": own}})
    whole = {**document.tree, "base": tree}
    if "seeds" in overlay.tree:
        whole["seeds"] = overlay.tree["seeds"]
    if isinstance(whole.get("analysis"), dict):
        whole["analysis"] = merge(whole["analysis"], overlay.tree.get("analysis", {}))
    try:
        return Grid.model_validate(whole), tree
    except ValidationError as error:

        def locate(path: KeyPath) -> tuple[str, str]:
            return _locate(document, overlay, path, path[1:] if path[:1] == ("base",) else path), _dotted(path)

        raise GridError(explain(error, Grid, locate)) from None


def _locate(document: Document, overlay: Document, path: KeyPath, run_path: KeyPath) -> str:
    """Place of a key that may come from the budget or from the grid."""
    return _in_budget(overlay, run_path) or document.place(path)


def _in_budget(overlay: Document, run_path: KeyPath) -> str:
    """Place of a run's key in the budget, by a kind of model, assignment or objective, or plainly; else empty."""
    candidates = [
        ("started", *run_path),
        *(("objectives", kind, *run_path) for kind in overlay.tree.get("objectives", {})),
    ]
    if run_path[:2] == ("model", "assignment"):
        candidates += [("assignments", kind, *run_path[2:]) for kind in overlay.tree.get("assignments", {})]
    if run_path[:1] == ("model",):
        candidates += [("models", kind, *run_path[1:]) for kind in overlay.tree.get("models", {})]
    else:
        candidates.append(run_path)
    for candidate in candidates:
        if candidate and candidate in overlay.places:
            return overlay.place(candidate)
    return ""


def _kind(tree: Mapping[str, Any], part: str) -> str:
    return str(tree[part].get("kind")) if isinstance(tree.get(part), Mapping) else ""


def _assignment(tree: Mapping[str, Any]) -> str:
    """Kind of the assignment, empty where the model has none."""
    return _kind(tree["model"], "assignment") if isinstance(tree.get("model"), Mapping) else ""


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _combinations(document: Document, grid: Grid) -> list[_Combination]:
    """Product of variants and axes, less the excluded, and the references."""
    variants = [
        ({"variant": name}, ((), ("variants", name), settings)) for name, settings in grid.variants.items()
    ] or [({}, None)]
    for axis in grid.axes:
        if axis.count(".") > LIMIT_DEPTH:
            raise GridError(f"{document.place(('axes', axis))}: axes.{axis[:40]}…: nested too deeply to be a grid")
    axes = [
        [({axis: label}, _axis_layer(axis, label, value)) for label, value in _labelled(document, axis, values).items()]
        for axis, values in grid.axes.items()
    ]
    seeds = grid.seeds if isinstance(grid.seeds, int) else len(grid.seeds)
    runs = seeds * (math.prod(map(len, [variants, *axes])) + len(grid.references))
    if runs > LIMIT_RUNS:
        place = document.place(("axes",), ("seeds",), ())
        raise GridError(f"{place}: axes: {_many_runs(runs)} runs, before any is excluded; at most {LIMIT_RUNS:,}")
    product = []
    for parts in itertools.product(variants, *axes):
        labels = {key: label for part, _ in parts for key, label in part.items()}
        product.append(_Combination(labels, tuple(layer for _, layer in parts if layer is not None)))
    kept = _excluded(document, grid, product)
    for name, settings in grid.references.items():
        kept.append(_Combination({"variant": name}, (((), ("references", name), settings),)))
    if not kept:
        raise GridError(f"{document.place(('exclude',))}: exclude: leaves no run")
    return kept


def _many_runs(runs: int) -> str:
    return f"{runs:,}" if runs < 10**15 else f"10^{math.floor(math.log10(runs))}"


def _axis_layer(axis: str, label: str, value: Any) -> tuple[KeyPath, KeyPath, dict[str, Any]]:
    return tuple(axis.split(".")), ("axes", axis, label), nested(axis, value)


def _labelled(document: Document, axis: str, values: list[Any] | dict[str, Any]) -> dict[str, Any]:
    """Label -> value; a list's values are their own labels, its numbers joined by dashes."""
    place = document.place(("axes", axis))
    if not values:
        raise GridError(f"{place}: axes.{axis}: an axis needs at least one value")
    if isinstance(values, dict):
        return values
    labels: dict[str, Any] = {}
    for value in values:
        if isinstance(value, dict):
            raise GridError(f"{place}: axes.{axis}: mappings need names: write `{{name: value, …}}` instead of a list")
        label = _label(value)
        if label in labels:
            raise GridError(f"{place}: axes.{axis}: {label} is listed twice")
        labels[label] = value
    return labels


def _excluded(document: Document, grid: Grid, product: list[_Combination]) -> list[_Combination]:
    known: dict[str, set[str]] = {}
    for combination in product:
        for key, label in combination.labels.items():
            known.setdefault(key, set()).add(label)
    kept = product
    for index, rule in enumerate(grid.exclude):
        place = document.place(("exclude", index))
        wanted = {key: {_label(v) for v in _many(value)} for key, value in rule.items()}
        for key, labels in wanted.items():
            if key not in known:
                raise GridError(f"{place}: exclude: no variant or axis {key!r}; {nearest(key, known)}")
            for label in labels - known[key]:
                raise GridError(f"{place}: exclude: {key} has no value {label!r}; {nearest(label, known[key])}")
        left = [c for c in kept if not all(c.labels.get(key) in labels for key, labels in wanted.items())]
        if len(left) == len(kept):
            raise GridError(f"{place}: exclude: {rule} removes nothing that is still there")
        removed = {_name(c.labels, grid) for c in kept} - {_name(c.labels, grid) for c in left}
        if grid.analysis.baseline in removed:
            raise GridError(f"{place}: exclude: {rule} removes the baseline {grid.analysis.baseline!r}")
        kept = left
    return list(kept)


def _label(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(_label, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _name(labels: Mapping[str, str], grid: Grid) -> str:
    """`soft, prior=frequency`: the variant, and each axis by the shortest end of its path that no other axis shares."""
    parts = []
    for key, label in labels.items():
        if key == "variant":
            parts.append(label)
            continue
        words = key.removesuffix(".kind").split(".")
        others = [axis.removesuffix(".kind").split(".") for axis in grid.axes if axis != key]
        length = next((n for n in range(1, len(words)) if all(o[-n:] != words[-n:] for o in others)), len(words))
        parts.append(f"{'.'.join(words[-length:])}={label}")
    return ", ".join(parts) or "base"


def _resolve(
    document: Document, overlay: Document, grid: Grid, tree: dict[str, Any], combination: _Combination
) -> Cell:
    # what the budget says of this kind of model, assignment or objective lies below what the variant says
    assignment = _assignment(tree)
    model, objective = (_final_kind(tree, part, combination) for part in ("model", "objective"))
    if model != _kind(tree, "model"):
        tree = {**tree, "model": merge({"kind": model}, overlay.tree.get("models", {}).get(model, {}))}
    if objective != _kind(tree, "objective"):
        tree = merge({**tree, "objective": {"kind": objective}}, overlay.tree.get("objectives", {}).get(objective, {}))
    for _, _, settings in combination.layers:
        tree = merge(tree, settings)
    chosen = _assignment(tree)
    if chosen != assignment and chosen in overlay.tree.get("assignments", {}):
        own = merge({"kind": chosen, **overlay.tree["assignments"][chosen]}, tree["model"]["assignment"])
        tree = {**tree, "model": {**tree["model"], "assignment": own}}
    if tree["start"] is not None and tree["optimisation"]["steps"] != 0:
        tree = merge(tree, overlay.tree.get("started", {}))
    name = _name(combination.labels, grid)
    try:
        run = Run.model_validate(tree)
    except ValidationError as error:
        raise GridError(explain(error, Run, lambda path: _origin(document, overlay, combination, name, path))) from None
    seeds = list(range(grid.seeds)) if isinstance(grid.seeds, int) else grid.seeds
    if "seed" in run.ineffective():
        seeds = seeds[:1]
    return Cell(name, combination.labels, tuple(run.model_copy(update={"seed": run.seed + seed}) for seed in seeds))


def _final_kind(tree: Mapping[str, Any], part: str, combination: _Combination) -> str:
    """Kind of the run's model or objective once every layer is laid over it."""
    kind = _kind(tree, part)
    for _, _, settings in combination.layers:
        if isinstance(settings.get(part), Mapping) and "kind" in settings[part]:
            kind = str(settings[part]["kind"])
    return kind


def _place_of_start(document: Document, cell: Cell) -> str:
    variant = cell.labels.get("variant", "")
    return document.place(*((part, variant, "start") for part in ("variants", "references")), ("base", "start"), ())


def _origin(
    document: Document, overlay: Document, combination: _Combination, name: str, path: KeyPath
) -> tuple[str, str]:
    """Where a resolved run's key was written, the last layer that set it first."""
    written = _in_budget(overlay, path)
    if written and not any(_holds(settings, path) for _, _, settings in combination.layers):
        return written, f"{_dotted(path)} (in {name})"
    longest = 0
    found: KeyPath | None = None
    for prefix, place, _ in reversed(combination.layers):
        inside = (*place, *path[len(prefix) :]) if path[: len(prefix)] == prefix else place
        if prefix and path[: len(prefix)] == prefix[: len(path)]:
            axis = inside if inside in document.places else place if place in document.places else place[:2]
            return document.place(axis), f"{_dotted(path)} (in {name})"
        depth = next((n for n in range(len(inside), len(place), -1) if inside[:n] in document.places), 0)
        if not prefix and depth - len(place) > longest:
            longest, found = depth - len(place), inside[:depth]
    if found is not None and longest >= min(len(path), 1):
        return document.place(found), f"{_dotted(path)} (in {name})"
    return _locate(document, overlay, ("base", *path), path), f"{_dotted(path)} (in {name})"


def _holds(settings: Any, path: KeyPath) -> bool:
    if not path:
        return True
    return isinstance(settings, Mapping) and path[0] in settings and _holds(settings[path[0]], path[1:])


def _check_duplicates(document: Document, cells: list[Cell]) -> None:
    seen: dict[str, Cell] = {}
    names: set[str] = set()
    # Cells that count their seeds from different ones may share some of their runs.
    shifted = len({cell.runs[0].seed for cell in cells}) > 1
    for cell in cells:
        if cell.name in names:
            raise GridError(
                f"{document.place(('references', cell.name))}: references.{cell.name}: a variant has that name"
            )
        names.add(cell.name)
        runs = [specification(run) for run in (cell.runs if shifted else cell.runs[:1])]
        twin = next((seen[run] for run in runs if run in seen), None)
        for run in runs:
            seen.setdefault(run, cell)
        if twin is None or _sources_differ(twin, cell):
            continue
        differing = [k for k in {**twin.labels, **cell.labels} if twin.labels.get(k) != cell.labels.get(k)]
        if len(differing) == 1 and differing[0] != "variant":
            axis = differing[0]
            raise GridError(
                f"{document.place(('axes', axis))}: axes.{axis}: changes nothing between "
                f"{twin.name!r} and {cell.name!r}: both resolve to the same run"
            )
        place = document.place(*((section, cell.labels.get("variant", "")) for section in ("references", "variants")))
        raise GridError(f"{place}: {cell.name!r} and {twin.name!r} resolve to the same run; keep one of them")


def _sources_differ(one: Cell, other: Cell) -> bool:
    """Whether two cells name different images, which may differ in content."""
    a, b = one.runs[0], other.runs[0]
    trains = a.model.trained and a.data.train != b.data.train
    return trains or a.evaluation.datasets != b.evaluation.datasets


def _check_analysis(document: Document, overlay: Document, plan: Plan) -> None:
    analysis = plan.grid.analysis
    names = [cell.name for cell in plan.cells]

    def refuse(key: str, message: str) -> None:
        where = overlay if ("analysis", key) in overlay.places else document
        raise GridError(f"{where.place(('analysis', key))}: analysis.{key}: {message}")

    if analysis.baseline not in names:
        refuse("baseline", f"no cell {analysis.baseline!r}; {nearest(analysis.baseline, names)}")
    for pair in analysis.comparisons or ():
        for name in pair:
            if name not in names:
                refuse("comparisons", f"no cell {name!r}; {nearest(name, names)}")
        if pair[0] == pair[1]:
            refuse("comparisons", f"{pair[0]!r} is compared with itself")
    for cell in plan.cells:
        evaluation = cell.runs[0].evaluation
        if analysis.dataset is not None and analysis.dataset not in evaluation.datasets:
            refuse("dataset", f"{cell.name!r} is not evaluated on it; {nearest(analysis.dataset, evaluation.datasets)}")
        for key, value, valid in (
            ("protocol", analysis.protocol, evaluation.protocols),
            ("metric", analysis.metric, evaluation.metrics),
        ):
            if value not in valid:
                refuse(key, f"{cell.name!r} is not evaluated by {value}; {nearest(value, valid)}")
    if analysis.curve is not None and analysis.curve not in plan.grid.axes:
        refuse("curve", f"is not an axis; {nearest(analysis.curve, plan.grid.axes)}")
