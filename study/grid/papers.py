"""Which tables of a paper are regenerated, and which run would measure each of their rows: one YAML file per paper."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PositiveFloat, ValidationError, model_validator

from study.grid.fields import Declared, Names, Sequence
from study.grid.loading import Document, GridError, KeyPath, merge, read_document
from study.grid.messages import explain, nearest
from study.grid.schema import Protocol, Run, Scale

PaperMetric = Literal["psnr", "ssim", "lpips", "clipiqa", "musiq", "maniqa", "niqe", "parameters_k"]


class Row(Declared):
    """A row of a printed table.

    Attributes:
        method: as printed; the published numbers are found by it.
        paper: where its numbers were printed; the file's paper when absent.
        table: number of the table there; that of the regenerated table when absent.
        steps: of the inference, where a method stands there with several.
        run: settings of the training that measures it, laid over those of the file; None where nothing here can.
        start: settings of the training that it starts from, laid over those of the file.
        weights: by scale, the SHA-256 of published weights that measure it without training.
        why: why nothing here can measure it.
    """

    method: str
    paper: str | None = None
    table: str | None = None
    steps: int | None = None
    run: dict[str, Any] | None = None
    start: dict[str, Any] | None = None
    weights: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = {}
    why: str | None = None

    @model_validator(mode="after")
    def _is_measurable_or_says_why(self) -> Self:
        if (self.run is None and not self.weights) == (self.why is None):
            raise ValueError(f"row {self.method!r} needs either a run or weights that measure it, or why there is none")
        if self.start is not None and self.run is None:
            raise ValueError(f"row {self.method!r} has a start and no run that starts from it")
        return self


class PaperTable(Declared):
    """One printed table.

    Attributes:
        name: of its files.
        table: its number in the paper.
        caption: what it shows.
        stored: name of an image set in the paper -> its name in our runs, where they differ.
        protocol: of the measured values where the published ones do not state theirs.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    table: str
    caption: str
    scales: Annotated[tuple[Scale, ...], Sequence, Field(min_length=1)]
    datasets: Names
    metrics: Annotated[tuple[PaperMetric, ...], Sequence, Field(min_length=1)] = ("psnr", "ssim")
    stored: dict[str, str] = {}
    protocol: Protocol = "uint8_y"
    rows: Annotated[tuple[Row, ...], Sequence, Field(min_length=1)]

    @model_validator(mode="after")
    def _names_what_it_has(self) -> Self:
        _refuse_repeated("scales", self.scales)
        _refuse_repeated("datasets", self.datasets)
        _refuse_repeated("metrics", self.metrics)
        _refuse_unknown("stored", self.stored, self.datasets)
        for row in self.rows:
            _refuse_unknown(f"row {row.method!r}: weights", row.weights, self.scales)
        return self


class Paper(Declared):
    """A paper's tables.

    Attributes:
        paper: as in the published numbers.
        title: of the page.
        notes: printed below.
        tolerances: by metric, how far trained networks may be from the published number.
        run: settings of the training of every row.
        scales: by scale, settings laid over them.
    """

    paper: str
    title: str
    notes: Annotated[tuple[str, ...], Sequence] = ()
    tolerances: dict[str, PositiveFloat] = {}
    run: dict[str, Any] = {}
    scales: dict[str, dict[str, Any]] = {}
    tables: Annotated[tuple[PaperTable, ...], Sequence, Field(min_length=1)]

    @model_validator(mode="after")
    def _names_what_it_has(self) -> Self:
        _refuse_repeated("tables: name", (table.name for table in self.tables))
        _refuse_repeated("tables: table", (table.table for table in self.tables))
        _refuse_unknown("tolerances", self.tolerances, get_args(PaperMetric))
        _refuse_unknown("scales", self.scales, (scale for table in self.tables for scale in table.scales))
        return self

    def expected(self, row: Row, scale: int) -> Run | None:
        """The training that measures a row at a scale, at seed 0; None where there is none."""
        if row.run is None:
            return None
        run = self.laid(scale, row.run)
        return run if row.start is None else run.model_copy(update={"start": self.laid(scale, row.start)})

    def laid(self, scale: int, settings: dict[str, Any]) -> Run:
        """A run with these settings laid over the file's."""
        tree = Run().model_dump()
        for layer in (self.run, self.scales.get(str(scale), {}), settings, {"scale": scale, "seed": 0}):
            tree = merge(tree, layer)
        return Run.model_validate(tree)


def _refuse_repeated(where: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{where}: {value} is given twice")
        seen.add(value)


def _refuse_unknown(where: str, keys: Iterable[str], known: Iterable[object]) -> None:
    names = dict.fromkeys(map(str, known))
    for key in keys:
        if key not in names:
            raise ValueError(f"{where}: {key}: {nearest(key, names)}")


def papers(folder: Path) -> dict[str, Path]:
    """Name -> file of every paper in a folder."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_paper(folder: Path, name: str) -> Paper:
    """Reads `<name>.yaml`.

    Raises:
        GridError: there is none, or it is not what it should be; the message names file, line and key.
    """
    known = papers(folder)
    if name not in known:
        raise GridError(f"no tables of {name!r} in {folder}; {nearest(name, known)}")
    document = read_document(known[name])
    try:
        paper = Paper.model_validate(document.tree)
    except ValidationError as error:
        raise GridError(explain(error, Paper, lambda p: (document.place(p), ".".join(map(str, p))))) from None
    for t, table in enumerate(paper.tables):
        for r, row in enumerate(table.rows):
            for scale in table.scales:
                _check_run(paper, row, scale, document, ("tables", t, "rows", r))
    return paper


def _check_run(paper: Paper, row: Row, scale: int, document: Document, path: KeyPath) -> None:
    for name, settings in (("run", row.run), ("start", row.start)):
        if settings is None:
            continue
        layers = ((*path, name), ("scales", str(scale)), ("run",))  # the last one that was laid comes first
        try:
            paper.laid(scale, settings)
        except ValidationError as error:
            said = explain(
                error,
                Run,
                lambda p, layers=layers, name=name: (
                    document.place(*((*layer, *p) for layer in layers if p), path),
                    ".".join(map(str, (name, *p))),
                ),
            )
            raise GridError(f"{said} (row {row.method!r} at x{scale})") from None
