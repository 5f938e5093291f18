"""What a network costs, without running it: parameters, and multiply-adds at the papers' common output size."""

import math

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from study.grid.schema import Run
from study.models import build

OUTPUT_PX = (720, 1280)


def parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(run: Run, lr_px: tuple[int, int] | None = None) -> int:
    """Multiply-adds of convolutions and linear layers for one image, attention products left out.

    That is how CATANet's authors count (46.8 G for a 256 x 256 input at x4); additions, norms and activations are
    not counted. Nothing is computed: the network runs on the meta device.

    Args:
        run: a resolved run.
        lr_px: height and width of the input; that of a 1280 x 720 output when absent.
    """
    height, width = lr_px or (math.ceil(OUTPUT_PX[0] / run.scale), math.ceil(OUTPUT_PX[1] / run.scale))
    if not run.model.trained:
        return 0
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.inference_mode():
        build(run).eval()(torch.empty(1, 3, height, width))
    aten = torch.ops.aten
    weighted = (aten.convolution, aten.mm, aten.addmm)
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if operation in weighted) // 2
