"""Damaged weights files: each is read, or refused in one message that names it; nothing in it is run."""

import io
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from study.models.weights import WeightsError, read_state

QUICK = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def encode(kind: str) -> bytes:
    state = {"head.weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor([3])}
    if kind == "safetensors":
        return save(state)
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    return file.getvalue()


def judge(path: Path) -> dict[str, Tensor] | str:
    try:
        return read_state(path)
    except WeightsError as error:
        return str(error)


@pytest.mark.parametrize(("kind", "ending"), [("safetensors", "safetensors"), ("zip", "pth"), ("legacy", "pth")])
def test_damaged_files(tmp_path: Path, kind: str, ending: str) -> None:
    whole, path = encode(kind), tmp_path / f"net.{ending}"

    @QUICK
    @given(data=st.data())
    def attempt(data: st.DataObject) -> None:
        spoilt = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(spoilt)))
            spoilt[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        path.write_bytes(spoilt[: data.draw(st.just(len(spoilt)) | st.integers(0, len(spoilt)))])
        found = judge(path)
        if isinstance(found, str):
            assert str(path) in found
        else:
            assert all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items())

    attempt()
