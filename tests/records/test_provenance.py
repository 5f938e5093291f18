import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.records import provenance
from study.records.provenance import changed_files, describe, differences, keep, lock, write_digests
from study.records.store import RecordError


def test_provenance_names_code_packages_device_and_data() -> None:
    machine = {"hardware": {"cpu": "x"}, "settings": {"threads": 2}}
    record = json.loads(json.dumps(describe("cpu, 2 threads", {"data.train": "ab"}, machine)))
    assert record["device"] == "cpu, 2 threads"
    assert record["data"] == {"data.train": "ab"}
    assert record["packages"]["torch"]
    assert record["commit"] is None or len(record["commit"]) == 40
    assert len(record["source_sha256"]) == 64
    assert isinstance(record["command"], list)
    assert record["hardware"] == {"cpu": "x"}
    assert record["settings"] == {"threads": 2}


def test_what_earlier_attempts_had_otherwise_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    first = {"commit": "a", "device": "cpu", "packages": {"torch": "1"}}
    keep(path, first)
    keep(path, first)
    assert json.loads(path.read_text()) == first
    keep(path, {**first, "commit": "b"})
    keep(path, {**first, "commit": "b", "device": "gpu"})
    assert json.loads(path.read_text()) == {
        **first,
        "commit": "b",
        "device": "gpu",
        "earlier": [{"commit": "a"}, {"device": "cpu"}],
    }


def test_the_lock_lists_every_distribution_beside_the_record(tmp_path: Path) -> None:
    record = describe("cpu", {})
    keep(tmp_path / "provenance.json", record)
    lines = (tmp_path / record["packages_file"]).read_text().splitlines()
    assert lines == lock().splitlines()
    assert [line.split("==")[0] for line in lines] == sorted(line.split("==")[0] for line in lines)
    assert f"torch=={record['packages']['torch']}" in lines
    assert {"pydantic", "pytest", "pillow"} <= {line.split("==")[0] for line in lines}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with a package of one committed module, taken for the study."""
    folder = tmp_path / "repository" / "study"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text("one = 1\n")
    (tmp_path / "repository" / "elsewhere.py").write_text("")
    author = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *words], cwd=folder.parent, check=True)
    monkeypatch.setattr(provenance, "_PACKAGE", folder)
    forget()
    yield folder
    forget()


def forget() -> None:
    provenance._code.cache_clear()
    provenance._source.cache_clear()


def test_a_clean_tree_has_no_diff(package: Path, tmp_path: Path) -> None:
    (package.parent / "elsewhere.py").write_text("changed, and no part of the package")
    record = describe("cpu", {})
    keep(tmp_path / "run" / "provenance.json", record)
    assert record["dirty"] is False
    assert record["diff_sha256"] is None
    assert not list((tmp_path / "run").glob("*.diff"))


def test_the_diff_of_a_dirty_tree_rebuilds_it(package: Path, tmp_path: Path) -> None:
    (package / "module.py").write_text("one = 2\n")
    (package / "added.py").write_text("two = 3\n")
    record = describe("cpu", {})
    keep(tmp_path / "run" / "provenance.json", record)
    assert record["dirty"] is True
    assert record["diff_cut"] is False
    diff = tmp_path / "run" / record["diff_file"]
    assert hashlib.sha256(diff.read_bytes()).hexdigest() == record["diff_sha256"]
    assert diff.stat().st_size == record["diff_bytes"]
    (package / "module.py").write_text("one = 1\n")
    (package / "added.py").unlink()
    subprocess.run(["git", "apply", str(diff)], cwd=package.parent, check=True)
    assert (package / "module.py").read_text() == "one = 2\n"
    assert (package / "added.py").read_text() == "two = 3\n"


def test_a_long_diff_is_cut_and_says_so(package: Path, tmp_path: Path) -> None:
    (package / "module.py").write_text("x = 1\n" * 100_000)
    record = describe("cpu", {})
    keep(tmp_path / "run" / "provenance.json", record)
    assert record["diff_cut"] is True
    text = (tmp_path / "run" / record["diff_file"]).read_text()
    assert text.endswith(f"(cut: {provenance.DIFF_LIMIT_BYTES} of {record['diff_bytes']} bytes are here)\n")
    assert provenance.DIFF_LIMIT_BYTES < len(text) < provenance.DIFF_LIMIT_BYTES + 100


def test_the_diff_of_an_earlier_attempt_stays(package: Path, tmp_path: Path) -> None:
    names = []
    for text in ("one = 2\n", "one = 3\n"):
        (package / "module.py").write_text(text)
        forget()
        record = describe("cpu", {})
        keep(tmp_path / "run" / "provenance.json", record)
        names.append(record["diff_file"])
    assert {path.name for path in (tmp_path / "run").glob("*.diff")} == set(names)
    (before,) = json.loads((tmp_path / "run" / "provenance.json").read_text())["earlier"]
    assert before["diff_file"] == names[0]


def test_the_source_is_told_apart_without_git(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    one = describe("cpu", {})
    assert one["commit"] is None
    assert one["dirty"] is None
    (package / "module.py").write_text("one = 2\n")
    assert describe("cpu", {}) == one  # what was edited later is not what this process runs
    forget()
    assert describe("cpu", {})["source_sha256"] != one["source_sha256"]


def test_files_that_changed_since_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    assert changed_files(tmp_path) is None
    write_digests(tmp_path, ["a", "b", "c"])
    assert changed_files(tmp_path) == {}
    (tmp_path / "b").write_text("other")
    (tmp_path / "c").unlink()
    recorded, found = (hashlib.sha256(text).hexdigest() for text in (b"b", b"other"))
    changed = changed_files(tmp_path) or {}
    assert changed == {"b": (recorded, found), "c": (hashlib.sha256(b"c").hexdigest(), "absent")}
    (tmp_path / "b").unlink()
    (tmp_path / "b").symlink_to("a")
    assert changed_files(tmp_path) == {"c": changed["c"]}
    (tmp_path / "digests.json").write_text("{")
    with pytest.raises(RecordError, match=r"digests\.json is not valid JSON"):
        changed_files(tmp_path)


def test_differences_go_into_mappings_and_leave_out_what_one_lacks() -> None:
    one = {"a": 1, "h": {"x": 1, "y": 2, "only": 3}, "b": 1}
    other = {"a": 2, "h": {"x": 1, "y": 5}, "b": 2, "new": 4}
    assert differences(one, other, ("a", "h", "new")) == {"a": (1, 2), "h.y": (2, 5)}
