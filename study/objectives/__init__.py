"""What a network is trained to minimise; one class per kind of the schema."""

from collections.abc import Callable

from study.objectives.adaptive import Adaptive
from study.objectives.consistency import Consistency
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
