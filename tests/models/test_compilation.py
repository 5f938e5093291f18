"""Compiled as in training, every network is one graph and has the gradients of the plain one."""

import copy
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from study.grid.models import Model
from study.models import MODELS
from study.training.steps import weighted_routing

TINY = {
    "kind": "catanet",
    "width": 12,
    "blocks": 1,
    "qk_width": 8,
    "mlp_width": 16,
    "heads": 2,
    "windows": [8],
    "prototypes": {"count": [5]},
}


def soft(guidance: str, prior: str = "frequency", transform: str = "dct", **options: Any) -> dict[str, Any]:
    return {"kind": "soft", "prior": {"kind": prior, "transform": transform, "guidance": guidance}, **options}


ASSIGNMENTS = {
    "hard": {"kind": "hard", "group_sizes": [32]},
    "dense, bias": soft("bias"),
    "top 2, similarity": soft("similarity", transform="wavelet", support="topk", top_k=2),
    "sparsemax, feature": soft("feature", "shuffled", "laplacian", support="sparsemax", scatter="attention"),
    "dense, loss": soft("loss"),
    "superpixel": {"kind": "superpixel", "sizes": [5]},
    "soft moe": {"kind": "soft_moe", "slots": [4], "experts": 2},
    "global": {"kind": "global"},
    "none": {"kind": "none"},
}
NETWORKS = {name: TINY | {"assignment": assignment} for name, assignment in ASSIGNMENTS.items()} | {
    "spin": {"kind": "spin", "width": 16, "blocks": 1, "qk_width": 6, "mlp_width": 10, "superpixels": [5]},
    "imdn": {"kind": "imdn", "width": 8, "blocks": 1},
    "cfsr": {"kind": "cfsr", "width": 8, "layers": 1, "blocks": 1, "mlp_width": 12},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_one_graph_with_the_gradients_of_the_plain_network(name: str) -> None:
    torch.compiler.reset()  # the networks before count towards its limit of recompilations
    config = TypeAdapter(Model).validate_python(NETWORKS[name])
    torch.manual_seed(0)
    plain = MODELS[config.kind](config, 2).double().train()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 9, 12, generator=generator, dtype=torch.float64).requires_grad_()
    slopes = torch.randn(2, 3, 18, 24, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        plain(x, torch.tensor([1, 2]))  # the first batch sets the prototypes
    compiled = copy.deepcopy(plain)
    compiled.compile(backend="aot_eager", fullgraph=True)
    expected, found = (step(network, x, slopes) for network in (plain, compiled))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def step(network: nn.Module, x: Tensor, slopes: Tensor) -> dict[str, Tensor]:
    """The output, what the forward leaves in the buffers, and the gradients of all parameters and of the input."""
    output = network(x, torch.tensor([1, 2]))
    loss, routing = (output * slopes).sum(), weighted_routing(network)
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss if routing is None else loss + routing, (x, *parameters))
    return {"output": output, **dict(network.named_buffers()), **dict(zip(("x", *names), gradients, strict=True))}
