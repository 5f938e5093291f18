"""What `make fresh` calls out of date."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_reports.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_reports", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "rebuilt", "there", "said"),
    [
        ("a.md", "x\ny\n", "x\ny\n", ""),
        ("a.md", "x\ny\n", "x\nz\n", "line 2 should be: y"),
        ("a.md", "x\n", "x\nold\n", "line 2 should be: "),
        ("a.md", "x\nnew\n", "x\n", "line 2 should be: new"),
        ("a.md", "x\n", "x", "line 2 should be: "),
        ("a.md", "x", "x\n", "should end before line 2"),
        ("a.csv", "n,1.0000000000001\n", "n,1.0\n", ""),
        ("a.csv", "n,1.00001\n", "n,1.0\n", "has other numbers"),
        ("a.csv", "n,1\n", "n,1\nm,2\n", "has other numbers"),
        ("a.csv", "n,better\n", "n,worse\n", "has other numbers"),
        ("a.png", "x", "y", ""),
        ("a.png", "x", None, "is missing"),
    ],
)
def test_text_is_compared_exactly_and_numbers_nearly(
    check: ModuleType, tmp_path: Path, name: str, rebuilt: str, there: str | None, said: str
) -> None:
    for folder, content in (("rebuilt", rebuilt), ("there", there)):
        (tmp_path / folder).mkdir()
        if content is not None:
            (tmp_path / folder / name).write_text(content)
    assert check.differs(tmp_path / "rebuilt" / name, tmp_path / "there" / name) == said


def test_every_file_is_compared_and_nothing_else_may_lie_there(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "ROOT", tmp_path / "there")
    for folder in ("there", "rebuilt"):
        report = tmp_path / folder / "reports" / "rendered" / "q"
        (report / "tables").mkdir(parents=True)
        (report / "report.md").write_text("x")
        (report / "tables" / "t.csv").write_text("n,1")
    check.main(tmp_path / "rebuilt")
    assert "2 files are up to date" in capsys.readouterr().out
    (tmp_path / "there" / "reports" / "rendered" / "q" / "tables" / "old.csv").write_text("n,1")
    with pytest.raises(SystemExit, match=r"1 of 2 files are out of date: `make reports` writes them"):
        check.main(tmp_path / "rebuilt")
    assert "reports/rendered/q/tables/old.csv belongs to nothing" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"0 of 0 files"):
        check.main(tmp_path / "nowhere")
