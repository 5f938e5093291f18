from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

GRID = """\
question: Does it run?
base:
  scale: 2
  model:
    {kind: catanet, width: 8, blocks: 1, qk_width: 8, mlp_width: 8, heads: 2, windows: [8],
     prototypes: {count: [4]}, assignment: {kind: hard, group_sizes: [16]}}
  data: {train: {kind: folder, path: train}, lr_patch_px: 12}
  optimisation: {steps: 12, batch: 4, log_every: 2, checkpoint_every_s: 0, optimiser: {kind: adam, lr: 1e-3}}
  evaluation:
    datasets: {held_out: {kind: folder, path: test}}
    protocols: [uint8_y]
    validations: 2
    samples: 1
    cost_lr_px: 16
VARIANTS
seeds: 2
analysis: {baseline: hard}
"""

VARIANTS = """\
variants:
  hard: {}
  soft: {model.assignment: {kind: soft}}
references:
  bicubic: {model: {kind: bicubic}}"""


@pytest.fixture
def write_grid(tmp_path: Path) -> Callable[..., Path]:
    """Writes a grid of tiny runs, and smooth random images to run it on below `tmp_path`/images."""
    return grid_writer(tmp_path)


def grid_writer(root: Path) -> Callable[..., Path]:
    for folder, count, side in (("train", 3, 40), ("test", 2, 48)):
        (root / "images" / folder).mkdir(parents=True)
        for index in range(count):
            noise = np.random.default_rng(index + side).normal(size=(side, side + 4, 3))
            image = gaussian_filter(noise, (1.5, 1.5, 0))
            scaled = 255 * (image - image.min()) / (image.max() - image.min())
            Image.fromarray(scaled.astype(np.uint8)).save(root / "images" / folder / f"{index}.png")

    def write(variants: str = VARIANTS, *changes: tuple[str, str]) -> Path:
        text = GRID.replace("VARIANTS", variants)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = root / "grid.yaml"
        path.write_text(text)
        return path

    return write
