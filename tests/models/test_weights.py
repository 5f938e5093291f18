import builtins
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from study.grid.models import CFSR as CFSRConfig
from study.grid.models import IMDN as IMDNConfig
from study.grid.models import CATANet as CATANetConfig
from study.models.catanet import CATANet
from study.models.cfsr import CFSR
from study.models.imdn import IMDN
from study.models.weights import WeightsError, load_weights
from tests.shared import shared

SMALL = IMDNConfig(width=8, blocks=1)
SMALL_CFSR = CFSRConfig(width=8, layers=1, blocks=1, mlp_width=8)
SMALL_CATANET = CATANetConfig(width=8, blocks=1, qk_width=8, mlp_width=8, heads=2, windows=(8,))
NETWORKS = {"imdn": (IMDN, SMALL), "cfsr": (CFSR, SMALL_CFSR), "catanet": (CATANet, SMALL_CATANET)}


def network(seed: int = 0, scale: int = 2) -> IMDN:
    torch.manual_seed(seed)
    return IMDN(SMALL, scale)


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("layout", [None, "params", "params_ema", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("ending", ["pth", "pt"])
def test_published_layouts(layout, prefix, ending, tmp_path):
    source, target = network(1), network(2)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    path = tmp_path / f"net.{ending}"
    torch.save(state if layout is None else {layout: state, "iteration": 5}, path)
    load_weights(target, path)
    assert same(source, target)


def test_the_average_is_preferred(tmp_path):
    averaged, current, target = network(1), network(2), network(3)
    torch.save({"params": current.state_dict(), "params_ema": averaged.state_dict()}, tmp_path / "net.pth")
    load_weights(target, tmp_path / "net.pth")
    assert same(averaged, target)


def test_safetensors(tmp_path):
    source, target = network(1), network(2)
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    load_weights(target, tmp_path / "net.safetensors")
    assert same(source, target)


def test_legacy_pickle_format(tmp_path):
    source, target = network(1), network(2)
    torch.save(source.state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    load_weights(target, tmp_path / "net.pth")
    assert same(source, target)


def refusal(path: Path, model: torch.nn.Module | None = None) -> str:
    model = model or network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(model, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return str(error.value)


def test_missing_file(tmp_path):
    assert refusal(tmp_path / "net.pth").endswith("is missing")
    assert refusal(tmp_path).endswith("is missing")


def test_unknown_ending(tmp_path):
    (tmp_path / "net.ckpt").write_bytes(b"x")
    assert "weights are .pth, .pt or .safetensors" in refusal(tmp_path / "net.ckpt")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_truncated_file(keep, ending, tmp_path):
    path = tmp_path / f"net.{ending}"
    if ending == "pth":
        torch.save(network().state_dict(), path)
    else:
        save_file(network().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    assert "is broken or not a weights file" in refusal(path)


@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>", b"\x80\x04\x95", b"\x00" * 300])
def test_files_of_another_kind(content, tmp_path):
    (tmp_path / "net.pth").write_bytes(content)
    assert "broken or not a weights file" in refusal(tmp_path / "net.pth")


class Code:
    ran = False

    def __reduce__(self):
        return (builtins.exec, ("import tests.models.test_weights as t; t.Code.ran = True",))


@pytest.mark.parametrize("plain", [False, True])
def test_code_in_a_pickle_is_not_run(plain, tmp_path):
    path = tmp_path / "net.pth"
    if plain:
        path.write_bytes(pickle.dumps({"state_dict": Code()}))
    else:
        torch.save({"state_dict": Code()}, path)
    expected = "no code is run" if plain else "holds code or objects besides tensors; nothing in it was run"
    assert expected in refusal(path)
    assert not Code.ran
    pickle.loads(pickle.dumps(Code()))  # the bait works: it would have been noticed
    assert Code.ran
    Code.ran = False


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("wrong", ["scale", "missing", "code", "truncated"])
def test_every_network_refuses_the_same_and_stays_as_it_was(kind, wrong, tmp_path):
    cls, config = NETWORKS[kind]
    torch.manual_seed(0)
    target: torch.nn.Module = cls(config, 2)
    state: dict[str, Any] = dict(cls(config, 4 if wrong == "scale" else 2).state_dict())
    path, name = tmp_path / "net.pth", next(iter(state))
    if wrong == "missing":
        del state[name]
    torch.save(state | {"more": Touch(tmp_path / "ran")} if wrong == "code" else state, path)
    if wrong == "truncated":
        path.write_bytes(path.read_bytes()[:-30])
    said = {
        "scale": "it looks like scale 4, the network is scale 2",
        "missing": f"entries missing ({name})",
        "code": "nothing in it was run",
        "truncated": "is broken or not a weights file",
    }
    assert said[wrong] in refusal(path, target)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Touch(tmp_path / "ran")))  # the bait works: it would have been noticed
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_values_that_are_not_finite(value, ending, tmp_path):
    state = network().state_dict()
    state["fea_conv.bias"][3] = value
    path = tmp_path / f"net.{ending}"
    (torch.save if ending == "pth" else save_file)(state, path)
    assert "has NaN or infinite values (fea_conv.bias)" in refusal(path)


def test_values_beyond_fp32(tmp_path):
    state = {name: value.double() for name, value in network().state_dict().items()}
    state["fea_conv.bias"][3] = 1e300
    torch.save(state, tmp_path / "net.pth")
    assert "has NaN or infinite values (fea_conv.bias)" in refusal(tmp_path / "net.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_other_floating_types_are_converted(dtype, ending, tmp_path):
    source, target = network(1), network(2)
    state = {name: value.to(dtype) for name, value in source.state_dict().items()}
    path = tmp_path / f"net.{ending}"
    (torch.save if ending == "pth" else save_file)(state, path)
    load_weights(target, path)
    for name, value in target.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())


def test_whole_numbers_are_no_weights(tmp_path):
    state = {name: (value * 100).to(torch.int8) for name, value in network().state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    assert "of another type (fea_conv.weight is torch.int8, expected torch.float32, " in refusal(tmp_path / "net.pth")


@pytest.mark.parametrize("form", ["sparse", "complex", "meta"])
def test_tensors_of_another_form(form, tmp_path):
    state = network().state_dict()
    bias = state["fea_conv.bias"]
    state["fea_conv.bias"] = {"sparse": bias.to_sparse(), "complex": bias + 0j, "meta": bias.to("meta")}[form]
    torch.save(state, tmp_path / "net.pth")
    assert "entries that are no plain tensors (fea_conv.bias)" in refusal(tmp_path / "net.pth")


def test_no_state_dict_inside(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "net.pth")
    assert "holds no state dict but Tensor" in refusal(tmp_path / "net.pth")
    torch.save({"weights": {"a": torch.zeros(3)}, "step": 3}, tmp_path / "net.pth")
    assert "entries that are no plain tensors (weights, step)" in refusal(tmp_path / "net.pth")


def test_missing_and_unexpected_entries_are_counted_and_named(tmp_path):
    state = network().state_dict()
    for name in list(state)[:4]:
        state[f"old.{name}"] = state.pop(name)
    torch.save(state, tmp_path / "net.pth")
    message = refusal(tmp_path / "net.pth")
    entries = len(network().state_dict())
    assert f"4 of {entries} entries missing (fea_conv.weight, fea_conv.bias, IMDB1.c1.weight, …)" in message
    assert "4 unexpected (old.fea_conv.weight, " in message


def test_other_width(tmp_path):
    torch.save(IMDN(IMDNConfig(width=16, blocks=1), 2).state_dict(), tmp_path / "net.pth")
    assert "of another shape (fea_conv.weight is (16, 3, 3, 3), expected (8, 3, 3, 3)" in refusal(tmp_path / "net.pth")


@pytest.mark.parametrize("scale", [1, 3, 4])
def test_other_scale(scale, tmp_path):
    torch.save(network(scale=scale).state_dict(), tmp_path / "net.pth")
    assert f"it looks like scale {scale}, the network is scale 2" in refusal(tmp_path / "net.pth")


def test_merged_cfsr_loads_into_the_training_form_and_not_the_other_way(tmp_path):
    torch.manual_seed(0)
    training = CFSR(SMALL_CFSR, 2)
    torch.save(training.merged().state_dict(), tmp_path / "merged.pth")
    torch.save(training.state_dict(), tmp_path / "training.pth")
    target, x = CFSR(SMALL_CFSR, 2), torch.rand(1, 3, 9, 9)
    load_weights(target, tmp_path / "merged.pth")
    torch.testing.assert_close(target(x), training(x), rtol=0, atol=1e-5)
    load_weights(target.merged(), tmp_path / "merged.pth")
    load_weights(target, tmp_path / "training.pth")
    assert same(target, training)
    assert "it holds CFSR's training form, the network is merged" in refusal(
        tmp_path / "training.pth", CFSR(SMALL_CFSR, 2).merged()
    )
    assert "it looks like scale 2, the network is scale 3" in refusal(tmp_path / "merged.pth", CFSR(SMALL_CFSR, 3))


def test_published_files_fit():
    load_weights(IMDN(IMDNConfig(), 4), shared("weights/IMDN_x4.pth"))
    load_weights(CFSR(CFSRConfig(), 4), shared("weights/CFSR_x4.pth"))
    assert "it looks like scale 4" in refusal(shared("weights/CFSR_x4.pth"), CFSR(CFSRConfig(), 2).merged())
