"""Grid files that nobody meant to write: each ends in a plan or in one message that names the file, soon."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.grid.expand import LIMIT_RUNS, load_plan
from study.grid.loading import GridError
from study.grid.plan import Plan
from tests.grid.conftest import GRID

QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LIMIT_S = 30.0  # of a loaded machine; what it guards against takes for ever
WORDS = ["base", "axes", "variants", "model", "kind", "soft", "seeds", "analysis", "baseline", "extends", "exclude"]
ODD = [
    "*a", "&a 1", "<<: {a: 1}", "!!python/object/apply:os.system ['false']", "!!bool maybe", "!!int x", "!!binary ü",
    "!!timestamp x", "!!float y", "!!set {a}", "!!omap [a]", "9" * 5000, "1e999", "-0", "089", "0o7", "\x00", "\ufeff",
    "\r\n", "\t", "? [a]\n: 1", "[" * 200, "{" * 200, "a" * 3000, "a" + ".b" * 400, "'", '"\\ud800"', "…", "\u202e",
    "../../x", "/dev/zero", "~", "null", ".nan", "- - - -", "%TAG ! x", "---", "...", "|\n x", ">-", "@", "`",
]  # fmt: skip


def judge(path: Path, budget: str | None = None) -> Plan | str:
    begun = time.perf_counter()
    try:
        return load_plan(path, budget)
    except GridError as error:
        return str(error)
    finally:
        assert time.perf_counter() - begun < LIMIT_S


def check(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    result = judge(path)
    if isinstance(result, str):
        assert all(path.name in line for line in result.splitlines()[:1]), result


@QUICK
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "grid.yaml", content)


@QUICK
@given(data=st.data())
def test_a_valid_grid_with_passages_replaced(tmp_path: Path, data: st.DataObject) -> None:
    text = GRID
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(text)))
        end = begin + data.draw(st.sampled_from([0, 0, 1, 5, 30]))
        text = text[:begin] + data.draw(st.sampled_from(ODD + WORDS)) + text[end:]
    check(tmp_path / "grid.yaml", text.encode("utf-8", "surrogatepass"))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=9)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)


@QUICK
@given(data=st.data())
def test_a_valid_grid_with_a_branch_replaced(tmp_path: Path, data: st.DataObject) -> None:
    tree = yaml.safe_load(GRID)
    level, key = tree, data.draw(st.sampled_from(sorted(tree)))
    while isinstance(level[key], dict) and level[key] and data.draw(st.booleans()):
        level = level[key]
        key = data.draw(st.sampled_from(sorted(level, key=str)))
    level[key] = data.draw(TREES)
    check(tmp_path / "grid.yaml", yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


def test_a_product_beyond_the_limit_is_refused_before_it_is_expanded(write: Callable[..., Path]) -> None:
    thousand = ", ".join(map(str, range(1, 1001)))
    axes = "".join(f"  {key}: [{thousand}]\n" for key in ("optimisation.steps", "model.width", "model.blocks"))
    said = judge(write("axes:\n", "axes:\n" + axes))
    assert isinstance(said, str)
    assert f":9: axes: 8,000,000,002 runs, before any is excluded; at most {LIMIT_RUNS:,}" in said
    said = judge(write("seeds: 2", f"seeds: {10**12}"))
    assert isinstance(said, str)
    assert "runs, before any is excluded" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps: 400", "steps: " + "9" * 5000, ":4: '9999"),
        ("steps: 400", "steps: !!bool maybe", ":4: 'maybe' cannot be read as bool"),
        ("steps: 400", "steps: 1e999", ":4: base.optimisation.steps"),
        (
            "question: Soft or hard?",
            "question: !!python/object/apply:os.system [touch ran]",
            ":1: the tag tag:yaml.org,2002:python/object/apply:os.system is not read",
        ),
        ("base:\n", "base:\n  ? " + "a." * 100_000 + "b\n  : 1\n", ":3: nested too deeply to be a grid"),
        ("axes:\n", "axes:\n  ? " + "a." * 1_000 + "b\n  : [1]\n", "nested too deeply to be a grid"),
        ("base:", "extends: /dev/zero\nbase:", "/dev/zero is no regular file"),
        ("base:", 'extends: "a\\0b"\nbase:', "is no file name"),
        ("base:", "<<: {scale: 2}\nbase:", "<<"),
        ("base:", "question: twice\nbase:", ":2: question is given twice, first on line 1"),
    ],
)
def test_what_a_library_would_choke_on_is_one_message(
    write: Callable[..., Path], old: str, new: str, said: str
) -> None:
    result = judge(write(old, new))
    assert isinstance(result, str)
    assert said in result, result[:500]
    assert not os.path.lexists("ran")


def test_line_ends_and_a_mark_of_byte_order_change_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    plain = load_plan(write())
    (tmp_path / "grid.yaml").write_bytes(b"\xef\xbb\xbf" + GRID.replace("\n", "\r\n").encode())
    assert load_plan(tmp_path / "grid.yaml").cells == plain.cells


@pytest.mark.parametrize("budget", ["../x", "/etc/passwd", "a\0b", "", "x" * 300, "a/b"])
def test_a_budget_whose_name_would_leave_its_folder_is_refused(write: Callable[..., Path], budget: str) -> None:
    said = judge(write(), budget)
    if budget:
        assert isinstance(said, str)
        assert said.startswith(f"budget {budget!r}")
