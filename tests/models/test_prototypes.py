"""Clustering against closed forms and loops; one process against two."""

import copy
import os
import socket
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

from study.grid.models import Prototypes
from study.models.prototypes import (
    PrototypeBlock,
    all_started,
    chunk_means,
    kmeans,
    mirrored,
    occupancy,
    summed_by_product,
    summed_in_turn,
)


def tokens_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(update: str = "ema_kmeans", count: int = 4, **options: object) -> PrototypeBlock:
    return PrototypeBlock(Prototypes.model_validate({"update": update, **options}), 6, count).double()


def naive_step(tokens: Tensor, prototypes: Tensor) -> Tensor:
    tokens, prototypes = F.normalize(tokens, dim=-1), F.normalize(prototypes, dim=-1)
    sums = torch.zeros_like(prototypes)
    nearest = [int((prototypes @ token).argmax()) for token in tokens]
    for token, index in zip(tokens, nearest, strict=True):
        sums[index] += token
    return torch.stack([F.normalize(sums[j], dim=0) if j in nearest else prototypes[j] for j in range(len(prototypes))])


@pytest.mark.parametrize("count", [0, 3, 5, 7, 10, 12, 23])
def test_mirror_bounces_with_period_two_lengths(count: int) -> None:
    expected = [[4, 3, 2, 1, 0, 0, 1, 2, 3, 4][k % 10] for k in range(count)]
    assert mirrored(torch.arange(5.0).view(1, 5, 1), count).flatten().tolist() == expected


@pytest.mark.parametrize("length", [10, 12, 3])
def test_first_means_are_of_contiguous_chunks(length: int) -> None:
    tokens, count = tokens_of(2, length, 6), 4  # 12: a full mirrored chunk; 10: two mirrored tokens; 3: one
    padded = torch.cat([tokens, tokens.flip(1)], dim=1)[:, : length + count - length % count]
    chunks = padded.reshape(2, count, -1, 6)
    torch.testing.assert_close(chunk_means(tokens, count), chunks.mean(dim=2))


def test_kmeans_agrees_with_loops_and_keeps_an_empty_prototype() -> None:
    tokens, start = tokens_of(40, 6), tokens_of(5, 6, seed=1)
    tokens[:, 0] = tokens[:, 0].abs() + 1
    start[2] = torch.tensor([-2.0, 0, 0, 0, 0, 0])  # opposite to every token
    expected = start
    for _ in range(3):
        expected = naive_step(tokens, expected)
    found = kmeans(F.normalize(tokens, dim=-1)[None], start[None], 3)[0]
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[2], F.normalize(start[2], dim=0))


@pytest.mark.parametrize("summed", [summed_in_turn, summed_by_product])
def test_sums_and_sizes_of_clusters(summed: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    tokens, nearest = tokens_of(2, 3, 6).requires_grad_(), torch.tensor([[0, 3, 0], [1, 1, 1]])
    totals = summed(tokens, nearest, 4)
    expected = torch.zeros(2, 4, 7, dtype=torch.float64)
    expected[0, 0, :6], expected[0, 3, :6] = tokens[0, 0] + tokens[0, 2], tokens[0, 1]
    expected[1, 1, :6] = tokens[1].sum(dim=0)
    expected[..., 6] = torch.tensor([[2, 0, 0, 1], [0, 3, 0, 0]])
    torch.testing.assert_close(totals, expected)
    (gradient,) = torch.autograd.grad((totals * torch.arange(4)[:, None]).sum(), tokens)
    torch.testing.assert_close(gradient, nearest[..., None].double().expand(-1, -1, 6))


def test_only_the_last_step_has_a_gradient() -> None:
    tokens, start = tokens_of(1, 30, 6).requires_grad_(), tokens_of(1, 4, 6, seed=1)
    weight = tokens_of(1, 4, 6, seed=2)
    before = kmeans(F.normalize(tokens, dim=-1), start, 2).detach()
    (whole,) = torch.autograd.grad((kmeans(F.normalize(tokens, dim=-1), start, 3) * weight).sum(), tokens)
    (last,) = torch.autograd.grad((kmeans(F.normalize(tokens, dim=-1), before, 1) * weight).sum(), tokens)
    torch.testing.assert_close(whole, last)
    assert whole.abs().sum() > 0


def test_buffer_is_set_by_the_first_batch_and_moved_by_the_others() -> None:
    module = block(ema_decay=0.9).train()
    first = module.prototypes(tokens_of(2, 30, 6))
    assert torch.equal(module.means, first[0])
    assert bool(module.initted)
    second = module.prototypes(tokens_of(2, 30, 6, seed=1))
    torch.testing.assert_close(module.means, 0.9 * first[0] + 0.1 * second[0])
    assert not torch.allclose(module.means.norm(dim=-1), torch.ones(4, dtype=torch.float64), atol=1e-6)


def test_test_forward_leaves_the_buffer_and_uses_it_as_it_stands() -> None:
    module = block().eval()
    tokens = tokens_of(3, 10, 6)
    torch.testing.assert_close(module.prototypes(tokens)[0], chunk_means(tokens, 4).mean(dim=0))
    assert not module.initted
    module.train().prototypes(tokens)
    stored = module.means.clone()
    assert torch.equal(module.eval().prototypes(tokens_of(3, 10, 6, seed=1))[0], stored)


def test_frozen_keeps_the_first_batch() -> None:
    module = block("frozen").train()
    tokens = tokens_of(2, 30, 6)
    first = module.prototypes(tokens)[0]
    torch.testing.assert_close(first, F.normalize(chunk_means(tokens, 4).mean(dim=0), dim=-1))
    assert torch.equal(module.prototypes(tokens_of(2, 30, 6, seed=1))[0], first)


def test_per_image_does_not_depend_on_the_other_images() -> None:
    module = block("per_image")
    tokens = tokens_of(3, 30, 6)
    for mode in (True, False):
        module.train(mode)
        torch.testing.assert_close(module.prototypes(tokens)[1:2], module.prototypes(tokens[1:2]))
    assert not module.state_dict()


def test_learned_is_a_unit_parameter() -> None:
    module = block("learned")
    assert [name for name, _ in module.named_parameters()] == ["means"]
    torch.testing.assert_close(module.means.norm(dim=-1), torch.ones(4, dtype=torch.float64))
    assert module.prototypes(tokens_of(1, 9, 6)).data_ptr() == module.means.data_ptr()


@pytest.mark.parametrize("loaded_while_running", [True, False])
def test_loading_a_state_is_noticed(loaded_while_running: bool) -> None:
    trained = block().train()
    trained.prototypes(tokens_of(2, 30, 6))
    other, tokens = block().eval(), tokens_of(1, 10, 6, seed=3)
    if loaded_while_running:
        other.prototypes(tokens)
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other.prototypes(tokens)[0], trained.means)
    trained.load_state_dict(block().state_dict())
    torch.testing.assert_close(trained.eval().prototypes(tokens)[0], chunk_means(tokens, 4)[0])


def test_after_loading_a_state_nothing_is_read_in_the_trace() -> None:
    trained, other = block().train(), block().eval()
    tokens = tokens_of(2, 30, 6)
    trained.prototypes(tokens)
    other.load_state_dict(trained.state_dict())
    traced = torch.compile(other.prototypes, backend="eager", fullgraph=True)
    assert torch.equal(traced(tokens)[0], trained.means)


@pytest.mark.parametrize("update", ["ema_kmeans", "frozen", "learned", "per_image"])
def test_a_network_has_started_once_every_block_has(update: str) -> None:
    network = nn.ModuleList([block(update), block(update)]).train()
    buffered = update in ("ema_kmeans", "frozen")
    for module, expected in zip(network, (not buffered, True), strict=True):
        assert isinstance(module, PrototypeBlock)
        module.prototypes(tokens_of(2, 30, 6))
        assert all_started(network) is expected


def test_a_copied_buffer_is_noticed() -> None:
    trained = block().train()
    average = copy.deepcopy(trained).eval()
    trained.prototypes(tokens_of(2, 30, 6))
    for mine, theirs in zip(average.buffers(), trained.buffers(), strict=True):
        mine.copy_(theirs)
    assert torch.equal(average.prototypes(tokens_of(1, 10, 6))[0], trained.means)


def test_occupancy() -> None:
    even = occupancy(torch.full((8,), 1 / 8))
    assert float(even["load_entropy_nats"]) == pytest.approx(2.0794415)
    assert float(even["dead_share"]) == 0
    single = occupancy(torch.tensor([1.0, 0, 0, 0]))
    assert float(single["load_entropy_nats"]) == 0
    assert float(single["dead_share"]) == 0.75


def two_updates(
    module: PrototypeBlock, batches: list[Tensor], weight: Tensor, compiled: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Buffer after two training forwards, the second compiled if asked, and the gradients of the tokens of each."""
    gradients, prototypes = [], module.prototypes
    for tokens in batches:
        tokens = tokens.clone().requires_grad_()
        # Per process the loss has half the images; its sum over processes is that of all.
        ((prototypes(tokens) * weight).sum() * len(tokens)).backward()
        assert tokens.grad is not None
        gradients.append(tokens.grad)
        if compiled:
            prototypes = torch.compile(module.prototypes, backend="aot_eager", fullgraph=True)
    return module.means.clone(), gradients


def batches() -> list[Tensor]:
    return [tokens_of(4, 18, 6, seed=seed) for seed in (5, 6)]


def work(rank: int, port: int, folder: str, scope: str, compiled: bool) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    parts = [batch[2 * rank : 2 * rank + 2] for batch in batches()]
    result = two_updates(block(scope=scope).train(), parts, tokens_of(1, 4, 6, seed=9), compiled)
    torch.save(result, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("scope", "compiled"),
    [("global", False), ("process", False), pytest.param("global", True, marks=pytest.mark.slow)],
)
def test_two_processes_cluster_as_one(scope: str, compiled: bool, tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(work, (port, str(tmp_path), scope, compiled), nprocs=2)
    means, gradients = two_updates(block().train(), batches(), tokens_of(1, 4, 6, seed=9))
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    same = [torch.allclose(found, means, rtol=1e-12, atol=1e-13) for found, _ in results]
    assert same == [scope == "global"] * 2
    if scope == "global":
        for step in (0, 1):
            joined = torch.cat([found[step] for _, found in results])
            torch.testing.assert_close(joined, gradients[step])
