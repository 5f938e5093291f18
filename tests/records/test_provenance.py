import json
from pathlib import Path

from study.records.provenance import describe, keep


def test_provenance_names_code_packages_device_and_data() -> None:
    record = json.loads(json.dumps(describe("cpu, 2 threads", {"data.train": "ab"})))
    assert record["device"] == "cpu, 2 threads"
    assert record["data"] == {"data.train": "ab"}
    assert record["packages"]["torch"]
    assert record["commit"] is None or len(record["commit"]) == 40
    assert isinstance(record["command"], list)


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
