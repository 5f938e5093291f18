"""`study evaluate --protocol seal`, as it is typed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from study import StudyError
from study.cli import app
from study.data.degradation import draw_degradation
from study.data.sources import find_bundled
from tests.training.test_networks import write_run

CASES, DRAWS = 3, 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs, and the finished runs of two untrained networks."""
    (tmp_path / "photographs").mkdir()
    for name in ("chelsea", "coffee"):
        pixels = np.asarray(Image.open(find_bundled("test")[name]).convert("RGB"))
        Image.fromarray(pixels[100:148, 100:164]).save(tmp_path / "photographs" / f"{name}.png")
    write_run(tmp_path / "ours", seed=1)
    write_run(tmp_path / "strong", model={"kind": "bicubic"})
    return tmp_path


def invoke(folder: Path, *words: str, excellence: str = "strong") -> str:
    fixed = ["evaluate", "--model", str(folder / "ours"), "--data", str(folder / "photographs"), "--cpu"]
    fixed += ["--results", str(folder / "results"), "--protocol", "seal", "--draws", str(DRAWS), "--cases", str(CASES)]
    fixed += ["--excellence", str(folder / excellence)] if excellence else []
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*fixed, *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_case_is_told_as_json(folder: Path) -> None:
    figure = folder / "cases.png"
    body = json.loads(invoke(folder, "--acceptance", str(folder / "ours"), "--json", "--figure", str(figure)))
    assert body["networks"] == {"measured": "ours", "acceptance": "ours", "excellence": "strong"}
    assert (body["metric"], body["protocol"], body["noise"]) == ("psnr", "uint8_y", 0.05)
    (told,) = body["datasets"]
    assert (told["dataset"], told["images"], len(told["cases"])) == ("photographs", 2, CASES)
    decided = [case for case in told["cases"] if case["verdict"] == "rejected"]
    assert len(decided) == told["decided"] > 0
    assert told["acceptance_rate"] == 0  # on the acceptance line, not above it
    assert told["rpr"] == 0.5
    assert sum(case["members"] for case in told["cases"]) == DRAWS
    for case in told["cases"]:
        assert case["measured"] == case["acceptance"]
        assert case["degradation"] == draw_degradation(0, 2**63 + case["draw"]).describe()
    assert Path(body["parameters"]).parent == folder / "results" / "cache" / "seal"
    with Image.open(figure) as drawn:
        assert drawn.width > 1000


def test_a_table_is_printed_and_the_cases_are_found_again(folder: Path) -> None:
    page = invoke(folder, excellence="ours")
    assert "PSNR (uint8_y) over 3 cases of degradation." in page
    assert "photographs" in page
    (path,) = (folder / "results" / "cache" / "seal").iterdir()
    assert str(path) in page.replace("\n", "")
    before = path.stat().st_mtime_ns
    assert invoke(folder, excellence="ours") == page
    assert path.stat().st_mtime_ns == before


def test_lower_is_better_for_gmsd(folder: Path) -> None:
    words = ("--metric", "gmsd", "--noise", "0", "--json")
    (told,) = json.loads(invoke(folder, *words, "--acceptance", str(folder / "ours")))["datasets"]
    for case in told["cases"]:
        better = case["excellence"] < case["acceptance"]
        assert case["verdict"] == ("rejected" if better else "inverted")


def refused(folder: Path, *words: str, **more: Any) -> str:
    with pytest.raises(StudyError) as caught:
        invoke(folder, *words, **more)
    return str(caught.value)


def test_wrong_words_are_refused_before_anything_is_measured(folder: Path) -> None:
    assert "--excellence: --protocol seal needs a strong network" in refused(folder, excellence="")
    assert "nowhere is not the folder of a finished run" in refused(folder, excellence="nowhere")
    assert "unknown metric 'pnsr'; did you mean 'psnr'" in refused(folder, "--metric", "pnsr")
    assert "--acceptance: imdn is a trained network" in refused(folder, "--acceptance", "imdn")
    assert "7 cases of 6 drawn degradations" in refused(folder, "--cases", "7")
    assert "--figure" in refused(folder, "--figure", "cases.pdf")
    assert "strong is of scale 2, the scale asked for is 4" in refused(
        folder, "--model", "bicubic", "--acceptance", "bicubic"
    )
    assert "--excellence" in refused(folder, "--protocol", "rgb")
    assert not (folder / "results" / "cache" / "seal").exists()


def test_options_of_the_cases_are_refused_without_them(folder: Path) -> None:
    words = ["evaluate", "--model", "bicubic", "--data", str(folder / "photographs"), "--noise", "0.1"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, StudyError)
    assert "--noise 0.1: goes with --protocol seal" in str(done.exception)


def test_small_images_are_refused_by_name(folder: Path) -> None:
    Image.new("RGB", (40, 12)).save(folder / "photographs" / "strip.png")
    assert "image strip: has 12 × 40 px, needs 16 px a side" in refused(folder)
