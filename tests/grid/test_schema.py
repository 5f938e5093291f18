import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from study.grid.expand import load_plan
from study.grid.loading import GridLoader
from study.grid.schema import json_schema

ABLATIONS = Path(__file__).resolve().parents[2] / "ablations"
GRIDS = sorted(ABLATIONS.glob("*.yaml"))


def test_committed_json_schema_is_fresh() -> None:
    stored = json.loads((ABLATIONS / "grid.schema.json").read_text())
    assert stored == json_schema(), "run `make schema`"


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("budget", [None, "ci", "laptop", "single_gpu", "paper"])
def test_every_grid_expands_at_every_budget(path: Path, budget: str | None) -> None:
    plan = load_plan(path, budget)
    assert len(plan.cells) >= 2
    assert any(not cell.runs[0].model.trained for cell in plan.cells), "bicubic belongs in every report"


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_grid_agrees_with_the_json_schema_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    jsonschema.validate(yaml.load(text, GridLoader), json_schema())
    head = text.splitlines()
    assert head[0] == "# yaml-language-server: $schema=grid.schema.json"
    for word in ("# Claim:", "# Cost:", "# Run:"):
        assert any(line.startswith(word) for line in head)


def test_declaring_recording_and_judging_never_import_torch() -> None:
    code = (
        "import pkgutil, importlib, sys\n"
        "for floor in ('grid', 'records', 'analysis'):\n"
        "    package = importlib.import_module(f'study.{floor}')\n"
        "    for module in pkgutil.iter_modules(package.__path__):\n"
        "        importlib.import_module(f'study.{floor}.{module.name}')\n"
        "import study.cli\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
