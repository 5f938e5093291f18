"""What a network costs, without running it: parameters, and multiply-adds at the papers' common output size."""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from study.grid.schema import Run
from study.models import build
from study.models.catanet import CATANet

OUTPUT_PX = (720, 1280)
_ON_PROTOTYPES = ("irca_attn.", "among_prototypes.", "to_tokens.to_v", "to_k")


def parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(run: Run, lr_px: tuple[int, int] | None = None) -> int:
    """Multiply-adds of convolutions and linear layers for one image, attention products left out.

    Additions, norms and activations are not counted either. CATANet x4 has 46.4 G for a 256 x 256 input and 40.7 G for
    a 1280 x 720 output, where its authors print 46.8 G and 41 G. Nothing is computed.

    Args:
        run: a resolved run.
        lr_px: height and width of the input; that of a 1280 x 720 output when absent.
    """
    height, width = lr_px or (math.ceil(OUTPUT_PX[0] / run.scale), math.ceil(OUTPUT_PX[1] / run.scale))
    if not run.model.trained:
        return 0
    with torch.device("meta"):
        network = build(run).eval()
    if isinstance(network, CATANet):
        return _multiply_adds_of_catanet(network, height, width)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty(1, 3, height, width, device="meta"))
    aten = torch.ops.aten
    weighted = (aten.convolution, aten.mm, aten.addmm)
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if operation in weighted) // 2


def _multiply_adds_of_catanet(network: CATANet, height: int, width: int) -> int:
    """Every weight times the number of places it is applied at.

    Counted from the layers and not from what runs: there heads are padded with zeros and layers without anything
    between them are applied as one.
    """
    pixels = height * width
    places = {"upconv2": 4 * pixels, "last_conv": network.scale**2 * pixels}
    for number, block in enumerate(network.blocks):
        *aggregations, local = cast(Iterable[Any], block)
        places[f"blocks.{number}.1.layer.0."] = local.tokens(height, width)  # attention in overlapping windows
        for aggregation in aggregations:
            places |= {f"blocks.{number}.0.{part}": aggregation.count for part in _ON_PROTOTYPES}
    total = 0
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            here = next((count for start, count in places.items() if name.startswith(start)), pixels)
            total += layer.weight.numel() * here
    return total
