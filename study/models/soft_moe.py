"""Token aggregation by soft mixtures of experts (Puigcerver et al., ICLR 2024, arXiv 2308.00951)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.grid.models import CATANet, SoftMoE
from study.models.layers import ConvFFN, PreNorm, full_precision
from study.models.prototypes import occupancy


class Experts(nn.Module):
    """One MLP per group of slots, all computed at once; (B, M, d) -> (B, M, d), slot j through expert j E / M."""

    def __init__(self, count: int, width: int, hidden: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(count, width, hidden))
        self.bias1 = nn.Parameter(torch.empty(count, 1, hidden))
        self.weight2 = nn.Parameter(torch.empty(count, hidden, width))
        self.bias2 = nn.Parameter(torch.empty(count, 1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each expert as a pair of `nn.Linear`."""
        for weight, bias in ((self.weight1, self.bias1), (self.weight2, self.bias2)):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def per_place(self) -> tuple[int, int]:
        """Multiply-adds and outputs of one slot, see `study.evaluation.complexity`."""
        return self.weight1[0].numel() + self.weight2[0].numel(), self.weight1.shape[2] + self.weight2.shape[2]

    def forward(self, x: Tensor) -> Tensor:
        batch, count = len(x), len(self.weight1)
        slots = x.unflatten(1, (count, -1)).transpose(0, 1).flatten(1, 2)
        hidden = F.gelu(torch.bmm(slots, self.weight1) + self.bias1)
        out = torch.bmm(hidden, self.weight2) + self.bias2
        return out.unflatten(1, (batch, -1)).transpose(0, 1).flatten(1, 2)


class SoftMoEAggregation(nn.Module):
    """Slots that are weighted means of all tokens, each through its expert, and mixed back; map in, map out.

    The logits are the paper's normalised ones: products of unit tokens and unit slot parameters, by a learned factor.
    It begins at sqrt(d) (ours), the length of a layer-normed token, so that training starts from the logits of the
    unnormalised form. The experts are as wide as makes the block as large as the hard one, see `expert_width`.
    """

    def __init__(self, config: CATANet, index: int) -> None:
        super().__init__()
        moe = config.assignment
        assert isinstance(moe, SoftMoE)
        width, count = config.width, moe.slots[index % len(moe.slots)]
        self.norm = nn.LayerNorm(width)
        self.slots = nn.Parameter(torch.empty(count, width))
        self.factor = nn.Parameter(torch.empty(()))
        self.experts = Experts(moe.experts, width, expert_width(config, count))
        self.conv1x1 = nn.Conv2d(width, width, 1, bias=False)
        self.mlp = PreNorm(width, ConvFFN(width, config.mlp_width))
        self._seen: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random slot parameters of about unit length, and the first factor."""
        width = self.slots.shape[1]
        nn.init.normal_(self.slots, std=width**-0.5)
        nn.init.constant_(self.factor, width**0.5)

    def forward(self, x: Tensor, descriptor: Tensor | None = None) -> Tensor:
        """(B, H, W, d) -> (B, H, W, d); a prior's descriptor is of no use here."""
        x = x + self.mix(self.norm(x).flatten(1, 2)).unflatten(1, x.shape[1:3])
        return x + self.mlp(x)

    def mix(self, normed: Tensor) -> Tensor:
        """Tokens to slots, through the experts and back, before the residual; (B, N, d) -> (B, N, d)."""
        with full_precision(normed):
            tokens = normed.float() if normed.dtype in (torch.bfloat16, torch.float16) else normed
            dispatch, combine = self.weights(tokens)
        self._seen = tokens.detach()
        slots = self.experts(dispatch.transpose(1, 2) @ normed)
        # The convolution is linear and acts on channels only, so it may precede the mixing, on fewer places.
        return combine @ F.linear(slots, self.conv1x1.weight.flatten(1))

    def weights(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Dispatch and combine weights.

        Args:
            tokens: normed, (B, N, d).

        Returns:
            D and C, both (B, N, M): D sums to 1 over the tokens of each slot, C over the slots of each token.
        """
        logits = F.normalize(tokens, dim=-1) @ (self.factor * F.normalize(self.slots, dim=-1)).T
        return logits.softmax(dim=1), logits.softmax(dim=2)

    def places(self, height: int, width: int) -> dict[str, int]:
        """Where layers are not applied at every pixel, see `study.evaluation.complexity`."""
        return {"experts": len(self.slots)}

    def products(self, height: int, width: int) -> int:
        """Multiply-adds of the logits, of dispatch and of combination, see `study.evaluation.complexity`."""
        return 3 * height * width * self.slots.numel()

    def assignment(self) -> Tensor:
        """Index of the slot that each token takes most of in the last forward; (B, N)."""
        return self._last_combine().argmax(dim=-1)

    def measures(self) -> dict[str, Tensor]:
        """`occupancy` of the last forward, `entropy_nats` of C (mean over tokens) and `temperature`, 1 / factor."""
        combine = self._last_combine()
        entropy = torch.special.entr(combine).sum(dim=-1).mean()
        return {
            "entropy_nats": entropy,
            "temperature": 1 / self.factor.detach(),
            **occupancy(combine.mean(dim=(0, 1))),
        }

    @torch.no_grad()
    def _last_combine(self) -> Tensor:
        assert self._seen is not None, "no forward yet"
        with full_precision(self._seen):
            return self.weights(self._seen)[1]


def expert_width(config: CATANet, slots: int) -> int:
    """Hidden width of the experts that gives a block of so many slots the hard block's size, at least 1."""
    assert isinstance(config.assignment, SoftMoE)
    width, experts = config.width, config.assignment.experts
    room = 3 * width * (config.qk_width + width) - slots * width - 1 - experts * width  # slots, factor, last biases
    return max(1, round(room / (experts * (2 * width + 1))))
