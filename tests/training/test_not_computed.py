"""Metrics that cannot be computed: what a run records, and what `study evaluate` prints."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from study.evaluation import metrics
from study.evaluation.metrics import MetricUnavailable
from study.grid.expand import load_plan
from study.records.index import finished
from study.records.store import read_json, read_table
from study.training import execution
from study.training.runner import Options, run_grid
from tests.test_cli import invoke

Write = Callable[..., Path]

BICUBIC = "variants: {hard: {model: {kind: bicubic}}, turned: {model: {kind: bicubic}, evaluation.self_ensemble: true}}"
REASONS = {name: f"not computed: weights of {name} missing, put them at [here]" for name in ("gmsd", "vif")}


@pytest.fixture(autouse=True)
def missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The metrics that cannot be computed, and why: in truth these need no weights, so a test may let them be."""
    reasons = dict(REASONS)

    def refuse(metric: str) -> None:
        if metric in reasons:
            raise MetricUnavailable(reasons[metric])

    forget()
    monkeypatch.setattr(metrics, "_find_weights", refuse)
    yield reasons
    forget()


def forget() -> None:
    """What a new launch does not know."""
    metrics._created.cache_clear()
    execution._say_once.cache_clear()


def launch(write_grid: Write, names: str) -> tuple[dict[str, str], Path]:
    changed = ("protocols: [uint8_y]", f"protocols: [uint8_y]\n    metrics: [{names}]")
    root = write_grid(BICUBIC, changed).parent
    ended = run_grid(load_plan(root / "grid.yaml"), Options(root / "results", root / "images", cpu=True, workers=0))
    return ended, root / "results" / "runs"


def test_a_run_records_what_was_not_computed_until_it_is(
    write_grid: Write, missing: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    ended, runs = launch(write_grid, "psnr, gmsd, swd, vif")
    assert list(ended.values()) == ["done", "done"]
    for run_id in ended:
        assert read_json(runs / run_id / "not_computed.json") == REASONS
        assert set(read_table(runs / run_id, "images").metric) == {"psnr", "swd"}
    lines = capsys.readouterr().err.splitlines()
    assert [lines.count(reason) for reason in REASONS.values()] == [1, 1]

    missing.clear()
    forget()
    assert launch(write_grid, "psnr, gmsd, swd, vif")[0] == ended
    for run_id in ended:
        assert set(read_table(runs / run_id, "images").metric) == {"psnr", "swd", "gmsd", "vif"}
        assert not (runs / run_id / "not_computed.json").exists()
    assert "not computed" not in capsys.readouterr().err


def test_a_trained_run_gets_what_it_lacks_without_training(
    write_grid: Write, missing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = ("protocols: [uint8_y]", "protocols: [uint8_y]\n    metrics: [psnr, gmsd]")
    root = write_grid("variants: {hard: {}}", ("seeds: 2", "seeds: 1"), changed).parent
    options = Options(root / "results", root / "images", cpu=True, workers=0)
    (run_id,) = run_grid(load_plan(root / "grid.yaml"), options)
    folder = root / "results" / "runs" / run_id
    before = {name: (folder / name).read_bytes() for name in ("weights.safetensors", "scalars.parquet")}
    costs = read_table(folder, "costs").set_index("name").value
    missing.clear()
    forget()
    monkeypatch.setattr(execution, "Trainer", None)
    assert run_grid(load_plan(root / "grid.yaml"), options) == {run_id: "done"}
    assert set(read_table(folder, "images").metric) == {"psnr", "gmsd"}
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert read_table(folder, "costs").set_index("name").value["training"] == costs["training"]


def evaluated(root: Path, *words: str) -> tuple[int, str]:
    given = ("--model", "bicubic", "--scale", "2", "--data", "test", "--protocol", "uint8_y", "--cpu")
    where = ("--data-root", str(root / "images"), "--results", str(root / "results"))
    return invoke("evaluate", *given, *where, *words)


def test_evaluate_prints_not_computed_and_why(write_grid: Write) -> None:
    root = write_grid().parent
    code, page = evaluated(root, "--metric", "gmsd", "--metric", "psnr", "--data", "train")
    assert code == 0
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in page.splitlines() if "│" in line]
    assert [row[:3] for row in cells[:2]] == [["test", "uint8_y", "psnr"], ["train", "uint8_y", "psnr"]]
    assert cells[2:] == [[name, "rgb", "gmsd", "not computed", "0"] for name in ("test", "train")]
    assert page.splitlines()[-1] == REASONS["gmsd"]
    assert page.count(REASONS["gmsd"]) == 1


def test_evaluate_gives_null_and_a_reason_as_json(write_grid: Write) -> None:
    code, page = evaluated(write_grid().parent, "--metric", "psnr", "--metric", "vif", "--json")
    assert code == 0
    computed, left_out = json.loads(page)
    assert set(computed) == {"dataset", "protocol", "metric", "mean", "n"}
    assert 10 < computed["mean"] < 60
    expected = {"dataset": "test", "protocol": "rgb", "metric": "vif", "mean": None, "n": 0}
    assert left_out == {**expected, "reason": REASONS["vif"]}


def test_evaluate_refuses_where_nothing_can_be_computed(write_grid: Write) -> None:
    with pytest.raises(MetricUnavailable, match=r"weights of vif missing, put them at \[here\]"):
        evaluated(write_grid().parent, "--metric", "vif")


def test_until_it_is_evaluated_anew_a_run_counts_as_it_is(
    write_grid: Write, missing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, runs = launch(write_grid, "psnr, gmsd")
    before = {run_id: (runs / run_id / "images.parquet").read_bytes() for run_id in ended}
    missing.clear()
    forget()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the lights went out")

    with monkeypatch.context() as patch:
        patch.setattr(execution, "evaluate", fail)
        ended, _ = launch(write_grid, "psnr, gmsd")
    for run_id, content in before.items():
        assert finished(runs / run_id)
        assert (runs / run_id / "images.parquet").read_bytes() == content
    forget()
    ended, _ = launch(write_grid, "psnr, gmsd")
    assert set(ended.values()) == {"done"}
    assert {"gmsd"} < set(read_table(runs / next(iter(ended)), "images").metric)
