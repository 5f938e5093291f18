import json

from study.records.provenance import describe


def test_provenance_names_code_packages_device_and_data() -> None:
    record = json.loads(json.dumps(describe("cpu, 2 threads", {"data.train": "ab"})))
    assert record["device"] == "cpu, 2 threads"
    assert record["data"] == {"data.train": "ab"}
    assert record["packages"]["torch"]
    assert record["commit"] is None or len(record["commit"]) == 40
    assert isinstance(record["command"], list)
