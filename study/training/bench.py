"""Speed as a ratio to the floor: the operations a network must do, over this machine's own matrix rate.

Everything is timed in one process and interleaved, the matrix product it is held against included, so that what a
machine does in the meantime meets all of it alike.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from study import StudyError
from study.evaluation.complexity import deployed, multiply_adds
from study.grid.models import CFSR, IMDN, SPIN, CATANet, Hard, Model, NoAssignment, Soft, SoftMoE, Superpixel, UNet
from study.grid.objectives import L1, Consistency, Distance, Objective, Trajectory
from study.grid.schema import Data, Evaluation, Optimisation, Run
from study.models import attention, build, depthwise, layers, support
from study.records.provenance import describe
from study.records.store import write_json, write_table
from study.training.placement import keep_freed_memory
from study.training.steps import sample_operations, training_step

TRAINING_BATCH, TRAINING_LR_PX = 4, 64
INFERENCE_LR_PX = 256
MATRIX_PX = {"cpu": 2048, "cuda": 8192}  # a GPU has done a smaller one before it can be timed
SCALE = 4

TINY = UNet(width=16, multipliers=(1, 2), blocks=1, window=4, attention_width=16, heads=2, mlp_ratio=2, dropout=0)
SMALL = UNet(width=32, multipliers=(1, 2), blocks=1, attention_width=32, heads=2, mlp_ratio=2, dropout=0)
MID = UNet(width=64, multipliers=(1, 2, 2), blocks=2, attention_width=64, heads=4)
MODELS: dict[str, Model] = {
    "catanet, hard": CATANet(assignment=Hard()),
    "catanet, soft dense": CATANet(assignment=Soft()),
    "catanet, soft top-4": CATANet(assignment=Soft(support="topk", top_k=4)),
    "catanet, soft sparsemax": CATANet(assignment=Soft(support="sparsemax")),
    "catanet, soft attention": CATANet(assignment=Soft(scatter="attention")),
    "catanet, superpixel": CATANet(assignment=Superpixel()),
    "catanet, soft_moe": CATANet(assignment=SoftMoE()),
    "catanet, none": CATANet(assignment=NoAssignment()),
    "spin": SPIN(),
    "imdn": IMDN(),
    "cfsr": CFSR(),
    "unet tiny, CT": TINY,
    "unet tiny, CT + DTM": TINY,
    "unet small, CT": SMALL,
    "unet small, CT + DTM": SMALL,
    "unet mid, CT": MID,
    "unet mid, CT + DTM": MID,
}
_PLAIN = Distance(kind="charbonnier")  # LPIPS would need weights, and its VGG would be most of the time
STAGES: dict[str, Objective] = {
    "CT": Consistency(distance=_PLAIN),
    "CT + DTM": Trajectory(distance=_PLAIN, matching_distance=Distance(kind="squared")),
}
AS_IT_IS = "as it is"
BF16, COMPILED, GRAPHS = "bf16", "compiled", "CUDA graphs"


@dataclass(frozen=True)
class Task:
    """One thing that is timed.

    Attributes:
        model: its name, or `matrix product`.
        phase: `training`, `inference` or empty.
        variant: which optimisation is off, or what is otherwise; `as it is` for none.
        call: does it once.
        operations: floating-point operations of the plain formulation; padding has no credit; NaN where not known.
        setting: entered around every call.
    """

    model: str
    phase: str
    variant: str
    call: Callable[[], object]
    operations: float
    setting: Callable[[], AbstractContextManager[Any]] = nullcontext


def standard(names: list[str]) -> dict[str, Run]:
    """Runs of networks of `MODELS`, fp32, x4, as docs/speed.md has them."""
    data, evaluation = Data(lr_patch_px=TRAINING_LR_PX), Evaluation(cost_lr_px=INFERENCE_LR_PX)
    optimisation = Optimisation(batch=TRAINING_BATCH)
    objectives = {name: STAGES.get(name.partition(", ")[2], L1()) for name in names}
    return {
        name: Run(
            scale=SCALE,
            model=MODELS[name],
            objective=objectives[name],
            data=data,
            optimisation=optimisation,
            evaluation=evaluation,
        )
        for name in names
    }


def measure(runs: Mapping[str, Run], *, cpu: bool, repeats: int, switches: bool = False) -> pd.DataFrame:
    """Times the training step and the inference of networks.

    Args:
        runs: name -> run, whose batch, crop, precision and `cost_lr_px` count; inference is fp32.
        cpu: keep off the GPU.
        repeats: interleaved measurements of each task.
        switches: also with each optimisation off, in bf16, and on a GPU compiled and replayed as CUDA graphs.

    Returns:
        The rows of `records.schemas.BENCH`; none of what cannot be done here, which is said on the error stream.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    keep_freed_memory()
    if device.type == "cuda" and switches:
        from torch._dynamo import config as dynamo  # takes seconds

        dynamo.recompile_limit = dynamo.accumulated_recompile_limit = 1000  # every network compiles the same code anew
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # the floor is fp32's
    side = MATRIX_PX[device.type]
    matrix = torch.randn(side, side, device=device, generator=torch.Generator(device).manual_seed(0))
    product = Task("matrix product", "", AS_IT_IS, lambda: matrix @ matrix, 2 * side**3)
    shown = Console(stderr=True)
    tasks = [task for name, run in runs.items() for task in _tasks(name, run, device, switches) if _warm(task, shown)]
    rows: list[dict[str, Any]] = []
    for repeat in track(range(repeats), "measuring", console=shown, transient=True):
        rate = product.operations / _timed(product, device)
        for task in tasks:
            held = _reset_peak(device)
            seconds = _timed(task, device)
            memory = torch.cuda.max_memory_allocated() - held if device.type == "cuda" else math.nan
            rate, before = product.operations / _timed(product, device), rate
            row = {"model": task.model, "phase": task.phase, "variant": task.variant, "repeat": repeat}
            row |= {
                "seconds": seconds,
                "operations": float(task.operations or math.nan),
                "matrix_rate": (rate + before) / 2,
                "memory": memory,
            }
            rows.append(row)
    return pd.DataFrame(rows)


def _warm(task: Task, shown: Console) -> bool:
    """Calls a task for the first time; whether it can be called at all."""
    try:
        with task.setting():
            task.call()
    except (StudyError, ValueError, RuntimeError) as error:  # memory that does not suffice is a RuntimeError, too
        shown.print(f"not timed: {task.model}, {task.phase}: {error}", markup=False, highlight=False)
        return False
    return True


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians and ranges of `measure`: one row per model, phase and variant, in the order of measurement.

    `ratio` is to the floor, each time paired with the matrix rate just before and after it; `against` is to the same
    repeat of the model as it is.
    """
    keys = ["model", "phase", "variant"]
    plain = rows[rows["variant"] == AS_IT_IS].set_index(["model", "phase", "repeat"])["seconds"]
    rows = rows.assign(
        ratio=rows["seconds"] * rows["matrix_rate"] / rows["operations"],
        against=rows["seconds"] / plain.loc[list(zip(rows["model"], rows["phase"], rows["repeat"], strict=True))].array,
    )
    columns = {"seconds": rows["seconds"], "ratio": rows["ratio"], "against": rows["against"]}
    summary = {"floor_s": (rows["operations"] / rows["matrix_rate"]).groupby([rows[key] for key in keys], sort=False)}
    out = pd.DataFrame({name: groups.median() for name, groups in summary.items()})
    for name, values in columns.items():
        groups = values.groupby([rows[key] for key in keys], sort=False)
        out[name], out[f"{name}_low"], out[f"{name}_high"] = groups.median(), groups.min(), groups.max()
    return out.reset_index()


def save(rows: pd.DataFrame, folder: Path, *, cpu: bool) -> None:
    """Writes `bench.parquet` and, beside it, what it was measured on."""
    write_table(folder, "bench", rows.to_dict("records"))
    write_json(folder / "provenance.json", machine(cpu=cpu))


def machine(*, cpu: bool) -> dict[str, Any]:
    """What `measure` measures on, and by which code."""
    threads = torch.get_num_threads()
    on_gpu = torch.cuda.is_available() and not cpu
    where = torch.cuda.get_device_name() if on_gpu else f"cpu, {threads} thread{'' if threads == 1 else 's'}"
    return describe(where, {})


def _tasks(name: str, run: Run, device: torch.device, switches: bool) -> Iterator[Task]:
    side, batch = run.evaluation.cost_lr_px, run.optimisation.batch
    work = {"training": batch * sample_operations(run)} if run.trains else {}
    work["inference"] = 2.0 * multiply_adds(run, (side, side), products=True)
    for phase, count in work.items():
        make = _training if phase == "training" else _inference
        plain = _later(partial(make, run, device))
        yield Task(name, phase, AS_IT_IS, plain, count)
        if switches:
            for variant, setting in _settings(device, run.model).items():
                yield Task(name, phase, variant, plain, count, setting)
            for parts in _otherwise(device):
                yield Task(name, phase, " + ".join(parts), _later(partial(make, run, device, parts)), count)


def _otherwise(device: torch.device) -> list[tuple[str, ...]]:
    """What is combined, of what a network is not by itself. Compiled for a CPU it takes longer, see docs/speed.md."""
    on_gpu = [(COMPILED,), (COMPILED, GRAPHS), (BF16, COMPILED), (BF16, COMPILED, GRAPHS)]
    return [(BF16,), *(on_gpu if device.type == "cuda" else [])]


def _later(make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """What is made at its first call, and called."""
    made: list[Callable[[], object]] = []

    def call() -> object:
        if not made:
            made.append(make())
        return made[0]()

    return call


def _settings(device: torch.device, model: Model) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """Each optimisation that a network has off, one at a time and all together."""
    off: dict[str, list[Any]] = {}
    if isinstance(model, CATANet | SPIN):
        widths = patch.dict(attention._ALIGNMENT, dict.fromkeys(attention._ALIGNMENT, 1))
        fused = patch.object(attention, "_in_blocks", lambda _: False)
        off["last convolution after the shuffle"] = [patch.object(layers, "convolve_shuffled", _after_the_shuffle)]
        off |= {"attention by the fused kernel": [fused]} if device.type == "cpu" else {}
        off["heads as wide as they are"] = [fused, widths]
    if isinstance(model, CATANet | CFSR) and device.type == "cpu":
        off["gradient of wide kernels at once"] = [patch.object(depthwise, "_by_columns", lambda _: False)]
    assignment = model.assignment if isinstance(model, CATANet) else None
    if isinstance(assignment, Soft) and assignment.support == "sparsemax" and device.type == "cpu":
        off["sparsemax by a sort"] = [patch.object(support, "threshold_by_search", support.threshold_by_sorting)]
    if len(off) > 1:
        off["all of it off"] = list(dict.fromkeys(each for patches in off.values() for each in patches))
    return {name: partial(_several, patches) for name, patches in off.items()}


def _several(patches: Sequence[AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
    stack = ExitStack()
    for each in patches:
        stack.enter_context(each)
    return stack


def _after_the_shuffle(features: Tensor, conv: nn.Conv2d) -> Tensor:
    factor = round((features.shape[1] / conv.in_channels) ** 0.5)
    return conv(F.pixel_shuffle(features, factor))


def _training(run: Run, device: torch.device, parts: Sequence[str] = ()) -> Callable[[], object]:
    changes = {"precision": "bf16"} if BF16 in parts else {}
    changes |= {"compile": True} if COMPILED in parts else {}
    optimisation = run.optimisation.model_copy(update=changes)
    return training_step(run.model_copy(update={"optimisation": optimisation}), device, graphs=GRAPHS in parts)


def _inference(run: Run, device: torch.device, parts: Sequence[str] = ()) -> Callable[[], object]:
    network = build(run).to(device).train()
    generator = torch.Generator(device).manual_seed(1)
    if run.trains:
        side = run.data.lr_patch_px
        network(torch.rand(1, 3, side, side, device=device, generator=generator))  # first prototypes
    network = deployed(network.eval())
    if COMPILED in parts:
        network.compile(mode="reduce-overhead" if GRAPHS in parts else None)
    side = run.evaluation.cost_lr_px
    image = torch.rand(1, 3, side, side, device=device, generator=generator)

    @torch.inference_mode()
    def infer() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=BF16 in parts):
            network(image)

    return infer


def _reset_peak(device: torch.device) -> int:
    """Bytes that are held on a GPU, from which its peak is counted."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _timed(task: Task, device: torch.device) -> float:
    with task.setting():
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        task.call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun


def headline(rows: pd.DataFrame) -> str:
    """CATANet's inference time as a share of SPIN's, where both were measured; else nothing."""
    plain = rows[(rows["phase"] == "inference") & (rows["variant"] == AS_IT_IS)]
    times = plain.pivot(index="repeat", columns="model", values="seconds")
    if not {"catanet, hard", "spin"} <= set(times.columns):
        return ""
    shares = sorted(times["catanet, hard"] / times["spin"])
    return (
        f"CATANet's inference takes {statistics.median(shares):.2f} of SPIN's time "
        f"(range {shares[0]:.2f} to {shares[-1]:.2f}, {len(shares)} repeats)"
    )


def tables(rows: pd.DataFrame) -> Iterator[Table]:
    """The summary for a terminal: every model as it is, then what each optimisation brings."""
    summary = summarise(rows)
    rates = rows["matrix_rate"] / 1e9
    title = f"{rows['repeat'].nunique()} interleaved repeats; matrix rate {rates.median():.0f} GFLOP/s (fp32)"
    columns = ("model", "phase", "median ms", "floor ms", "ratio to the floor (range)")
    plain = _table(title, columns)
    for row in summary.query("variant == @AS_IT_IS").to_dict("records"):
        ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} - {row['ratio_high']:.2f})"
        plain.add_row(row["model"], row["phase"], f"{1e3 * row['seconds']:.0f}", f"{1e3 * row['floor_s']:.0f}", ratio)
    yield plain
    others = summary.query("variant != @AS_IT_IS")
    if len(others):
        view = _table("times that of the same model as it is", ("model", "phase", "variant", "factor (range)"))
        for row in others.to_dict("records"):
            factor = f"{row['against']:.2f} ({row['against_low']:.2f} - {row['against_high']:.2f})"
            view.add_row(row["model"], row["phase"], row["variant"], factor)
        yield view


def _table(title: str, columns: tuple[str, ...]) -> Table:
    view = Table(title=title, title_justify="left")
    for name in columns:
        view.add_column(name, justify="left" if name in ("model", "phase", "variant") else "right")
    return view
