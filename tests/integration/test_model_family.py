"""Every network and every way to mix distant tokens, from the grid file to the report, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

ABLATIONS = Path(__file__).resolve().parents[2] / "ablations"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid file that is model_family.yaml, and budgets/few.yaml beside it: ci's, with a few steps."""
    folder = tmp_path_factory.mktemp("family")
    budget: dict[str, Any] = yaml.safe_load((ABLATIONS / "budgets" / "ci.yaml").read_text(encoding="utf-8"))
    budget["optimisation"] |= {"steps": 4, "warmup_steps": 1}
    budget["evaluation"] |= {"validations": 0, "cost_lr_px": 32, "protocols": ["uint8_y"], "metrics": ["psnr"]}
    budget["seeds"] = 1
    (folder / "budgets").mkdir()
    (folder / "budgets" / "few.yaml").write_text(yaml.safe_dump(budget), encoding="utf-8")
    (folder / "family.yaml").write_text(f"extends: {ABLATIONS / 'model_family.yaml'}\n", encoding="utf-8")
    return folder


def call(folder: Path, verb: str, *options: str) -> str:
    command = [sys.executable, "-m", "study", verb, "family.yaml", "--budget", "few", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_every_network_is_trained_and_reported(folder: Path) -> None:
    call(folder, "run", "--cpu")
    call(folder, "report")
    report = folder / "results" / "reports" / "family-few"
    variants = yaml.safe_load((ABLATIONS / "model_family.yaml").read_text(encoding="utf-8"))["variants"]
    costs = pd.read_csv(report / "tables" / "complexity.csv", index_col=0)
    assert list(costs.index) == [*variants, "bicubic"]
    measured = costs.loc[list(variants)].select_dtypes("number")
    assert measured.shape[1] == 7
    assert (measured > 0).to_numpy().all()
    results = pd.read_csv(report / "tables" / "results.csv", index_col=0)
    assert list(results.index) == list(costs.index)
    psnr = results["bundled PSNR (dB)"].to_numpy(float)
    assert ((psnr > 5) & (psnr < 50)).all()
    assert len(set(psnr)) == len(results)
    page = (report / "report.md").read_text(encoding="utf-8")
    for picture in ("quality", "training"):
        assert f"figures/{picture}.png" in page
        assert (report / "figures" / f"{picture}.png").stat().st_size > 10_000
