"""What an optimiser step is made of, for the trainer and for those who time it."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from study import StudyError
from study.evaluation.complexity import multiply_adds
from study.grid.objectives import L1, Adaptive, Charbonnier, Objective, Trajectory
from study.grid.schema import Optimisation, Run
from study.models import build
from study.models.prototypes import all_started
from study.objectives import OBJECTIVES
from study.objectives.objective import Batch
from study.objectives.routing import WEIGHT, routing_loss

OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
BACKWARD = 2  # times the operations of a forward: one product for the gradient of each factor


def refuse_half(optimisation: Optimisation, device: torch.device) -> None:
    """Raises `StudyError` for fp16 on a CPU."""
    if optimisation.precision == "fp16" and device.type == "cpu":
        raise StudyError("optimisation.precision: fp16 needs a GPU; a CPU has fp32, bf16 and fp64")


def make_optimiser(network: nn.Module, optimisation: Optimisation) -> torch.optim.Optimizer:
    """The declared optimiser of a network's parameters."""
    settings = optimisation.optimiser.model_dump(exclude={"kind"})
    return OPTIMISERS[optimisation.optimiser.kind](network.parameters(), **settings, fused=True)


def make_average(network: nn.Module, optimisation: Optimisation) -> AveragedModel | None:
    """The moving average of a network's weights, where one is declared."""
    if not optimisation.ema_decay:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(optimisation.ema_decay))


def uncompiled(plain: bool) -> AbstractContextManager[Any]:
    """Runs compiled networks as they were written, where asked to."""
    return torch.compiler.set_stance("force_eager") if plain else nullcontext()


def weighted_routing(network: nn.Module) -> Tensor | None:
    """The weighted loss on the assignment of the last forward, of a network that declares one."""
    judged = getattr(network, "routing", lambda: None)()
    return None if judged is None else WEIGHT * routing_loss(*judged)


def sample_operations(run: Run) -> float:
    """Floating-point operations that a training step does for each of its samples, attention products included.

    Those of the plain formulation: padding has no credit. NaN where networks besides the trained one take part whose
    operations are not counted: AMD's second one, LPIPS.
    """
    side = run.data.lr_patch_px
    passes = 1 + BACKWARD + without_gradient(run.objective) if run.trains else 0
    return 2.0 * passes * multiply_adds(run, (side, side), products=True) if passes else 0.0


def without_gradient(objective: Objective) -> float:
    """Forwards of the network in a training step that have no gradient; NaN where they are not all that is done."""
    if isinstance(objective, L1 | Charbonnier):
        return 0
    distances = [objective.distance] + ([objective.matching_distance] if isinstance(objective, Trajectory) else [])
    if isinstance(objective, Adaptive) or any(distance.perceptual for distance in distances):
        return math.nan
    if not isinstance(objective, Trajectory):
        return 1  # the target's
    return 3 if objective.matching == "dtm" else 2  # and the frozen network's


def training_step(run: Run, device: torch.device, *, graphs: bool = False) -> Callable[[], None]:
    """What takes a step of a run on random images as the trainer does, but for fp16's loss scale.

    Args:
        run: a resolved run.
        device: the network's.
        graphs: where the run is compiled, replay its kernels as CUDA graphs, which the trainer does not.

    Raises:
        StudyError: the precision is not there on the device, or the objective lacks pretrained weights.
    """
    optimisation, side = run.optimisation, run.data.lr_patch_px
    refuse_half(optimisation, device)
    dtype = torch.float64 if optimisation.precision == "fp64" else torch.float32
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(optimisation.precision)
    network = build(run).to(device, dtype).train()
    objective = OBJECTIVES[run.objective.kind](run.objective)
    objective.begin(network, optimisation)
    optimiser, average = make_optimiser(network, optimisation), make_average(network, optimisation)
    generator = torch.Generator().manual_seed(0)
    size = optimisation.batch // optimisation.accumulate
    lr = torch.rand(size, 3, side, side, generator=generator).to(device, dtype)
    hr = torch.rand(size, 3, side * run.scale, side * run.scale, generator=generator).to(device, dtype)
    if optimisation.compile:
        network.compile(mode="reduce-overhead" if graphs else None)
    samples = Batch(lr, hr, torch.arange(size, device=device), step=0, steps=optimisation.steps)

    def step() -> None:
        for _ in range(optimisation.accumulate):
            if graphs:
                torch.compiler.cudagraph_mark_step_begin()
            plain = uncompiled(optimisation.compile and not all_started(network))
            with torch.autocast(device.type, mixed) if mixed else nullcontext(), plain:
                loss = objective(network, samples)
            routing = weighted_routing(network)
            (loss if routing is None else loss + routing).backward()
        if optimisation.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), optimisation.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        objective.settle(network, 1)
        if average is not None:
            average.update_parameters(network)

    return step
