"""`study evaluate`: what it is told, and what it says of published weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from study import StudyError
from tests.shared import shared
from tests.test_cli import invoke
from tests.training.test_networks import write_run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two small images in `small/`."""
    (tmp_path / "small").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "small" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--protocol", "uint8y"), "--protocol uint8y: did you mean 'uint8_y'?"),
        (("--protocol", "sael"), "--protocol sael: did you mean 'seal'?"),
        (("--protocol", "audit", "--protocol", "rgb"), "--protocol audit: goes alone; 2 are given: audit, rgb"),
        (("--protocol", "rgb", "--protocol", "seal"), "--protocol seal: goes alone; 2 are given: rgb, seal"),
        (("--metric", "psn"), "--metric psn: did you mean 'psnr'?"),
        (("--reference", "bicubic"), "--reference bicubic: goes with --protocol audit alone"),
        (("--figure", "a.png"), "--figure a.png: goes with --protocol seal or audit alone"),
        (("--cases", "3"), "--cases 3: goes with --protocol seal alone"),
        (("--protocol", "audit", "--noise", "0.1"), "--noise 0.1: goes with --protocol seal alone"),
        (("--protocol", "seal", "--reference", "bicubic"), "--reference bicubic: goes with --protocol audit alone"),
        (("--protocol", "audit", "--self-ensemble"), "--self-ensemble: --protocol audit measures with and without it"),
        (("--protocol", "audit", "--metric", "lpips"), "--metric lpips: --protocol audit computes psnr and ssim"),
        (("--protocol", "audit", "--figure", "a.svg"), "--figure a.svg: "),
        (("--protocol", "audit", "--metric", "ssim", "--figure", "a.png"), "--protocol audit draws psnr"),
        (("--data", "other/small/HR"), "--data other/small/HR: is reported as 'small', and so is small"),
        (("--protocol", "audit", "--scale", "7"), "must be 1, 2, 3 or 4"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder: Path, given: tuple[str, ...], said: str) -> None:
    with pytest.raises(StudyError) as error:
        invoke("evaluate", "--model", "bicubic", "--data", "small", "--cpu", *given)
    assert said in str(error.value)
    assert not (folder / "results").exists()


def test_an_audit_keeps_to_the_asked_metric_and_the_run_s_scale(folder: Path) -> None:
    write_run(folder / "cfsr-x2")
    given = ("--protocol", "audit", "--model", "./cfsr-x2", "--data", "small", "--cpu", "--json")
    both = json.loads(invoke("evaluate", *given)[1])
    one = json.loads(invoke("evaluate", *given, "--metric", "ssim")[1])
    assert {row["metric"] for row in both} == {"psnr", "ssim"}
    assert one == [row for row in both if row["metric"] == "ssim"]
    assert {row["model_published"] for row in both} == {None}
    plain = next(row for row in one if (row["setting"], row["protocol"]) == ("plain", "uint8_y"))
    means = json.loads(invoke("evaluate", *given[2:], "--protocol", "uint8_y", "--metric", "ssim")[1])
    assert [row["mean"] for row in means] == [pytest.approx(plain["model"], abs=1e-12)]


def test_a_training_of_our_own_gets_no_verdict(folder: Path) -> None:
    write_run(folder / "cfsr-x2")
    code, page = invoke("evaluate", "--model", "./cfsr-x2", "--data", "small", "--cpu", "--json")
    assert code == 0
    assert all(set(row) == {"dataset", "protocol", "metric", "mean", "n"} for row in json.loads(page))


def test_published_weights_get_a_verdict() -> None:
    weights, images = shared("weights/CFSR_x4.pth"), shared("data/Set5/HR")
    given = ("--model", "cfsr", "--weights", str(weights), "--data", str(images), "--protocol", "uint8_y", "--cpu")
    rows = json.loads(invoke("evaluate", *given, "--json")[1])
    assert [(row["metric"], row["published"], row["verdict"], row["why"]) for row in rows] == [
        ("psnr", "32.33", "reproduced", ""),
        ("ssim", "0.8964", "reproduced", ""),
    ]
    assert {row["where"] for row in rows} == {"CFSR, README, x4 table"}
    assert {row["confidence"] for row in rows} == {"primary"}


def test_published_weights_on_a_part_of_a_set_are_not_comparable(tmp_path: Path) -> None:
    weights, images = shared("weights/IMDN_x4.pth"), shared("data/Set5/HR")
    (tmp_path / "Set5").mkdir()
    smallest = min(images.glob("*.png"), key=lambda path: path.stat().st_size)
    (tmp_path / "Set5" / smallest.name).write_bytes(smallest.read_bytes())
    model = f"{{kind: external, weights: {weights}, network: {{kind: imdn}}}}"
    given = ("--model", model, "--data", "Set5", "--data-root", str(tmp_path), "--metric", "psnr", "--cpu")
    code, page = invoke("evaluate", *given, "--results", str(tmp_path))
    assert code == 0
    said = " ".join(page.replace("│", " ").split())
    assert "32.21 not comparable (another image set: 1 images, Set5 has 5)" in said
    assert said.count("not comparable") == 1  # under the protocol that is printed, and no other
    assert "published: CATANet, Table 2 (transcribed)" in said


def test_an_image_that_is_too_small_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "few" / "tiny.png")
    with pytest.raises(StudyError, match=r"few, image tiny: an LR image of 4 x 4 px is too small"):
        invoke("evaluate", "--model", "bicubic", "--data", "few", "--data-root", str(tmp_path), "--cpu", "--scale", "4")
