"""Loading of weights files, published layouts included; code in a file is never run."""

import pickle
import warnings
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from study import StudyError

_NAMED = 3
_LAYOUTS = ("params_ema", "params", "state_dict", "model_state_dict", "model", "net")
_EDGE_BRANCHES = ".edge_scales"  # of CFSR's training form; a merged file has none


class WeightsError(StudyError):
    """A weights file cannot be used for this network; the message names the file and what is wrong."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a `.pth`, `.pt` or `.safetensors` file into `model`, every entry or none.

    Values take the network's own floating type. A merged CFSR file loads into the training form, whose edge branches
    are then zero.

    Raises:
        WeightsError: see `read_state`; or the file is of another network or scale.
    """
    state = read_state(path)
    mismatch = _mismatch(model, state)
    if mismatch:
        raise WeightsError(f"{path} does not fit: {mismatch}")
    model.load_state_dict(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.pth`, `.pt` or `.safetensors` file, on the CPU.

    Accepts a state dict, one under `params_ema` (taken first) or another usual key, and names under `module.`.
    Pickles are read with `weights_only`: tensors and plain containers, no code.

    Raises:
        WeightsError: the file is missing, broken, not a weights file, or has values that are not finite in fp32.
    """
    state = _unwrap(_read(path), path)
    wrong = [name for name, value in state.items() if value.is_floating_point() and not value.float().isfinite().all()]
    if wrong:
        raise WeightsError(f"{path} has NaN or infinite values ({_some(wrong)}): broken, or its training diverged")
    return state


def _read(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path} is missing")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in {".pth", ".pt"}:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the pickle's protocol; what cannot be read is refused
                return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error):
            raise WeightsError(f"{path} holds code or objects besides tensors; nothing in it was run") from error
        raise WeightsError(
            f"{path} is broken or not a weights file: tensors in plain containers are read, and no code is run"
        ) from error
    except (
        Exception
    ) as error:  # of damaged bytes torch's readers raise what it comes to, AssertionError and struct.error too
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path} is broken or not a weights file: {reason}") from error
    raise WeightsError(f"{path} ends in {path.suffix or 'nothing'}; weights are .pth, .pt or .safetensors")


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for layout in _LAYOUTS:
        if isinstance(content, dict) and isinstance(content.get(layout), dict):
            content = content[layout]
            break
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path} holds no state dict but {type(content).__name__}")
    other = [str(name) for name, value in content.items() if not _is_plain(value)]
    if other:
        raise WeightsError(
            f"{path} has entries that are no plain tensors ({_some(other)}); expected a state dict, "
            f"or one under {', '.join(_LAYOUTS)}"
        )
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): value for name, value in content.items()}
    return content


def _is_plain(value: Any) -> bool:
    """Whether it is a dense tensor of real numbers, with values."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    return dense and not value.is_quantized and not value.is_complex()


def _mismatch(model: nn.Module, state: dict[str, Tensor]) -> str:
    """What keeps `state` from fitting, or nothing."""
    found = {name: value.shape for name, value in state.items()}
    expected = _shapes(model, found)
    if found == expected:
        types = {name: value.dtype for name, value in model.state_dict().items()}
        wrong = [
            f"{name} is {value.dtype}, expected {types[name]}"
            for name, value in state.items()
            if value.is_floating_point() != types[name].is_floating_point
        ]
        return f"{len(wrong)} of another type ({_some(wrong)})" if wrong else ""
    for scale in {1, 2, 3, 4} - {model.scale}:
        with torch.device("meta"):
            other = type(model)(model.config, scale)
        if found == _shapes(other, found):
            return f"it looks like scale {scale}, the network is scale {model.scale}"
    if any(name.endswith(_EDGE_BRANCHES) for name in found.keys() - expected.keys()):
        return "it holds CFSR's training form, the network is merged: load it into the training form, then merge"
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    parts = [
        f"{len(missing)} of {len(expected)} entries missing ({_some(missing)})" if missing else "",
        f"{len(unexpected)} unexpected ({_some(unexpected)})" if unexpected else "",
        f"{len(shapes)} of another shape ({_some(shapes)})" if shapes else "",
    ]
    return "; ".join(part for part in parts if part)


def _shapes(model: nn.Module, found: Container[str]) -> dict[str, torch.Size]:
    return {
        name: value.shape
        for name, value in model.state_dict().items()
        if name in found or not name.endswith(_EDGE_BRANCHES)
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
