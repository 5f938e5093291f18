"""Token aggregation with a hard assignment: attention within groups and to the prototypes (CATANet, section 3)."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from study.grid.models import CATANet, Hard
from study.models.attention import attend, group, merge, project, ungroup
from study.models.layers import ConvFFN, PreNorm, full_precision
from study.models.prototypes import PrototypeBlock, mirrored, occupancy, similarities


class IntraGroupAttention(nn.Module):
    """Projections of the tokens: queries and output of both attentions, keys and values of IASA where there is one."""

    def __init__(self, config: CATANet, fusion: str) -> None:
        super().__init__()
        width = config.width
        grouped = fusion != "irca"
        self.to_q = nn.Linear(width, config.qk_width, bias=False)
        self.to_k = nn.Linear(width, config.qk_width, bias=False) if grouped else None
        self.to_v = nn.Linear(width, width, bias=False) if grouped else None
        self.proj = nn.Linear(width * (2 if fusion == "concat" else 1), width, bias=False)


class InterGroupAttention(nn.Module):
    """Projections of the prototypes: keys and values of IRCA."""

    def __init__(self, config: CATANet) -> None:
        super().__init__()
        self.to_k = nn.Linear(config.width, config.qk_width, bias=False)
        self.to_v = nn.Linear(config.width, config.width, bias=False)


class HardAggregation(PrototypeBlock):
    """Token aggregation block: tokens sorted by their nearest prototype and cut into groups; map in, map out.

    Intra-group self-attention (IASA) and inter-group cross-attention (IRCA) share their queries. Names of parameters
    as in the published checkpoints.
    """

    def __init__(self, config: CATANet, index: int) -> None:
        hard = config.assignment
        assert isinstance(hard, Hard)
        super().__init__(config.prototypes, config.width, config.prototypes.count[index % len(config.prototypes.count)])
        width = config.width
        self.hard = hard
        self.heads = config.heads
        self.group_size = hard.group_sizes[index % len(hard.group_sizes)]
        self.scale = (config.qk_width // config.heads) ** -0.5
        self.norm = nn.LayerNorm(width)
        self.iasa_attn = IntraGroupAttention(config, hard.fusion)
        self.irca_attn = None if hard.fusion == "iasa" else InterGroupAttention(config)
        self.conv1x1 = nn.Conv2d(width, width, 1, bias=False)
        self.mlp = PreNorm(width, ConvFFN(width, config.mlp_width))
        self._assignment: Tensor | None = None

    def forward(self, x: Tensor, descriptor: Tensor | None = None) -> Tensor:
        """(B, H, W, d) -> (B, H, W, d); a hard assignment has no use for a prior's descriptor."""
        normed = self.norm(x).flatten(1, 2)
        with full_precision(normed):
            tokens = normed.float() if normed.dtype in (torch.bfloat16, torch.float16) else normed
            prototypes = self.prototypes(tokens)
            cosines, assignment = self._assign(tokens, prototypes)
        self._assignment = assignment
        if self.hard.fusion == "irca":
            mixed = self._project(self._attend_prototypes(self._queries(normed), prototypes))
        else:
            mixed = self._mix(normed, prototypes, self._order(cosines, assignment))
        x = x + mixed.unflatten(1, x.shape[1:3])
        return self.mlp(x).add_(x)

    def places(self, height: int, width: int) -> dict[str, int]:
        """Where layers are not applied at every pixel, see `study.evaluation.complexity`."""
        return {"irca_attn": self.count}

    def products(self, height: int, width: int) -> int:
        """Multiply-adds of both attentions and of the assignment, see `study.evaluation.complexity`."""
        tokens, channels = height * width, self.conv1x1.in_channels
        span = min(tokens, self.group_size) * (2 if self.hard.attend_next else 1)
        keys = (span if self.hard.fusion != "irca" else 0) + (self.count if self.irca_attn is not None else 0)
        pair = self.iasa_attn.to_q.out_features + channels
        return tokens * keys * pair + self.similarity_products(tokens, channels)

    def assignment(self) -> Tensor:
        """Prototype index of each token in the last forward, (B, N)."""
        assert self._assignment is not None, "no forward yet"
        return self._assignment

    def measures(self) -> dict[str, Tensor]:
        """How the last forward used the prototypes, see `occupancy`."""
        one_hot = self.assignment()[..., None] == torch.arange(self.count, device=self.assignment().device)
        return occupancy(one_hot.double().mean(dim=(0, 1)))

    @torch.no_grad()
    def _assign(self, tokens: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        # A token's length does not change which prototype is nearest, only how near.
        units = F.normalize(tokens, dim=-1) if self.hard.tie_order == "similarity" else tokens
        nearest = similarities(units, prototypes).max(dim=-1)
        return nearest.values, nearest.indices

    def _order(self, cosines: Tensor, assignment: Tensor) -> Tensor:
        if self.hard.tie_order == "stable":
            return assignment.argsort(dim=1, stable=True)
        by_cosine = cosines.argsort(dim=1, descending=True, stable=True)
        return by_cosine.gather(1, assignment.gather(1, by_cosine).argsort(dim=1, stable=True))

    def _mix(self, normed: Tensor, prototypes: Tensor, order: Tensor) -> Tensor:
        """Both attentions over the sorted tokens (B, N, d), brought back into the image's order."""
        length = normed.shape[1]
        inverse = torch.empty_like(order).scatter_(1, order, torch.arange(length, device=order.device).expand_as(order))
        size = min(length, self.group_size)
        padding = -length % size
        tokens = _Sort.apply(normed, order, inverse, padding)
        queries = self._queries(tokens)
        attended = _Sort.apply(normed, order, inverse, padding + size) if self.hard.attend_next else tokens
        mixed = self._attend_groups(queries, attended, size, length)
        if self.irca_attn is not None:
            between = self._attend_prototypes(queries, prototypes)
            mixed = torch.cat([mixed, between], dim=1) if self.hard.fusion == "concat" else mixed + between
        mixed = self._project(mixed)
        return _Sort.apply(mixed[:, :length] if padding else mixed, inverse, order, 0)

    def _queries(self, tokens: Tensor) -> Tensor:
        return project(tokens, self.iasa_attn.to_q.weight * self.scale, self.heads)

    def _keys_and_values(
        self, part: IntraGroupAttention | InterGroupAttention, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert part.to_k is not None
        assert part.to_v is not None
        return project(tokens, part.to_k.weight, self.heads), project(tokens, part.to_v.weight, self.heads)

    def _attend_groups(self, queries: Tensor, tokens: Tensor, size: int, length: int) -> Tensor:
        """Queries (B, heads, G * g, e), each attending its own group's keys and, with `attend_next`, the next one's."""
        batch, count = len(queries), queries.shape[2] // size
        span = size * (2 if self.hard.attend_next else 1)
        keys, values = (group(part, size, span) for part in self._keys_and_values(self.iasa_attn, tokens))
        real = None
        if self.hard.padding == "masked":
            first = torch.arange(count, device=tokens.device)[:, None] * size
            real = (first + torch.arange(span, device=tokens.device) < length).repeat(batch, 1)
        return ungroup(attend(group(queries, size, size), keys, values, real), batch)

    def _attend_prototypes(self, queries: Tensor, prototypes: Tensor) -> Tensor:
        assert self.irca_attn is not None
        return attend(queries, *self._keys_and_values(self.irca_attn, prototypes))

    def _project(self, mixed: Tensor) -> Tensor:
        # Nothing lies between the two linear maps, so they are applied as one.
        return merge(mixed, self.conv1x1.weight.flatten(1) @ self.iasa_attn.proj.weight)


class _Sort(torch.autograd.Function):
    """Permutes each image's tokens and mirrors the last ones; gathers the gradient, where autograd would scatter."""

    @staticmethod
    def forward(ctx, tokens: Tensor, order: Tensor, inverse: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(inverse)
        padded = torch.cat([order, mirrored(order, padding)], dim=1) if padding else order
        return _take(tokens, padded)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        length = inverse.shape[1]
        own, *folds = gradient.split(length, dim=1)
        if folds:
            own = own.clone()
        for index, fold in enumerate(folds):
            if index % 2:
                own[:, : fold.shape[1]] += fold
            else:
                own[:, length - fold.shape[1] :] += fold.flip(1)
        return _take(own, inverse), None, None, None


def _take(tokens: Tensor, order: Tensor) -> Tensor:
    batch, length = order.shape
    rows = order + torch.arange(batch, device=order.device)[:, None] * tokens.shape[1]
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (batch, length))
