"""Training samples as the network gets them: HR and LR crops side by side."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.style import context as style_context

from study import StudyError
from study.analysis.figures import WIDTH_IN
from study.analysis.rendering import REPORTS

COLUMNS = 3
CAPTION_CHARACTERS = 58  # of a line over two crops


@dataclass(frozen=True)
class Sample:
    """One training sample: (s h, s w, 3) and (h, w, 3) uint8 crops, and what was done, its stages parted by ` | `."""

    hr: np.ndarray
    lr: np.ndarray
    caption: str


def draw_samples(samples: Sequence[Sample]) -> Figure:
    """Every sample's HR crop beside its LR crop, enlarged to the same size by nearest neighbour, the caption above."""
    captions = [_lines(sample.caption) for sample in samples]
    rows = -(-len(samples) // COLUMNS)
    lines = max(caption.count("\n") + 1 for caption in captions)
    side = WIDTH_IN / (2 * COLUMNS)
    figure = Figure(figsize=(WIDTH_IN, rows * (side + 0.1 * lines + 0.05)))
    grid = figure.subplots(rows, 2 * COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
        row, column = divmod(index, COLUMNS)
        left, right = grid[row, 2 * column : 2 * column + 2]
        left.imshow(sample.hr)
        right.imshow(sample.lr, interpolation="nearest")
        left.set_title(caption, fontsize=6, fontweight="normal")
    return figure


def save_samples(samples: Sequence[Sample], path: Path) -> None:
    """Draws the samples into a PNG file.

    Raises:
        StudyError: the file's name does not end in .png, or the style is absent.
    """
    style = REPORTS / "study.mplstyle"
    if path.suffix.lower() != ".png":
        raise StudyError(f"{path}: samples are drawn as PNG; give a name that ends in .png")
    if not style.is_file():
        raise StudyError(f"{style} is missing: figures are drawn from a checkout that has its reports/ folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(), style_context(["default", style]):
        draw_samples(samples).savefig(path, dpi=200, bbox_inches="tight", metadata={"Software": None})


def _lines(caption: str) -> str:
    """A caption with a line for each stage, or more where a stage needs more."""
    return "\n".join(textwrap.fill(part, CAPTION_CHARACTERS) for part in caption.split(" | "))
