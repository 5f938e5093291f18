"""FINDINGS.md from drawn results: its numbers, and that its words cannot outlive the verdicts they were written for."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from study.analysis.comparisons import compare_declared
from study.analysis.findings import FindingsError, Page, Question, effects_table, write_findings
from study.analysis.results import Results
from study.analysis.scepticism import examine, overturned
from study.analysis.verdicts import decide
from study.analysis.words import Words, WordsError
from study.grid.schema import Run
from tests.analysis.synthetic import arrange, draw_study
from tests.analysis.test_campaign import EFFECTS, LENGTHS, WEIGHTS

LABELS = ("soft, count=16 vs hard, count=16", "soft, count=32 vs soft, count=16", "hard, count=8 vs hard, count=16")


PREAMBLE = f"Hello `x`: {{{{ effect('groups', '{LABELS[0]}', 3) }}}}."


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
        "brief": "the most",
        "headline": [LABELS[0]],
    }
    words = {"budget": "small", "preamble": PREAMBLE, "distance": "Budget.", "cost": "Time.", "weights_note": "Cut."}
    return Page(**words, summary=[], weights="weights", lengths="lengths", questions=[Question(**asked | question)])  # type: ignore[arg-type]


def test_words_and_numbers_stand_together(studies: dict[str, Results], tmp_path: Path) -> None:
    comparisons = compare_declared(studies["groups"])
    verdicts = {one.label: decide(one) for one in comparisons}
    written = write_findings(page(verdicts=verdicts), Words(studies), operations, 1e11, tmp_path)
    text, full = (path.read_text(encoding="utf-8") for path in written[:2])
    first = comparisons[0]
    assert f"Hello `x`: {first.mean:+.3f} dB.".replace("-", "−") in text
    assert "| A *claim*. |" in text
    effect = f"| {first.label} | {first.mean:+.3f} dB \\[".replace("-", "−")
    (row,) = [line for line in text.splitlines() if "(reports/rendered/groups/report.md)" in line]
    assert effect in row
    assert f"| {verdicts[first.label]} |" in row
    assert row.endswith("| the most |")
    for one in comparisons:
        (line,) = [line for line in full.splitlines() if line.startswith(f"| {one.label} |")]
        assert f"| {one.mean:+.3f} |".replace("-", "−") in line
        assert f"| {verdicts[one.label]} |" in line
    assert "Kendall's τ of the order -0.33; exchanged: IMDN and hard, IMDN and soft." in text
    assert "(../reports/rendered/groups/report.md)" in full
    assert written[2] == tmp_path / "docs" / "findings.png"
    assert written[2].stat().st_size > 10_000


def test_a_sentence_that_asks_for_what_is_not_there(studies: dict[str, Results], tmp_path: Path) -> None:
    words = Words(studies)
    label, results = LABELS[0], studies["groups"]
    mean = results.mean("hard, count=16", results.primary)
    assert words("{{ '%.4f' | format(mean('groups', 'hard, count=16')) }}") == f"{mean:.4f}"
    one = compare_declared(results)[0]
    assert words(f"{{{{ seeds('groups', '{label}')[1] }}}}") == str(float(one.deltas.values[1].mean()))
    for text, said in (
        ("{{ effect('groups', 'hard vs soft') }}", r"hard vs soft"),
        ("{{ mean('groups', 'softer') }}", r"no cell 'softer' in groups.*: \{\{ mean"),
        ("{{ effect('group', 'a') }}", "'group'"),
        ("{{ efect() }}", "'efect' is undefined"),
        ("{{ ", "end of template"),
    ):
        with pytest.raises(WordsError, match=said):
            words(text)
    verdicts = {one.label: decide(one) for one in compare_declared(results)}
    wrong = page(verdicts=verdicts, reading="{{ effect('groups', 'hard vs soft') }}")
    with pytest.raises(WordsError, match=r"reports/findings.yaml: 'hard vs soft'"):
        write_findings(wrong, Words(studies), operations, 1e11, tmp_path)
    assert not (tmp_path / "FINDINGS.md").exists()


def test_a_seed_that_decides_is_named(studies: dict[str, Results]) -> None:
    results = studies["groups"]
    comparisons = compare_declared(results)
    table = effects_table(results, comparisons)
    for row, scrutiny in zip(table.rows, examine(results, comparisons), strict=True):
        others = {change.name.removeprefix("seed ") for change in overturned(scrutiny, scrutiny.seeds)}
        assert (row[-1] == "the same") == (not others)
        assert all(name in str(row[-1]) for name in others)


def test_a_reading_ends_with_its_verdicts(studies: dict[str, Results], tmp_path: Path) -> None:
    verdicts = {one.label: decide(one) for one in compare_declared(studies["groups"])}
    changed = {**verdicts, LABELS[1]: "worse"}
    with pytest.raises(FindingsError, match=rf"groups: .*found now: {LABELS[1]}: {verdicts[LABELS[1]]}, not worse$"):
        write_findings(page(verdicts=changed), Words(studies), operations, 1e11, tmp_path)
    with pytest.raises(FindingsError, match=r"soft vs hard: not declared, not better"):
        write_findings(
            page(verdicts={**verdicts, "soft vs hard": "better"}), Words(studies), operations, 1e11, tmp_path
        )
    with pytest.raises(FindingsError, match=r"headline: soft vs hard: not declared"):
        write_findings(page(verdicts=verdicts, headline=["soft vs hard"]), Words(studies), operations, 1e11, tmp_path)
    assert not (tmp_path / "FINDINGS.md").exists()


def test_a_page_is_of_finished_grids(studies: dict[str, Results], tmp_path: Path) -> None:
    verdicts = {one.label: decide(one) for one in compare_declared(studies["groups"])}
    run = next(iter(studies["lengths"].ids.values()))
    statuses = {**studies["lengths"].statuses, run: {"state": "failed"}}
    studies["lengths"] = replace(studies["lengths"], statuses=statuses)
    with pytest.raises(FindingsError, match=r"lengths: 1 failed, 18 done; FINDINGS.md is written of finished"):
        write_findings(page(verdicts=verdicts), Words(studies), operations, 1e11, tmp_path)


def test_the_figure_has_one_axis(studies: dict[str, Results], tmp_path: Path) -> None:
    verdicts = {one.label: decide(one) for one in compare_declared(studies["groups"])}
    with pytest.raises(FindingsError, match=r"headline: one measure and claim in one figure, not none"):
        write_findings(page(verdicts=verdicts, headline=[]), Words(studies), operations, 1e11, tmp_path)
