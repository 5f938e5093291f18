"""What `make fresh` calls out of date."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

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
        ("a.pdf", "x", "y", ""),
        ("a.pdf", "x", None, "is missing"),
        ("a.html", "<p>0.1234567890124\n<svg>\n1</svg>", "<p>0.1234567890123\n<svg>2</svg>", ""),
        ("a.html", "<p>0.1235 <i>", "<p>0.1234 <i>", "line 1 should be: <p>0.1235 <i>"),
        ("a.html", "<p>\nnew", "<p>", "line 2 should be: new"),
        ("a.html", '<img src="data:image/png;base64,aB+/=">', '<img src="data:image/png;base64,cd">', ""),
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


@pytest.mark.parametrize(
    ("changed", "version", "said"),
    [
        ((0, 0, 0), "1", "differs by 0.4 grey levels on average"),
        ((255, 254, 255), "1", ""),
        ((0, 0, 0), "2", ""),  # another matplotlib
        (None, "1", "should have 32 x 20 px"),
    ],
)
def test_a_picture_shows_the_same(
    check: ModuleType, tmp_path: Path, changed: tuple[int, int, int] | None, version: str, said: str
) -> None:
    rebuilt = Image.new("RGB", (32, 20), "white")
    there = rebuilt.copy() if changed else Image.new("RGB", (32, 21))
    if changed:
        there.putpixel((3, 4), changed)
    for name, image, drawn in (("one.png", rebuilt, "1"), ("other.png", there, version)):
        info = PngInfo()
        info.add_text("Software", f"matplotlib {drawn}")
        image.save(tmp_path / name, pnginfo=info)
    assert check.differs(tmp_path / "one.png", tmp_path / "other.png") == said


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
