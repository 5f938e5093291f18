import csv
import math
from itertools import chain, repeat
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from study.evaluation import complexity
from study.evaluation.complexity import (
    THROUGHPUT_BATCH,
    WARM_UP,
    Operations,
    latency,
    measure_costs,
    multiply_adds,
    operations,
    parameters,
    peak_memory,
)
from study.grid.models import (
    CFSR,
    IMDN,
    SPIN,
    Bicubic,
    CATANet,
    FrequencyPrior,
    Global,
    Hard,
    NoAssignment,
    Prototypes,
    Soft,
    SoftMoE,
    Superpixel,
)
from study.grid.schema import Evaluation, Run
from study.models import build
from study.models.soft import flow_widths
from study.models.soft_moe import expert_width
from study.models.windows import window_count
from tests.shared import shared

CPU = torch.device("cpu")
WINDOW, MIDDLE = 5, 12  # of the tiny network


def on_meta(model: Any, scale: int = 4) -> nn.Module:
    with torch.device("meta"):
        return build(Run.model_validate({"scale": scale, "model": model, "evaluation": {"tile_lr_px": 128}})).eval()


def tiny(assignment: Any, **changes: Any) -> CATANet:
    sizes = {"width": 8, "qk_width": 6, "heads": 2, "mlp_width": MIDDLE, "windows": (WINDOW,), "blocks": 1}
    return CATANet(assignment=assignment, prototypes=Prototypes(count=(3,)), **{**sizes, **changes})


def counted(assignment: Any, **changes: Any) -> Operations:
    return operations(on_meta(tiny(assignment, **changes), 2), (9, 14))


@pytest.mark.parametrize(("scale", "published"), [(2, 477_435), (3, 549_635), (4, 535_195)])
def test_parameters_are_those_of_the_paper(scale: int, published: int) -> None:
    assert parameters(on_meta({"kind": "catanet"}, scale)) == published


def norms(height: int, width: int, channels: int = 40) -> int:
    """Normalised numbers of CATANet: three norms a block on the map, one in the windows."""
    sides = [(window_count(height, p) * p, window_count(width, p) * p) for p in (16, 20, 24, 28)]
    return 2 * channels * sum(3 * height * width + rows * columns for rows, columns in sides)


def test_catanet_is_counted_as_its_authors_do() -> None:
    square, wide = multiply_adds(Run(scale=4), (256, 256)), multiply_adds(Run(scale=4))
    assert square == pytest.approx(46.8e9, rel=0.01)
    assert wide == pytest.approx(41e9, rel=0.01)
    assert f"{(square + 4 * norms(256, 256)) / 1e9:.1f}" == "46.8"
    assert f"{(wide + 4 * norms(180, 320)) / 1e9:.1f}" == "41.0"


def test_imdn_and_cfsr_are_counted_as_their_authors_do() -> None:
    assert f"{multiply_adds(Run(scale=4, model=IMDN())) / 1e9:.1f}" == "40.9"
    normalised = 25 * 48 * 180 * 320
    assert f"{(multiply_adds(Run(scale=4, model=CFSR())) + 5 * normalised) / 1e9:.1f}" == "17.5"


def test_published_sizes() -> None:
    models = {"CATANet": CATANet(), "SPIN": SPIN(), "IMDN": IMDN(), "CFSR": CFSR()}
    sizes: dict[str, set[int]] = {}
    with shared("published/sr_lightweight.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] not in models:
                continue
            network = complexity.deployed(on_meta(models[row["method"]], int(row["scale"])))
            assert round(parameters(network) / 1e3) == int(row["params_k"]), row
            sizes.setdefault(row["method"], set()).add(int(row["scale"]))
            if row["macs_g"]:
                px = (256, 256) if row["method"] == "CATANet" else (180, 320)
                assert operations(network, px).layers == pytest.approx(1e9 * float(row["macs_g"]), rel=0.02), row
    assert sizes["CATANet"] == sizes["SPIN"] == sizes["IMDN"] == {2, 3, 4}


def test_catanet_with_products() -> None:
    """171 GFLOP of multiplications and additions for 256 x 256, by an independent count of the plain formulation."""
    assert 2 * multiply_adds(Run(scale=4), (256, 256), products=True) == pytest.approx(171e9, rel=0.01)


# The tiny network at scale 2 on 9 x 14 px, by hand: d = 8 channels, q and k of 6, 12 in the feed-forward network,
# windows of 5 every 3 px, 3 prototypes.
N, M, D, QK = 9 * 14, 3, 8, 6
WINDOWED = (3 * 5) * (4 * 5)
FFN = 2 * D * MIDDLE + 25 * MIDDLE
LOCAL = WINDOWED * (2 * D * QK + 2 * D * D) + N * FFN
FRAME = N * (27 * D + 9 * D * D + 9 * D * 4 * D + 4 * 27 * D) + LOCAL
LOCAL_PRODUCTS = WINDOWED * 25 * (QK + D)
FRAME_PUT_OUT = N * (D + D + 4 * D + 4 * 3) + WINDOWED * (2 * QK + 2 * D) + N * (2 * MIDDLE + D)


def test_no_assignment_by_hand() -> None:
    assert counted(NoAssignment()) == Operations(FRAME, LOCAL_PRODUCTS, FRAME_PUT_OUT)


def test_hard_assignment_by_hand() -> None:
    tokens, prototypes = N * (2 * D * QK + 3 * D * D + FFN), M * (D * QK + D * D)
    assigned, between = N * M * D, N * M * (QK + D)
    put_out = N * (2 * QK + 3 * D + 2 * MIDDLE + D) + M * (QK + D)
    found = counted(Hard(group_sizes=(4,)))
    assert found.layers == FRAME + tokens + prototypes
    assert found.products == LOCAL_PRODUCTS + assigned + between + N * (2 * 4) * (QK + D)
    assert found.activations == FRAME_PUT_OUT + put_out
    own = counted(Hard(group_sizes=(4,), attend_next=False))
    assert own.products == LOCAL_PRODUCTS + assigned + between + N * 4 * (QK + D)
    within = counted(Hard(group_sizes=(500,), fusion="iasa"))
    assert within.layers == FRAME + tokens
    assert within.products == LOCAL_PRODUCTS + assigned + N * (2 * N) * (QK + D)
    alone = counted(Hard(fusion="irca"))
    assert alone.layers == FRAME + tokens + prototypes - N * (D * QK + D * D)
    assert alone.products == LOCAL_PRODUCTS + assigned + between


def test_soft_assignment_by_hand() -> None:
    soft = Soft()
    flow, hidden = flow_widths(tiny(soft))
    tokens = N * (2 * D * flow + D * D + FFN)
    prototypes = M * (D * flow + 4 * D * flow + 2 * D * hidden + D * flow)
    found = counted(soft)
    products = LOCAL_PRODUCTS + N * M * (D + 2 * flow) + M * M * 2 * flow
    assert (found.layers, found.products) == (FRAME + tokens + prototypes, products)
    guided = counted(Soft(prior=FrequencyPrior(kind="frequency", bands=3)))
    assert (guided.layers, guided.products) == (found.layers, products + N * M * 3)
    attending = Soft(scatter="attention")
    flow, hidden = flow_widths(tiny(attending))
    found = counted(attending)
    assert found.layers == FRAME + N * (3 * D * flow + D * D + FFN) + M * (7 * D * flow + 2 * D * hidden)
    assert found.products == LOCAL_PRODUCTS + N * M * (D + 3 * flow) + M * M * 2 * flow


def test_prototypes_of_each_image_are_found_at_test_too() -> None:
    sources = [Prototypes(count=(3,), update=update) for update in ("learned", "per_image")]
    fixed, found = (
        operations(on_meta(tiny(Hard()).model_copy(update={"prototypes": source}), 2), (9, 14)) for source in sources
    )
    assert found.products - fixed.products == 5 * N * M * D


def test_the_other_assignments_by_hand() -> None:
    values = (QK + 3 * D) // 4 * 2
    projections = 2 * D * (QK + values)
    found = counted(Global())
    assert found.layers == FRAME + N * (projections + D * D + FFN)
    assert found.products == LOCAL_PRODUCTS + N * N * (QK + values)
    cells = 2 * 3
    found = counted(Superpixel(sizes=(4,)))
    assert found.layers == FRAME + cells * projections + N * (D * D + FFN)
    assert found.products == LOCAL_PRODUCTS + 3 * 9 * N * D + cells**2 * (QK + values)
    moe = SoftMoE(slots=(4,), experts=2)
    hidden = expert_width(tiny(moe), 4)
    found = counted(moe)
    assert found.layers == FRAME + 4 * 2 * D * hidden + N * (D * D + FFN)
    assert found.products == LOCAL_PRODUCTS + 3 * N * 4 * D
    assert found.activations == FRAME_PUT_OUT + 4 * (hidden + D) + N * (D + 2 * MIDDLE + D)


@pytest.mark.parametrize("kind", get_args(CATANet.model_fields["assignment"].annotation))
def test_no_assignment_forgets_its_products(kind: type) -> None:
    more = counted(kind()).products - counted(NoAssignment()).products
    assert (more > 0) is (kind is not NoAssignment)


def test_spin_by_hand() -> None:
    sizes = SPIN(width=8, blocks=1, qk_width=QK, mlp_width=MIDDLE, superpixels=(4,))
    superpixels, windowed = 2 * 3, (4 * 4) * (6 * 4)
    ffn = 2 * D + N * (D + 1 + 3 * D * MIDDLE)
    projections = 2 * D * QK + D * D
    layers = N * (27 * D + 9 * D * D + 9 * D * 4 * D + 4 * 27 * D) + 3 * ffn
    layers += 2 * N * projections + superpixels * D * QK + windowed * projections
    distances_and_means = (3 + 2 + 1) * 9 * N * D
    pairs = 2 * superpixels * N + superpixels * 16**2 + windowed * 16
    found = operations(on_meta(sizes, 2), (9, 14))
    assert (found.layers, found.products) == (layers, distances_and_means + pairs * (QK + D))


def test_imdn_by_hand() -> None:
    per_pixel = 3 * 64 * 9 + 6 * (64 * 64 * 9 + 2 * 48 * 64 * 9 + 48 * 16 * 9 + 64 * 64) + 384 * 64 + 64 * 64 * 9
    per_pixel += 64 * 48 * 9
    attention = 6 * 2 * 64 * 4  # on one place of the whole image
    put_out = 32 * 48 * (64 + 6 * (3 * 64 + 16 + 64) + 64 + 64 + 48) + 6 * (4 + 64)
    expected = Operations(per_pixel * 32 * 48 + attention, 0, put_out)
    assert operations(on_meta(IMDN()), (32, 48)) == expected
    assert multiply_adds(Run(model=IMDN()), (32, 48), products=True) == expected.layers


def test_cfsr_by_hand() -> None:
    block = 48 * 48 * 3 + 81 * 48 + 2 * 48 * 96 + 9 * 96
    per_pixel = 27 * 48 + 2 * (6 * block + 48 * 48) + 9 * 48 * 48 + 9 * 48 * 12
    put_out = 48 + 2 * (6 * (5 * 48 + 2 * 96) + 48) + 48 + 12
    assert operations(on_meta(CFSR(), 2), (20, 30)) == Operations(600 * per_pixel, 0, 600 * put_out)


def test_bicubic_has_none() -> None:
    assert multiply_adds(Run(model=Bicubic()), products=True) == 0


ASSIGNMENTS = [Hard(), Soft(), Soft(scatter="attention"), Superpixel(sizes=(4,)), SoftMoE(slots=(16,)), NoAssignment()]


@pytest.mark.parametrize("assignment", ASSIGNMENTS, ids=lambda assignment: repr(assignment)[:24])
def test_the_count_by_layers_agrees_with_what_runs_where_nothing_is_padded(assignment: Any) -> None:
    # heads of 8 channels need no padding, sides and groups divide, and at scale 1 there is no upsampler
    sizes = CATANet(width=32, blocks=1, qk_width=32, heads=4, windows=(16,), prototypes=Prototypes(count=(16,)))
    network = on_meta(sizes.model_copy(update={"assignment": assignment}), 1)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty(1, 3, 16, 16, device="meta"))
    declared = operations(network, (16, 16))
    # a linear layer of strided tokens runs as a batched product: what runs does not tell the two kinds apart
    assert declared.layers + declared.products == pytest.approx(counter.get_total_flops() // 2, rel=0.05)


class Branching(nn.Module):
    """Computes what depends on values, as some networks from files do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.register_buffer("offset", torch.zeros(1, 12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x) + self.offset
        mixed = features.flatten(2) @ features.flatten(2).transpose(1, 2)
        return features if mixed.sum().item() >= 0 else features * 0


def test_a_network_that_looks_at_values_is_run_to_be_counted() -> None:
    assert operations(Branching(), (8, 10)) == Operations(80 * 27 * 12, 80 * 12 * 12, 80 * 12)


def test_peak_memory_is_that_of_the_tensors_alive_together() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(inplace=True), nn.PixelShuffle(2)
    )
    # 8 + 8 numbers a pixel at the first ReLU, 8 + 12 at the second convolution, 12 + 12 at the shuffle
    assert peak_memory(network, 16, CPU) == 4 * 24 * 16**2
    assert peak_memory(network[:3], 16, CPU) == 4 * 20 * 16**2
    assert peak_memory(network[:2], 16, CPU) == 4 * 16 * 16**2
    assert peak_memory(network[1:2], 16, CPU) == 4 * 3 * 16**2
    assert peak_memory(nn.Identity(), 16, CPU) == 0


def test_latency_is_the_median_after_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [9.0] * WARM_UP + [0.5, 0.1, 0.3, 0.2, 0.4]
    clock = chain.from_iterable(zip(repeat(0.0), seconds, strict=False))
    monkeypatch.setattr(complexity.time, "perf_counter", lambda: next(clock))
    seen = []
    network = nn.Identity()
    network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    found = latency(network, 12, CPU, batch=3, repeats=5)
    assert (found.low_ms, found.median_ms, found.high_ms) == pytest.approx((200, 300, 400))
    assert seen == [(3, 3, 12, 12)] * (WARM_UP + 5)


def test_every_cost_of_a_finished_network(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(Run(scale=2, model=CFSR(width=8, layers=1, blocks=1, mlp_width=8))).eval()
    batches = []

    def half_a_second(*_: Any, batch: int = 1, **__: Any) -> complexity.Latency:
        batches.append(batch)
        return complexity.Latency(500.0 * batch, 400.0, 600.0)

    monkeypatch.setattr(complexity, "latency", half_a_second)
    costs = {name: (value, unit) for name, value, unit in measure_costs(network, 2, 24, CPU)}
    merged = complexity.deployed(network)
    assert costs["parameters"] == (parameters(merged), "1")
    assert parameters(merged) == parameters(network) - 3 * 8
    assert costs["multiply_adds_720p"][0] == costs["multiply_adds_products_720p"][0] == multiply_adds(
        Run(scale=2, model=CFSR(width=8, layers=1, blocks=1, mlp_width=8))
    )  # fmt: skip
    assert costs["activations_720p"][0] == operations(merged, (360, 640)).activations
    assert costs["inference_peak_memory"] == (peak_memory(merged, 24, CPU), "B")
    assert (costs["latency_low_quartile"], costs["latency_median"]) == ((400.0, "ms"), (500.0, "ms"))
    assert costs["cost_lr_px"] == (24, "px")
    assert batches == [1, THROUGHPUT_BATCH]
    assert costs["throughput"] == (pytest.approx(48 * 48 / 1e6 / 0.5), "Mpx/s")


def test_a_network_that_does_not_take_the_size_is_counted_and_not_timed() -> None:
    network = build(Run(scale=2, model=tiny(Global()), evaluation=Evaluation(tile_lr_px=128))).eval()
    names = [name for name, _, _ in measure_costs(network, 2, 136, CPU)]
    assert names == ["parameters", "multiply_adds_720p", "multiply_adds_products_720p", "activations_720p"]


def test_bicubic_is_timed() -> None:
    costs = {name: value for name, value, _ in measure_costs(build(Run(model=Bicubic())), 4, 8, CPU)}
    assert costs["multiply_adds_products_720p"] == costs["activations_720p"] == 0
    assert costs["latency_median"] > 0
    assert math.isfinite(costs["throughput"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_and_latency_on_cuda() -> None:
    network = nn.Sequential(nn.Identity(), nn.ReLU()).cuda()
    assert peak_memory(network, 256, torch.device("cuda")) == 4 * 3 * 256**2
    found = latency(network, 256, torch.device("cuda"))
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
