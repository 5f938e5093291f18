"""The states from which a run goes on, and the weights it ends with: one file each, replaced whole.

A state's file is a line with its SHA-256 before what `torch.save` wrote. The one before it is kept, for a disk can
lose or change bytes that were written well.
"""

import hashlib
import io
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from study.records.store import RecordError, name_partial, replace

STATE = Path("state") / "latest.pt"
PREVIOUS = Path("state") / "previous.pt"
WEIGHTS = "weights.safetensors"
_MARK = b"study state sha256 "
_HEADER = len(_MARK) + 64 + 1


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes what a run needs to go on, and keeps what it needed before; at any time one of them is whole."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    if (folder / STATE).exists():
        _keep(folder / STATE, folder / PREVIOUS)
    replace(folder / STATE, _MARK + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Reads the latest state onto the CPU, or the one before it where that is broken; None where there is none.

    What is broken is said on standard error and removed, so that the next state does not take a whole one's place.

    Raises:
        RecordError: a whole state cannot be read: it is another version's, or the disk gives an error.
    """
    broken: list[str] = []
    for path in (folder / STATE, folder / PREVIOUS):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RecordError(f"{path} cannot be read ({error}); remove it to train from what is left") from None
        problem = _problem(content)
        if problem is None:
            state = _unpack(path, content)
            if broken:
                _say(f"{'; '.join(broken)}: going on from the state before it, of step {state.get('step')}")
            return state
        broken.append(f"{path} is broken ({problem})")
        path.unlink(missing_ok=True)
    if broken:
        _say(f"{'; '.join(broken)}: no whole state is left, training starts anew")
    return None


def _keep(latest: Path, previous: Path) -> None:
    """Gives a file a second name, or a copy where the file system has no links, so that both names are always whole."""
    partial = name_partial(previous)
    try:
        try:
            os.link(latest, partial)
        except OSError:
            shutil.copyfile(latest, partial)
        partial.replace(previous)
    finally:
        partial.unlink(missing_ok=True)


def _problem(content: bytes) -> str | None:
    """What is wrong with a state's bytes."""
    if not content:
        return "empty"
    if not content.startswith(_MARK):
        return "not a state's first bytes"
    recorded, found = content[len(_MARK) : _HEADER - 1], hashlib.sha256(content[_HEADER:]).hexdigest().encode()
    return None if recorded == found else "its content is not that of its SHA-256"


def _unpack(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return torch.load(io.BytesIO(content[_HEADER:]), map_location="cpu", weights_only=True)
    except Exception as error:
        raise RecordError(f"{path} cannot be read ({error}); remove it to train the run from its start") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a network's state dict; equal tensors give equal bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    replace(folder / WEIGHTS, safetensors.torch.save(plain))
