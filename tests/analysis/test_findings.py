"""FINDINGS.md from drawn results: its numbers, and that its words cannot outlive the verdicts they were written for."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from study.analysis.comparisons import compare_declared
from study.analysis.findings import FindingsError, Page, Question, write_findings
from study.analysis.results import Results
from study.analysis.verdicts import decide
from study.grid.schema import Run
from tests.analysis.synthetic import arrange, draw_study
from tests.analysis.test_campaign import EFFECTS, LENGTHS, WEIGHTS

LABELS = ("soft, count=16 vs hard, count=16", "soft, count=32 vs soft, count=16", "hard, count=8 vs hard, count=16")


@pytest.fixture
def studies(tmp_path: Path) -> dict[str, Results]:
    own = []
    for text, effects in ((None, {"soft, count=16": 1.5, "soft, count=32": 1.5}), (LENGTHS, EFFECTS), (WEIGHTS, {})):
        folder = tmp_path / str(len(own))
        folder.mkdir()
        study = draw_study(folder, *([text] if text else []), effects=effects, seed_noise_db=0.003)
        costs = study.records.costs
        rest = [
            costs.query("name == 'training'").assign(name=name, value=1.0)
            for name in ("training_validation", "evaluation")
        ]
        own.append(arrange(replace(study, records=replace(study.records, costs=pd.concat([costs, *rest])))))
    return dict(zip(("groups", "lengths", "weights"), own, strict=True))


def operations(run: Run) -> float:
    return 6e6 * run.scale


def page(**question: object) -> Page:
    asked = {
        "grid": "groups",
        "title": "Groups",
        "claim": "A *claim*.",
        "reading": "What it comes to.",
        "limits": "The rest.",
        "headline": [LABELS[0]],
    }
    words = {"budget": "small", "preamble": "Hello `x`.", "distance": "Budget.", "cost": "Time."}
    return Page(**words, weights="weights", lengths="lengths", questions=[Question(**asked | question)])  # type: ignore[arg-type]


def test_words_and_numbers_stand_together(studies: dict[str, Results], tmp_path: Path) -> None:
    comparisons = compare_declared(studies["groups"])
    verdicts = {one.label: decide(one) for one in comparisons}
    written = write_findings(page(verdicts=verdicts), studies, operations, 1e11, tmp_path)
    text = written[0].read_text(encoding="utf-8")
    assert "Hello `x`." in text
    assert "A *claim*." in text
    for one in comparisons:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {one.label} |")]
        assert f"| {one.mean:+.3f} |".replace("-", "−") in line
        assert f"| {verdicts[one.label]} |" in line
    assert "Kendall's τ of the order -0.33; exchanged: IMDN and hard, IMDN and soft." in text
    assert "(reports/rendered/groups/report.md)" in text
    assert written[1] == tmp_path / "docs" / "findings.png"
    assert written[1].stat().st_size > 10_000


def test_a_reading_ends_with_its_verdicts(studies: dict[str, Results], tmp_path: Path) -> None:
    verdicts = {one.label: decide(one) for one in compare_declared(studies["groups"])}
    changed = {**verdicts, LABELS[1]: "worse"}
    with pytest.raises(FindingsError, match=rf"groups: .*found now: {LABELS[1]}: {verdicts[LABELS[1]]}, not worse$"):
        write_findings(page(verdicts=changed), studies, operations, 1e11, tmp_path)
    with pytest.raises(FindingsError, match=r"soft vs hard: not declared, not better"):
        write_findings(page(verdicts={**verdicts, "soft vs hard": "better"}), studies, operations, 1e11, tmp_path)
    with pytest.raises(FindingsError, match=r"headline: soft vs hard: not declared"):
        write_findings(page(verdicts=verdicts, headline=["soft vs hard"]), studies, operations, 1e11, tmp_path)
    assert not (tmp_path / "FINDINGS.md").exists()


def test_a_page_is_of_finished_grids(studies: dict[str, Results], tmp_path: Path) -> None:
    verdicts = {one.label: decide(one) for one in compare_declared(studies["groups"])}
    run = next(iter(studies["lengths"].ids.values()))
    statuses = {**studies["lengths"].statuses, run: {"state": "failed"}}
    studies["lengths"] = replace(studies["lengths"], statuses=statuses)
    with pytest.raises(FindingsError, match=r"lengths: 1 failed, 18 done; FINDINGS.md is written of finished"):
        write_findings(page(verdicts=verdicts), studies, operations, 1e11, tmp_path)


def test_the_figure_has_one_axis(studies: dict[str, Results], tmp_path: Path) -> None:
    verdicts = {one.label: decide(one) for one in compare_declared(studies["groups"])}
    with pytest.raises(FindingsError, match=r"headline: one measure and claim in one figure, not none"):
        write_findings(page(verdicts=verdicts, headline=[]), studies, operations, 1e11, tmp_path)
