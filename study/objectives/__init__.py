"""What a network is trained to minimise; one class per kind of the schema."""

from collections.abc import Callable

import torch

from study.grid import objectives as declared
from study.objectives.adaptive import Adaptive, Reward
from study.objectives.consistency import Consistency
from study.objectives.distances import Measure
from study.objectives.objective import Objective
from study.objectives.pixel import L1, Charbonnier
from study.objectives.trajectory import Trajectory

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "l1": L1,
    "charbonnier": Charbonnier,
    "consistency": Consistency,
    "trajectory": Trajectory,
    "adaptive": Adaptive,
}


def require(objective: declared.Objective) -> None:
    """Makes sure that an objective has what it needs, before anything is trained.

    Raises:
        MetricUnavailable: pretrained weights of a distance or of a reward cannot be had.
    """
    where = torch.device("cpu"), torch.float32
    if isinstance(objective, declared.Consistency):
        Measure(objective.distance, *where)
    if isinstance(objective, declared.Trajectory):
        Measure(objective.matching_distance, *where)
    if isinstance(objective, declared.Adaptive) and objective.judged:
        Reward(objective, *where)
