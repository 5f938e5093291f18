"""Where undecoded images come from: folders, scikit-image's own photographs, Hugging Face datasets."""

import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from study.data.decoding import DataError, decode
from study.grid.schema import Hub

# All photographs inside the scikit-image wheel (0.24 to 0.26 ship the same bytes). Left out: drawings, logos, charts
# and masks; `cell` (phase-contrast microscopy, mostly sensor noise); `microaneurysms` (a piece of `retina`).
# Four colour and four grey photographs test. Both views of the motorcycle are on one side, and every training image
# holds a 64 × 64 crop at x4, which `page` and `text` would not.
BUNDLED = {
    "test": (
        "astronaut.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "page.png",
        "rocket.jpg",
        "text.png",
    ),
    "train": (
        "brick.png",
        "clock_motion.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "retina.jpg",
    ),
}
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})

_LR_SUFFIX = re.compile(r"x[1-4]$", re.IGNORECASE)


@dataclass(frozen=True)
class Listing:
    """Images not yet read.

    Attributes:
        entry: a name for them that changes when they may have changed (paths, sizes, modification times).
        count: how many there are.
        read: decodes them in order, as (name, (H, W, 3) uint8).
    """

    entry: str
    count: int
    read: Callable[[], Iterator[tuple[str, np.ndarray]]]


def list_files(files: dict[str, Path]) -> Listing:
    """Lists image files under the names they are to have."""

    def read() -> Iterator[tuple[str, np.ndarray]]:
        for name, path in files.items():
            yield name, decode(_content(path), str(path))

    return Listing(_entry([[name, *_stamp(path)] for name, path in files.items()]), len(files), read)


def find_bundled(split: str) -> dict[str, Path]:
    """The photographs of one split inside the installed scikit-image, by stem.

    Raises:
        DataError: the installed scikit-image ships other photographs.
    """
    spec = importlib.util.find_spec("skimage")  # not imported: only its folder is wanted
    assert spec is not None
    assert spec.origin is not None
    files = [Path(spec.origin).parent / "data" / name for name in BUNDLED[split]]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        version = importlib.metadata.version("scikit-image")
        raise DataError(f"scikit-image {version} ships no {', '.join(missing)}; versions 0.24 to 0.26 do")
    return {path.stem: path for path in files}


def expand_home(path: str) -> Path:
    """`~` and `~user` at its beginning as a folder; raises `DataError` where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path!r}: {error}") from None


def find_images(path: str, root: Path) -> dict[str, Path]:
    """The image files of a folder by stem, sorted by stem; other files and hidden ones are passed over.

    Args:
        path: the folder, relative to `root` unless absolute.
        root: the data root.

    Raises:
        DataError: the folder is missing or has no image, or two images share a stem.
    """
    folder = root / expand_home(path)
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder}: '{path}' is looked up in the data root {root.absolute()}, "
            "which --data-root or the environment variable STUDY_DATA sets"
        )
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith(".") or file.is_dir():
            continue
        if file.stem in files:
            raise DataError(f"{folder}: {files[file.stem].name} and {file.name} would both be image '{file.stem}'")
        files[file.stem] = file
    if not files:
        inner = ", ".join(sorted(file.name for file in folder.iterdir() if file.is_dir())[:5])
        hint = f"; its subfolders are not searched: {inner}" if inner else ""
        raise DataError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))}){hint}")
    return dict(sorted(files.items()))


def find_all(paths: Sequence[str], root: Path) -> dict[str, Path]:
    """The images of several folders as one set, folder after folder; as `find_images` for one.

    Raises:
        DataError: as `find_images`, or two folders share a stem.
    """
    found: dict[str, Path] = {}
    for path in paths:
        more = find_images(path, root)
        for stem in more:
            if stem in found:
                raise DataError(f"{found[stem]} and {more[stem]} would both be image '{stem}' of one set")
        found |= more
    return found


def match_pairs(hr: dict[str, Path], lr: dict[str, Path]) -> dict[str, Path]:
    """The LR file of each HR image, under the HR's name: that stem, or that stem followed by x1, x2, x3 or x4.

    Raises:
        DataError: an HR image without an LR image, or the reverse, or two LR images for one HR image.
    """
    matched: dict[str, Path] = {}
    for stem, path in lr.items():
        name = stem if stem in hr else _LR_SUFFIX.sub("", stem)
        if name not in hr:
            raise DataError(f"{path} has no HR image '{name}' in {_folder(hr)}")
        if name in matched:
            raise DataError(f"{matched[name]} and {path.name} are both LR images of '{name}'; one scale per folder")
        matched[name] = path
    missing = [path for name, path in hr.items() if name not in matched]
    if missing:
        raise DataError(f"{missing[0]} has no LR image '{missing[0].stem}' (or '{missing[0].stem}x2') in {_folder(lr)}")
    return {name: matched[name] for name in hr}


def list_hub(source: Hub, root: Path) -> Listing:
    """Lists the images of a Hugging Face dataset.

    They are called by the stems of the files they were made of where all are known and differ, else by row number.

    Raises:
        DataError: the dataset, its split or its image column cannot be had, or it is empty.
    """
    dataset = _load_hub(source, root)
    title = f"dataset '{source.name}'"

    def read() -> Iterator[tuple[str, np.ndarray]]:
        names = _row_names(dataset, source.column)
        for name, row in zip(names, dataset, strict=True):
            image = row[source.column]
            if image is None:
                raise DataError(f"{title}: row '{name}' has no image in column '{source.column}'")
            content = image["bytes"] if image["bytes"] is not None else _content(Path(image["path"]))
            yield name, decode(content, f"{title}, image '{name}'")

    stamps = [_stamp(Path(file["filename"])) for file in dataset.cache_files]
    stamps += [_stamp(path) for path in _outside(dataset, source.column)]
    return Listing(_entry([source.split, source.column, dataset._fingerprint, *stamps]), len(dataset), read)


def _outside(dataset: Any, column: str) -> list[Path]:
    """The files of images that a dataset names instead of holding them."""
    images = dataset.data.column(column)
    fields = dict(zip((field.name for field in images.type), images.flatten(), strict=True))
    named = fields["path"].filter(fields["bytes"].is_null())
    return [Path(path) for path in named.to_pylist() if path is not None]


def _load_hub(source: Hub, root: Path) -> Any:
    """The split of a dataset as a `datasets.Dataset` whose image column gives {bytes, path}."""
    import datasets  # seconds to import, and few need it

    folder = root / expand_home(source.name)
    title = f"dataset '{source.name}'"
    try:
        dataset: Any = (
            datasets.load_from_disk(str(folder))
            if folder.is_dir()
            else datasets.load_dataset(source.name, split=source.split)
        )
    except Exception as error:  # the library raises whatever its many backends raise
        where = f"{folder} is not written by save_to_disk" if folder.is_dir() else f"no folder {folder}, nor a hub id"
        raise DataError(f"{title}: {where} ({type(error).__name__}: {error})") from None
    if isinstance(dataset, datasets.DatasetDict):
        if source.split not in dataset:
            raise DataError(f"{title} has no split '{source.split}'; it has {', '.join(map(str, dataset))}")
        dataset = dataset[source.split]
    elif dataset.split is not None and str(dataset.split) != source.split:
        raise DataError(f"{title} is the split '{dataset.split}', not '{source.split}'")
    images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if source.column not in images:
        raise DataError(f"{title} has no image column '{source.column}'; image columns: {', '.join(images) or 'none'}")
    if len(dataset) == 0:
        raise DataError(f"{title}, split '{source.split}', has no images")
    return dataset.select_columns(source.column).cast_column(source.column, datasets.Image(decode=False))


def _row_names(dataset: Any, column: str) -> list[str]:
    paths: list[str | None] = []
    for batch in dataset.with_format("arrow").iter(batch_size=256):  # leaves the bytes on disk
        for chunk in batch[column].chunks:
            paths += chunk.field("path").to_pylist()
    stems = [Path(path).stem for path in paths if path]
    if len(set(stems)) == len(paths):
        return stems
    digits = len(str(len(paths) - 1))
    return [f"{row:0{digits}d}" for row in range(len(paths))]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _stamp(path: Path) -> list[str | int]:
    try:
        status = path.stat()
    except OSError as error:  # a dangling link, for one
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _entry(stamps: list[Any]) -> str:
    """Cache key of sources with these stamps; the number changes when decoding does."""
    return hashlib.sha256(json.dumps([1, stamps]).encode()).hexdigest()[:20]


def _folder(files: dict[str, Path]) -> Path:
    return next(iter(files.values())).parent
