"""U-Net of one-step super-resolution by consistency training (CTMSR: You et al., ICCV 2025, arXiv 2503.20349)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.data.draws import derived, normal
from study.grid.models import UNet as UNetConfig
from study.models.window_attention import Conv, FaintConv, WindowAttention, group_norm

_SMALLEST_PX = 8
_HEAD = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}  # the scale's factors, one stage each
_SLOPE = 0.2
_LOWEST_FREQUENCY = 1e-4


class Linear(nn.Linear):
    """At first Xavier uniform without biases, as in EDM."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class Block(nn.Module):
    """Residual block of DDPM++ (EDM's SongUNet), to which the embedded time adds a shift; then window attention.

    A block that changes the resolution does so on both branches: means of 2 x 2 on the way down, copies on the way up.
    """

    def __init__(
        self,
        config: UNetConfig,
        level: int,
        in_channels: int,
        resample: nn.Module | None = None,
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.level = level
        self.resamples = resample is not None
        # a level's own width comes with its first ordinary block
        channels = in_channels if self.resamples else config.width * config.multipliers[level]
        self.out_channels = channels
        self.resample = resample or nn.Identity()
        self.norm1 = group_norm(in_channels)
        self.conv1 = Conv(in_channels, channels)
        self.shift = Linear(4 * config.width, channels)
        self.norm2 = group_norm(channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = FaintConv(channels, channels)
        same = in_channels == channels and not self.resamples
        self.skip = nn.Identity() if same else Conv(in_channels, channels, 1)
        self.attention: nn.Module = nn.Identity()
        if attends:
            self.attention = WindowAttention(
                channels, config.attention_width, config.heads, config.window, config.mlp_ratio
            )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Maps `x` (B, C, H, W) and the embedding (B, 4 * width) to a map of the block's level."""
        hidden = self.conv1(self.resample(F.silu(self.norm1(x))))
        hidden = hidden + self.shift(embedding)[:, :, None, None]
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return self.attention((self.skip(self.resample(x)) + hidden) * math.sqrt(0.5))


class UNet(nn.Module):
    """A network of a noisy image, a time and the LR image, that gives the clean image; and its inference.

    On the path x_t = x_0 + t (y - x_0) + σ ε, with y the enlarged LR image, images in [-1, 1] and σ = t times the
    noise level (published: 1), it is

        D(x_t, t | LR) = c_skip(σ) x_t + c_out(σ) F(x_t, log(σ + 0.002) / 4 | LR),
        c_skip = σ_d² / (u² + σ_d²),  c_out = u / √(u² + σ_d²),  u = σ / 0.1,  σ_d = 0.5,

    so that D(x, 0) = x. F works at the LR image's resolution, on the noisy image's pixels unshuffled into channels.
    Published are inference by one step, the sizes in `study.grid.models.UNet`, and its blocks; initial values are
    EDM's: the last convolution of each branch, and of F, near zero. Ours are the LR image in [-1, 1] too, stages of
    the head for scales other than 4, padding about the outermost pixels' centres, and inference by several steps.
    Sides are padded to a multiple of the window's at the coarsest level.
    """

    def __init__(self, config: UNetConfig, scale: int) -> None:
        super().__init__()
        self.config = config
        self.scale = scale
        self.noise_level = config.noise_level
        width = config.width
        self.embedding = nn.Sequential(Linear(width, 4 * width), nn.SiLU(), Linear(4 * width, 4 * width), nn.SiLU())
        self.first = Conv(3 * scale**2 + 3, width)
        encoder = list(_encoder(config))
        self.encoder = nn.ModuleList(encoder)
        bottom, channels = len(config.multipliers) - 1, encoder[-1].out_channels
        self.middle = nn.ModuleList(Block(config, bottom, channels, attends=attends) for attends in (True, False))
        decoder = list(_decoder(config, channels, [width, *(block.out_channels for block in encoder)]))
        self.decoder = nn.ModuleList(decoder)
        channels = decoder[-1].out_channels
        self.last = nn.Sequential(group_norm(channels), nn.SiLU(), Conv(channels, width))
        stages = [(nn.Upsample(scale_factor=by), Conv(width, width), nn.LeakyReLU(_SLOPE)) for by in _HEAD[scale]]
        self.head = nn.Sequential(*(part for stage in stages for part in stage), FaintConv(width, 3))

    def forward(
        self,
        lr: Tensor,
        keys: Tensor | None = None,
        noise: Tensor | None = None,
        at: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Enlarges images, or denoises once.

        Args:
            lr: (B, 3, h, w) in [0, 1], sides of at least 8 pixels.
            keys: int64 (B,), a seed per image for the noise; zeros when absent.
            noise: (B, 3 * inference_steps, sh, sw), as `noise` draws it; from the keys when absent.
            at: x_t, (B, 3, sh, sw) in [-1, 1] apart from the noise, and its times (B,) in [0, 1].

        Returns:
            (B, 3, sh, sw): the enlarged images in [0, 1], not clamped; with `at` D(x_t, t | LR) in [-1, 1].

        Raises:
            ValueError: a side is shorter than 8 px.
        """
        if min(lr.shape[2:]) < _SMALLEST_PX:
            raise ValueError(f"UNet needs images of at least 8 x 8 pixels, got {lr.shape[2]} x {lr.shape[3]}")
        return self._infer(lr, keys, noise) if at is None else self._denoise(lr, *at)

    def noise(self, keys: Tensor, height: int, width: int) -> Tensor:
        """Noise of an inference, (B, 3 * inference_steps, height, width), from int64 keys (B,) alone.

        Normal, of the declared level.

        That of the first step is the same however many follow, so inferences by more or fewer steps compare in pairs.
        """
        dtype = self.first.weight.dtype
        steps = (derived(keys, f"inference step {step}") for step in range(self.config.inference_steps))
        drawn = torch.cat([normal(step_keys, (3, height, width), dtype) for step_keys in steps], dim=1)
        return self.noise_level * drawn

    def upsampled(self, lr: Tensor) -> Tensor:
        """The path's y: bicubic enlargement (a = -0.5), (B, 3, h, w) in [0, 1] -> (B, 3, sh, sw) about in [-1, 1]."""
        # with antialiasing PyTorch's kernel has a = -0.5, as MATLAB's has (borders differ), without it a = -0.75
        size = [self.scale * side for side in lr.shape[2:]]
        return 2 * F.interpolate(lr, size, mode="bicubic", align_corners=False, antialias=True) - 1

    def places(self, height: int, width: int) -> dict[str, int]:
        """Where layers are applied in all steps of an inference, see `study.evaluation.complexity`.

        Padding counts: the network does work on the padded map.
        """
        steps = self.config.inference_steps
        top = steps * math.prod(self._padded(side) for side in (height, width))
        places = {"embedding": steps, "first": top, "last": top}
        for name, block in self._blocks():
            places |= {name: top >> 2 * block.level, f"{name}.shift": steps}
        for index, part in enumerate(self.head):
            if isinstance(part, nn.Upsample):
                assert isinstance(part.scale_factor, float)
                top *= round(part.scale_factor) ** 2
            places[f"head.{index}"] = top
        return places

    def products(self, height: int, width: int) -> int:
        """Multiply-adds of all attentions in all steps, see `study.evaluation.complexity`."""
        places = self.places(height, width)
        return sum(
            places[name] * block.attention.window**2 * block.attention.pair()
            for name, block in self._blocks()
            if isinstance(block.attention, WindowAttention)
        )

    def _infer(self, lr: Tensor, keys: Tensor | None, noise: Tensor | None) -> Tensor:
        """Denoises y + ε at t = 1; step j of k puts the last output on the path at 1 - j / k with fresh ε."""
        y = x0 = self.upsampled(lr)
        if noise is None:
            keys = torch.zeros(len(lr), dtype=torch.int64, device=lr.device) if keys is None else keys
            noise = self.noise(keys, *y.shape[2:])
        steps = self.config.inference_steps
        for step, fresh in enumerate(noise.unflatten(1, (steps, 3)).unbind(1)):
            time = 1 - step / steps
            x0 = self._denoise(lr, x0 + time * (y - x0) + time * fresh, lr.new_full((len(lr),), time))
        return (x0 + 1) / 2

    def _denoise(self, lr: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """D(x_t, t | LR), (B, 3, sh, sw)."""
        sigma = self.noise_level * t.to(x_t.dtype)
        u = (sigma / 0.1)[:, None, None, None]
        total = u.square() + 0.25
        skip, out = 0.25 / total, u / total.sqrt()
        embedding = self.embedding(_sinusoids((sigma + 0.002).log() / 4, self.config.width))
        clean = skip * x_t + out * self._features(lr, x_t, embedding)
        return clean + (1 - skip) * self.upsampled(lr) if self.config.base == "bicubic" else clean

    def _features(self, lr: Tensor, x_t: Tensor, embedding: Tensor) -> Tensor:
        """F, (B, 3, sh, sw)."""
        height, width = x_t.shape[2:]
        for axis in (2, 3):
            side = lr.shape[axis]
            padded = self._padded(side)
            if padded > side:
                lr = lr.index_select(axis, _bounced(side, padded, 1, lr.device))
                x_t = x_t.index_select(axis, _bounced(side, padded, self.scale, lr.device))
        x = torch.cat([F.pixel_unshuffle(x_t, self.scale), 2 * lr - 1], dim=1)
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for block in self.encoder:
            x = block(x, embedding)
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for block in self.decoder:
            x = block(x if block.resamples else torch.cat([x, skips.pop()], dim=1), embedding)
        return self.head(self.last(x))[..., :height, :width]

    def _padded(self, side: int) -> int:
        multiple = self.config.window * 2 ** (len(self.config.multipliers) - 1)
        return side + -side % multiple

    def _blocks(self) -> Iterator[tuple[str, Block]]:
        return ((name, module) for name, module in self.named_modules() if isinstance(module, Block))


def _encoder(config: UNetConfig) -> Iterator[Block]:
    channels = config.width
    for level in range(len(config.multipliers)):
        if level:
            yield Block(config, level, channels, resample=nn.AvgPool2d(2))
        for _ in range(config.blocks):
            block = Block(config, level, channels, attends=True)
            channels = block.out_channels
            yield block


def _decoder(config: UNetConfig, channels: int, skips: list[int]) -> Iterator[Block]:
    """From the coarsest level on; all but the blocks that go up take what the encoder had, `skips` channels, too."""
    bottom = len(config.multipliers) - 1
    for level in range(bottom, -1, -1):
        if level < bottom:
            yield Block(config, level, channels, resample=nn.Upsample(scale_factor=2))
        for index in range(config.blocks + 1):
            block = Block(config, level, channels + skips.pop(), attends=index == config.blocks)
            channels = block.out_channels
            yield block


def _sinusoids(values: Tensor, width: int) -> Tensor:
    """DDPM++'s positional embedding: sines, then cosines, of frequencies from 1 to 1e-4; (B,) -> (B, width)."""
    exponents = torch.linspace(0, 1, width // 2, dtype=values.dtype, device=values.device)
    angles = values[:, None] * _LOWEST_FREQUENCY**exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _bounced(side: int, padded: int, scale: int, device: torch.device) -> Tensor:
    """Indices that pad an axis by reflection at its ends, as often as it takes; int64 (padded * scale,).

    For an image `scale` times as large the same mirrors stand at the same places, which are the centres of the LR
    image's outermost pixels: both stay aligned, as they would not if each were reflected at its own outermost pixels.
    """
    places = torch.arange(padded, device=device) % (2 * side - 2)
    mirrored = (places >= side)[:, None]
    within = torch.arange(scale, device=device)
    first = torch.minimum(places, 2 * side - 2 - places)[:, None] * scale
    return (first + torch.where(mirrored, scale - 1 - within, within)).flatten()
