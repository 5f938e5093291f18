"""The state from which a run goes on, and the weights it ends with: one file each, replaced whole."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from study.records.store import RecordError, replace

STATE = Path("state") / "latest.pt"
WEIGHTS = "weights.safetensors"


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes what a run needs to go on."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    replace(folder / STATE, buffer.getvalue())


def load_state(folder: Path) -> dict[str, Any] | None:
    """Reads it back onto the CPU; None where there is none; `RecordError` where it cannot be read."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RecordError(f"{path} cannot be read ({error}); remove it to train the run from its start") from None


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a network's state dict; equal tensors give equal bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    replace(folder / WEIGHTS, safetensors.torch.save(plain))
