"""Decoded images on disk, memory-mapped: made once, whole or not at all, and shared by every process.

An entry is a folder with `pixels.u8` (the images' bytes one after the other) and `index.json`. It appears by a rename,
so a reader sees all of it or nothing. Any entry may be deleted at any time nobody uses it; it is made again.
"""

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from study.data.decoding import DataError

_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Stack:
    """Named (H, W, 3) uint8 images of a cache entry; read-only views of the memory map. Pickled as its description.

    Attributes:
        folder: the entry.
        names: one per image.
        sizes: (height, width) of each image in pixels.
        fingerprint: SHA-256 over names, sizes and bytes, hex; the same wherever and in whatever format they came.
    """

    folder: Path
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._views[index]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_views"}

    @cached_property
    def _views(self) -> list[np.ndarray]:
        # A plain array over the map: slicing np.memmap itself is several times slower.
        pixels = np.asarray(np.memmap(self.folder / "pixels.u8", np.uint8, "r"))
        ends = np.cumsum([height * width * 3 for height, width in self.sizes])
        parts = np.split(pixels, ends[:-1])
        return [part.reshape(*size, 3) for part, size in zip(parts, self.sizes, strict=True)]


def stored(
    cache: Path, entry: str, images: Callable[[], Iterable[tuple[str, np.ndarray]]], count: int, task: str
) -> Stack:
    """Opens the entry of that name below `cache`, making it of `images()` first where it is absent.

    Args:
        cache: folder of all entries.
        entry: name that says all the content depends on.
        images: gives (name, (H, W, 3) uint8) in order; called only when the entry is absent.
        count: how many there will be.
        task: what the progress bar, shown after two seconds, calls the work.

    Raises:
        DataError: the cache cannot be written or is damaged; whatever `images` raises passes, and leaves no entry.
    """
    folder = cache / entry
    if not folder.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / ".lock"):  # other processes wait instead of decoding the same images
                if not folder.is_dir():
                    with closing(_watched(images(), count, task)) as progress:
                        _build(folder, progress)
        except OSError as error:
            raise DataError(f"the image cache {cache} cannot be written: {error}") from error
    return _open(folder)


def _open(folder: Path) -> Stack:
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        sizes = tuple((height, width) for height, width in index["sizes"])
        stack = Stack(folder, tuple(index["names"]), sizes, index["fingerprint"])
        expected, found = sum(3 * h * w for h, w in sizes), (folder / "pixels.u8").stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is damaged ({error}): delete it, and it is made again") from None
    if expected != found or len(stack) != len(sizes):
        raise DataError(f"{folder} is damaged ({found} bytes, not {expected}): delete it, and it is made again")
    return stack


def _build(folder: Path, images: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes an entry beside its place, then renames it; called under the cache's lock."""
    host = f".partial-{socket.gethostname()}-"
    for stale in folder.parent.glob(f"{host}*"):  # of a process on this machine that was killed: we hold the lock
        shutil.rmtree(stale)
    partial = folder.parent / f"{host}{os.getpid()}"
    partial.mkdir()
    try:
        names, sizes, digest = [], [], hashlib.sha256(b"study images\n")
        with (partial / "pixels.u8").open("wb") as file:
            for name, pixels in images:
                size = pixels.shape[:2]
                names.append(name)
                sizes.append(size)
                content = np.ascontiguousarray(pixels).data
                digest.update(json.dumps([name, *size]).encode() + b"\n")
                digest.update(content)
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        index = {"names": names, "sizes": sizes, "fingerprint": digest.hexdigest()}
        (partial / "index.json").write_text(json.dumps(index), encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _watched(
    images: Iterable[tuple[str, np.ndarray]], count: int, task: str
) -> Generator[tuple[str, np.ndarray], None, None]:
    """Passes `images` on; shows a progress bar on stderr once it has taken long."""
    bar = Progress(console=Console(stderr=True), transient=True)
    row = bar.add_task(escape(task), total=count)
    began = time.monotonic()
    try:
        for image in images:
            if not bar.live.is_started and time.monotonic() - began > _PATIENCE_S:
                bar.start()
            yield image
            bar.advance(row)
    finally:
        if bar.live.is_started:
            bar.stop()
