"""One run's training loop."""

import hashlib
import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.utils.data import DataLoader

from study import StudyError
from study.data.crops import Patches
from study.data.images import ImageSet
from study.evaluation.metrics import score
from study.evaluation.protocols import prepare
from study.grid.schema import Run
from study.models import build
from study.models.prototypes import all_started
from study.models.weights import load_weights
from study.objectives import OBJECTIVES
from study.objectives.objective import Batch
from study.objectives.routing import WEIGHT
from study.records.store import RecordError, read_table, write_table
from study.training.checkpoints import load_state, save_state, save_weights
from study.training.placement import leave_signals
from study.training.schedule import learning_rate, sample_numbers, validation_steps
from study.training.steps import make_average, make_optimiser, uncompiled, weighted_routing

VALIDATION_LR_PX = 96


class Diverged(StudyError):
    """The loss is no longer finite; the message names the step and its samples."""


class Interrupted(StudyError):
    """The run was asked to stop, and its state is saved."""


class Trainer:
    """Trains one run, from its start or from where it was left.

    Args:
        run: what to train.
        train: training images.
        validation: images of which the centres are validated on, never selected by.
        folder: the run's folder.
        accelerator: device, precision and processes.
        workers: processes that prepare samples; 0 does it between steps.
        on_progress: called at every row of the curve with step, loss and speed.
        stop: asked after every step whether to save and stop.
        start: weights that the network begins from, instead of its initial ones.
    """

    def __init__(
        self,
        run: Run,
        train: ImageSet,
        validation: ImageSet,
        folder: Path,
        accelerator: Accelerator,
        *,
        workers: int,
        on_progress: Callable[..., None],
        stop: Callable[[], bool],
        keep_out: Callable[[], None] = lambda: None,
        start: Path | None = None,
    ) -> None:
        self.run, self.folder, self.accelerator = run, folder, accelerator
        self.workers, self.on_progress, self.stop, self.keep_out = workers, on_progress, stop, keep_out
        self.patches = Patches.of(run, train)
        self.dtype = torch.float64 if run.optimisation.precision == "fp64" else torch.float32
        self.validation = _centres(validation, run.scale, self.dtype) if accelerator.is_main_process else []
        self.validate_at = validation_steps(run.optimisation, run.evaluation.validations)

        self.network = build(run)
        if start is not None:
            load_weights(self.network, start)
        self.network.to(accelerator.device, self.dtype)
        optimisation = run.optimisation
        self.objective = OBJECTIVES[run.objective.kind](run.objective)
        self.objective.begin(self.network, optimisation)
        self.average = make_average(self.network, optimisation)
        if optimisation.compile:
            torch.compiler.reset()  # the networks of earlier runs count towards its limit of recompilations
            functorch.donated_buffer = False  # the norm of the routing loss's gradient needs the graph twice
            self.network.compile()
        self.model, self.optimiser = accelerator.prepare(self.network, make_optimiser(self.network, optimisation))
        self.routing: dict[str, float] = {}  # the loss on the assignment at the last row, and its gradient's norm
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.window: list[Tensor] = []  # losses since the last row
        self.seconds = {"training": 0.0, "core": 0.0, "validation": 0.0}
        self._resume()

    def fit(self) -> dict[str, float]:
        """Trains to the declared number of steps and writes weights, curve and state.

        Returns:
            Seconds spent: `training` in all, `core` of it in forward, backward and optimiser, `validation` of it.

        Raises:
            Diverged: the loss is not finite.
            Interrupted: `stop` said so; the state is saved.
        """
        saved = started = time.perf_counter()
        first, before = self.step, self.seconds["training"]
        steps, every = self.run.optimisation.steps, self.run.optimisation.log_every
        batches = iter(self._loader())
        self.model.train()
        while self.step < steps:
            row_due = (self.step + 1) % every == 0 or self.step + 1 == steps
            loss, norm = self._optimise(batches, row_due)
            self.window.append(loss)
            self.step += 1
            # several processes can only agree to stop where they meet
            stopping = self.stop() if row_due or self.accelerator.num_processes == 1 else False
            if row_due or stopping:
                mean, stopping = self._check(stopping)
                if row_due:
                    self._log(mean, norm)
                if self.step in self.validate_at:
                    self._validate()
                now = time.perf_counter()
                self.seconds["training"] = before + now - started
                self.on_progress(step=self.step, loss=mean, steps_per_s=(self.step - first) / (now - started))
                if stopping and self.step < steps:
                    self._save()
                    raise Interrupted(f"stopped after step {self.step}; the same command goes on from there")
                if row_due and now - saved >= self.run.optimisation.checkpoint_every_s:
                    self._save()
                    saved = time.perf_counter()
        self._save()
        if self.accelerator.is_main_process:
            save_weights(self.folder, self._evaluated().state_dict())
        return self.seconds

    def _loader(self) -> DataLoader:
        numbers = sample_numbers(
            self.run.optimisation, self.step, self.accelerator.process_index, self.accelerator.num_processes
        )
        return DataLoader(
            self.patches,
            batch_sampler=numbers,  # pyright: ignore[reportArgumentType]  # any iterable of lists
            num_workers=self.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=leave_signals,
        )

    def _optimise(self, batches: Any, measure: bool) -> tuple[Tensor, Tensor | None]:
        """One optimiser step; its loss, and the gradient's norm where that is asked for."""
        optimisation = self.run.optimisation
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(optimisation, self.step)
        total = torch.zeros((), device=self.accelerator.device, dtype=self.dtype)
        for micro in range(optimisation.accumulate):
            batch = next(batches)
            lr, hr, keys = (batch[name].to(self.accelerator.device, non_blocking=True) for name in ("lr", "hr", "key"))
            begun = time.perf_counter()
            torch.manual_seed(_draw_seed(self.run.seed, self.step, micro, self.accelerator.process_index))
            last = micro + 1 == optimisation.accumulate
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                # the first forward sets prototypes; compiled, it would leave the graph in pieces
                plain = uncompiled(optimisation.compile and not all_started(self.network))
                with self.accelerator.autocast(), plain:
                    samples = Batch(lr.to(self.dtype), hr.to(self.dtype), keys, self.step, optimisation.steps)
                    loss = self.objective(self.model, samples) / optimisation.accumulate
                self.accelerator.backward(loss + self._routing(measure and last) / optimisation.accumulate)
            total += loss.detach()
            self.seconds["core"] += time.perf_counter() - begun
        begun = time.perf_counter()
        norm = None
        if optimisation.clip_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), optimisation.clip_norm)
        elif measure:
            self.accelerator.unscale_gradients(self.optimiser)  # as clipping does; of fp16 they are scaled
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.objective.settle(self.network, self.step + 1)
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.seconds["core"] += time.perf_counter() - begun
        return total, norm

    def _routing(self, measure: bool) -> Tensor | float:
        """The weighted loss on the assignment of a network that declares one; 0 for others."""
        loss = weighted_routing(self.network)
        if loss is None:
            return 0.0
        if measure:
            parameters = list(self.network.parameters())
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
            self.routing = {"routing_loss": float(loss.detach()) / WEIGHT, "routing_gradient_norm": float(norm)}
        return loss

    def _check(self, stopping: bool) -> tuple[float, bool]:
        """Mean loss since the last row, and whether any process is to stop; raises where a loss is not finite."""
        flag = torch.full_like(self.window[0], float(stopping))
        reduced = self.accelerator.reduce(torch.stack([*self.window, flag]), reduction="mean")
        *losses, stop = cast(Tensor, reduced).tolist()
        for index, value in enumerate(losses):
            if not math.isfinite(value):
                step = self.step - len(losses) + index
                batch = self.run.optimisation.batch
                raise Diverged(
                    f"the loss is {value} at step {step + 1} of {self.run.optimisation.steps} "
                    f"(samples {step * batch} to {(step + 1) * batch - 1} of seed {self.run.seed})"
                )
        return math.fsum(losses) / len(losses), stop > 0

    def _log(self, loss: float, norm: Tensor | None) -> None:
        values = {"loss": loss, "learning_rate": learning_rate(self.run.optimisation, self.step - 1)}
        if norm is not None:
            values["gradient_norm"] = float(norm)
        values |= self.objective.diagnostics() | self.routing | getattr(self.network, "diagnostics", dict)()
        self._record(values)
        self.window = []

    def _record(self, values: dict[str, float]) -> None:
        """Adds to the curve, and tells the trackers that were asked for."""
        self.rows += [{"step": self.step, "name": name, "value": value} for name, value in values.items()]
        self.accelerator.log(values, step=self.step)

    def _validate(self) -> None:
        if not self.accelerator.is_main_process:
            return
        begun = time.perf_counter()
        network = self._evaluated().eval()
        values = []
        plain = uncompiled(self.run.optimisation.compile)  # it is for one size; here each image has its own
        with torch.inference_mode(), self.accelerator.autocast(), plain:
            for key, (lr, hr) in enumerate(self.validation):
                keys = torch.tensor([key], device=self.accelerator.device)
                sr = network(lr.to(self.accelerator.device), keys).to(hr)
                values.append(score("psnr", *prepare(sr, hr, "uint8_y", self.run.scale)))
        network.train()
        mean = sum(values) / len(values)
        self._record({"validation_psnr_y_db": mean})
        self.seconds["validation"] += time.perf_counter() - begun

    def _evaluated(self) -> nn.Module:
        """The network whose weights are kept: the average where one is declared."""
        return self.network if self.average is None else self.average.module

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self.keep_out()
        write_table(self.folder, "scalars", self.rows)  # before the state: rows past the state's step are dropped
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "objective": self.objective.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "window": [float(loss) for loss in self.window],
            "seconds": self.seconds,
        }
        save_state(self.folder, state)

    def _resume(self) -> None:
        first = self.accelerator.is_main_process
        read = [load_state(self.folder) if first else None]
        broadcast_object_list(read)  # over NFS another machine may still see the state before: all take the same
        state = read[0]
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.objective.load_state_dict(state["objective"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.window = [torch.tensor(loss, device=self.accelerator.device, dtype=self.dtype) for loss in state["window"]]
        if not first:
            return
        try:
            rows = read_table(self.folder, "scalars")
        except RecordError as error:  # the state is whole, and a curve is not worth its training
            warnings.warn(f"{error}: the curve begins at step {self.step}", stacklevel=2)
            return
        self.rows = rows.loc[rows["step"] <= self.step].to_dict(orient="records")


def _draw_seed(seed: int, step: int, micro: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}:{micro}:{rank}".encode()).digest()[:8], "big") >> 1


def _centres(images: ImageSet, scale: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Centre of every image, at most `VALIDATION_LR_PX` a side: (1, 3, h, w) and (1, 3, h·scale, w·scale) in [0, 1]."""
    pairs = []
    for index in range(len(images)):
        lr, hr = images.pair(index, scale)
        height, width = (min(side, VALIDATION_LR_PX) for side in lr.shape[:2])
        top, left = (lr.shape[0] - height) // 2, (lr.shape[1] - width) // 2
        parts = (
            lr[top : top + height, left : left + width],
            hr[top * scale : (top + height) * scale, left * scale : (left + width) * scale],
        )
        pairs.append(tuple(torch.tensor(part).permute(2, 0, 1)[None].to(dtype) / 255 for part in parts))
    return pairs
