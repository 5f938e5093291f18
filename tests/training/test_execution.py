"""External networks as rows of a grid and on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from study import StudyError
from study.grid.expand import load_plan
from study.grid.models import External
from study.grid.schema import Bundled, Evaluation, Run
from study.models.weights import WeightsError
from study.records.location import locate
from study.records.store import read_table
from study.training.estimate import estimate
from study.training.image_sets import ImageSets
from tests.models.test_external import save, seeded, span, swinir
from tests.test_cli import invoke

Write = Callable[..., Path]

REFERENCES = """\
variants:
  hard: {optimisation.steps: 2}
references:
  bicubic: {model: {kind: bicubic}}
  span: {model: {kind: external, weights: span/net.pth}}
  swinir: {model: {kind: external, weights: swinir/net.pth}}"""


def weights(root: Path, scale: int = 2) -> None:
    for name, make in (("span", span), ("swinir", swinir)):
        (root / name).mkdir()
        save(seeded(make, scale), root / name / "net.pth")


def words(grid: Path) -> list[str]:
    return [str(grid), "--results", str(grid.parent / "results")]


def evaluated(grid: Path, *more: str) -> float:
    images = grid.parent / "images"
    given = ("--scale", "2", "--protocol", "uint8_y", "--metric", "psnr", "--json", "--cpu", "--data", "test")
    where = ("--data-root", str(images), "--results", str(grid.parent / "results"))
    code, page = invoke("evaluate", *given, *where, *more)
    assert code == 0, page
    (row,) = json.loads(page)
    return row["mean"]


@pytest.mark.slow
def test_two_external_references_from_plan_to_report(write_grid: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = write_grid(REFERENCES, ("seeds: 2", "seeds: 1"))
    root = grid.parent / "images"
    weights(root)
    monkeypatch.setenv("STUDY_DATA", str(root))
    code, page = invoke("plan", *words(grid), "--no-time")
    assert code == 0
    assert "64,300" in page  # SPAN's values
    code, said = invoke("run", *words(grid), "--cpu", "--workers", "0")
    assert code == 0, said
    runs, plan = grid.parent / "results" / "runs", load_plan(grid)
    ids = locate(runs, plan)
    assert set(ids) == {("hard", 0), ("bicubic", 0), ("span", 0), ("swinir", 0)}
    assert len(set(ids.values())) == 4
    measured = {}
    for name in ("span", "swinir"):
        folder = runs / ids[name, 0]
        assert folder.name[-10:] in page
        images = read_table(folder, "images")
        measured[name] = images[images.metric == "psnr"].value.mean()
        assert (folder / "DONE").read_text().split() == [
            "run.json",
            "provenance.json",
            "images.parquet",
            "costs.parquet",
        ]
        costs = read_table(folder, "costs").set_index("name").value
        assert costs["parameters"] == {"span": 64_300, "swinir": 7776}[name]
        assert "model.weights" in json.loads((folder / "provenance.json").read_text())["data"]
    assert measured["span"] != measured["swinir"]
    assert evaluated(grid, "--model", "{kind: external, weights: span/net.pth}") == pytest.approx(measured["span"])
    given = ("--model", "external", "--weights", str(root / "swinir" / "net.pth"))
    assert evaluated(grid, *given) == pytest.approx(measured["swinir"])
    assert "4 done" in invoke("status", *words(grid))[1]
    assert invoke("report", *words(grid))[0] == 0
    report = (grid.parent / "results" / "reports" / "grid" / "report.md").read_text()
    for name, value in measured.items():
        (row,) = [line for line in report.splitlines() if line.startswith(f"| {name} ") and f"{value:.2f}" in line]
        assert row


def test_plan_says_which_weights_are_missing(write_grid: Write) -> None:
    grid = write_grid(REFERENCES)
    code, page = invoke("plan", *words(grid), "--no-time", "--data-root", str(grid.parent / "images"))
    assert code == 0
    assert "ids are not known yet: no file" in page
    assert "'span/net.pth' is looked up in the data root" in page.replace("\n", " ")
    estimates = estimate(load_plan(grid), root=grid.parent, cpu=True, timed=True)
    assert estimates["span"].parameters is None
    assert estimates["span"].multiply_adds is None
    assert estimates["hard"].parameters


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_weights_of_another_scale_are_refused_before_anything_starts(write_grid: Write, verb: str) -> None:
    grid = write_grid(REFERENCES)
    weights(grid.parent / "images", 4)
    with pytest.raises(WeightsError, match=r"net\.pth holds SPAN for scale 4, and the run's scale is 2"):
        invoke(verb, *words(grid), "--cpu", "--data-root", str(grid.parent / "images"))
    assert not (grid.parent / "results" / "runs").exists()


def test_the_id_follows_the_files_content_and_not_its_place(tmp_path: Path) -> None:
    weights(tmp_path)
    (tmp_path / "copy.pth").write_bytes((tmp_path / "span" / "net.pth").read_bytes())
    images = ImageSets(tmp_path, tmp_path / "cache")

    def identify(path: str) -> str:
        evaluation = Evaluation(datasets={"bundled": Bundled(split="test")})
        return images.identify(Run(model=External(weights=path), scale=2, evaluation=evaluation))

    assert identify("span/net.pth") == identify("copy.pth") == identify(str(tmp_path / "copy.pth"))
    assert identify("span/net.pth") != identify("swinir/net.pth")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--model", "external"), "--weights: external is a trained network: name its checkpoint"),
        (("--model", "{kind: external}"), "--weights: external is a trained network"),
        (("--model", "{kind: external, weights: a.pth}", "--weights", "b.pth"), "--model names a.pth already"),
        (("--model", "{kind: external, weights: 3}"), "weights: "),
        (("--model", "external", "--weights", "nowhere.pth"), "no file .*nowhere.pth$"),
        (("--model", "{kind: external, weights: nowhere.pth}"), "'nowhere.pth' is looked up in the data root"),
        (("--model", "bicubic", "--weights", "a.pth"), "--weights: bicubic has none to load"),
    ],
)
def test_evaluate_says_which_weights_it_wants(given: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=said):
        invoke("evaluate", *given, "--data", "bundled", "--results", str(tmp_path))
