"""One table object, and its renderings as HTML, Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

from markupsafe import Markup

from study.analysis.markup import Markdown, Tex, breakable_html, escape_html, escape_markdown, escape_tex

Best = Literal["high", "low", "zero"]
WIDE_TEXT = 36  # characters; LaTeX breaks the lines of a column that has more in a cell


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
        detail: where a number comes from: shown in the page on hover and on keyboard focus, nowhere else.
        order: the number that the page sorts a text by.
        rank: best and second are marked among the numbers of a column that have the same; None: never.
    """

    value: str | float | None
    suffix: str = ""
    tone: str = ""
    detail: str = ""
    order: float | None = None
    rank: str | None = ""


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
        return self._entries

    @cached_property
    def _entries(self) -> list[list[Entry]]:
        return [[value if isinstance(value, Entry) else Entry(value) for value in row] for row in self.rows]

    def marks(self) -> dict[tuple[int, int], str]:
        """(row, column) -> `best` or `second`; values that print alike share a mark, and one value alone has none."""
        marks, entries = {}, self.entries()
        for j, column in enumerate(self.columns):
            if column.best is None:
                continue
            for rank in {row[j].rank for row in entries} - {None}:
                ranked = {i: row[j] for i, row in enumerate(entries) if row[j].rank == rank and _ranks(row[j])}
                printed = {i: float(format(entry.value, column.format)) for i, entry in ranked.items()}
                names = _names(printed, column.best)
                marks |= {(i, j): name for i, name in names.items()}
        return marks

    def to_html(self) -> Markup:
        """The table in a box that scrolls by itself when it is wide; numbers are kept in full for sorting."""
        marks, numeric = self.marks(), self._numeric()
        lines = [Markup('<div class="scroll" tabindex="0"><table id="table-{}">').format(self.name)]
        caption = Markup("<caption>{}</caption>").format(escape_html(self.caption))
        lines += [caption, Markup("<thead>"), *self._html_head(numeric), Markup("</thead><tbody>")]
        for i, row in enumerate(self.entries()):
            cells = (self._html_cell(entry, (i, j), marks.get((i, j), ""), numeric[j]) for j, entry in enumerate(row))
            lines.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
        lines.append(Markup("</tbody></table></div>"))
        lines += [Markup('<p class="note">{}</p>').format(escape_html(note)) for note in self.notes]
        return Markup("\n").join(lines)

    def _html_cell(self, entry: Entry, place: tuple[int, int], mark: str, number: bool) -> Markup:
        text = breakable_html(_text(entry.value, self.columns[place[1]]))
        if mark:
            text = Markup("<{0}>{1}</{0}>").format(Markup({"best": "strong", "second": "u"}[mark]), text)
        if entry.suffix:
            text += Markup(' <span class="suffix">{}</span>').format(escape_html(entry.suffix))
        if entry.tone:
            text = Markup('<span class="tone {}">{}</span>').format(entry.tone, text)
        if entry.detail:
            name = f"{self.name}-{place[0]}-{place[1]}"
            text = Markup(
                '<span class="detailed" tabindex="0" aria-describedby="{0}">{1}'
                '<span class="detail" role="tooltip" id="{0}">{2}</span></span>'
            ).format(name, text, escape_html(entry.detail))
        tag, scope = ("th", Markup(' scope="row"')) if place[1] == 0 else ("td", Markup(""))
        kind = Markup(' class="number"' if number else "" if entry.order is None else ' class="ordered"')
        order = entry.order if entry.value is None or isinstance(entry.value, str) else entry.value
        full = Markup("")
        if order is not None and not math.isnan(order):
            full = Markup(' data-value="{}"').format(repr(float(order)).replace("inf", "Infinity"))
        return Markup("<{}{}{}{}>{}</{}>").format(Markup(tag), scope, kind, full, text, Markup(tag))

    def _html_head(self, numeric: list[bool]) -> list[Markup]:
        rows = []
        if any(column.group for column in self.columns):
            spans = Markup("").join(
                Markup('<th colspan="{}" scope="colgroup"{}>{}</th>').format(
                    count, Markup(' class="group"') if group else "", escape_html(group)
                )
                for group, count in self._groups()
            )
            rows.append(Markup("<tr>{}</tr>").format(spans))
        cells = Markup("").join(
            Markup('<th scope="col"{}>{}{}</th>').format(
                Markup(' class="number"') if number else "",
                breakable_html(column.name),
                Markup(' <span class="unit">{}</span>').format(escape_html(column.unit)) if column.unit else "",
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
        lines = [rf"\begin{{tabular}}{{{self._tex_columns()}}}", r"\toprule"]
        if any(column.group for column in self.columns):
            groups = [rf"\multicolumn{{{count}}}{{c}}{{{escape_tex(group)}}}" for group, count in self._groups()]
            lines += [" & ".join(groups) + r" \\", "".join(self._rules())]
        lines += [" & ".join(escape_tex(column.heading) for column in self.columns) + r" \\", r"\midrule"]
        # The empty group keeps a cell that starts with a bracket from being read as an argument of \\.
        lines += ["{}" + " & ".join(row) + r" \\" for row in self._marked(escape_tex, wrap)[first:last]]
        return Tex("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))

    def _tex_columns(self) -> str:
        """Numbers to the right, text to the left; columns of long text share what is left of a page's width."""
        longest = [max((len(str(row[j].value)) for row in self.entries()), default=0) for j in range(len(self.columns))]
        kinds = ["r" if number else "l" for number in self._numeric()]
        wide = [j for j, kind in enumerate(kinds) if kind == "l" and longest[j] > WIDE_TEXT]
        room_em = max(14, (52 - 4 * (len(kinds) - len(wide))) // max(1, len(wide)))
        for j in wide:
            kinds[j] = rf">{{\raggedright\arraybackslash}}p{{{min(room_em, longest[j] // 2)}em}}"
        return "".join(kinds)

    def _rules(self) -> list[str]:
        rules, start = [], 1
        for group, count in self._groups():
            if group:
                rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
            start += count
        return rules

    def to_csv(self) -> str:
        """Numbers in full; a column with suffixes is followed by one that holds them.

        Text that a spreadsheet would take for a formula (it begins with = + - @ or a tab, and is no number) has an
        apostrophe before it.
        """
        entries = self.entries()
        noted = [any(row[j].suffix for row in entries) for j in range(len(self.columns))]
        head: list[str] = []
        for column, extra in zip(self.columns, noted, strict=True):
            name = _plain(f"{column.group} {column.heading}".strip())
            head += [name, f"{name} note"] if extra else [name]
        lines = [head]
        for row in entries:
            line = []
            for entry, extra in zip(row, noted, strict=True):
                line += [_plain(entry.value), _plain(entry.suffix)] if extra else [_plain(entry.value)]
            lines.append(line)
        sink = io.StringIO()
        csv.writer(sink, lineterminator="\n").writerows(lines)
        return sink.getvalue()

    def to_text(self) -> list[list[str]]:
        """Printed values with their suffixes, row by row, for a terminal."""
        return self._marked(str, {"best": "{}", "second": "{}"})

    def to_records(self) -> list[dict[str, str | float | None]]:
        """One mapping per row, for JSON: numbers in full, a suffix under `<column> note`; not finite is None."""
        heads = [f"{column.group} {column.heading}".strip() for column in self.columns]
        rows = []
        for entries in self.entries():
            row: dict[str, str | float | None] = {}
            for head, entry in zip(heads, entries, strict=True):
                finite = not isinstance(entry.value, float) or math.isfinite(entry.value)
                row[head] = entry.value if finite else None
                if entry.suffix:
                    row[f"{head} note"] = entry.suffix
            rows.append(row)
        return rows

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


def _names(shown: dict[int, float], best: Best) -> dict[int, str]:
    """Row -> `best` or `second` of the printed values; nothing where they are all alike."""
    if best == "zero":
        shown = {i: abs(value) for i, value in shown.items()}
    ranking = sorted(set(shown.values()), reverse=best == "high")
    names = dict(zip(ranking, ("best", "second"), strict=False)) if len(ranking) > 1 else {}
    return {i: names[value] for i, value in shown.items() if value in names}


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
    if not isinstance(value, str):
        return "" if value is None else repr(float(value) if isinstance(value, float) else value)
    # A return would end the row for some readers; half a surrogate pair has no encoding.
    text = value.replace("\r", " ").encode("utf-8", "backslashreplace").decode()
    begins = text.lstrip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) or text.startswith("\t")
    return f"'{text}" if begins and not _number(text) else text


def _number(text: str) -> bool:
    try:
        return bool(text) and math.isfinite(float(text))
    except ValueError:
        return False
