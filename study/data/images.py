"""Image sets: every kind of declared source as LR and HR pairs of 8-bit RGB images, memory-mapped."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from study.data.cache import Stack, stored
from study.data.decoding import DataError
from study.data.degradation import VERSION, degrade, draw_degradation
from study.data.resize import imresize
from study.data.sources import Listing, find_all, find_bundled, find_images, list_files, list_hub, match_pairs
from study.grid.schema import Bundled, Degraded, Folder, Hub, Source

TESTED = 1 << 62  # number of the first image's draw in a degraded set: no training sample of the same seed has it
_SCALES = (1, 2, 3, 4)


@dataclass(frozen=True)
class ImageSet:
    """Images to train or test on.

    Attributes:
        name: what people call it.
        fingerprint: hex digest of names and decoded pixels (given LR images too; the seed and version of degraded
            ones); paths and formats do not enter.
        names: one per image: the file's stem.
    """

    name: str
    fingerprint: str
    names: tuple[str, ...]
    _hr: Stack = field(repr=False)
    _cache: Path = field(repr=False)
    _lr: dict[int, Stack] = field(repr=False, compare=False)
    _paired: bool = field(repr=False)
    _seed: int | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def content(self) -> str:
        """Hex digest of names and decoded HR pixels, whatever the LR images are."""
        return self._hr.fingerprint

    def pair(self, index: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """LR (h, w, 3) and HR (h * scale, w * scale, 3) uint8 RGB, read-only views of the memory map.

        HR is cut to a multiple of the scale at the bottom and right; LR is the given one, or made by `imresize` or
        `degrade` (of all images, once, at the first call for a scale).

        Raises:
            DataError: the given LR images are of another scale, or an image is smaller than the scale.
        """
        lr = self._low(scale)[index]
        height, width = lr.shape[:2]
        return lr, self._hr[index][: height * scale, : width * scale]

    def whole(self, index: int) -> np.ndarray:
        """HR image (H, W, 3) uint8 RGB, uncut; a read-only view of the memory map."""
        return self._hr[index]

    def shared(self, other: "ImageSet") -> tuple[str, str] | None:
        """Names of an image here and of one there with the same pixels, the first such pair; None where there is none.

        Only rows from the middle are compared, and whole images where these agree.
        """
        rows: dict[tuple[tuple[int, ...], bytes], list[int]] = {}
        for index in range(len(self)):
            rows.setdefault(_middle(self.whole(index)), []).append(index)
        for there in range(len(other)):
            pixels = other.whole(there)
            for here in rows.get(_middle(pixels), []):
                if np.array_equal(self.whole(here), pixels):
                    return self.names[here], other.names[there]
        return None

    def _low(self, scale: int) -> Stack:
        if scale not in self._lr:
            if self._paired:
                given = " or ".join(map(str, self._lr))
                raise DataError(f"the LR images of {self.name} are of scale {given}; asked for {scale}")
            entry = f"{self._hr.fingerprint[:20]}-x{scale}-"
            entry += "1" if self._seed is None else f"degraded{self._seed}-{VERSION}"  # 1 changes when the resize does
            task = f"{self.name}: LR images x{scale}"
            made = partial(_reduced, self._hr, scale, self.name, self._seed)
            self._lr[scale] = stored(self._cache, entry, made, len(self), task)
        return self._lr[scale]


def open_images(source: Source, *, root: Path, cache: Path) -> ImageSet:
    """Opens a declared source, decoding its images into `cache` unless they are there already.

    Args:
        source: what to open; relative paths are below `root`.
        root: the data root.
        cache: folder of decoded images, shared by all sets; may be deleted, never edited.

    Raises:
        DataError: a file, folder or dataset is missing, empty, corrupt, ambiguous or not an RGB or grey image.
    """
    if isinstance(source, Bundled):
        return _plain(f"bundled/{source.split}", list_files(find_bundled(source.split)), cache)
    if isinstance(source, Folder):
        paths = [source.path] if isinstance(source.path, str) else source.path
        return _plain(" + ".join(paths), list_files(find_all(paths, root)), cache)
    if isinstance(source, Hub):
        return _plain(f"{source.name}/{source.split}", list_hub(source, root), cache)
    if isinstance(source, Degraded):
        return _degraded(open_images(source.of, root=root, cache=cache), source.seed)
    hr_files, lr_files = find_images(source.hr, root), find_images(source.lr, root)
    matched = match_pairs(hr_files, lr_files)
    hr = _decoded(source.hr, list_files(hr_files), cache)
    lr = _decoded(source.lr, list_files(matched), cache)
    scales = _common_scales(hr, lr, matched)
    fingerprint = hashlib.sha256(f"{hr.fingerprint} {lr.fingerprint}".encode()).hexdigest()
    return ImageSet(f"{source.hr} + {source.lr}", fingerprint, hr.names, hr, cache, dict.fromkeys(scales, lr), True)


def _middle(pixels: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """An image's size and its middle row."""
    return pixels.shape, pixels[len(pixels) // 2].tobytes()


def _plain(name: str, listing: Listing, cache: Path) -> ImageSet:
    """A set of HR images alone."""
    hr = _decoded(name, listing, cache)
    return ImageSet(name, hr.fingerprint, hr.names, hr, cache, {}, False)


def _degraded(images: ImageSet, seed: int) -> ImageSet:
    """The set with LR images by degradation in place of its bicubic ones."""
    fingerprint = hashlib.sha256(f"{images.fingerprint} degraded {seed} {VERSION}".encode()).hexdigest()
    return replace(images, name=f"{images.name}, degraded {seed}", fingerprint=fingerprint, _lr={}, _seed=seed)


def _decoded(name: str, listing: Listing, cache: Path) -> Stack:
    return stored(cache, listing.entry, listing.read, listing.count, f"{name}: decoding")


def _common_scales(hr: Stack, lr: Stack, files: dict[str, Path]) -> list[int]:
    """Scales at which every LR image has its HR image's size // scale: one, but for tiny images."""
    common: list[int] = list(_SCALES)
    for name, (height, width), size in zip(hr.names, hr.sizes, lr.sizes, strict=True):
        fitting = [scale for scale in common if (height // scale, width // scale) == size]
        if not fitting:
            wanted = ", ".join(f"{height // scale} × {width // scale} (x{scale})" for scale in common)
            raise DataError(
                f"{files[name]} has {size[0]} × {size[1]} px (height × width); its HR image of {height} × {width} "
                f"needs {wanted}" + ("" if len(common) > 1 else ", the scale of the images before it")
            )
        common = fitting
    return common


def _reduced(hr: Stack, scale: int, name: str, seed: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """LR images of the HR images cut to a multiple of the scale: MATLAB's bicubic, or degraded if there is a seed."""
    for index, (image, (height, width)) in enumerate(zip(hr.names, hr.sizes, strict=True)):
        size = height // scale, width // scale
        if min(size) == 0:
            raise DataError(f"image '{image}' of {name} has {height} × {width} px: too small for scale {scale}")
        pixels = np.array(hr[index][: size[0] * scale, : size[1] * scale])  # a copy: torch wants it writable
        if seed is None:
            lr = imresize(torch.from_numpy(pixels).permute(2, 0, 1), size).permute(1, 2, 0).numpy()
        else:
            lr = degrade(pixels, draw_degradation(seed, TESTED + index), scale)
        yield image, lr
