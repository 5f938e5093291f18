"""README.md's numbers, from drawn results and the committed calibration."""

from pathlib import Path

import pandas as pd
import pytest

from study.analysis.comparisons import compare_declared
from study.analysis.findings import FindingsError
from study.analysis.markup import Markdown
from study.analysis.readme import write_readme
from study.analysis.results import Measure, Results
from tests.analysis.synthetic import arrange, draw_study
from tests.analysis.test_calibration import committed

DEMO = """
question: Is soft better than hard?
base:
  scale: 2
  evaluation: {datasets: {bundled: {kind: bundled, split: test}}, protocols: [uint8_y]}
variants:
  hard: {}
  soft: {model.assignment: {kind: soft}}
references:
  bicubic: {model: {kind: bicubic}}
seeds: 3
analysis: {baseline: hard}
"""
WEIGHTS = """
question: Do published weights give their printed numbers?
base:
  scale: 4
  evaluation:
    datasets: {Set5: {kind: folder, path: Set5/HR}, B100: {kind: folder, path: B100/HR}}
    metrics: [psnr, ssim]
variants:
  IMDN: {model: {kind: external, weights: a.pth, network: {kind: imdn}}}
  CFSR: {model: {kind: external, weights: b.pth, network: {kind: cfsr}}}
analysis: {baseline: IMDN, comparisons: []}
"""
SPEED = pd.DataFrame(
    {"model": model, "phase": phase, "ratio": ratio}
    for model, ratios in {"catanet, hard": (7.04, 6.04), "spin": (5.04, 4.04), "imdn": (3.04, 2.96)}.items()
    for phase, ratio in zip(("training", "inference"), ratios, strict=True)
)


SCALE = {"one": {"a": 1e18, "b": 2e18}, "other": {"b": 2e18, "c": 4.5e18}}


def draw(folder: Path, text: str, effect: float = 0.0) -> Results:
    folder.mkdir()
    return arrange(draw_study(folder, text, {"soft": effect}, images=5))


def write(folder: Path, demo: Results) -> str:
    weights = draw(folder / "weights", WEIGHTS)
    written = write_readme(demo, weights, committed(), SPEED, [Markdown("A *finding*.")], SCALE, folder)
    assert written == [folder / "README.md", folder / "docs" / "quickstart-forest.png"]
    return written[0].read_text(encoding="utf-8")


def test_numbers_are_those_of_the_results(tmp_path: Path) -> None:
    demo = draw(tmp_path / "demo", DEMO)
    text = write(tmp_path, demo)
    (comparison,) = compare_declared(demo)
    measure = Measure("bundled", "uint8_y", "psnr")
    assert f"({demo.mean('hard', measure):.2f} dB hard, {demo.mean('soft', measure):.2f} dB soft, " in text
    assert "trains 6 small networks" in text
    assert "mean of 3 seeds over 5 photographs" in text
    assert f"hard from soft: {comparison.mean:+.3f} dB, 95% interval".replace("-", "−") in text
    assert "in 0 of " in text  # drawn weights do not give printed numbers
    assert "in at most 6.2% of grids" in text
    assert (
        "is at 6.0 times the\nfloor and its training step at 7.0, SPIN's at 4.0 and 5.0, IMDN's at 3.0 and 3.0" in text
    )
    assert "- A *finding*." in text
    assert "for question in one other; do" in text
    hours = 7.5e18 / (19.5e12 / 7.04) / 3600
    assert "| one | 2 | 3.0 |" in text
    assert f"| all, shared runs once | 3 | 7.5 | {hours:,.0f} |" in text
    assert f"price of {hours:,.0f} GPU hours" in text
    assert f"{hours / 192:.0f} days" in text
    assert "{{" not in text


def test_the_sentence_on_the_demo_ends_with_its_verdict(tmp_path: Path) -> None:
    with pytest.raises(FindingsError, match=r"the demo's soft vs hard is better, not inconclusive"):
        write(tmp_path, draw(tmp_path / "demo", DEMO, effect=3.0))
    assert not (tmp_path / "README.md").exists()
