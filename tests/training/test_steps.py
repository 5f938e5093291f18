"""The step that is timed does what the trainer's does."""

import math
from typing import Any

import pytest
import torch

from study import StudyError
from study.evaluation.complexity import multiply_adds
from study.grid.objectives import L1, Adaptive, Consistency, Distance, Objective, Trajectory
from study.grid.schema import Run
from study.models import build
from study.objectives import OBJECTIVES
from study.training.steps import sample_operations, training_step, weighted_routing, without_gradient

CPU = torch.device("cpu")
PLAIN, SQUARED = Distance(kind="charbonnier"), Distance(kind="squared")


def run(guidance: str = "bias", **optimisation: object) -> Run:
    sizes = {"width": 8, "blocks": 1, "qk_width": 8, "mlp_width": 8, "heads": 2, "windows": [8]}
    assignment = {"kind": "soft", "prior": {"kind": "frequency", "guidance": guidance}}
    tree = {"scale": 2, "model": {"kind": "catanet", "assignment": assignment, **sizes}, "data": {"lr_patch_px": 16}}
    return Run.model_validate({**tree, "optimisation": {"batch": 4, **optimisation}})


def test_a_step_accumulates_and_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Spy(OBJECTIVES["l1"]):  # type: ignore[misc]
        def __call__(self, network: Any, batch: Any) -> Any:
            seen.append(len(batch.lr))
            return super().__call__(network, batch)

        def settle(self, network: Any, step: int) -> None:
            seen.append("settled")

    monkeypatch.setitem(OBJECTIVES, "l1", Spy)
    step = training_step(run(accumulate=2, ema_decay=0.9, clip_norm=1.0), CPU)
    step()
    step()
    assert seen == [2, 2, "settled"] * 2


def test_the_loss_on_the_assignment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(1, 3, 16, 16)
    for guidance, judged in (("bias", False), ("loss", True)):
        network = build(run(guidance)).train()
        network(image)
        assert (weighted_routing(network) is not None) == judged
    asked = []
    monkeypatch.setattr("study.training.steps.weighted_routing", lambda network: asked.append(network))
    training_step(run("loss"), CPU)()
    assert len(asked) == 1


def test_half_precision_is_refused_on_a_cpu() -> None:
    with pytest.raises(StudyError, match=r"^optimisation\.precision: fp16 needs a GPU"):
        training_step(run(precision="fp16"), CPU)


@pytest.mark.parametrize(
    ("objective", "forwards"),
    [
        (L1(), 0),
        (Consistency(distance=PLAIN), 1),
        (Trajectory(distance=PLAIN, matching_distance=SQUARED), 3),
        (Trajectory(distance=PLAIN, matching_distance=SQUARED, matching="sds"), 2),
        (Consistency(), None),  # LPIPS has a network of its own
        (Trajectory(distance=PLAIN), None),
        (Adaptive(distance=PLAIN, matching_distance=SQUARED, reward="charbonnier"), None),
    ],
)
def test_forwards_without_gradient(objective: Objective, forwards: int | None) -> None:
    found = without_gradient(objective)
    assert math.isnan(found) if forwards is None else found == forwards


def test_operations_of_a_sample_are_its_passes() -> None:
    one = run()
    forward = 2 * multiply_adds(one, (16, 16), products=True)
    assert sample_operations(one) == 3 * forward
    assert sample_operations(one.model_copy(update={"objective": Consistency(distance=PLAIN)})) == 4 * forward
    assert math.isnan(sample_operations(one.model_copy(update={"objective": Consistency()})))
    assert sample_operations(Run.model_validate({"scale": 2, "model": {"kind": "bicubic"}})) == 0
