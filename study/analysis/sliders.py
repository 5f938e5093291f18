"""Crops to compare under a slider: the pictures of one image as the page takes them."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from study.analysis.crops import Tile, picture_name
from study.analysis.markup import cut, one_line

MOST_BYTES = 1_500_000  # of all pictures in a page, which stays below 5 MB
LONGEST_LABEL = 48  # characters


@dataclass(frozen=True)
class Shot:
    """One picture: what it shows, the PSNR or scale below it, a PNG as data URI, and its size in pixels."""

    label: str
    caption: str
    uri: str
    width_px: int
    height_px: int


@dataclass(frozen=True)
class Slider:
    """A block of the page: one image's crops, two of them over each other.

    Attributes:
        anchor: fragment name.
        title: dataset and image.
        caption: what it shows.
        shots: all pictures; none where the page has no room left for them.
        before: index of the one on the left at first.
        after: index of the one on the right at first.
        picture: name of the figure with the same crops, which the page leaves out.
    """

    anchor: str
    title: str
    caption: str
    shots: tuple[Shot, ...]
    before: int
    after: int
    picture: str


def make_sliders(tiles: Mapping[tuple[str, str], Sequence[Tile]]) -> list[Slider]:
    """A slider for each image of `read_tiles`, bicubic against the first variant; their pictures together are bounded.

    The first image of every dataset comes before any second one; an image left without room names the file that
    shows it.
    """
    shots = {key: tuple(_shot(tile) for tile in part) for key, part in tiles.items()}
    ranks = {key: [other for other in tiles if other[0] == key[0]].index(key) for key in tiles}
    shown, left = set(), MOST_BYTES
    for key in sorted(tiles, key=lambda key: ranks[key]):
        size = sum(len(shot.uri) for shot in shots[key])
        if size <= left:
            shown.add(key)
            left -= size
    return [_slider(index, key, shots[key] if key in shown else ()) for index, key in enumerate(tiles)]


def _slider(index: int, key: tuple[str, str], shots: tuple[Shot, ...]) -> Slider:
    title, picture = ", ".join(key), picture_name(index)
    if not shots:
        caption = f"{title}: left out here to keep the page small; figures/{picture}.png shows it."
        return Slider(f"slider-{index:02d}", title, caption, (), 0, 0, picture)
    caption = f"{title}: the most detailed crop, first finished seed; PSNR of the whole image."
    return Slider(f"slider-{index:02d}", title, caption, shots, 1, 2, picture)


def _shot(tile: Tile) -> Shot:
    sink = io.BytesIO()
    Image.fromarray(tile.pixels).save(sink, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode("ascii")
    height, width = tile.pixels.shape[:2]
    return Shot(cut(one_line(tile.title), LONGEST_LABEL), tile.caption, uri, width, height)
