"""Speed as a ratio to the floor: the operations a network must do, over this machine's own matrix rate."""

import statistics
import time
from collections.abc import Callable

import torch
from rich.table import Table

from study.grid.schema import Run
from study.models import build
from study.objectives import OBJECTIVES
from study.training.placement import keep_freed_memory

# Operations of CATANet x4 in the plain formulation (convolutions, linear layers and attention products at the
# declared head widths), without credit for padding.
TRAINING_FLOP, TRAINING_BATCH, TRAINING_LR_PX = 258e9, 4, 64
INFERENCE_FLOP, INFERENCE_LR_PX = 171e9, 256
MATRIX_PX = 2048


def measure(*, cpu: bool, repeats: int) -> Table:
    """Times CATANet x4, fp32, interleaved with the matrix product it is held against; medians with their range."""
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = False
    train, infer = _training_step(device), _inference(device)
    matrix = torch.randn(MATRIX_PX, MATRIX_PX, device=device, generator=torch.Generator(device).manual_seed(0))
    tasks: dict[str, tuple[Callable[[], object], float]] = {
        "matrix product": (lambda: matrix @ matrix, 2 * MATRIX_PX**3),
        f"training step, batch {TRAINING_BATCH}, {TRAINING_LR_PX} x {TRAINING_LR_PX}": (train, TRAINING_FLOP),
        f"inference, {INFERENCE_LR_PX} x {INFERENCE_LR_PX}": (infer, INFERENCE_FLOP),
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for task, _ in tasks.values():
        _timed(task, device)
    for _ in range(repeats):
        for name, (task, _) in tasks.items():
            seconds[name].append(_timed(task, device))
    rates = [2 * MATRIX_PX**3 / s for s in seconds["matrix product"]]
    rate = statistics.median(rates)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    view = Table(title=f"CATANet x4, fp32, on {where}: {repeats} interleaved repeats", title_justify="left")
    for name in ("what", "median ms", "range ms", "floor ms", "ratio to the floor"):
        view.add_column(name, justify="left" if name == "what" else "right")
    for name, (_, flop) in tasks.items():
        values = sorted(seconds[name])
        middle, floor = statistics.median(values), flop / rate
        # the ratio pairs each time with the matrix rate of its own repeat, so that a machine's drift cancels
        ratios = sorted(s * r / flop for s, r in zip(seconds[name], rates, strict=True))
        view.add_row(
            name,
            f"{1000 * middle:.1f}",
            f"{1000 * values[0]:.1f} - {1000 * values[-1]:.1f}",
            f"{1000 * floor:.1f}",
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})",
        )
    view.caption = f"matrix rate {rate / 1e9:.0f} GFLOP/s (fp32, {MATRIX_PX} x {MATRIX_PX})"
    return view


def _training_step(device: torch.device) -> Callable[[], object]:
    run = Run(scale=4)
    network = build(run).to(device).train()
    objective = OBJECTIVES[run.objective.kind](run.objective)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-6, fused=True)
    generator = torch.Generator(device).manual_seed(0)
    side = TRAINING_LR_PX
    lr = torch.rand(TRAINING_BATCH, 3, side, side, device=device, generator=generator)
    hr = torch.rand(TRAINING_BATCH, 3, 4 * side, 4 * side, device=device, generator=generator)

    def step() -> None:
        objective(network(lr), hr).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _inference(device: torch.device) -> Callable[[], object]:
    network = build(Run(scale=4)).to(device).train()
    generator = torch.Generator(device).manual_seed(1)
    network(torch.rand(1, 3, TRAINING_LR_PX, TRAINING_LR_PX, device=device, generator=generator))  # first prototypes
    network.eval()
    image = torch.rand(1, 3, INFERENCE_LR_PX, INFERENCE_LR_PX, device=device, generator=generator)

    @torch.inference_mode()
    def infer() -> None:
        network(image)

    return infer


def _timed(task: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    task()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
