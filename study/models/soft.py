"""Token aggregation with a soft assignment: tokens to prototypes, among prototypes, and back to tokens (ours).

Cost is O(N M d); there is no sort and no gather (methods.md section 3).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.grid.models import CATANet, NoPrior, Soft
from study.models.attention import attend, merge, project
from study.models.layers import (
    MLP,
    ConvFFN,
    PreNorm,
    SelfAttention,
    full_precision,
)
from study.models.prototypes import PrototypeBlock, occupancy
from study.models.support import sparsemax, top_softmax

# Where the entropy of a dense A begins at half of log M: measured at initialisation after the first training forward,
# eight 64 x 64 crops of B100, default size, mean over blocks, 0.48 to 0.51 of log M each (0.1 gives k-means 0.94).
# Sparse supports and narrower heads begin harder.
_FIRST_TEMPERATURE = {"ema_kmeans": 0.009, "frozen": 0.002, "learned": 0.1, "per_image": 0.007}
_LEAST_LOAD = 1e-6


class Flow(nn.Module):
    """Projections at the two ends of a flow between tokens and prototypes."""

    def __init__(self, width: int, flow: int) -> None:
        super().__init__()
        self.to_v = nn.Linear(width, flow, bias=False)
        self.proj = nn.Linear(flow, width, bias=False)


class Beside(nn.Module):
    """Channels beside the tokens' in the similarity, beta E f: every head gets as many as the prior has bands (ours).

    Beta starts at 1 and E as a linear layer does, so that the prior holds a tenth of a token's squared length or so.
    """

    def __init__(self, bands: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(bands, heads * bands, bias=False)
        self.beta = nn.Parameter(torch.ones(()))

    def reset_parameters(self) -> None:
        """Beta 1; `embed` resets itself."""
        nn.init.ones_(self.beta)

    def forward(self, descriptor: Tensor) -> Tensor:
        """(B, N, bands) -> (B, N, heads * bands)."""
        return self.beta * self.embed(descriptor)


class SoftAggregation(PrototypeBlock):
    """Token aggregation block of the soft arm; map in, map out.

    Its projections are as wide as makes it as large as the hard block, see `flow_widths`.
    """

    def __init__(self, config: CATANet, index: int) -> None:
        soft = config.assignment
        assert isinstance(soft, Soft)
        width, prior = config.width, None if isinstance(soft.prior, NoPrior) else soft.prior
        similar = width + (config.heads * prior.bands if prior and prior.guidance == "feature" else 0)
        super().__init__(config.prototypes, similar, config.prototypes.count[index % len(config.prototypes.count)])
        flow, hidden = flow_widths(config)
        self.soft = soft
        self.heads = config.heads
        self.norm = nn.LayerNorm(width)
        self.log_temperature = nn.Parameter(torch.empty(()))
        self.guidance: nn.Parameter | None = None
        self.beside: Beside | None = None
        self.guides_similarity = prior is not None and prior.guidance == "similarity"
        if prior and prior.guidance in ("bias", "similarity"):
            self.guidance = nn.Parameter(torch.empty(self.count, prior.bands))
        elif prior and prior.guidance == "feature":
            self.beside = Beside(prior.bands, config.heads)
        self.to_prototypes = Flow(width, flow)
        self.among_prototypes = nn.ModuleList(
            [PreNorm(width, SelfAttention(width, flow, flow, config.heads)), PreNorm(width, MLP(width, hidden))]
        )
        self.to_tokens = Flow(width, flow)
        attends = soft.scatter == "attention"
        self.to_q = nn.Linear(width, flow, bias=False) if attends else None
        self.to_k = nn.Linear(width, flow, bias=False) if attends else None
        self.conv1x1 = nn.Conv2d(width, width, 1, bias=False)
        self.mlp = PreNorm(width, ConvFFN(width, config.mlp_width))
        self.routes = prior is not None and prior.guidance == "loss" and index + 1 == config.blocks
        self.logits: Tensor | None = None
        self._seen: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._reset_guidance()

    def _reset_guidance(self) -> None:
        nn.init.constant_(self.log_temperature, math.log(_FIRST_TEMPERATURE[self.config.update]))
        if self.guidance is not None:
            nn.init.zeros_(self.guidance)

    def reset_parameters(self) -> None:
        """Prototypes as in `PrototypeBlock`, the first temperature, no guidance."""
        super().reset_parameters()
        self._reset_guidance()

    def forward(self, x: Tensor, descriptor: Tensor | None = None) -> Tensor:
        """(B, H, W, d) -> (B, H, W, d); the prior's descriptor is (B, H * W, bands)."""
        mixed = self.mix(self.norm(x).flatten(1, 2), descriptor)
        x = x + mixed.unflatten(1, x.shape[1:3])
        return self.mlp(x).add_(x)

    def mix(self, normed: Tensor, descriptor: Tensor | None = None) -> Tensor:
        """The flow through the prototypes, before the residual; (B, N, d) -> (B, N, d)."""
        with full_precision(normed):
            tokens = normed.float() if normed.dtype in (torch.bfloat16, torch.float16) else normed
            if self.beside is not None and descriptor is not None:
                tokens = torch.cat([tokens, self.beside(descriptor)], dim=-1)
            prototypes = self.prototypes(tokens)
            logits = self._logits(tokens, prototypes, descriptor)
            shares = self._support(logits)
        self.logits = logits if self.routes and self.training else None
        self._seen = (tokens.detach(), prototypes.detach(), descriptor)
        prototypes = prototypes[..., : normed.shape[-1]] + self._gather(normed, shares)
        for part in self.among_prototypes:
            prototypes = prototypes + part(prototypes)
        return self._scatter(normed, shares, prototypes)

    def shares(self, tokens: Tensor, prototypes: Tensor, descriptor: Tensor | None = None) -> Tensor:
        """The assignment A: each token's weights over prototypes, one set per head.

        Args:
            tokens: normed, (B, N, d); with `guidance: feature` the prior's channels follow, see `Beside`.
            prototypes: (1 or B, M, as many).
            descriptor: (B, N, bands) or None.

        Returns:
            (B, heads, N, M); rows sum to 1. With a support of one each head takes its own nearest prototype, so that
            only with one head this is the hard assignment.
        """
        return self._support(self._logits(tokens, prototypes, descriptor))

    def _logits(self, tokens: Tensor, prototypes: Tensor, descriptor: Tensor | None) -> Tensor:
        units, centres = (F.normalize(self._by_head(part), dim=-1).transpose(1, 2) for part in (tokens, prototypes))
        sharpness = (-self.log_temperature).exp()
        logits = (units * sharpness) @ centres.transpose(2, 3)
        if self.guidance is not None and descriptor is not None:
            guided = descriptor * sharpness if self.guides_similarity else descriptor
            logits = logits + (guided @ self.guidance.T)[:, None]
        return logits

    def _by_head(self, part: Tensor) -> Tensor:
        """(..., L, d) -> (..., L, heads, d / heads), the prior's channels, too, a share for each head."""
        width = self.norm.normalized_shape[0]
        tokens, beside = (
            channels.unflatten(-1, (self.heads, -1)) for channels in (part[..., :width], part[..., width:])
        )
        return tokens if self.beside is None else torch.cat([tokens, beside], dim=-1)

    def _support(self, logits: Tensor) -> Tensor:
        if self.soft.support == "sparsemax":
            return sparsemax(logits)
        return logits.softmax(dim=-1) if self.soft.top_k is None else top_softmax(logits, self.soft.top_k)

    def places(self, height: int, width: int) -> dict[str, int]:
        """Where layers are not applied at every pixel, see `study.evaluation.complexity`."""
        on_prototypes = ("to_prototypes.proj", "among_prototypes", "to_tokens.to_v", "to_k")
        return dict.fromkeys(on_prototypes, self.count)

    def products(self, height: int, width: int) -> int:
        """Multiply-adds of the assignment, both flows and the attention, see `study.evaluation.complexity`."""
        tokens, flow = height * width, self.to_tokens.to_v.out_features
        bands = 0 if self.guidance is None else self.guidance.shape[1]
        channels = self.conv1x1.in_channels + (0 if self.beside is None else self.beside.embed.out_features)
        flows = 2 if self.to_q is None else 3  # attention takes products for its weights, too
        attention = self.count**2 * 2 * flow
        return tokens * self.count * (flows * flow + bands) + attention + self.similarity_products(tokens, channels)

    def assignment(self) -> Tensor:
        """Index of the prototype with the largest weight, averaged over heads, in the last forward; (B, N)."""
        return self._last_shares().mean(dim=1).argmax(dim=-1)

    def measures(self) -> dict[str, Tensor]:
        """`occupancy` of the last forward, `entropy_nats` of A (mean over tokens and heads) and `temperature`.

        Where a routing loss acts, the `load` of every prototype, too, because that loss can make it collapse.
        """
        shares = self._last_shares()
        entropy = torch.special.entr(shares).sum(dim=-1).mean()
        temperature = self.log_temperature.detach().exp()
        load = shares.mean(dim=(0, 1, 2))
        loads = {f"load.{index}": share for index, share in enumerate(load)} if self.routes else {}
        return {"entropy_nats": entropy, "temperature": temperature, **occupancy(load), **loads}

    @torch.no_grad()
    def _last_shares(self) -> Tensor:
        assert self._seen is not None, "no forward yet"
        with full_precision(self._seen[0]):
            return self.shares(*self._seen)

    def _gather(self, normed: Tensor, shares: Tensor) -> Tensor:
        """Tokens to prototypes: weighted means of values, A normalised over the tokens; (B, M, d)."""
        values = self.to_prototypes.to_v(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        sums = shares.transpose(2, 3) @ F.pad(values, (0, 1), value=1.0)  # the load comes with the same product
        means = sums[..., :-1] / (sums[..., -1:] + _LEAST_LOAD)
        return self.to_prototypes.proj(means.transpose(1, 2).flatten(2))

    def _scatter(self, normed: Tensor, shares: Tensor, prototypes: Tensor) -> Tensor:
        """Prototypes to tokens, by the same weights or by attention; (B, N, d)."""
        # Nothing lies between the two linear maps, so they are applied as one.
        weight = self.conv1x1.weight.flatten(1) @ self.to_tokens.proj.weight
        if self.to_q is None or self.to_k is None:
            values = self.to_tokens.to_v(prototypes).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            return F.linear((shares @ values).transpose(1, 2).flatten(2), weight)
        scale = (self.to_q.out_features // self.heads) ** -0.5
        queries = project(normed, self.to_q.weight * scale, self.heads)
        keys, values = (project(prototypes, to.weight, self.heads) for to in (self.to_k, self.to_tokens.to_v))
        return merge(attend(queries, keys, values), weight)


def flow_widths(config: CATANet) -> tuple[int, int]:
    """Width of all projections of the soft flow, and of its MLP, that give the soft block the hard block's size.

    The projections are as wide as leaves the MLP at least as wide; the MLP takes up what remains. A prior's map G is
    not made room for, so that the widths are the same with and without one.
    """
    width = config.width
    room = 3 * width * config.qk_width + 3 * width**2 - 5 * width - 1  # biases, two norms, a temperature
    per_flow = (10 if isinstance(config.assignment, Soft) and config.assignment.scatter == "attention" else 8) * width
    per_hidden = 2 * width + 1
    flow = room // (per_flow + per_hidden) // config.heads * config.heads
    flow = max(flow, config.heads)
    return flow, max(1, round((room - flow * per_flow) / per_hidden))
