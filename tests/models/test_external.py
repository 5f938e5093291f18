"""Networks of other architectures: the output is the architecture's own, and what does not fit is refused by name."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from study import StudyError
from study.data.decoding import DataError
from study.grid.expand import load_plan
from study.grid.identity import inputs, run_id, specification
from study.grid.loading import GridError
from study.grid.models import IMDN as IMDNConfig
from study.grid.models import External as ExternalConfig
from study.grid.schema import Run
from study.models import build
from study.models.external import External, placed
from study.models.imdn import IMDN
from study.models.weights import WeightsError

SWIN: dict[str, Any] = {"img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "mlp_ratio": 2}


def span(scale: int = 2, channels: int = 3) -> nn.Module:
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=channels, num_out_ch=channels, feature_channels=8, upscale=scale)


def swinir(scale: int = 2, in_chans: int = 3) -> nn.Module:
    from spandrel.architectures.SwinIR import SwinIR

    upsampler = "pixelshuffledirect" if scale > 1 else ""
    return SwinIR(**SWIN, window_size=8, upscale=scale, upsampler=upsampler, in_chans=in_chans)


def hat(scale: int = 2) -> nn.Module:
    from spandrel.architectures.HAT import HAT

    return HAT(**SWIN, window_size=4, upscale=scale, compress_ratio=3, squeeze_factor=3, num_feat=8)


def safmn(scale: int = 2) -> nn.Module:
    from spandrel.architectures.SAFMN import SAFMN

    return SAFMN(dim=8, n_blocks=1, upscaling_factor=scale)


def seeded(make: Callable[..., nn.Module], *sizes: int, seed: int = 0) -> nn.Module:
    """A network whose output lies in [0, 1] or not far from it, as trained ones' do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        network = make(*sizes).eval()
    if make is span:  # made for inputs in [0, 255]
        with torch.no_grad():
            network.upsampler[0].weight.mul_(0.01)  # pyright: ignore
    return network


def save(network: nn.Module, path: Path) -> Path:
    """A weights file of the network."""
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save({"params": network.state_dict()}, path)
    return path


def load(path: Path, scale: int = 2) -> External:
    return External(ExternalConfig(weights=str(path)), scale)


def picture(*sides: int, count: int = 1) -> Tensor:
    return torch.rand((count, 3, *sides), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("make", [span, swinir])
def test_output_is_the_architectures_own(make, scale, tmp_path):
    reference = seeded(make, scale)
    network = load(save(reference, tmp_path / "net.safetensors"), scale)
    x = picture(19, 24, count=2)
    with torch.inference_mode():
        expected, found = reference(x), network(x, torch.arange(2))
    assert found.shape == (2, 3, 19 * scale, 24 * scale)
    assert torch.equal(found, expected)
    assert network.scale == scale
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize("scale", [2, 4])
def test_hat(scale, tmp_path):
    reference = seeded(hat, scale)
    network = load(save(reference, tmp_path / "net.pth"), scale)
    with torch.inference_mode():
        assert torch.equal(network(picture(17, 20)), reference(picture(17, 20)))


def test_output_is_not_clamped(tmp_path):
    reference = seeded(span)
    with torch.no_grad():
        reference.upsampler[0].bias.add_(1)  # pyright: ignore
    with torch.inference_mode():
        assert load(save(reference, tmp_path / "net.pth"))(picture(16, 16)).max() > 1


@pytest.mark.parametrize("sides", [(16, 24), (9, 20), (8, 17)])
def test_sides_are_mirrored_to_what_the_architecture_needs_and_cut_again(sides, tmp_path):
    reference = seeded(safmn)  # sides must be multiples of 8
    network = load(save(reference, tmp_path / "net.pth"))
    x = picture(*sides)
    height, width = (-(-side // 8) * 8 for side in sides)
    whole = torch.nn.functional.pad(x, (0, width - sides[1], 0, height - sides[0]), "reflect")
    with torch.inference_mode():
        assert torch.equal(network(x), reference(whole)[..., : 2 * sides[0], : 2 * sides[1]])


def test_an_input_below_the_smallest_is_mirrored_twice(tmp_path):
    reference = seeded(swinir)  # needs 16 px
    x = picture(8, 16)
    rows = [0, 1, 2, 3, 4, 5, 6, 7, 6, 5, 4, 3, 2, 1, 0, 1]
    with torch.inference_mode():
        found = load(save(reference, tmp_path / "net.pth"))(x)
        assert torch.equal(found, reference(x[..., rows, :])[..., :16, :])


def test_build_keeps_the_weights_and_stays_off_the_meta_device(tmp_path):
    reference = seeded(swinir)
    save(reference, tmp_path / "net.pth")
    run = placed(Run(model=ExternalConfig(weights="net.pth"), scale=2, seed=7), tmp_path)
    with torch.device("meta"):
        network = build(run)
    with torch.inference_mode():
        assert torch.equal(network(picture(16, 16)), reference(picture(16, 16)))


@pytest.mark.parametrize("make", [span, swinir, hat])
def test_counting_on_the_meta_device_leaves_the_network_as_it_was(make, tmp_path):
    network = load(save(seeded(make), tmp_path / "net.pth"))
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.inference_mode():
        before = network(picture(16, 16))
        functional_call(network, {name: value.to("meta") for name, value in state.items()}, picture(16, 16).to("meta"))
        assert torch.equal(network(picture(16, 16)), before)
        assert network.double()(picture(16, 16).double()).dtype == torch.float64


def test_placed_starts_from_the_data_root_and_names_what_is_missing(tmp_path):
    save(seeded(span), tmp_path / "net.pth")
    run = Run(model=ExternalConfig(weights="net.pth"), scale=2)
    assert placed(run, tmp_path).model == ExternalConfig(weights=str(tmp_path / "net.pth"))
    assert placed(placed(run, tmp_path), Path("elsewhere")) == placed(run, tmp_path)
    assert placed(Run(), tmp_path) == Run()
    with pytest.raises(DataError, match=r"no file .*'net\.pth' is looked up in the data root .*STUDY_DATA"):
        placed(run, tmp_path / "elsewhere")


def test_another_scale(tmp_path):
    path = save(seeded(span, 4), tmp_path / "net.pth")
    with pytest.raises(WeightsError) as error:
        load(path, 2)
    assert str(error.value) == f"{path} holds SPAN for scale 4, and the run's scale is 2"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: swinir(1), "holds SwinIR for Restoration; external takes super-resolution"),
        (lambda: swinir(2, in_chans=1), "holds SwinIR from 1 to 1 channels; external takes RGB to RGB, 3 to 3"),
    ],
)
def test_networks_for_something_else(make, said, tmp_path):
    with pytest.raises(WeightsError, match=said):
        load(save(seeded(make), tmp_path / "net.pth"))


def test_an_unknown_architecture_names_the_file_and_what_is_known(tmp_path):
    path = save(IMDN(IMDNConfig(width=8, blocks=1), 2), tmp_path / "net.pth")
    with pytest.raises(WeightsError) as error:
        load(path)
    for part in (str(path), "of no architecture that spandrel", "HAT", "SwinIR", "network: {kind: imdn}"):
        assert part in str(error.value)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_a_state_dict_that_almost_fits(change, tmp_path):
    state = seeded(swinir).state_dict()
    if change == "missing":
        del state["norm.weight"]
    else:
        state["norm.weight"] = torch.ones(5)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"net\.pth resembles an architecture of spandrel.*norm\.weight"):
        load(tmp_path / "net.pth")


class _Bait:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_the_file_is_not_run(tmp_path):
    state = {**seeded(swinir).state_dict(), "more": _Bait(tmp_path / "ran")}
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="holds code or objects besides tensors; nothing in it was run"):
        load(tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()


def test_without_spandrel_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    path = save(seeded(span), tmp_path / "net.pth")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(StudyError, match=r"^model external needs spandrel: pip install 'study\[baselines\]'$"):
        load(path)


SMALL = IMDNConfig(width=8, blocks=1)
GRID = """\
question: q
base: {scale: 2}
variants: {hard: {}}
references:
  published: {model: {kind: external, weights: net.pth, network: {kind: imdn, width: 8, blocks: 1}}}
seeds: 1
analysis: {baseline: hard}
"""


def declared(folder: Path, old: str = "", new: str = "") -> Run:
    """The run of the grid's reference, with one passage of the grid changed."""
    assert old in GRID
    (folder / "grid.yaml").write_text(GRID.replace(old, new, 1) if old else GRID)
    return next(cell for cell in load_plan(folder / "grid.yaml").cells if cell.name == "published").runs[0]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_kind_of_our_own_are_a_row_of_a_grid(suffix, tmp_path):
    reference = seeded(IMDN, SMALL, 2)  # pyright: ignore[reportArgumentType]
    save(reference, tmp_path / f"net{suffix}")
    run = declared(tmp_path, "net.pth", f"net{suffix}")
    assert run.ineffective() >= {"seed", "optimisation", "data"}
    with torch.device("meta"):
        network = build(placed(run, tmp_path))
    assert isinstance(network, IMDN)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with torch.inference_mode():
        assert torch.equal(network(picture(9, 12)), reference(picture(9, 12)))


def test_the_network_and_the_content_of_the_file_make_the_identity(tmp_path):
    run, wider = declared(tmp_path), declared(tmp_path, "width: 8", "width: 16")
    alone = declared(tmp_path, ", network: {kind: imdn, width: 8, blocks: 1}", "")
    moved = declared(tmp_path, "net.pth", "elsewhere/net.pth")

    def identity(run: Run, content: str = "abc") -> str:
        return run_id(run, dict.fromkeys(inputs(run), content))

    assert len({identity(one) for one in (run, wider, alone)}) == 3
    assert identity(moved) == identity(run)
    assert identity(run, "abd") != identity(run)
    assert specification(moved) != specification(run)  # without contents the path tells files apart


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("{kind: imdn, width: 16, blocks: 1}", r"net\.pth does not fit: .*of another shape"),
        ("{kind: cfsr}", r"net\.pth does not fit: .*entries missing"),
        ("{kind: imdn, width: 8, blocks: 1}", r"it looks like scale 3, the network is scale 2"),
    ],
)
def test_a_file_of_another_network_is_refused_by_name(network, said, tmp_path):
    save(IMDN(SMALL, 3 if "scale" in said else 2), tmp_path / "net.pth")
    run = declared(tmp_path, "{kind: imdn, width: 8, blocks: 1}", network)
    with pytest.raises(WeightsError, match=said):
        build(placed(run, tmp_path))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("{kind: imdm}", "model.network.kind (in published): unknown kind 'imdm'; did you mean 'imdn'?"),
        ("{kind: external, weights: a.pth}", "model.network.kind (in published): unknown kind 'external'"),
        ("{kind: bicubic}", "model.network.kind (in published): unknown kind 'bicubic'"),
        ("{kind: imdn, wdth: 8}", "model.network.wdth (in published): unknown key; did you mean 'width'?"),
        ("imdn", "model.network (in published): "),
    ],
)
def test_what_is_no_network_is_refused_by_line_and_key(network, said, tmp_path):
    with pytest.raises(GridError) as error:
        declared(tmp_path, "{kind: imdn, width: 8, blocks: 1}", network)
    assert str(error.value).startswith(f"{tmp_path / 'grid.yaml'}:5: ")
    assert said in str(error.value)
