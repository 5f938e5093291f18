"""How figures are saved: equal figures give equal bytes, and any name in them stays legible."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, Formatter, FuncFormatter
from matplotlib.transforms import Bbox

from study.analysis.forks import Forks
from study.analysis.markup import cut, reveal

LONGEST_LINE = 95  # characters that fit into a figure's width

_beside: Forks | None = None
_unwritten = False


@dataclass(frozen=True)
class Picture:
    """A saved figure.

    Attributes:
        name: file name without ending.
        caption: what it shows and how to read it.
        paths: ending -> file.
    """

    name: str
    caption: str
    paths: Mapping[str, Path]

    @property
    def svg(self) -> str:
        """The SVG file's content; inside `writing_beside` it may not be there yet."""
        return self.paths["svg"].read_text(encoding="utf-8")


def save_figure(figure: Figure, folder: Path, name: str, caption: str) -> Picture:
    """Writes SVG, PNG and PDF; equal figures give equal bytes.

    Inside `writing_beside` they come later, inside `writing_nothing` never.
    """
    paths = {ending: folder / f"{name}.{ending}" for ending in ("svg", "png", "pdf")}
    if _unwritten:
        return Picture(name, caption, paths)
    folder.mkdir(parents=True, exist_ok=True)
    if _beside is None:
        _write(figure, paths)
    else:
        _beside.start(partial(_write, figure, paths))
    return Picture(name, caption, paths)


@contextmanager
def writing_beside() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Figures that are saved inside are written by forked processes, one for each core; all are there at its end.

    Writing takes most of a large report's time. Where processes cannot be forked safely they are written at once.

    Yields:
        What does other work in the same way.
    """
    global _beside
    if sys.platform != "linux":
        yield lambda work: work()
        return
    with Forks(len(os.sched_getaffinity(0))) as _beside:
        try:
            yield _beside.start
        finally:
            _beside = None


@contextmanager
def writing_nothing() -> Iterator[None]:
    """Figures that are saved inside are drawn but not written, which is most of their time: for a report's tables."""
    global _unwritten
    _unwritten = True
    try:
        yield
    finally:
        _unwritten = False


def _write(figure: Figure, paths: Mapping[str, Path]) -> None:
    _make_legible(figure)
    with warnings.catch_warnings(), mpl.rc_context({"figure.constrained_layout.use": False}):  # it is laid out once
        # A name may hold letters that the font lacks: boxes in PNG and PDF, and in the page another font's.
        warnings.filterwarnings("ignore", "Glyph ", UserWarning)
        box = _laid_out(figure)
        # The SVG goes into the page, whose ground shows through; the other two stand on white.
        bare = {"Date": None, "Creator": None}
        figure.savefig(paths["svg"], bbox_inches=box, metadata=bare, facecolor="none")
        # another matplotlib draws otherwise: who compares pictures can tell
        figure.savefig(paths["png"], bbox_inches=box, metadata={"Software": f"matplotlib {mpl.__version__}"})
        bare = {"CreationDate": None, "Creator": None, "Producer": None}
        figure.savefig(paths["pdf"], bbox_inches=box, metadata=bare)


class _Legible(Formatter):
    """Tick labels of another formatter, made legible."""

    def __init__(self, inner: Formatter) -> None:
        self._inner = inner

    def __call__(self, x: float, pos: int | None = None) -> str:
        return _legible(self._inner(x, pos))


def _make_legible(figure: Figure) -> None:
    """Labels hold names, and names hold anything: what is hidden is shown, and very long lines are cut."""
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_text(_legible(text.get_text()))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter | FuncFormatter):
                axis.set_major_formatter(_Legible(formatter))


def _legible(text: str) -> str:
    return "\n".join(cut(reveal(line), LONGEST_LINE) for line in text.split("\n"))


def _laid_out(figure: Figure) -> Bbox:
    """Lays a figure out once for all its formats, which otherwise takes most of a report's time; its box in inches."""
    if figure.get_layout_engine() is None:  # whoever drew it has laid it out
        return figure.bbox_inches.padded(mpl.rcParams["savefig.pad_inches"])
    figure.draw_without_rendering()
    box = figure.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])
    figure.set_layout_engine(None)  # 'none' leaves a placeholder, for which every savefig draws the figure twice
    return box
