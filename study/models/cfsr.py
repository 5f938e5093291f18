"""CFSR: convolutional transformer-like network for efficient SR (Wu et al., arXiv 2401.05633)."""

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.grid.models import CFSR as CFSRConfig
from study.models.depthwise import DepthwiseConv2d
from study.models.layers import Pointwise

_MEAN = (0.4488, 0.4371, 0.4040)
_EDGES = (
    ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0)),
    ((-1.0, -2.0, -1.0), (0.0, 0.0, 0.0), (1.0, 2.0, 1.0)),
    ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0)),
)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W), eps 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EdgeConv(nn.Conv2d):
    """Depthwise 3x3 convolution with parallel Sobel-x, Sobel-y and Laplacian branches, each scaled per channel.

    The branches are linear and share the input, so their kernels are added before one convolution: the same
    function and the same gradients as four. `merge` makes that sum the weight, and the branches go.
    """

    edges: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, groups=width)
        self.edge_scales = nn.Parameter(torch.empty(3, width))
        self.register_buffer("edges", torch.tensor(_EDGES), persistent=False)
        nn.init.normal_(self.edge_scales, std=1e-3)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if getattr(self, "edge_scales", None) is not None:  # absent while nn.Conv2d is being built, and once merged
            nn.init.normal_(self.edge_scales, std=1e-3)

    def kernel(self) -> Tensor:
        """The (C, 1, 3, 3) kernel that the convolution and its branches amount to."""
        if self.edge_scales is None:
            return self.weight
        return self.weight + torch.einsum("ec,ehw->chw", self.edge_scales, self.edges).unsqueeze(1)

    @torch.no_grad()
    def merge(self) -> None:
        self.weight.copy_(self.kernel())
        self.register_parameter("edge_scales", None)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.kernel(), self.bias, padding=1, groups=self.groups)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # A merged file is the training form with all branches at zero.
        if self.edge_scales is not None and f"{prefix}weight" in state_dict:
            state_dict.setdefault(f"{prefix}edge_scales", torch.zeros_like(self.edge_scales))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LargeKernelConv(nn.Module):
    """Depthwise 9x9 convolution, under the name that the published files give it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lkb_reparam = DepthwiseConv2d(width, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.lkb_reparam(x)


class ConvMod(nn.Module):
    """Convolutional modulation: values gated by a wide depthwise convolution of the same features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.a = nn.Sequential(Pointwise(width, width), nn.GELU(), LargeKernelConv(width))
        self.v = Pointwise(width, width)
        self.proj = Pointwise(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.proj(self.a(x) * self.v(x))


class MLP(nn.Module):
    """Two 1x1 convolutions with an edge-preserving depthwise convolution between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.fc1 = Pointwise(width, hidden)
        self.pos = EdgeConv(hidden)
        self.fc2 = Pointwise(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(self.norm(x)))
        return self.fc2(x + F.gelu(self.pos(x)))


class Block(nn.Module):
    """Modulation and MLP, each a residual scaled per channel."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.attn = ConvMod(width)
        self.mlp = MLP(width, hidden)
        self.layer_scale_1 = nn.Parameter(torch.empty(width))
        self.layer_scale_2 = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.layer_scale_1, 1e-6)
        nn.init.constant_(self.layer_scale_2, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self.layer_scale_1.view(-1, 1, 1), self.attn(x))
        return torch.addcmul(x, self.layer_scale_2.view(-1, 1, 1), self.mlp(x))


class Layer(nn.Module):
    """Several blocks, and a 1x1 convolution of their output added to it."""

    def __init__(self, width: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(blocks))
        self.conv = Pointwise(width, width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x + self.conv(x)


class CFSR(nn.Module):
    """CFSR in its training form; names of parameters as in the published files (methods.md section 7).

    Published files hold the merged form, which loads into this one (its edge branches are then zero).
    """

    mean: Tensor

    def __init__(self, config: CFSRConfig, scale: int) -> None:
        super().__init__()
        self.config = config
        self.scale = scale
        width = config.width
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList(Layer(width, config.mlp_width, config.blocks) for _ in range(config.layers))
        self.norm = ChannelNorm(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Maps `x` (B, 3, H, W) in [0, 1] to (B, 3, sH, sW), not clamped; `keys` is not used."""
        shallow = features = self.conv_first((x - self.mean).contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            features = layer(features)
        return self.upsample(self.conv_after_body(self.norm(features)) + shallow) + self.mean

    def places(self, height: int, width: int) -> dict[str, int]:
        """All layers are applied at every pixel, see `study.evaluation.complexity`."""
        return {}

    def merged(self) -> Self:
        """A copy in the published form: each edge branch folded into the kernel beside it, same outputs."""
        model = copy.deepcopy(self)
        for module in model.modules():
            if isinstance(module, EdgeConv):
                module.merge()
        return model
