import itertools
import json
import re
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from study import StudyError
from study.cli import app, main
from study.cli.options import out
from study.evaluation import metrics
from study.grid.schema import Metric, Protocol
from study.models import MODELS
from study.records.store import read_table
from tests.shared import shared

GRID = """\
question: q
base: {scale: 2, data: {train: {kind: bundled, split: train}}, evaluation.datasets: {b: {kind: bundled, split: test}}}
variants: {hard: {}, soft: {model.assignment: {kind: soft}}}
references: {bicubic: {model: {kind: bicubic}}}
seeds: 2
analysis: {baseline: hard}
"""


def invoke(*words: str) -> tuple[int, str]:
    out.width = 200  # whatever the terminal's
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_every_verb_explains_itself() -> None:
    code, page = invoke("--help")
    assert code == 0
    for verb in ("plan", "run", "status", "evaluate", "report", "bench", "data"):
        assert verb in page
        assert len(invoke(verb, "--help")[1]) > 200


def test_evaluate_lists_what_it_takes() -> None:
    page = " ".join(invoke("evaluate", "--help")[1].replace("│", " ").split())
    for word in (*MODELS, *get_args(Protocol), *get_args(Metric)):
        assert re.search(rf"\b{word}\b", page), word


def test_plan_prints_runs_ids_sizes_and_what_was_declared(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    code, page = invoke("plan", str(tmp_path / "grid.yaml"), "--results", str(tmp_path / "results"), "--no-time")
    assert code == 0
    assert len(re.findall(r"\b[0-9a-f]{10}\b", page)) == 5
    assert "477,435" in page
    assert "5 runs" in page
    assert "psnr (uint8_y) on b; claim: retraining, on these images" in " ".join(page.split())
    assert "compared: every other trained cell with 'hard'" in " ".join(page.split())


def test_bench_times_the_networks_of_a_grid_for_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.training.bench.MATRIX_PX", {"cpu": 64})
    small = "width: 8, blocks: 1, qk_width: 8, mlp_width: 8, heads: 2, windows: [8]"
    model = f"model: {{kind: catanet, {small}}}, data.lr_patch_px: 16, optimisation.batch: 2, evaluation.cost_lr_px: 24"
    (tmp_path / "grid.yaml").write_text(GRID.replace("scale: 2,", f"scale: 2, {model},"))
    grid, results = str(tmp_path / "grid.yaml"), str(tmp_path / "results")
    code, page = invoke("bench", grid, "--results", results, "--cpu", "--repeats", "2")
    assert code == 0
    assert len(re.findall(r"\d\.\d\d \([\d.]+–[\d.]+\)", page)) == 3  # soft's step, soft's and bicubic's inference
    rows = read_table(tmp_path / "results" / "timings" / "grid", "bench")
    timed = [*itertools.product(("hard", "soft"), ("training", "inference")), ("bicubic", "inference")]
    assert rows.groupby(["model", "phase"]).size().to_dict() == dict.fromkeys(timed, 2)
    assert f"`study report {grid}` shows it" in page.replace("\n", "")
    with pytest.raises(StudyError, match="are for bench without a grid"):
        invoke("bench", grid, "--switches")


def test_plan_without_the_images_says_why_ids_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("question: q\nvariants: {hard: {}}\nanalysis: {baseline: hard}\n")
    words = ("--results", str(tmp_path / "results"), "--data-root", str(tmp_path / "nowhere"), "--no-time")
    code, page = invoke("plan", str(tmp_path / "grid.yaml"), *words)
    assert code == 0
    assert "535,195" in page
    assert "ids are not known yet" in page
    assert "STUDY_DATA" in page


def test_data_lists_each_image_set_once(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    code, page = invoke("data", str(tmp_path / "grid.yaml"), "--results", str(tmp_path / "results"))
    assert code == 0
    assert page.count("bundled/") == 2


def test_status_before_anything_ran(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    code, page = invoke("status", str(tmp_path / "grid.yaml"), "--results", str(tmp_path / "results"))
    assert code == 0
    assert "5 pending" in page


def test_an_error_is_one_message_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.yaml").write_text(GRID.replace("seeds", "sedes"))
    monkeypatch.setattr("sys.argv", ["study", "plan", str(tmp_path / "grid.yaml")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "sedes: unknown key; did you mean 'seeds'?" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "imdm", "--data", "bundled"), "did you mean 'imdn'?"),
        (("--model", "{kind: imdn, wdth: 3}", "--data", "bundled"), "did you mean 'width'?"),
        (("--model", "imdn", "--data", "bundled"), "--weights: imdn is a trained network"),
        (("--model", "imdn", "--data", "bundled", "--weights", "nowhere.pth"), "nowhere.pth"),
        (("--model", "bicubic", "--data", "nowhere"), "nowhere"),
        (("--model", "bicubic", "--data", "bundled", "--protocol", "uint8"), "uint8_y"),
        (("--model", "bicubic", "--data", "bundled", "--scale", "7"), "must be 1, 2, 3 or 4"),
    ],
)
def test_evaluate_refuses_wrong_words_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["study", "evaluate", *words, "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_evaluate_prints_means_as_json(tmp_path: Path) -> None:
    weights, images = shared("weights/IMDN_x4.pth"), shared("data/Set5/HR")
    words = ("--protocol", "uint8_y", "--metric", "psnr", "--json", "--cpu", "--results", str(tmp_path))
    code, page = invoke("evaluate", "--model", "imdn", "--weights", str(weights), "--data", str(images), *words)
    assert code == 0
    (row,) = json.loads(page)
    assert row["mean"] == pytest.approx(32.2096, abs=1e-4)  # published: 32.21
    assert {key: row[key] for key in ("dataset", "protocol", "metric", "n")} == {
        "dataset": "Set5",
        "protocol": "uint8_y",
        "metric": "psnr",
        "n": 5,
    }


def test_a_plan_says_what_keeps_it_from_being_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(metric: str) -> None:
        raise metrics.MetricUnavailable(f"not computed: weights of {metric} missing")

    metrics.perceptual.cache_clear()
    monkeypatch.setattr(metrics, "_find_weights", refuse)
    network = "{kind: unet, width: 8, multipliers: [1], blocks: 1, attention_width: 8, heads: 2}"
    variants = f"{{CT: {{model: {network}, objective: {{kind: consistency}}}}}}"
    text = GRID.replace("{hard: {}, soft: {model.assignment: {kind: soft}}}", variants).replace("hard}", "CT}")
    (tmp_path / "grid.yaml").write_text(text)
    code, page = invoke("plan", str(tmp_path / "grid.yaml"), "--results", str(tmp_path), "--cpu")
    assert code == 0
    assert "cannot be trained here: not computed: weights of lpips-vgg missing" in page
    assert "3 runs\n" in page
    assert "?" not in page.split("declared:")[0]
