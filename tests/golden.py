"""Inputs and weights of the golden pairs, by the rule that comes with them."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def noise(count: int, key: int) -> np.ndarray:
    waves = np.sin(12.9898 * np.arange(count, dtype=np.float64) + 78.233 * key) * 43758.5453
    return (2 * (waves - np.floor(waves)) - 1).astype(np.float32)


def golden_image(shape: tuple[int, ...], key: int) -> Tensor:
    values = (noise(int(np.prod(shape)), 1000 + key) + np.float32(1)) / np.float32(2)
    return torch.from_numpy(values.reshape(shape))


def golden_weights(model: Network, initted: bool = True) -> Network:
    """Fills a network in place; entries that are not numbers are set to `initted`."""
    state = {}
    for key, (name, entry) in enumerate(sorted(model.state_dict().items())):
        if not entry.is_floating_point():
            state[name] = torch.full_like(entry, initted)
            continue
        values = noise(entry.numel(), key)
        if entry.dim() >= 2:
            values = values * np.float32(0.5 * np.sqrt(3 / (entry.numel() // entry.shape[0])))
        else:
            values = np.float32(0.1) * values + np.float32(name.endswith("weight"))
        state[name] = torch.from_numpy(values.reshape(entry.shape))
    model.load_state_dict(state)
    return model
