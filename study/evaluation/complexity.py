"""What a network costs: parameters, operations counted without running it, and time and memory of an inference.

Multiply-adds have two conventions, and a number means nothing without its own: `layers` holds convolutions and linear
layers alone, as most tables of lightweight networks do (CATANet x4: 46.4 G at 256 x 256); with `products` come the
products of activations with one another, which are attention and assignment (85.3 G there). Neither holds additions,
norms, activation functions, resampling, or the fixed transforms of a frequency prior.

A network whose class has a method `places` is counted by its layers: every weight times the number of places it is
applied at. What runs is not what is declared there: heads are padded for fused kernels, and linear maps with nothing
between them are applied as one. So any module of such a network may declare, for one image of height x width px,

    places(height, width) -> {name: count}    where a sublayer, named from this module down, is not applied at every
                                              pixel; the longest name that a layer's own begins with holds
    products(height, width) -> int            multiply-adds of the products of activations with one another that it
                                              makes at test, at declared widths, without padding
    per_place() -> (int, int)                 multiply-adds and outputs at one place, of a module that holds weights
                                              as a layer of its own kind

Any other network (one from a file, too) is counted from what runs: on the meta device, or on its own where what it
computes depends on values.
"""

import math
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from study.grid.schema import Run
from study.models import build

OUTPUT_PX = (720, 1280)  # the papers' common output size
REPEATS, WARM_UP = 15, 2
THROUGHPUT_BATCH, THROUGHPUT_REPEATS = 4, 5
_ATEN = torch.ops.aten
_WEIGHTED = (_ATEN.convolution, _ATEN.mm, _ATEN.addmm)

Cost = tuple[str, float, str]


@dataclass(frozen=True)
class Operations:
    """Operations of one inference of one image.

    Attributes:
        layers: multiply-adds of convolutions and linear layers.
        products: multiply-adds of attention and assignment products.
        activations: numbers that convolutions and linear layers put out. (Radosavovic et al., CVPR 2020, and the AIM
            and NTIRE challenges count convolutions; linear layers are counted here too, since on a map of tokens
            they are 1 x 1 convolutions.)
    """

    layers: int
    products: int
    activations: int


@dataclass(frozen=True)
class Latency:
    """Median and quartiles of repeated inferences, ms."""

    median_ms: float
    low_ms: float
    high_ms: float


def parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())


def lr_size(scale: int) -> tuple[int, int]:
    """Height and width of the input of a 1280 x 720 output, rounded up."""
    return math.ceil(OUTPUT_PX[0] / scale), math.ceil(OUTPUT_PX[1] / scale)


def multiply_adds(run: Run, lr_px: tuple[int, int] | None = None, *, products: bool = False) -> int:
    """Multiply-adds of one image; nothing is computed.

    CATANet x4 has 46.4 G for a 256 x 256 input and 40.7 G for a 1280 x 720 output, where its authors print 46.8 G and
    41 G: so would a counter that adds four operations per normalised number. IMDN x4 has the published 40.9 G; CFSR
    x4 has 17.2 G, and the published 17.5 G with five per normalised number.

    Args:
        run: a resolved run.
        lr_px: height and width of the input; that of a 1280 x 720 output when absent.
        products: count attention and assignment products too.
    """
    with torch.device("meta"):
        network = build(run).eval()
    counted = operations(network, lr_px or lr_size(run.scale))
    return counted.layers + (counted.products if products else 0)


def deployed(network: nn.Module) -> nn.Module:
    """The form for inference of a network that has one of its own (CFSR, whose branches are merged); else itself."""
    merged: Callable[[], nn.Module] | None = getattr(network, "merged", None)
    return network if merged is None else merged()


def operations(network: nn.Module, lr_px: tuple[int, int]) -> Operations:
    """Counts the operations of one image of `lr_px` (height, width); the network is in eval mode, on any device."""
    if not parameters(network):
        return Operations(0, 0, 0)
    network = deployed(network)
    return (_by_layers if hasattr(network, "places") else _by_what_runs)(network, *lr_px)


def _by_layers(network: nn.Module, height: int, width: int) -> Operations:
    places: dict[str, int] = {}
    layers = products = activations = 0
    for name, module in network.named_modules():
        for part, count in _declared(module, "places", height, width, default={}).items():
            places[f"{name}.{part}".lstrip(".")] = count
        products += _declared(module, "products", height, width, default=0)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weights, outputs = module.weight.numel(), len(module.weight)
        else:
            weights, outputs = _declared(module, "per_place", default=(0, 0))
        here = _longest(places, name, height * width)
        layers += weights * here
        activations += outputs * here
    return Operations(layers, products, activations)


def _declared(module: nn.Module, method: str, *size: int, default: Any) -> Any:
    declare: Callable[..., Any] | None = getattr(module, method, None)
    return default if declare is None else declare(*size)


def _longest(places: Mapping[str, int], name: str, everywhere: int) -> int:
    """The count declared for the longest beginning of a dotted name."""
    parts = name.split(".")
    beginnings = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((places[beginning] for beginning in beginnings if beginning in places), everywhere)


def _by_what_runs(network: nn.Module, height: int, width: int) -> Operations:
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: value.to("meta") for name, value in state.items()}
    try:
        return _counted(lambda image: functional_call(network, shapes, (image,)), height, width, torch.device("meta"))
    except RuntimeError:  # what it computes depends on values, which the meta device has not
        device = next(network.parameters()).device
        if device.type == "meta":
            raise
        return _counted(network, height, width, device)


def _counted(call: Callable[[Tensor], object], height: int, width: int, device: torch.device) -> Operations:
    flops = FlopCounterMode(display=False)
    outputs = FlopCounterMode(display=False, custom_mapping=dict.fromkeys(_WEIGHTED, _size))
    with flops, outputs, torch.no_grad():
        call(torch.zeros(1, 3, height, width, device=device))
    done, put_out = (counter.get_flop_counts().get("Global", {}) for counter in (flops, outputs))
    layers = sum(done.get(operation, 0) for operation in _WEIGHTED)
    activations = sum(put_out.get(operation, 0) for operation in _WEIGHTED)
    return Operations(layers // 2, (sum(done.values()) - layers) // 2, activations)


def _size(*_: Any, out_shape: tuple[int, ...], **__: Any) -> int:
    return math.prod(out_shape)


def latency(network: nn.Module, lr_px: int, device: torch.device, *, batch: int = 1, repeats: int = REPEATS) -> Latency:
    """Times inferences of a batch of `lr_px` x `lr_px` inputs after warm-up; eval mode, the weights' own precision."""
    images = _images(network, lr_px, device, batch)
    times_ms = []
    with torch.inference_mode():
        for _ in range(WARM_UP + repeats):
            _synchronise(device)
            begun = time.perf_counter()
            network(images)
            _synchronise(device)
            times_ms.append(1000 * (time.perf_counter() - begun))
    low, median, high = statistics.quantiles(times_ms[WARM_UP:], n=4, method="inclusive")
    return Latency(median, low, high)


def peak_memory(network: nn.Module, lr_px: int, device: torch.device) -> int:
    """Most bytes held at once during the inference of one input, beyond the network's and the input's own.

    On CUDA they are the allocator's; elsewhere those of all tensors alive, without the scratch space that kernels
    hold while they run.
    """
    image = _images(network, lr_px, device, 1)
    with torch.inference_mode():
        network(image)  # the first one also allocates what is kept: by libraries, and the grids of superpixels
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            network(image)
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - before
    # in inference mode composite operations would hide what they allocate
    with torch.no_grad(), _LiveTensors() as live:
        network(image)
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Follows the storages that operations allocate, from their making to their end.

    Attributes:
        peak: most bytes alive at once, in storages that were not there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._bytes = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = (leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        self._known.update(dict.fromkeys(given))  # what no operation has returned was there before
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known[storage] = None
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, count: int) -> None:
        self._bytes += count
        self.peak = max(self.peak, self._bytes)


def measure_costs(network: nn.Module, scale: int, lr_px: int, device: torch.device) -> list[Cost]:
    """Every cost of a finished network in its form for inference, as (name, value, unit).

    Operations are for a 1280 x 720 output. Time and memory are of `lr_px` x `lr_px` inputs, and absent where the
    network does not take that size or the device has not the memory.
    """
    network = deployed(network)
    counted = operations(network, lr_size(scale))
    costs: list[Cost] = [
        ("parameters", parameters(network), "1"),
        ("multiply_adds_720p", counted.layers, "1"),
        ("multiply_adds_products_720p", counted.layers + counted.products, "1"),
        ("activations_720p", counted.activations, "1"),
    ]
    try:
        memory = peak_memory(network, lr_px, device)
        one = latency(network, lr_px, device)
        several = latency(network, lr_px, device, batch=THROUGHPUT_BATCH, repeats=THROUGHPUT_REPEATS)
    except (torch.OutOfMemoryError, ValueError):
        return costs
    output_mpx = THROUGHPUT_BATCH * (scale * lr_px) ** 2 / 1e6
    return [
        *costs,
        ("cost_lr_px", lr_px, "px"),
        ("inference_peak_memory", memory, "B"),
        ("latency_median", one.median_ms, "ms"),
        ("latency_low_quartile", one.low_ms, "ms"),
        ("latency_high_quartile", one.high_ms, "ms"),
        ("throughput_batch", THROUGHPUT_BATCH, "1"),
        ("throughput", 1000 * output_mpx / several.median_ms, "Mpx/s"),
    ]


def _images(network: nn.Module, lr_px: int, device: torch.device, batch: int) -> Tensor:
    dtype = next((parameter.dtype for parameter in network.parameters()), torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    return torch.rand(batch, 3, lr_px, lr_px, dtype=dtype, device=device, generator=generator)


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
