"""Which prototypes a token's weights are spread over: softmax of the largest logits, and sparsemax."""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 1 << 17  # logits whose thresholds are sought at once: 512 KiB, which stay in a core's cache


def top_softmax(logits: Tensor, count: int) -> Tensor:
    """Softmax over the `count` largest entries of each row, zero elsewhere.

    With one entry the weight is 1 whatever its logit, so there the gradient is that of the full softmax
    (straight-through).
    """
    if count == 1:
        shares = logits.softmax(dim=-1)
        largest = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(shares).scatter(-1, largest, 1.0) + (shares - shares.detach())
    largest = logits.topk(count, dim=-1).indices
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, largest, True)
    return logits.masked_fill(~kept, -math.inf).softmax(dim=-1)


def sparsemax(logits: Tensor) -> Tensor:
    """Euclidean projection of each row onto the simplex (Martins & Astudillo, ICML 2016)."""
    return _Sparsemax.apply(logits)


class _Sparsemax(torch.autograd.Function):
    """Closed form of both directions: the shares are the largest tensors of the network, so few are made."""

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        shares = _sparsemax(logits)
        ctx.save_for_backward(shares)
        return shares

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (shares,) = ctx.saved_tensors
        inside = shares.sign()
        kept = gradient * inside
        return kept.addcmul_(inside, kept.sum(dim=-1, keepdim=True) / inside.sum(dim=-1, keepdim=True), value=-1)


def _sparsemax(logits: Tensor) -> Tensor:
    # A GPU sorts fast and would have to wait for every step of a search; on a CPU a search is several times as fast.
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return (logits - threshold_by_sorting(logits)).clamp_(min=0)
    rows = logits.reshape(-1, logits.shape[-1])
    shares = torch.empty_like(rows)
    step = max(1, _BLOCK // rows.shape[1])
    for some, out in zip(rows.split(step), shares.split(step), strict=True):
        torch.sub(some, threshold_by_search(some), out=out).clamp_(min=0)
    return shares.view(logits.shape)


def threshold_by_sorting(logits: Tensor) -> Tensor:
    """What sparsemax takes from each row's logits, (..., M) -> (..., 1), in closed form (algorithm 1 of the paper)."""
    ordered = logits.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(dim=-1).sub_(1)
    rank = torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype)
    size = (ordered.mul_(rank) > excess).sum(dim=-1, keepdim=True).clamp_(min=1)  # none in a row of NaN
    return excess.gather(-1, size - 1) / size


def threshold_by_search(logits: Tensor) -> Tensor:
    """The same by Newton's method from below, on the convex, piecewise linear sum of what lies above a threshold.

    The support shrinks with each step, and once it does not, the threshold is that of the closed form.
    """
    threshold = logits.amax(dim=-1, keepdim=True) - 1
    fewest = torch.full_like(threshold, logits.shape[-1] + 1)
    while True:
        above = (logits - threshold).clamp_(min=0)
        excess = above.sum(dim=-1, keepdim=True) - 1
        size = above.sign_().sum(dim=-1, keepdim=True)
        shrunk = size < fewest  # false in a row of NaN
        if not shrunk.any():
            return threshold
        # a row that is done stays as it is, so that no row depends on those that it shares a block with
        threshold = torch.where(shrunk, threshold + excess / size, threshold)
        fewest = torch.minimum(fewest, size)
