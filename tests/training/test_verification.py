"""A run's record checked against its weights, its data and a second training."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image

from study import StudyError
from study.grid.expand import load_plan
from study.records.store import RecordError, read_table, write_table
from study.training import determinism, execution, rerun, verification
from study.training.image_sets import ImageSets
from study.training.runner import Options, run_grid
from study.training.verification import KEY, Change, compare_rows, summarise, tolerances, verify
from tests.training.conftest import grid_writer
from tests.training.test_runner import folders

VARIANTS = """\
variants:
  hard: {model: {kind: imdn, width: 8, blocks: 1}}
  tuned: {model: {kind: imdn, width: 8, blocks: 1}, start: hard, optimisation.steps: 4}
references:
  bicubic: {model: {kind: bicubic}}"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing inference takes most of so short a run."""
    monkeypatch.setattr(execution, "measure_costs", lambda *_: [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid that has run, in its own folder."""
    root = tmp_path_factory.mktemp("finished")
    changes = (("seeds: 2", "seeds: 1"), ("[uint8_y]", "[uint8_y, rgb]\n    metrics: [psnr, ssim, gmsd]"))
    grid = grid_writer(root)(VARIANTS, *changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "measure_costs", lambda *_: [])
        assert set(run_grid(load_plan(grid), options(root, root / "results")).values()) == {"done"}
    return root


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> dict[str, Path]:
    """A copy that may be damaged: cell -> run folder, and `root`."""
    shutil.copytree(finished, tmp_path / "study")
    root = tmp_path / "study"
    found = {cell: folder for (cell, _), folder in folders(root / "grid.yaml", "results").items()}
    return {**found, "root": root}


def options(root: Path, results: Path) -> Options:
    return Options(results, root / "images", cpu=True)


def image_sets(root: Path) -> ImageSets:
    return ImageSets(root / "images", root / "results" / "cache")


def check(study: dict[str, Path], cell: str) -> verification.Verification:
    return verify(study[cell], image_sets(study["root"]), cpu=True)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def forget_hashes(folder: Path) -> None:
    """As a run of an earlier version is."""
    (folder / "digests.json").unlink()


@pytest.mark.parametrize("cell", ["hard", "tuned", "bicubic"])
def test_a_run_left_alone_agrees_to_the_bit(cell: str, study: dict[str, Path]) -> None:
    found = check(study, cell)
    assert found.agrees
    assert found.inexact == found.changes == found.notes == ()
    assert found.rows["difference"].tolist() == [0.0] * len(read_table(study[cell], "images"))
    assert len(found.rows) == 2 * (2 * 2 + 1)


def test_changed_weights_are_named_before_anything_is_computed(
    study: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study["hard"] / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(verification, "evaluate", None)  # calling it would raise
    found = check(study, "hard")
    assert not found.agrees
    (change,) = found.changes
    assert change.what == "weights.safetensors"
    assert change.recorded != change.found
    assert len(change.found) == 64


def test_changed_images_are_named_before_anything_is_computed(
    study: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study["root"] / "images" / "test" / "0.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    monkeypatch.setattr(verification, "evaluate", None)
    (change,) = check(study, "bicubic").changes
    recorded = json.loads((study["bicubic"] / "run.json").read_text())["data"]
    assert change == Change("evaluation.held_out", recorded["evaluation.held_out"], change.found)
    assert change.found != change.recorded


def test_the_training_images_are_not_needed(study: dict[str, Path]) -> None:
    shutil.rmtree(study["root"] / "images" / "train")
    assert check(study, "hard").agrees


def test_other_weights_without_hashes_are_seen_in_the_rows(study: dict[str, Path]) -> None:
    shutil.copy(study["tuned"] / "weights.safetensors", study["hard"])
    forget_hashes(study["hard"])
    found = check(study, "hard")
    assert not found.agrees
    assert len(found.disagreeing) == len(found.rows)
    assert any("no hashes" in note for note in found.notes)


def test_rows_that_were_edited_added_or_removed_are_found(study: dict[str, Path]) -> None:
    folder = study["bicubic"]
    rows = read_table(folder, "images").to_dict("records")
    rows[0]["value"] = np.nextafter(rows[0]["value"], 100)
    gone, rows = rows[1], [rows[0], *rows[2:], {**rows[0], "image": "invented"}]
    write_table(folder, "images", rows)  # pyright: ignore[reportArgumentType]
    forget_hashes(folder)
    wrong = check(study, "bicubic").disagreeing.to_dict("records")
    edited, invented, removed = wrong  # recorded rows come first
    assert 0 < edited["difference"] < 1e-10
    assert (invented["image"], invented["found"]) == ("invented", pytest.approx(float("nan"), nan_ok=True))
    assert np.isnan(invented["difference"])
    assert np.isnan(removed["recorded"])
    assert removed["found"] == gone["value"]


def test_another_machine_gets_a_tolerance_that_says_why(study: dict[str, Path]) -> None:
    folder = study["hard"]

    def elsewhere(body: dict[str, Any]) -> None:
        body["hardware"]["cpu"] = "another"

    edit(folder / "provenance.json", elsewhere)
    forget_hashes(folder)
    rows = read_table(folder, "images")
    psnr = rows["metric"] == "psnr"
    rows.loc[psnr, "value"] += 0.009
    write_table(folder, "images", rows.to_dict("records"))  # pyright: ignore[reportArgumentType]
    found = check(study, "hard")
    assert found.agrees
    assert [reason.partition(":")[0] for reason in found.inexact] == ["hardware.cpu"]
    rows.loc[psnr, "value"] += 0.002
    write_table(folder, "images", rows.to_dict("records"))  # pyright: ignore[reportArgumentType]
    assert set(check(study, "hard").disagreeing["metric"]) == {"psnr"}


def test_a_record_of_an_earlier_version_is_not_asked_for_equal_bits(study: dict[str, Path]) -> None:
    edit(study["hard"] / "provenance.json", lambda body: [body.pop("hardware"), body.pop("settings")])  # pyright: ignore
    forget_hashes(study["hard"])
    found = check(study, "hard")
    assert found.agrees
    assert found.inexact == ("the record does not say on which machine it was made",)


def test_another_version_of_the_code_is_said(study: dict[str, Path]) -> None:
    edit(study["hard"] / "provenance.json", lambda body: body.update(source_sha256="0", commit="abc", dirty=False))
    forget_hashes(study["hard"])
    notes = check(study, "hard").notes
    assert any(note.startswith("the code is not what it was: commit abc; now commit ") for note in notes)


def test_threads_are_those_of_the_record(study: dict[str, Path]) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        found = check(study, "hard")
        assert torch.get_num_threads() == threads
        assert found.inexact == ()
    finally:
        torch.set_num_threads(threads)


def test_metrics_that_were_not_computed_then_are_not_missed(study: dict[str, Path]) -> None:
    folder = study["hard"]
    rows = read_table(folder, "images")
    write_table(folder, "images", rows[rows.metric != "gmsd"].to_dict("records"))  # pyright: ignore
    forget_hashes(folder)
    assert not check(study, "hard").agrees
    (folder / "not_computed.json").write_text('{"gmsd": "why"}')
    assert check(study, "hard").agrees


def test_a_metric_that_cannot_be_computed_here_is_named_and_does_not_agree(
    study: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("study.evaluation.rows", "study.training.verification"):
        monkeypatch.setattr(f"{module}.not_computed", lambda *_: {"gmsd": "no weights"})
    found = check(study, "hard")
    assert found.missing == {"gmsd": "no weights"}
    assert not found.agrees
    assert set(found.disagreeing["metric"]) == {"gmsd"}


@pytest.mark.parametrize(("name", "said"), [("DONE", "not the folder of a finished run"), ("run.json", "finished run")])
def test_what_has_not_finished_is_refused(name: str, said: str, study: dict[str, Path]) -> None:
    (study["hard"] / name).unlink()
    with pytest.raises(StudyError, match=said):
        check(study, "hard")


def frame(**values: float) -> pd.DataFrame:
    rows = [("d", "i", "rgb", metric, value) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=[*KEY, "value"])


def test_infinities_and_nan_are_equal_to_themselves_alone() -> None:
    inf, nan = float("inf"), float("nan")
    rows = compare_rows(frame(psnr=inf, ssim=nan, gmsd=nan, vif=inf), frame(psnr=inf, ssim=nan, gmsd=1.0, vif=-inf))
    assert rows.set_index("metric")["difference"].to_dict() == {"psnr": 0, "ssim": 0, "gmsd": inf, "vif": inf}
    table = summarise(rows, exact=True).set_index("metric")
    assert table["equal"].to_dict() == {"psnr": 1, "ssim": 1, "gmsd": 0, "vif": 0}


def test_tolerances_are_absolute_in_decibel_and_relative_elsewhere() -> None:
    rows = compare_rows(frame(psnr=30.0, musiq=60.0, gmsd=0.0), frame(psnr=30.0, musiq=60.0, gmsd=0.0))
    assert tolerances(rows, exact=False).tolist() == pytest.approx([0.01, 0.06, 0.0])
    assert tolerances(rows, exact=True).tolist() == [0, 0, 0]


def test_one_place_with_two_values_is_refused() -> None:
    with pytest.raises(RecordError, match="two values of d, i, rgb, psnr"):
        compare_rows(frame(psnr=1.0), pd.concat([frame(psnr=1.0), frame(psnr=1.0)]))


def again(study: dict[str, Path], cell: str, to: str = "again") -> rerun.Rerun:
    root = study["root"]
    return rerun.rerun(study[cell], root / to, options(root, root / to))


@pytest.mark.parametrize("cell", ["hard", "tuned", "bicubic"])
def test_a_run_trained_again_from_its_record_comes_to_the_same_bits(cell: str, study: dict[str, Path]) -> None:
    (study["root"] / "grid.yaml").unlink()
    before = {path: path.read_bytes() for path in study[cell].rglob("*") if path.is_file()}
    found = again(study, cell)
    assert found.state == "done"
    assert found.folder == study["root"] / "again" / "runs" / study[cell].name
    assert found.rows.agrees
    assert found.rows.inexact == ()
    assert (found.weights, found.diverged_at) == ((None, None) if cell == "bicubic" else (0.0, None))
    assert {path: path.read_bytes() for path in study[cell].rglob("*") if path.is_file()} == before


def test_another_training_is_told_by_its_distance(study: dict[str, Path]) -> None:
    folder = study["hard"]
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 0.5
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    scalars = read_table(folder, "scalars")
    scalars.loc[scalars.step >= 8, "value"] += 1
    write_table(folder, "scalars", scalars.to_dict("records"))  # pyright: ignore[reportArgumentType]
    forget_hashes(folder)
    found = again(study, "hard")
    assert found.weights == pytest.approx(0.5)
    assert found.diverged_at == 8
    assert found.rows.agrees  # its rows are still those of the training


def test_a_training_is_not_written_over(study: dict[str, Path]) -> None:
    with pytest.raises(StudyError, match="not written over"):
        again(study, "hard", "results")
    (study["root"] / "link").symlink_to(study["root"] / "results")
    with pytest.raises(StudyError, match="not written over"):
        again(study, "hard", "link")


def test_a_start_that_is_not_there_is_refused(study: dict[str, Path]) -> None:
    shutil.rmtree(study["hard"])
    with pytest.raises(RecordError, match=rf"starts from {study['hard'].name}, which is not finished"):
        again(study, "tuned")
    assert not (study["root"] / "again" / "runs").exists()


def test_a_start_that_was_changed_is_refused(study: dict[str, Path]) -> None:
    shutil.copy(study["tuned"] / "weights.safetensors", study["hard"])
    with pytest.raises(RecordError, match=r"of which weights\.safetensors was changed since it ended"):
        again(study, "tuned")


def test_training_images_that_were_changed_are_named(study: dict[str, Path]) -> None:
    (study["root"] / "images" / "train" / "0.png").unlink()
    found = again(study, "hard")
    assert found.state == "refused"
    assert [change.what for change in found.rows.changes] == ["data.train"]
    assert not found.folder.exists()


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The request, taken back afterwards."""
    for name in (determinism.REQUEST, determinism.CUBLAS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    determinism.request_determinism()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


CATANET = """\
variants:
  hard: {}
  soft: {model.assignment: {kind: soft}}"""


def train_twice(write_grid: Callable[..., Path], *, cpu: bool) -> list[dict[str, Path]]:
    grid = write_grid(CATANET, ("seeds: 2", "seeds: 1"))
    found = []
    for name in ("one", "two"):
        place = Options(grid.parent / name, grid.parent / "images", cpu=cpu, workers=0)
        assert set(run_grid(load_plan(grid), place).values()) == {"done"}
        found.append({cell: folder for (cell, _), folder in folders(grid, name).items()})
    return found


def expect_equal_bits(both: list[dict[str, Path]]) -> None:
    one, two = both
    assert one.keys() == two.keys() == {"hard", "soft"}
    for cell, folder in one.items():
        for name in ("weights.safetensors", "scalars.parquet", "images.parquet"):
            assert (folder / name).read_bytes() == (two[cell] / name).read_bytes(), (cell, name)
        settings = json.loads((folder / "provenance.json").read_text())["settings"]
        assert settings["deterministic"]
        assert settings["cudnn_deterministic"]
        assert not settings["cudnn_benchmark"]
        assert settings["cublas_workspace"] == ":4096:8"


@pytest.mark.usefixtures("deterministic")
def test_two_deterministic_trainings_give_equal_bits(write_grid: Callable[..., Path]) -> None:
    expect_equal_bits(train_twice(write_grid, cpu=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("deterministic")
def test_two_deterministic_trainings_on_a_gpu_give_equal_bits(write_grid: Callable[..., Path]) -> None:
    expect_equal_bits(train_twice(write_grid, cpu=False))
