"""Training samples: crops, flips, turns and degradations as a function of (seed, sample number) alone."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from study.data.decoding import DataError
from study.data.degradation import degrade, draw_degradation
from study.data.images import ImageSet
from study.data.philox import Purpose, words
from study.grid.schema import BicubicReduction, Degradation, RealESRGAN, Run

_BICUBIC = BicubicReduction()


class Crop(NamedTuple):
    """Where a sample comes from.

    Attributes:
        image: index of the image.
        top: first row, in LR pixels.
        left: first column, in LR pixels.
        symmetry: 0 to 7; bit 0 flips rows, bit 1 columns, then bit 2 transposes: all flips and quarter turns.
        key: 63-bit seed of whatever else is drawn for this sample.
    """

    image: int
    top: int
    left: int
    symmetry: int
    key: int


def draw(seed: int, n: int, lr_sizes: Sequence[tuple[int, int]], lr_patch_px: int, augment: bool) -> Crop:
    """Draws sample `n` of run seed `seed`: images in an order permuted anew every epoch, all else uniform.

    Args:
        seed: of the run, 0 <= seed < 2^64.
        n: number of the sample, 0 <= n < 2^64; an epoch is `len(lr_sizes)` samples.
        lr_sizes: (height, width) of every LR image, no side under `lr_patch_px`.
        lr_patch_px: side of the LR crop.
        augment: whether the symmetry is drawn; otherwise it is 0, and all else is the same.
    """
    epoch, place = divmod(n, len(lr_sizes))
    image = int(_order(seed, epoch, len(lr_sizes))[place])
    height, width = lr_sizes[image]
    # A remainder of 64 bits is uniform to within 2^-48 for any image.
    key, top, left, symmetry = words(seed, n, Purpose.SAMPLE, 4).tolist()
    return Crop(
        image=image,
        top=top % (height - lr_patch_px + 1),
        left=left % (width - lr_patch_px + 1),
        symmetry=symmetry % 8 if augment else 0,
        key=key >> 1,
    )


class Patches(Dataset[dict[str, Tensor]]):
    """Endless map-style dataset of aligned LR and HR crops; any n >= 0 is a sample, so it has no length."""

    def __init__(
        self,
        images: ImageSet,
        scale: int,
        lr_patch_px: int,
        augment: bool,
        seed: int,
        *,
        degradation: Degradation = _BICUBIC,
        smaller: Literal["refuse", "leave_out"] = "refuse",
    ) -> None:
        """Checks that every image holds a crop.

        Args:
            images: the training images.
            scale: HR pixels per LR pixel, along each axis.
            lr_patch_px: side of the LR crop.
            augment: random flips and quarter turns.
            seed: of the run.
            degradation: how LR crops are made; where they are degraded, the set's own LR images are not used.
            smaller: what becomes of an image that holds no crop.

        Raises:
            DataError: an image is smaller than the crop, and `smaller` is `refuse`; or every image is.
        """
        self.images = images
        self.scale = scale
        self.lr_patch_px = lr_patch_px
        self.augment = augment
        self.seed = seed
        self.degraded = isinstance(degradation, RealESRGAN)
        sizes = [self._lr_size(index) for index in range(len(images))]
        self.kept = [index for index, size in enumerate(sizes) if min(size) >= lr_patch_px]
        self.left_out = [images.names[index] for index, size in enumerate(sizes) if min(size) < lr_patch_px]
        if self.left_out and (smaller == "refuse" or not self.kept):
            height, width = sizes[images.names.index(self.left_out[0])]
            hint = "; data.smaller: leave_out trains without such images" if self.kept else ", and so has every other"
            raise DataError(
                f"image '{self.left_out[0]}' of {images.name} has {height} × {width} LR px at x{scale}, "
                f"less than the crop's lr_patch_px {lr_patch_px}{hint}"
            )
        self.lr_sizes = [sizes[index] for index in self.kept]

    @classmethod
    def of(cls, run: Run, images: ImageSet) -> Self:
        """The samples that a declared run trains on, from the images of its `data.train`."""
        data = run.data
        return cls(
            images,
            run.scale,
            data.lr_patch_px,
            data.augment,
            run.seed,
            degradation=data.degradation,
            smaller=data.smaller,
        )

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        """Sample n: `lr` (3, p, p) and `hr` (3, s p, s p) float32 in [0, 1], `key` int64 scalar."""
        crop = self._crop(n)
        if self.degraded:  # of the flipped and turned crop, so that kernels and JPEG blocks lie as in any image
            hr = _cut(self.images.whole(crop.image), crop, self.lr_patch_px, self.scale)
            lr = degrade(hr, draw_degradation(self.seed, n), self.scale)
        else:
            given, whole = self.images.pair(crop.image, self.scale)
            lr, hr = _cut(given, crop, self.lr_patch_px, 1), _cut(whole, crop, self.lr_patch_px, self.scale)
        return {"lr": _tensor(lr), "hr": _tensor(hr), "key": torch.tensor(crop.key, dtype=torch.int64)}

    def describe(self, n: int) -> str:
        """What sample n shows, in words: the image's name, and the degradation where there is one."""
        name = self.images.names[self._crop(n).image]
        return f"{name} | {draw_degradation(self.seed, n).describe()}" if self.degraded else name

    def _crop(self, n: int) -> Crop:
        if n < 0:
            raise IndexError(f"samples are numbered from 0, not {n}")
        crop = draw(self.seed, n, self.lr_sizes, self.lr_patch_px, self.augment)
        return crop._replace(image=self.kept[crop.image])

    def _lr_size(self, index: int) -> tuple[int, int]:
        if not self.degraded:
            return self.images.pair(index, self.scale)[0].shape[:2]
        height, width = self.images.whole(index).shape[:2]
        return height // self.scale, width // self.scale


def _cut(image: np.ndarray, crop: Crop, lr_patch_px: int, scale: int) -> np.ndarray:
    """The crop's part of an LR (scale 1) or HR image, flipped and turned; a (side, side, 3) view."""
    top, left, side = crop.top * scale, crop.left * scale, lr_patch_px * scale
    patch = image[top : top + side, left : left + side]
    rows = -1 if crop.symmetry & 1 else 1
    columns = -1 if crop.symmetry & 2 else 1
    patch = patch[::rows, ::columns]
    return patch.transpose(1, 0, 2) if crop.symmetry & 4 else patch


def _tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.divide(pixels.transpose(2, 0, 1), np.float32(255), dtype=np.float32, order="C"))


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The images of one epoch, permuted."""
    return np.argsort(words(seed, epoch, Purpose.ORDER, count), kind="stable")
