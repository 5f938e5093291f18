"""A loss on the assignment itself, beside the objective of a run."""

import torch
from torch import Tensor

WEIGHT = 0.01
_FLOOR = 1e-4
_HIGH_SHARE = 0.25


def routing_loss(logits: Tensor, energy: Tensor) -> Tensor:
    """Draws prototypes to tokens of high frequency (Guiding the Experts, arXiv 2505.18586, with another mask).

    The paper's semantic mask is replaced by the tokens in the top quarter of high-band energy, Q (ours). With W the
    mean over prototypes (and heads) of the dispatch weights, which sum to one over the tokens, and B the tokens at or
    above the mean of W, the loss is -log(sum of W in B and Q / sum of W in B or Q + 1e-4), a mean over images.

    Args:
        logits: of the assignment, (B, heads, N, M).
        energy: standardised log energy of the highest band, (B, N).

    Returns:
        A scalar. An image where B and Q share no token, or whose energies do not differ, is left out; without any
        image it is zero, with a gradient of zero.
    """
    dispatch = logits.softmax(dim=2).mean(dim=(1, 3))
    with torch.no_grad():
        busy = dispatch >= dispatch.mean(dim=1, keepdim=True)
        count = max(1, round(_HIGH_SHARE * energy.shape[1]))
        high = energy >= energy.topk(count, dim=1).values[:, -1:]
        judged = (busy & high).any(dim=1) & (energy.amax(dim=1) > energy.amin(dim=1))
    shared = (dispatch * (busy & high)).sum(dim=1) / (dispatch * (busy | high)).sum(dim=1)
    losses = -(shared + _FLOOR).log()
    return (losses * judged).sum() / judged.sum().clamp(min=1)
