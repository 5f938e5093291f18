from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from study import StudyError
from study.grid.schema import SCHEMA_VERSION, Run
from study.models import build
from study.models.weights import WeightsError
from study.records.store import RecordError, write_json
from study.training.networks import open_network

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"kind": "cfsr", "width": 8, "layers": 1, "blocks": 1, "mlp_width": 8}
EVALUATION = {"datasets": {"b": {"kind": "bundled", "split": "test"}}}


def write_run(folder: Path, **changes: Any) -> Run:
    """A finished run of a tiny network, as the runner leaves it so far as it is read."""
    run = Run.model_validate({"model": TINY, "scale": 2, "evaluation": {**EVALUATION, "tile_lr_px": 80}} | changes)
    write_json(folder / "run.json", {"schema_version": SCHEMA_VERSION, "run": run.model_dump(mode="json"), "data": {}})
    if run.model.trained:
        save_file(build(run).state_dict(), folder / "weights.safetensors")
    (folder / "DONE").write_text("run.json")
    return run


def opened(given: Any, **more: Any) -> Any:
    options = {"scale": None, "weights": None, "root": Path(), "device": CPU, **more}
    return open_network("--excellence", given, EVALUATION, **options)


def test_a_finished_run_is_opened_with_its_scale_tiling_and_weights(tmp_path: Path) -> None:
    run = write_run(tmp_path / "cfsr-x2", seed=3)
    found = opened(str(tmp_path / "cfsr-x2"))
    assert found.name == "cfsr-x2"
    assert (found.run.scale, found.run.evaluation.tile_lr_px, found.run.evaluation.samples) == (2, 80, 0)
    assert found.run.evaluation.protocols == Run().evaluation.protocols
    for name, value in build(run).state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value), name
    assert opened(str(tmp_path / "cfsr-x2"), scale=2).run.scale == 2


def test_a_mapping_names_its_weights_from_the_root(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    found = opened({**TINY, "weights": "run/weights.safetensors"}, root=tmp_path, scale=2)
    assert found.name == "cfsr"
    for name, value in build(run).state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value), name


def test_a_kind_without_weights_is_of_scale_four_by_default() -> None:
    found = opened("bicubic")
    assert (found.name, found.run.scale) == ("bicubic", 4)


def test_a_run_of_what_is_not_trained_has_no_weights(tmp_path: Path) -> None:
    write_run(tmp_path / "b", model={"kind": "bicubic"})
    assert opened(str(tmp_path / "b")).run.model.kind == "bicubic"


def test_a_network_of_one_step_generation_can_be_named(tmp_path: Path) -> None:
    model = {"kind": "unet", "width": 8, "multipliers": [1], "blocks": 1, "attention_width": 8, "heads": 1}
    unet = Run.model_validate({"model": model, "objective": {"kind": "consistency"}})
    save_file(build(unet).state_dict(), tmp_path / "unet.safetensors")
    found = opened({**model, "weights": "unet.safetensors"}, root=tmp_path)
    assert found.network(torch.rand(1, 3, 16, 16)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("given", "more", "said"),
    [
        ("imdm", {}, "--excellence.*did you mean 'imdn'"),
        ({"kind": "imdn", "wdth": 3, "weights": "a"}, {}, "did you mean 'width'"),
        ("imdn", {}, "--excellence: imdn is a trained network: name its checkpoint, '{kind: imdn, weights: …}'"),
        ("external", {}, "--excellence: external is a trained network"),
        ({"kind": "imdn", "weights": "a.pth"}, {"weights": Path("b.pth")}, "b.pth: --excellence names a.pth already"),
        ({"kind": "bicubic", "weights": "a.pth"}, {}, "bicubic has none to load"),
        ("results/runs/none", {}, "results/runs/none is not the folder of a finished run"),
        ("bicubic", {"scale": 7}, "must be 1, 2, 3 or 4"),
    ],
)
def test_what_names_no_network_is_refused(given: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        opened(given, **more)


def test_a_run_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder)
    with pytest.raises(StudyError, match="run is of scale 2, the scale asked for is 4"):
        opened(str(folder), scale=4)
    with pytest.raises(StudyError, match=r"b\.pth: --excellence names the run .*run, which has its own"):
        opened(str(folder), weights=Path("b.pth"))
    (folder / "weights.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"weights\.safetensors is missing"):
        opened(str(folder))
    write_json(folder / "run.json", {"schema_version": SCHEMA_VERSION - 1, "run": {"scale": 2, "evaluation": {}}})
    with pytest.raises(RecordError, match=r"run\.json is of schema version 0, this is 1"):
        opened(str(folder))
    write_json(folder / "run.json", {"schema_version": SCHEMA_VERSION, "run": {"scale": 2}})
    with pytest.raises(RecordError, match=r"run\.json does not describe a run"):
        opened(str(folder))
    (folder / "DONE").unlink()
    with pytest.raises(StudyError, match="is not the folder of a finished run"):
        opened(str(folder))
