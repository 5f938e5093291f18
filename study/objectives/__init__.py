"""What a network is trained to minimise; one class per kind of the schema."""

from torch import nn

from study.objectives.pixel import L1, Charbonnier

OBJECTIVES: dict[str, type[nn.Module]] = {"l1": L1, "charbonnier": Charbonnier}
