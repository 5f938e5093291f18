"""Bicubic enlargement as MATLAB does it: a model like any other, with nothing to train."""

from torch import Tensor, nn

from study.data.resize import imresize
from study.grid.models import Bicubic as BicubicConfig


class Bicubic(nn.Module):
    """MATLAB-compatible bicubic enlargement; 8 bits in and out, like the published baselines."""

    def __init__(self, config: BicubicConfig, scale: int) -> None:
        super().__init__()
        self.config = config
        self.scale = scale

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Enlarges `x` (B, 3, H, W) in [0, 1], rounded to 8 bits first, to (B, 3, sH, sW); `keys` is not used."""
        height, width = x.shape[-2:]
        image = (x.clamp(0, 1) * 255 + 0.5).byte()
        return imresize(image, (height * self.scale, width * self.scale)).to(x.dtype) / 255
