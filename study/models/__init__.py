"""Networks: images in [0, 1] in, images in [0, 1] times the scale out; one class per kind of the schema."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from study.grid.models import External as ExternalConfig
from study.grid.schema import Run
from study.models.bicubic import Bicubic
from study.models.catanet import CATANet
from study.models.cfsr import CFSR
from study.models.external import External
from study.models.imdn import IMDN
from study.models.spin import SPIN
from study.models.unet import UNet
from study.models.weights import load_weights

MODELS: dict[str, type[nn.Module]] = {
    "bicubic": Bicubic,
    "catanet": CATANet,
    "cfsr": CFSR,
    "external": External,
    "imdn": IMDN,
    "spin": SPIN,
    "unet": UNet,
}


def build(run: Run) -> nn.Module:
    """The run's network, initialised from its seed; an external one as its file has it (see `external.placed`).

    Every submodule draws from a generator of its own, seeded by (seed, name), so that two variants share the initial
    values of all modules they have in common, and adding a module moves no other.
    """
    if isinstance(run.model, ExternalConfig) and run.model.network is not None:
        return _loaded(run.model, run.scale)
    network = MODELS[run.model.kind](run.model, run.scale)
    if not run.model.trained or any(parameter.is_meta for parameter in network.parameters()):
        return network
    with torch.random.fork_rng(devices=[]):
        for name, module in network.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                torch.manual_seed(_seed(run.seed, name))
                reset()
    return network


def _loaded(config: ExternalConfig, scale: int) -> nn.Module:
    """A network of our own kinds with the weights of a file, on the CPU whatever torch's default device."""
    assert config.network is not None
    with torch.device("cpu"):
        network = MODELS[config.network.kind](config.network, scale)
        load_weights(network, Path(config.weights))
    return network.requires_grad_(False).eval()


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
