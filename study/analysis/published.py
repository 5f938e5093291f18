"""Published numbers: one CSV per paper under results/published/, checked when it is read."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

import study
from study import StudyError
from study.analysis.tables import Column, Entry, Table
from study.grid.messages import nearest
from study.grid.schema import Protocol, Scale

PUBLISHED = Path(study.__file__).parents[1] / "results" / "published"

Confidence = Literal["primary", "transcribed", "re-measured", "second-hand", "unverified"]
MARKS: dict[str, str] = {"primary": "p", "transcribed": "t", "re-measured": "r", "second-hand": "s", "unverified": "u"}
MEANINGS: dict[str, str] = {
    "primary": "the authors' own page or file",
    "transcribed": "a third party's copy of the paper's table",
    "re-measured": "another paper ran the released weights",
    "second-hand": "a review or summary",
    "unverified": "recalled digits, no source seen",
}
# What a metric can be at all; a number outside was mistyped.
RANGES: dict[str, tuple[float, float]] = {
    "psnr": (10, 60), "ssim": (0, 1), "lpips": (0, 1.5), "dists": (0, 1), "fid": (0, 1000), "niqe": (0, 30),
    "musiq": (0, 100), "maniqa": (0, 1), "clipiqa": (0, 1), "liqe": (1, 5), "top1": (0, 100), "hpsv2": (0, 100),
    "overall": (0, 1), "motion_quality": (0, 100), "total_score": (0, 1000), "parameters_k": (1, 1e6),
    "parameters_m": (0.01, 1e5), "multiply_adds_g": (0.01, 1e5), "latency_ms": (0.01, 1e6), "memory_mb": (1, 1e6),
    "training_hours": (0.1, 1e5),
}  # fmt: skip
COSTS = ("parameters_k", "parameters_m", "multiply_adds_g", "latency_ms", "memory_mb", "training_hours")
IMAGES = {"Set5": 5, "Set14": 14, "B100": 100, "Urban100": 100, "Manga109": 109}
OUTLIER_DB = 3.0  # a PSNR this far from the median of its neighbours was mistyped somewhere on its way
NEIGHBOURS = 3


class PublishedError(StudyError):
    """A file of published numbers is not what it should be; the message names file, line and column."""


def _empty_as_none(value: Any) -> Any:
    return None if value == "" else value


class Cited(BaseModel):
    """One published number.

    Attributes:
        file: name of the CSV without its ending.
        line: in that file.
        paper: where it was printed.
        table: number of the table there.
        method: network, or arm of an ablation, as printed.
        scale: upscaling factor; None where it has none.
        steps: of a generative network's inference.
        dataset: image set; empty for a cost.
        metric: key of `RANGES`.
        value: the number as printed, so that its digits are kept.
        protocol: how a PSNR or SSIM came about; `unknown` where nobody says.
        budget: training, in words; empty where it is not known.
        source: where the number was seen.
        confidence: key of `MARKS`.
        note: what must be known beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    line: int
    paper: Annotated[str, Field(min_length=1)]
    table: Annotated[str, Field(min_length=1)]
    method: Annotated[str, Field(min_length=1)]
    scale: Annotated[Scale | None, BeforeValidator(lambda text: int(text) if text.isdigit() else text or None)]
    steps: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_empty_as_none)]
    dataset: str
    metric: str
    value: Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")]
    protocol: Protocol | Literal["unknown", ""]
    budget: str
    source: Annotated[str, Field(min_length=1)]
    confidence: Confidence
    note: str

    @property
    def number(self) -> float:
        return float(self.value)

    @property
    def digits(self) -> int:
        """Printed decimals."""
        return len(self.value.partition(".")[2])

    @property
    def mark(self) -> str:
        """One letter for the confidence, in brackets."""
        return f"({MARKS[self.confidence]})"

    @property
    def place(self) -> str:
        return f"{self.paper}, {self.table}"

    @property
    def key(self) -> tuple[Any, ...]:
        """What may be printed once in a table."""
        return self.paper, self.table, self.method, self.scale, self.steps, self.dataset, self.metric, self.note


COLUMNS = tuple(name for name in Cited.model_fields if name not in ("file", "line"))


@cache
def load_published(folder: Path = PUBLISHED) -> tuple[Cited, ...]:
    """Every number of every CSV in the folder.

    Raises:
        PublishedError: there is none, or a line is not what it should be: another header, a wrong type, a value out
            of the metric's range, a number that stands there twice.
    """
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise PublishedError(f"{folder} holds no CSV of published numbers")
    return tuple(cited for path in paths for cited in _read(path))


def _read(path: Path) -> list[Cited]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            lines = [(reader.line_num, line) for line in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise PublishedError(f"{path}, line {reader.line_num}: not a CSV file: {error}") from None
    if not lines or tuple(lines[0][1]) != COLUMNS:
        raise PublishedError(f"{path}, line 1: the columns must be {', '.join(COLUMNS)}")
    seen: dict[tuple[Any, ...], Cited] = {}
    for number, values in lines[1:]:
        cited = _checked(path, number, values)
        if cited.key in seen:
            raise PublishedError(
                f"{path}, line {number}: {cited.method} {cited.metric} stands in line {seen[cited.key].line} already; "
                "keep one of them, or tell them apart by their note"
            )
        seen[cited.key] = cited
    return list(seen.values())


def _checked(path: Path, number: int, values: list[str]) -> Cited:
    where = f"{path}, line {number}"
    if len(values) != len(COLUMNS):
        raise PublishedError(f"{where}: {len(values)} values for {len(COLUMNS)} columns")
    try:
        cited = Cited.model_validate({"file": path.stem, "line": number, **dict(zip(COLUMNS, values, strict=True))})
    except ValidationError as error:
        first = error.errors()[0]
        column = first["loc"][0]
        raise PublishedError(f"{where}, {column}: {first['input']!r}: {first['msg']}") from None
    if cited.metric not in RANGES:
        raise PublishedError(f"{where}, metric: {cited.metric!r} is not known; {nearest(cited.metric, RANGES)}")
    low, high = RANGES[cited.metric]
    if not low <= cited.number <= high:
        raise PublishedError(f"{where}, value: {cited.metric} {cited.value} lies outside {low:g} to {high:g}")
    if (cited.metric in ("psnr", "ssim")) != bool(cited.protocol) and cited.metric in (*COSTS, "psnr", "ssim"):
        raise PublishedError(
            f"{where}, protocol: {cited.protocol!r}: psnr and ssim have one ({', '.join(get_args(Protocol))} or "
            "unknown), a cost has none"
        )
    return cited


def contradictions(numbers: Iterable[Cited]) -> dict[Cited, str]:
    """PSNRs that contradict their neighbours: the other rows of that table, or the same method at another scale.

    Such a number is shown with what speaks against it, and nothing is compared with it. Generative networks (those
    with `steps`) give PSNR away for realism, each as much as it likes, so they have no neighbours.
    """
    tables: dict[tuple[Any, ...], list[Cited]] = defaultdict(list)
    scales: dict[tuple[Any, ...], list[Cited]] = defaultdict(list)
    for one in numbers:
        if one.metric == "psnr" and one.steps is None:
            tables[one.paper, one.table, one.scale, one.dataset].append(one)
            scales[one.paper, one.table, one.method, one.dataset].append(one)
    flagged: dict[Cited, str] = {}
    for rows in tables.values():
        centre = median(row.number for row in rows)
        far = [row for row in rows if abs(row.number - centre) > OUTLIER_DB]
        if len(rows) > NEIGHBOURS:
            flagged |= {row: f"{row.value} dB beside a median of {centre:.2f} dB in its table" for row in far}
    for rows in scales.values():
        ordered = sorted((row for row in rows if row.scale), key=lambda row: row.scale or 0)
        for finer, coarser in pairwise(ordered):
            if coarser.scale != finer.scale and coarser.number >= finer.number:
                flagged.setdefault(coarser, f"x{coarser.scale} is not below x{finer.scale} ({finer.value} dB)")
    return flagged


def select(numbers: Iterable[Cited], **wanted: Any) -> list[Cited]:
    """Those whose fields have the wanted values; text is compared without regard to case, None matches all."""
    given = {name: value for name, value in wanted.items() if value is not None}
    return [one for one in numbers if all(_folded(getattr(one, name)) == _folded(v) for name, v in given.items())]


def _folded(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value


def select_known(numbers: Iterable[Cited], **wanted: Any) -> list[Cited]:
    """`select`, but a wanted value that no number has is an error which names the nearest one.

    Raises:
        PublishedError: a value is unknown, or nothing has them all.
    """
    numbers = list(numbers)
    for name, value in wanted.items():
        if value is not None and not select(numbers, **{name: value}):
            known = dict.fromkeys(str(getattr(one, name)) for one in numbers if getattr(one, name) not in ("", None))
            raise PublishedError(f"--{name} {value}: nothing is cited; {nearest(str(value), known)}")
    found = select(numbers, **wanted)
    if not found:
        given = ", ".join(f"{name} {value}" for name, value in wanted.items() if value is not None)
        raise PublishedError(f"nothing is cited for {given} together")
    return found


def summary_table(numbers: Iterable[Cited]) -> Table:
    """What is cited: a row per paper and table."""
    groups: dict[tuple[str, str], list[Cited]] = defaultdict(list)
    for one in numbers:
        groups[one.paper, one.table].append(one)
    columns = ("paper", "table", "methods", "scales", "image sets", "confidence")
    rows = [
        (
            paper, table, str(len({one.method for one in part})), _joined(f"x{one.scale}" for one in part if one.scale),
            _joined(one.dataset for one in part if one.dataset),
            _joined(one.confidence for one in part), len(part),
        )
        for (paper, table), part in groups.items()
    ]  # fmt: skip
    flags = [f"{place(one)}: {why}." for one, why in contradictions(numbers).items()]
    return Table(
        "published",
        "Published numbers under results/published/.",
        (*(Column(name) for name in columns), Column("numbers", "", "d")),
        tuple(rows),
        (*(f"Contradicts its neighbours: {flag}" for flag in flags), legend(numbers)),
    )


def numbers_table(numbers: Iterable[Cited], flagged: Mapping[Cited, str]) -> Table:
    """Every number with its source, one row each."""
    columns = ("method", "scale", "image set", "metric", "value", "protocol", "where")
    rows = []
    for one in numbers:
        scale = f"x{one.scale}" if one.scale else ""
        scale += f", {one.steps} steps" if one.steps else ""
        value = Entry(one.value, one.mark if one not in flagged else f"{one.mark} !", "warn" if one in flagged else "")
        rows.append((one.method, scale, one.dataset, one.metric, value, one.protocol, one.place))
    notes = [f"! {place(one)}: {why}." for one, why in flagged.items() if one in set(numbers)]
    notes += [f"{_subject(note, numbers)}: {note}." for note in dict.fromkeys(one.note for one in numbers) if note]
    sources = [f"Source: {source}." for source in dict.fromkeys(one.source for one in numbers)]
    return Table(
        "cited", "What is cited.", tuple(Column(name) for name in columns), tuple(rows),
        (*notes, *sources, legend(numbers)),
    )  # fmt: skip


def place(one: Cited) -> str:
    """A number's place in words."""
    scale = f" x{one.scale}" if one.scale else ""
    return f"{one.place}: {one.method}{scale} {one.dataset} {one.metric}".replace("  ", " ")


def legend(numbers: Iterable[Cited]) -> str:
    """What the marks of these numbers mean."""
    used = [mark for mark in MARKS if any(one.confidence == mark for one in numbers)]
    return "; ".join(f"({MARKS[mark]}) {mark}: {MEANINGS[mark]}" for mark in used) + "."


def _joined(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _subject(note: str, numbers: Iterable[Cited]) -> str:
    return _joined(one.method for one in numbers if one.note == note)
