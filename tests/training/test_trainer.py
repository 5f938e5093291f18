import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from study import StudyError
from study.grid.expand import load_plan
from study.grid.schema import Run
from study.records.store import read_table
from study.training.checkpoints import load_state
from study.training.execution import Machine
from study.training.image_sets import ImageSets
from study.training.trainer import Diverged, Interrupted, Trainer

IMDN = "variants:\n  hard: {model: {kind: imdn, width: 8, blocks: 1}}"
HARD = {
    "kind": "catanet",
    "width": 8,
    "blocks": 2,
    "qk_width": 8,
    "mlp_width": 8,
    "heads": 2,
    "windows": [8],
    "prototypes": {"count": [4]},
    "assignment": {"kind": "hard", "group_sizes": [16]},
}


@pytest.fixture
def train(write_grid: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """Trains the grid's first run with some optimisation settings changed; returns weights and scalars."""
    run = load_plan(write_grid(IMDN)).cells[0].runs[0]

    def fit(
        name: str,
        stop: Callable[[], bool] = lambda: False,
        keep_out: Callable[[], None] = lambda: None,
        model: dict[str, Any] | None = None,
        **settings: Any,
    ) -> tuple[dict[str, Any], Any]:
        optimisation = {**run.optimisation.model_dump(), "precision": "fp64", **settings}
        changed = Run.model_validate({**run.model_dump(), "optimisation": optimisation, "model": model or run.model})
        images = ImageSets(tmp_path / "images", tmp_path / "cache")
        machine = Machine(images, cpu=True, workers=0, stop=stop)
        source = next(iter(changed.evaluation.datasets.values()))
        folder = tmp_path / name
        Trainer(
            changed,
            images[changed.data.train],
            images[source],
            folder,
            machine.accelerate(changed, folder),
            workers=0,
            on_progress=lambda **_: None,
            stop=stop,
            keep_out=keep_out,
        ).fit()
        return safetensors.torch.load_file(folder / "weights.safetensors"), read_table(folder, "scalars")

    return fit


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_accumulated_micro_batches_give_the_step_of_the_whole_batch(train: Callable[..., Any]) -> None:
    whole, _ = train("whole")
    parts, _ = train("parts", accumulate=4)
    # Adam divides by the root of the squared gradient, which magnifies rounding where a gradient is nearly zero
    assert largest_difference(whole, parts) < 1e-9


def test_the_loss_falls_and_every_row_is_there(train: Callable[..., Any]) -> None:
    _, scalars = train("long", steps=60, log_every=10)
    loss = scalars[scalars.name == "loss"].value.tolist()
    assert len(loss) == 6
    assert loss[-1] < 0.8 * loss[0]
    assert set(scalars.name) == {"loss", "learning_rate", "gradient_norm", "validation_psnr_y_db"}


def test_gradients_are_clipped_to_the_declared_norm(train: Callable[..., Any]) -> None:
    free, scalars = train("free", optimiser={"kind": "adamw", "lr": 1e-3})
    clipped, _ = train("clipped", optimiser={"kind": "adamw", "lr": 1e-3}, clip_norm=1e-12)
    assert scalars[scalars.name == "gradient_norm"].value.min() > 1e-3
    # under Adam's own epsilon (1e-8) a gradient of that norm hardly moves anything but the decayed weights
    assert largest_difference(free, clipped) > 1e-3


def test_the_average_that_is_kept_is_the_declared_one(train: Callable[..., Any]) -> None:
    plain = [train(f"after {n}", steps=n, schedule={"kind": "constant"})[0] for n in (1, 2)]
    average, _ = train("average", steps=2, schedule={"kind": "constant"}, ema_decay=0.75)
    # torch's average starts as a copy of the weights after the first step
    expected = {name: 0.75 * plain[0][name] + 0.25 * plain[1][name] for name in plain[0]}
    assert largest_difference(average, expected) < 1e-12


def test_stopped_at_any_step_it_goes_on_to_the_same_bits(train: Callable[..., Any]) -> None:
    whole, curve = train("whole", ema_decay=0.9)
    asked = iter([False, False, True])
    with pytest.raises(Interrupted, match="stopped after step 3"):
        train("parts", lambda: next(asked), ema_decay=0.9)
    parts, rows = train("parts", ema_decay=0.9)
    assert largest_difference(whole, parts) == 0
    assert rows.equals(curve)


@pytest.mark.slow
def test_compiled_it_is_one_graph_from_the_second_forward_on(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed, too; the graph's arithmetic is the plain network's."""
    graphs = 0

    def counting(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        def run(*inputs: torch.Tensor) -> Any:
            nonlocal graphs
            graphs += 1
            return graph(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    seen, stops = [], iter([False] * 4 + [False, True, False, False])

    def stop() -> bool:
        seen.append(graphs)
        return next(stops)

    settings = {"model": HARD, "steps": 4, "accumulate": 2}
    compiled = settings | {"compile": True}
    plain, _ = train("plain", **settings)
    whole, _ = train("whole", stop, **compiled)
    with pytest.raises(Interrupted):
        train("parts", stop, **compiled)
    parts, _ = train("parts", stop, **compiled)
    # two forwards a step, of which the very first is not compiled
    assert np.diff([0, *seen]).tolist() == [1, 2, 2, 2, 1, 2, 2, 2]
    assert largest_difference(plain, whole) < 1e-9
    assert largest_difference(whole, parts) == 0


def test_divergence_names_the_first_bad_step_and_its_samples(train: Callable[..., Any]) -> None:
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+ of 12 \(samples \d+ to \d+ of seed 0\)"):
        train("wild", optimiser={"kind": "adam", "lr": 1e300})


def test_fp16_is_refused_where_it_would_silently_be_something_else(train: Callable[..., Any]) -> None:
    with pytest.raises(StudyError, match="fp16 needs a GPU"):
        train("half", precision="fp16")


def test_bf16_autocast_trains(train: Callable[..., Any]) -> None:
    exact, _ = train("exact", precision="fp32")
    rough, scalars = train("rough", precision="bf16")
    assert scalars[scalars.name == "loss"].value.notna().all()
    assert 0 < largest_difference(exact, rough) < 0.1


def test_a_process_that_was_passed_over_writes_nothing(train: Callable[..., Any], tmp_path: Path) -> None:
    def refuse() -> None:
        raise Interrupted("taken over by another process")

    with pytest.raises(Interrupted):
        train("late", keep_out=refuse, checkpoint_every_s=0)
    assert not [path for path in (tmp_path / "late").rglob("*") if path.is_file()]


def test_all_processes_go_on_from_the_state_that_the_first_one_read(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = iter([False] * 7 + [True] * 3)
    with pytest.raises(Interrupted):
        train("whole", stop=lambda: next(asked), checkpoint_every_s=0)
    state = load_state(tmp_path / "whole")
    assert state is not None
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "whole" / "scalars.parquet", tmp_path / "elsewhere")

    def send(read: list[Any]) -> None:
        if read == [None]:  # of a process that finds no state where it looks
            read[0] = state

    monkeypatch.setattr("study.training.trainer.broadcast_object_list", send)
    steps = []
    monkeypatch.setattr(Trainer, "fit", lambda self: steps.append(self.step))
    with pytest.raises(FileNotFoundError):  # nothing was trained
        train("elsewhere")
    assert steps == [state["step"]] == [8]


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_would_change_the_training_is_refused(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(StudyError, match=f"the launcher asks for {name}"):
        train("other")


def test_a_launcher_s_compiler_is_left_away(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    kinds = []
    monkeypatch.setattr(Trainer, "fit", lambda self: kinds.append(type(self.model).__name__))
    with pytest.raises(FileNotFoundError):
        train("plain")
    assert kinds == ["IMDN"]
