"""IMDN: information multi-distillation network (Hui et al., ACM MM 2019)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.grid.models import IMDN as IMDNConfig

_SLOPE = 0.05


class ContrastAttention(nn.Module):
    """Contrast-aware channel attention: a gate per channel from its population std plus its mean over space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = max(1, width // 16)
        self.conv_du = nn.Sequential(
            nn.Conv2d(width, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype == torch.float16 else x  # there the variance of a flat map, and 1e-12, are 0
        variance, mean = torch.var_mean(wide, dim=(2, 3), correction=0, keepdim=True)
        # The square root has no gradient at 0, which a constant channel reaches.
        return x * self.conv_du((variance + 1e-12).sqrt() + mean)


class DistillationBlock(nn.Module):
    """Three convolutions that each put a quarter of the channels aside, a fourth, attention and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kept = width // 4
        remaining = width - self.kept
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.c2 = nn.Conv2d(remaining, width, 3, padding=1)
        self.c3 = nn.Conv2d(remaining, width, 3, padding=1)
        self.c4 = nn.Conv2d(remaining, self.kept, 3, padding=1)
        self.cca = ContrastAttention(width)
        self.c5 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        aside, rest = [], x
        for conv in (self.c1, self.c2, self.c3):
            features = F.leaky_relu(conv(rest), _SLOPE)
            aside.append(features[:, : self.kept])
            rest = features[:, self.kept :]
        distilled = torch.cat([*aside, self.c4(rest)], dim=1)
        return x + self.c5(self.cca(distilled))


class IMDN(nn.Module):
    """IMDN; names of parameters as in the published files (methods.md section 7)."""

    def __init__(self, config: IMDNConfig, scale: int) -> None:
        super().__init__()
        self.config = config
        self.scale = scale
        width = config.width
        self.fea_conv = nn.Conv2d(3, width, 3, padding=1)
        for number in range(1, config.blocks + 1):
            self.add_module(f"IMDB{number}", DistillationBlock(width))
        self.c = nn.Sequential(nn.Conv2d(width * config.blocks, width, 1), nn.LeakyReLU(_SLOPE))
        self.LR_conv = nn.Conv2d(width, width, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Maps `x` (B, 3, H, W) in [0, 1] to (B, 3, sH, sW), not clamped; `keys` is not used."""
        shallow = features = self.fea_conv(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for number in range(1, self.config.blocks + 1):
            features = self.get_submodule(f"IMDB{number}")(features)
            outputs.append(features)
        return self.upsampler(self.LR_conv(self.c(torch.cat(outputs, dim=1))) + shallow)

    def places(self, height: int, width: int) -> dict[str, int]:
        """Where layers are not applied at every pixel, see `study.evaluation.complexity`."""
        return {f"IMDB{number}.cca": 1 for number in range(1, self.config.blocks + 1)}
