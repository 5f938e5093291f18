"""One optimiser step of a run on random images, to be timed."""

from collections.abc import Callable
from contextlib import nullcontext

import torch

from study.grid.schema import Run
from study.models import build
from study.objectives import OBJECTIVES
from study.objectives.objective import Batch


def training_step(run: Run, device: torch.device) -> Callable[[], None]:
    """What takes one step of a run at its batch, crop and precision, not compiled, each time that it is called.

    Raises:
        MetricUnavailable: the objective lacks pretrained weights.
    """
    optimisation, side = run.optimisation, run.data.lr_patch_px
    dtype = torch.float64 if optimisation.precision == "fp64" else torch.float32
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(optimisation.precision)
    network = build(run).to(device, dtype).train()
    objective = OBJECTIVES[run.objective.kind](run.objective)
    objective.begin(network, optimisation)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-6, fused=True)
    generator = torch.Generator().manual_seed(0)
    size = optimisation.batch // optimisation.accumulate
    lr = torch.rand(size, 3, side, side, generator=generator).to(device, dtype)
    hr = torch.rand(size, 3, side * run.scale, side * run.scale, generator=generator).to(device, dtype)
    samples = Batch(lr, hr, torch.arange(size, device=device), step=0, steps=optimisation.steps)

    def step() -> None:
        for _ in range(optimisation.accumulate):
            with torch.autocast(device.type, mixed) if mixed else nullcontext():
                loss = objective(network, samples)
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step
