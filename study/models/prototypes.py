"""Prototypes of a token aggregation block (the papers' token centres): where they come from and how they move."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from study.grid.models import Prototypes


class PrototypeBlock(nn.Module):
    """Holds a block's prototypes; `means` and `initted` are named as in the published checkpoints.

    Attributes:
        means: (M, d), a buffer that k-means moves, or a parameter (`learned`); absent for `per_image`.
        initted: whether a training batch has set `means`; only beside the buffer.
    """

    means: Tensor
    initted: Tensor

    def __init__(self, config: Prototypes, width: int, count: int) -> None:
        super().__init__()
        self.config = config
        self.count = count
        self._started = False  # True once `initted` is known to be: spares reading it from the device at each forward
        if config.update == "learned":
            self.means = nn.Parameter(torch.empty(count, width))
        elif config.update != "per_image":
            self.register_buffer("means", torch.zeros(count, width))
            self.register_buffer("initted", torch.tensor(False))
        self._reset_prototypes()

    def _reset_prototypes(self) -> None:
        self._started = False
        if self.config.update == "learned":
            nn.init.normal_(self.means)
            with torch.no_grad():
                self.means.copy_(F.normalize(self.means, dim=-1))
        elif self.config.update != "per_image":
            self.means.zero_()
            self.initted.fill_(False)

    def reset_parameters(self) -> None:
        """Random unit prototypes (`learned`), or none seen yet."""
        self._reset_prototypes()

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._started = False
        super()._load_from_state_dict(*args, **options)
        self.has_started()  # known from here on, so that a compiled forward need not ask

    def prototypes(self, tokens: Tensor) -> Tensor:
        """This forward's prototypes; in training, one update of them (CATANet section 3.2; methods.md section 1).

        Args:
            tokens: normed, (B, N, d).

        Returns:
            (1, M, d), or (B, M, d) for `per_image`; unit vectors with a gradient to the tokens where k-means made
            them, the buffer or parameter as it stands otherwise.
        """
        config = self.config
        if config.update == "learned":
            return self.means[None]
        if config.update == "per_image":
            return kmeans(F.normalize(tokens, dim=-1), chunk_means(tokens, self.count), config.iterations)
        everywhere = self.training and config.scope == "global" and processes() > 1
        started = self.has_started()
        current = self.means[None] if started else self._first(tokens, everywhere)
        if config.update == "ema_kmeans" and self.training:
            units = F.normalize(tokens, dim=-1).flatten(0, 1)[None]
            current = kmeans(units, current, config.iterations, everywhere=everywhere)
        if self.training and not (started and config.update == "frozen"):
            self._remember(current.detach()[0], started)
        return current

    def similarity_products(self, tokens: int, width: int) -> int:
        """Multiply-adds of all tokens with all prototypes at test: to assign them, and in the steps of `per_image`."""
        steps = self.config.iterations if self.config.update == "per_image" else 0
        return (1 + steps) * tokens * self.count * width

    def has_started(self) -> bool:
        """Whether no training batch is needed to set `means`; reads the device until that is so."""
        if self.config.update in ("learned", "per_image"):
            return True
        if not self._started and not self.initted.is_meta:
            self._started = bool(self.initted)
        return self._started

    def _first(self, tokens: Tensor, everywhere: bool) -> Tensor:
        means = chunk_means(tokens, self.count).mean(dim=0, keepdim=True)
        if everywhere:
            distributed.all_reduce(means)
            means /= processes()
        # What stays for good has the length that k-means would have given it.
        return F.normalize(means, dim=-1) if self.config.update == "frozen" else means

    @torch.no_grad()
    def _remember(self, current: Tensor, started: bool) -> None:
        if started:
            decay = self.config.ema_decay
            self.means.mul_(decay).add_(current, alpha=1 - decay)
        else:
            self.means.copy_(current)
            self.initted.fill_(True)
            self._started = True


def all_started(network: nn.Module) -> bool:
    """Whether a compiled forward is one graph: a block whose prototypes are still to be set splits it, and for good."""
    return all(block.has_started() for block in network.modules() if isinstance(block, PrototypeBlock))


def processes() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mirrored(tokens: Tensor, count: int) -> Tensor:
    """The next `count` tokens, mirrored at the last one and bouncing; (B, N, ...) -> (B, count, ...)."""
    length = tokens.shape[1]
    if count <= length:
        return tokens[:, length - count :].flip(1)
    folds = [tokens if fold % 2 else tokens.flip(1) for fold in range(-(-count // length))]
    return torch.cat(folds, dim=1)[:, :count]


@torch.no_grad()
def chunk_means(tokens: Tensor, count: int) -> Tensor:
    """Averages of `count` contiguous chunks of each image's tokens, padded by mirroring; (B, N, d) -> (B, M, d)."""
    padding = count - tokens.shape[1] % count
    padded = torch.cat([tokens, mirrored(tokens, padding)], dim=1)
    return padded.unflatten(1, (count, -1)).mean(dim=2)


def similarities(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Products of tokens (B, N, d) with unit prototypes (1 or B, M, d); (B, N, M)."""
    return torch.bmm(tokens, F.normalize(prototypes, dim=-1).expand(len(tokens), -1, -1).transpose(1, 2))


def kmeans(tokens: Tensor, prototypes: Tensor, iterations: int, *, everywhere: bool = False) -> Tensor:
    """Spherical k-means; the last step alone has a gradient, to the tokens.

    Args:
        tokens: unit vectors, (B, N, d), each of the B sets clustered by itself.
        prototypes: start, (B, M, d), of any length.
        iterations: number of steps.
        everywhere: sum every cluster over all processes.

    Returns:
        Unit prototypes (B, M, d); one that no token is nearest to keeps its direction.
    """
    with torch.no_grad():
        for _ in range(iterations - 1):
            prototypes = _kmeans_step(tokens, prototypes, everywhere)
    return _kmeans_step(tokens, prototypes, everywhere)


def _kmeans_step(tokens: Tensor, prototypes: Tensor, everywhere: bool) -> Tensor:
    with torch.no_grad():
        nearest = similarities(tokens, prototypes).max(dim=-1).indices
    # Atomic sums would not give the same bits each time on a GPU; a product is slow on a CPU.
    clusters = summed_in_turn if tokens.device.type == "cpu" else summed_by_product
    totals = clusters(tokens, nearest, prototypes.shape[1])
    if everywhere:
        totals = _EverySum.apply(totals)
    sums, sizes = totals.split([tokens.shape[-1], 1], dim=-1)
    return torch.where(sizes > 0, F.normalize(sums, dim=-1), F.normalize(prototypes, dim=-1))


class _EverySum(torch.autograd.Function):
    """Sum over all processes, which Dynamo can trace; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def summed_in_turn(tokens: Tensor, nearest: Tensor, count: int) -> Tensor:
    """Sum and number of the tokens (B, N, d) of each cluster, one token after the other; (B, M, d + 1)."""
    batch, _, width = tokens.shape
    rows = (nearest + torch.arange(batch, device=nearest.device)[:, None] * count).flatten()
    sums = tokens.new_zeros(batch * count, width).index_add(0, rows, tokens.flatten(0, 1))
    sizes = tokens.new_zeros(batch * count).index_add(0, rows, tokens.new_ones(len(rows)))
    return torch.cat([sums, sizes[:, None]], dim=1).unflatten(0, (batch, count))


def summed_by_product(tokens: Tensor, nearest: Tensor, count: int) -> Tensor:
    """The same through a product with a one-hot matrix."""
    members = tokens.new_zeros(*nearest.shape, count).scatter_(2, nearest[..., None], 1)
    return torch.cat([torch.bmm(members.transpose(1, 2), tokens), members.sum(dim=1)[..., None]], dim=-1)


def occupancy(load: Tensor) -> dict[str, Tensor]:
    """How evenly prototypes are used, from the share of all tokens that each holds, (M,).

    Returns:
        `load_entropy_nats`, at most log M, and `dead_share`: prototypes with under a hundredth of an even share.
    """
    return {
        "load_entropy_nats": torch.special.entr(load).sum(),
        "dead_share": (load < 0.01 / len(load)).to(load.dtype).mean(),
    }
