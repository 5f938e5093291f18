"""Pages from the templates in reports/: one content as HTML, Markdown and LaTeX."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

import study
from study import StudyError
from study.analysis.markup import Markdown, escape_markdown, escape_tex, inline_svg, reveal
from study.analysis.pictures import Picture
from study.analysis.sliders import Slider
from study.analysis.tables import Table

REPORTS = Path(study.__file__).parents[1] / "reports"
FORMATS = ("html", "md", "tex")


class ReportError(StudyError):
    """The report cannot be rendered; the message names what is missing."""


def find_style(page: str) -> Path:
    """The figures' style.

    Raises:
        ReportError: it, or a template of `page`, is absent.
    """
    style = REPORTS / "study.mplstyle"
    for path in (style, *(REPORTS / "templates" / f"{page}.{kind}.j2" for kind in FORMATS)):
        if not path.is_file():
            raise ReportError(f"{path} is missing: reports are rendered from a checkout that has its reports/ folder")
    return style


def render(page: str, kind: str, content: Mapping[str, Any]) -> bytes:
    """A page of one of `FORMATS`."""
    return _environment(kind).get_template(f"{page}.{kind}.j2").render(content).encode()


def _environment(kind: str) -> jinja2.Environment:
    common: dict[str, Any] = {
        "loader": jinja2.FileSystemLoader(REPORTS / "templates"),
        "undefined": jinja2.StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "keep_trailing_newline": True,
    }
    if kind == "html":
        common |= {"autoescape": True, "finalize": lambda value: reveal(value) if type(value) is str else value}
    else:  # escaping is for HTML only in Jinja; here every printed value passes through its format's own
        common["finalize"] = escape_markdown if kind == "md" else escape_tex
    if kind == "tex":
        common |= {"block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<"}
        common |= {"variable_end_string": ">>", "comment_start_string": "<#", "comment_end_string": "#>"}
    environment = jinja2.Environment(**common)
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    environment.tests["slider"] = lambda block: isinstance(block, Slider)
    environment.filters["markdown"] = Markdown  # text that is Markdown already
    environment.filters["svg"] = lambda picture: inline_svg(picture.svg, picture.name, picture.caption)
    return environment
