"""Multi-head softmax attention whose heads are narrow: 9 and 10 channels in CATANet.

On a GPU and with several CPU threads PyTorch's fused kernel does the work; it refuses such widths, so that heads are
padded with zeros. On one CPU thread that kernel spends more time on its running maximum than on products: there the
weights are exponentials as they are, in blocks that stay in the core's cache, and a row of ones among the values sums
them up; in full precision under autocast, too. Should a sum leave the safe range, PyTorch's kernel does it after all.
(With several threads the thousands of small products meet at as many barriers, and a machine that others use, too,
then slows down by an order of magnitude; one process for each core is faster anyway.)
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Of head widths: fused kernels refuse others on a GPU; on a CPU they want queries and values equally wide.
_ALIGNMENT = {"cpu": 2, "cuda": 8}
_BLOCK = 1 << 18  # weights alive at once: 1 MiB, which stays in a core's cache
_SAFE = 1e15  # sums of exponentials outside 1/_SAFE to _SAFE would cost digits in the gradient


def project(x: Tensor, weight: Tensor, heads: int) -> Tensor:
    """A linear map whose output is split into heads.

    Args:
        x: tokens, (B, L, d).
        weight: (heads * e, d), head after head; that of queries times the attention's scale.
        heads: number of heads.

    Returns:
        (B, heads, L, e), in blocks with the tokens innermost in memory; else padded with zeros for the fused kernel.
    """
    if _in_blocks(x):
        return torch.bmm(weight.expand(len(x), -1, -1), x.mT).unflatten(1, (heads, -1)).mT
    per_head = weight.unflatten(0, (heads, -1))
    padded = F.pad(per_head, (0, 0, 0, _aligned(per_head.shape[1], x) - per_head.shape[1])).flatten(0, 1)
    return F.linear(x, padded).unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, real: Tensor | None = None) -> Tensor:
    """Softmax attention of each head, without a factor: `project` has put it into the queries.

    Args:
        queries: (B, heads, L, e).
        keys: (B or 1, heads, S, e).
        values: (B or 1, heads, S, f).
        real: bool (B, S), the keys that may be attended; all when absent.

    Returns:
        (B, heads, L, f).
    """
    keys, values = (part.expand(len(queries), -1, -1, -1) for part in (keys, values))
    if real is None and _in_blocks(queries):
        mixed = _attend_in_blocks(*(part.mT.flatten(0, 1) for part in (queries, keys, values)))
        if mixed is not None:
            return mixed.unflatten(0, queries.shape[:2]).mT
    width = _aligned(max(queries.shape[-1], values.shape[-1]), queries)
    padded = [_widened(part, width) for part in (queries, keys, values)]
    mask = None if real is None else real[:, None, None, :].expand(-1, -1, queries.shape[2], -1)
    mixed = F.scaled_dot_product_attention(*padded, attn_mask=mask, scale=1.0)
    return mixed[..., : values.shape[-1]]


def merge(mixed: Tensor, weight: Tensor) -> Tensor:
    """The linear map that joins heads, (B, heads, L, f) -> (B, L, d); its weight is (d, heads * f) without padding."""
    per_head = weight.unflatten(1, (mixed.shape[1], -1))
    padding = mixed.shape[-1] - per_head.shape[2]
    weight = F.pad(per_head, (0, padding)).flatten(1) if padding else weight
    if _in_blocks(mixed):
        return torch.bmm(mixed.mT.flatten(1, 2).mT, weight.T.expand(len(mixed), -1, -1))
    return F.linear(mixed.transpose(1, 2).flatten(2), weight)


def group(part: Tensor, step: int, span: int) -> Tensor:
    """Spans of tokens, one from every `step`-th on, as a batch of their own.

    Args:
        part: (B, heads, L, e), with L = (G - 1) * step + span.
        step: tokens between the beginnings of two spans.
        span: `step`, or twice as many.

    Returns:
        (B * G, heads, span, e).
    """
    return _Spans.apply(part, step, span)


def ungroup(mixed: Tensor, batch: int) -> Tensor:
    """Joins spans that do not overlap: (batch * G, heads, span, f) -> (batch, heads, G * span, f)."""
    if _in_blocks(mixed):
        return mixed.mT.unflatten(0, (batch, -1)).permute(0, 2, 3, 1, 4).flatten(3).mT
    return mixed.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)


def _widened(part: Tensor, width: int) -> Tensor:
    return part if part.shape[-1] == width else F.pad(part, (0, width - part.shape[-1]))  # which copies by itself


def _aligned(width: int, x: Tensor) -> int:
    """The next width that the fused kernel of the tensor's device takes well."""
    return width + -width % _ALIGNMENT.get(x.device.type, 8)


def _in_blocks(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and torch.get_num_threads() == 1


def _attend_in_blocks(*parts: Tensor) -> Tensor | None:
    """Attention of (n, e, L) queries over (n, e, S) keys and (n, f, S) values; None where exponentials are not safe."""
    dtype = parts[0].dtype
    with torch.autocast("cpu", enabled=False):
        parts = tuple(part if part.dtype == torch.float64 else part.float() for part in parts)
        with torch.no_grad():
            sums = _weighted_sums(*parts)
            low, high = sums[:, -1].aminmax()
        # what is not a number must come out as such, which PyTorch's kernel does not guarantee
        if low.isnan() or (low > 1 / _SAFE and high < _SAFE):
            return _Blocked.apply(*parts, sums).to(dtype)
    return None


def _blocks(span: int, whole: Sequence[Tensor], cut: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Views of as many matrices at once as a block holds, and of some of their queries where one matrix is large.

    Args:
        span: keys, S.
        whole: (n, ...) each.
        cut: (n, ..., L) each, with a column for each query.

    Yields:
        A block of each, in their order.
    """
    length = cut[0].shape[2]
    parts = -(-length * span // _BLOCK)
    width = length if parts == 1 else max(16, -(-length // parts))
    width += -width % 16 if parts > 1 else 0  # products of other widths are slower
    step = max(1, _BLOCK // (width * span))
    for some in zip(*(part.split(step) for part in (*whole, *cut)), strict=True):
        for columns in zip(*(part.split(width, dim=2) for part in some[len(whole) :]), strict=True):
            yield *some[: len(whole)], *columns


class _Room:
    """Memory for the weights of one block after the other."""

    def __init__(self, like: Tensor) -> None:
        self._held = like.new_empty(0)

    def __call__(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        if self._held.numel() < size:
            self._held = self._held.new_empty(size)
        return self._held[:size].view(shape)


def _with_ones(values: Tensor) -> Tensor:
    return F.pad(values, (0, 0, 0, 1), value=1.0)


def _weighted_sums(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Values (n, f, S) summed with exponential weights, and in a last row the sum of these; (n, f + 1, L)."""
    extended = _with_ones(values)
    sums = queries.new_empty(len(queries), extended.shape[1], queries.shape[2])
    room = _Room(queries)
    for across, extension, here, out in _blocks(keys.shape[2], (keys.mT, extended), (queries, sums)):
        torch.bmm(extension, _exponentials(here, across, room), out=out)
    return sums


def _exponentials(queries: Tensor, keys: Tensor, room: _Room) -> Tensor:
    """Unnormalised weights of (n, e, w) queries on (n, S, e) keys, (n, S, w)."""
    return torch.bmm(keys, queries, out=room(len(queries), keys.shape[1], queries.shape[2])).exp_()


class _Blocked(torch.autograd.Function):
    """Attention of (n, e, L) queries over (n, e, S) keys from sums made before; its gradient makes the weights anew."""

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, values: Tensor, sums: Tensor) -> Tensor:
        mixed = sums[:, :-1] / sums[:, -1:]
        ctx.save_for_backward(queries, keys, values, mixed, sums[:, -1:])
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, mixed, total = ctx.saved_tensors
        gradient = gradient / total
        # one product gives the weights' gradients, less their mean under the softmax
        extended = torch.cat([gradient, -(gradient * mixed).sum(dim=1, keepdim=True)], dim=1)
        of_queries, of_keys = torch.empty_like(queries), torch.zeros_like(keys)
        of_values = keys.new_zeros(len(keys), mixed.shape[1], keys.shape[2])
        room, other = _Room(queries), _Room(queries)
        whole = keys, keys.mT, _with_ones(values).mT, of_keys, of_values
        cut = queries, gradient, extended, of_queries
        for key, key_rows, value_rows, of_key, of_value, query, slope, both, of_query in _blocks(
            keys.shape[2], whole, cut
        ):
            weights = _exponentials(query, key_rows, room)
            of_value.baddbmm_(slope, weights.mT)
            slopes = torch.bmm(value_rows, both, out=other(*weights.shape)).mul_(weights)
            torch.bmm(key, slopes, out=of_query)
            of_key.baddbmm_(query, slopes.mT)
        return of_queries, of_keys, of_values, None


class _Spans(torch.autograd.Function):
    """`group`; its gradient is two shifted copies, where autograd would scatter."""

    @staticmethod
    def forward(ctx, part: Tensor, step: int, span: int) -> Tensor:
        ctx.batch, ctx.step = len(part), step
        spans = part.unfold(2, span, step).transpose(1, 2)  # (B, G, heads, e, span)
        if _in_blocks(part):
            return spans.flatten(0, 1).mT
        return spans.mT.flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        spans = gradient.unflatten(0, (ctx.batch, -1)).transpose(1, 2)
        batch, heads, count, span, width = spans.shape
        overlap = span - ctx.step
        if _in_blocks(gradient):  # tokens innermost
            total = gradient.new_empty(batch, heads, width, count + bool(overlap), ctx.step).permute(0, 1, 3, 4, 2)
        else:
            total = gradient.new_empty(batch, heads, count + bool(overlap), ctx.step, width)
        total[:, :, :count] = spans[..., : ctx.step, :]
        if overlap:
            total[:, :, count] = spans[:, :, -1, ctx.step :]
            total[:, :, 1:count] += spans[:, :, :-1, ctx.step :]
        return total.flatten(2, 3), None, None
