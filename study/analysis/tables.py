"""One table object, and its renderings as HTML, Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from markupsafe import Markup

from study.analysis.markup import Markdown, Tex, escape_markdown, escape_tex

Best = Literal["high", "low", "zero"]


@dataclass(frozen=True)
class Column:
    """A column's heading and how its numbers look.

    Attributes:
        name: heading.
        unit: printed under or after the heading.
        format: format specification of numbers, such as `.2f`.
        best: which end is marked, best bold and second underlined; `zero`: what lies nearest to it.
        group: heading shared with the neighbours of the same group.
    """

    name: str
    unit: str = ""
    format: str = ""
    best: Best | None = None
    group: str = ""

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Entry:
    """A table's cell.

    Attributes:
        value: text, number, or None where there is nothing.
        suffix: printed after it, such as `(n = 3)`.
        tone: `good`, `bad`, `warn` or nothing; colours it where colours exist.
    """

    value: str | float | None
    suffix: str = ""
    tone: str = ""


Value = str | float | None | Entry


@dataclass(frozen=True)
class Table:
    """Columns, rows and notes.

    Attributes:
        name: file name without ending, and anchor.
        caption: what it shows, one sentence.
        columns: the columns; the first one names the row.
        rows: one sequence of values per row.
        notes: printed below.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: a row has {len(row)} values, there are {len(self.columns)} columns"
                )

    def entries(self) -> list[list[Entry]]:
        """All cells as entries."""
        return [[value if isinstance(value, Entry) else Entry(value) for value in row] for row in self.rows]

    def marks(self) -> dict[tuple[int, int], str]:
        """(row, column) -> `best` or `second`; values that print alike share a mark, and one value alone has none."""
        marks = {}
        for j, column in enumerate(self.columns):
            if column.best is None:
                continue
            shown = {
                i: float(format(row[j].value, column.format)) for i, row in enumerate(self.entries()) if _ranks(row[j])
            }
            if column.best == "zero":
                shown = {i: abs(value) for i, value in shown.items()}
            ranking = sorted(set(shown.values()), reverse=column.best == "high")
            if len(ranking) > 1:
                names = dict(zip(ranking, ("best", "second"), strict=False))
                marks |= {(i, j): names[value] for i, value in shown.items() if value in names}
        return marks

    def to_html(self) -> Markup:
        """The table in a box that scrolls by itself when it is wide."""
        marks, numeric = self.marks(), self._numeric()
        tags = {"best": "strong", "second": "u"}

        def cell(i: int, j: int, entry: Entry) -> Markup:
            text = Markup.escape(_text(entry.value, self.columns[j]))
            if (i, j) in marks:
                text = Markup("<{0}>{1}</{0}>").format(Markup(tags[marks[i, j]]), text)
            if entry.suffix:
                text += Markup(' <span class="suffix">{}</span>').format(entry.suffix)
            if entry.tone:
                text = Markup('<span class="tone {}">{}</span>').format(entry.tone, text)
            tag = Markup('th scope="row"') if j == 0 else Markup("td")
            kind = Markup(' class="number"') if numeric[j] else Markup("")
            return Markup("<{}{}>{}</{}>").format(tag, kind, text, Markup("th" if j == 0 else "td"))

        lines = [Markup('<div class="scroll" tabindex="0"><table id="table-{}">').format(self.name)]
        lines += [Markup("<caption>{}</caption>").format(self.caption), Markup("<thead>"), *self._html_head(numeric)]
        lines.append(Markup("</thead><tbody>"))
        for i, row in enumerate(self.entries()):
            lines.append(Markup("<tr>{}</tr>").format(Markup("").join(cell(i, j, e) for j, e in enumerate(row))))
        lines.append(Markup("</tbody></table></div>"))
        lines += [Markup('<p class="note">{}</p>').format(note) for note in self.notes]
        return Markup("\n").join(lines)

    def _html_head(self, numeric: list[bool]) -> list[Markup]:
        rows = []
        if any(column.group for column in self.columns):
            spans = Markup("").join(
                Markup('<th colspan="{}" scope="colgroup"{}>{}</th>').format(
                    count, Markup(' class="group"') if group else "", group
                )
                for group, count in self._groups()
            )
            rows.append(Markup("<tr>{}</tr>").format(spans))
        cells = Markup("").join(
            Markup('<th scope="col"{}>{}{}</th>').format(
                Markup(' class="number"') if number else "",
                column.name,
                Markup(' <span class="unit">{}</span>').format(column.unit) if column.unit else "",
            )
            for column, number in zip(self.columns, numeric, strict=True)
        )
        return [*rows, Markup("<tr>{}</tr>").format(cells)]

    def to_markdown(self) -> Markdown:
        """A pipe table; groups go into the headings."""
        wrap = {"best": "**{}**", "second": "<ins>{}</ins>"}
        heads = [f"{column.group} {column.heading}".strip() for column in self.columns]
        rows = self._marked(escape_markdown, wrap)
        dashes = ["--:" if number else ":--" for number in self._numeric()]
        lines = ["| " + " | ".join(map(escape_markdown, heads)) + " |", "| " + " | ".join(dashes) + " |"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        parts = [f"*{escape_markdown(self.caption)}*", "\n".join(lines), *map(escape_markdown, self.notes)]
        return Markdown("\n\n".join(parts))

    def to_latex(self, first: int = 0, last: int | None = None) -> Tex:
        """A booktabs tabular of the rows from `first` up to `last`, without the float around it."""
        wrap = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}
        lines = [rf"\begin{{tabular}}{{{''.join('r' if number else 'l' for number in self._numeric())}}}", r"\toprule"]
        if any(column.group for column in self.columns):
            groups = [rf"\multicolumn{{{count}}}{{c}}{{{escape_tex(group)}}}" for group, count in self._groups()]
            lines += [" & ".join(groups) + r" \\", "".join(self._rules())]
        lines += [" & ".join(escape_tex(column.heading) for column in self.columns) + r" \\", r"\midrule"]
        # The empty group keeps a cell that starts with a bracket from being read as an argument of \\.
        lines += ["{}" + " & ".join(row) + r" \\" for row in self._marked(escape_tex, wrap)[first:last]]
        return Tex("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))

    def _rules(self) -> list[str]:
        rules, start = [], 1
        for group, count in self._groups():
            if group:
                rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
            start += count
        return rules

    def to_csv(self) -> str:
        """Numbers in full; a column with suffixes is followed by one that holds them."""
        entries = self.entries()
        noted = [any(row[j].suffix for row in entries) for j in range(len(self.columns))]
        head = []
        for column, extra in zip(self.columns, noted, strict=True):
            name = f"{column.group} {column.heading}".strip()
            head += [name, f"{name} note"] if extra else [name]
        lines = [head]
        for row in entries:
            line = []
            for entry, extra in zip(row, noted, strict=True):
                line += [_plain(entry.value), entry.suffix] if extra else [_plain(entry.value)]
            lines.append(line)
        sink = io.StringIO()
        csv.writer(sink, lineterminator="\n").writerows(lines)
        return sink.getvalue()

    def _marked(self, escape: Callable[[object], str], wrap: dict[str, str]) -> list[list[str]]:
        marks, rows = self.marks(), []
        for i, row in enumerate(self.entries()):
            line = []
            for j, entry in enumerate(row):
                text = escape(_text(entry.value, self.columns[j]))
                text = wrap[marks[i, j]].format(text) if (i, j) in marks else text
                line.append(f"{text} {escape(entry.suffix)}".strip())
            rows.append(line)
        return rows

    def _groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one group; ungrouped ones each on their own."""
        keyed = groupby(enumerate(self.columns), key=lambda pair: pair[1].group or pair[0])
        return [("" if isinstance(key, int) else key, len(list(part))) for key, part in keyed]

    def _numeric(self) -> list[bool]:
        return [
            bool(column.format) or any(isinstance(row[j].value, int | float) for row in self.entries())
            for j, column in enumerate(self.columns)
        ]


def _ranks(entry: Entry) -> bool:
    return isinstance(entry.value, int | float) and math.isfinite(entry.value)


def _text(value: str | float | None, column: Column) -> str:
    if value is None:
        return "—"
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "not finite"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return format(value, column.format).replace("-", "−")


def _plain(value: str | float | None) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)
