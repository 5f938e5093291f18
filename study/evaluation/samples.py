"""Crops kept for the figures: input, bicubic, output, truth and the assignment map of the most detailed place."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from study.data.images import ImageSet
from study.data.resize import imresize
from study.evaluation.protocols import luma, round_8bit
from study.evaluation.rows import enlarge, image_key, image_tensor
from study.grid.schema import Evaluation
from study.records.store import read_json, replace, write_json

_SIDE_LR_PX = 32
_STEP_LR_PX = 4
_ALIGNMENT_PX = 8


@dataclass(frozen=True)
class Sample:
    """One crop of one image; all images uint8 RGB.

    Attributes:
        image: file stem.
        row_lr_px: top of the crop in the LR image, px.
        column_lr_px: left of the crop in the LR image, px.
        lr: (h, w, 3).
        bicubic: (sh, sw, 3), MATLAB-compatible enlargement.
        sr: (sh, sw, 3), the network's output.
        hr: (sh, sw, 3).
        map: (h, w) prototype index of every token in the last block that assigns; None if the network has none.
    """

    image: str
    row_lr_px: int
    column_lr_px: int
    lr: np.ndarray
    bicubic: np.ndarray
    sr: np.ndarray
    hr: np.ndarray
    map: np.ndarray | None


def crops(model: nn.Module, images: ImageSet, scale: int, settings: Evaluation, device: torch.device) -> list[Sample]:
    """Crops of the first `settings.samples` images, of 32 x 32 LR px, where the HR image has the most fine detail.

    The place depends on the HR image alone, so every network shows the same one. The whole image is enlarged, then
    cut. The map is taken over the whole image, or over a window of a tile's size where it would be tiled.
    """
    model.eval()
    samples = []
    for index in range(min(settings.samples, len(images))):
        lr, hr = images.pair(index, scale)
        side = min(_SIDE_LR_PX, *lr.shape[:2])
        row, column = _most_detailed(hr, side, scale)
        small = np.s_[row : row + side, column : column + side]
        large = np.s_[row * scale : (row + side) * scale, column * scale : (column + side) * scale]
        sr = enlarge(model, lr, settings, device, index)
        planes = torch.tensor(lr).permute(2, 0, 1)
        bicubic = imresize(planes, (hr.shape[0], hr.shape[1])).permute(1, 2, 0).numpy()
        samples.append(
            Sample(
                image=images.names[index],
                row_lr_px=row,
                column_lr_px=column,
                lr=lr[small].copy(),
                bicubic=bicubic[large].copy(),
                sr=(round_8bit(sr[0].double().cpu()) * 255).round().byte().permute(1, 2, 0).numpy()[large].copy(),
                hr=hr[large].copy(),
                map=_assignment(model, image_tensor(lr, device, sr.dtype), index, (row, column), side, settings),
            )
        )
    return samples


def save_crops(
    model: nn.Module,
    images: ImageSet,
    dataset: str,
    scale: int,
    settings: Evaluation,
    device: torch.device,
    folder: Path,
) -> None:
    """Writes `crops` as `<dataset>_<image>_{lr,bicubic,sr,hr,map}.png` and lists them in `folder`/index.json.

    The index is `{"samples": [{"dataset", "image", "scale", "row_lr_px", "column_lr_px", "side_lr_px", "lr",
    "bicubic", "sr", "hr", "map"}]}` with file names relative to `folder`; `map` is null where there is none. Entries
    of other data sets are kept, those of this one replaced. Maps hold the prototype index, in 8 or 16 bits.
    """
    index = folder / "index.json"
    entries = read_json(index)["samples"] if index.exists() else []
    entries = [entry for entry in entries if entry["dataset"] != dataset]
    for sample in crops(model, images, scale, settings, device):
        names: dict[str, str | None] = {}
        for kind in ("lr", "bicubic", "sr", "hr", "map"):
            pixels = getattr(sample, kind)
            names[kind] = None if pixels is None else f"{dataset}_{sample.image}_{kind}.png"
            if pixels is not None:
                replace(folder / f"{dataset}_{sample.image}_{kind}.png", _png(pixels))
        place = {"row_lr_px": sample.row_lr_px, "column_lr_px": sample.column_lr_px, "side_lr_px": len(sample.lr)}
        entries.append({"dataset": dataset, "image": sample.image, "scale": scale, **place, **names})
    write_json(index, {"samples": entries})


def _most_detailed(hr: np.ndarray, side: int, scale: int) -> tuple[int, int]:
    """Row and column, in LR pixels, of the square of `side` LR pixels with the most fine detail.

    Detail is the mean distance of luminance from its 5 x 5 mean: texture counts for more than one strong edge.
    """
    y = luma(image_tensor(hr, torch.device("cpu"), torch.float64))
    detail = (y - F.avg_pool2d(y, 5, stride=1, padding=2, count_include_pad=False)).abs()
    means = F.avg_pool2d(detail, side * scale, stride=_STEP_LR_PX * scale)[0, 0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    return row * _STEP_LR_PX, column * _STEP_LR_PX


@torch.inference_mode()
def _assignment(
    model: nn.Module, lr: Tensor, index: int, corner: tuple[int, int], side: int, settings: Evaluation
) -> np.ndarray | None:
    assignment_maps = getattr(model, "assignment_maps", None)
    if assignment_maps is None:
        return None
    window = [_window(length, start, settings.tile_lr_px) for length, start in zip(lr.shape[-2:], corner, strict=True)]
    keys = torch.tensor([image_key(index)], device=lr.device)
    maps = assignment_maps(lr[(..., *window)].contiguous(), keys)
    if not maps:
        return None
    row, column = (start - part.start for start, part in zip(corner, window, strict=True))
    return maps[-1][0, row : row + side, column : column + side].cpu().numpy()


def _window(length: int, start: int, tile: int) -> slice:
    """Part of an axis that holds the crop beginning at `start`: the whole axis, or about one tile around it."""
    if length <= tile:
        return slice(0, length)
    first = max(0, min(start + (_SIDE_LR_PX - tile) // 2, length - tile)) // _ALIGNMENT_PX * _ALIGNMENT_PX
    return slice(first, min(length, first + tile + _ALIGNMENT_PX))


def _png(pixels: np.ndarray) -> bytes:
    if pixels.ndim == 2:
        pixels = pixels.astype(np.uint8 if pixels.max() < 256 else np.uint16)
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, format="PNG")
    return sink.getvalue()
