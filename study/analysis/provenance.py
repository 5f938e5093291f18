"""Where the numbers come from: what the runs' provenance files agree on, and where they differ."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from study.analysis.results import Results
from study.analysis.tables import Column, Entry, Table
from study.records.store import read_json

SHOWN = 3  # values that runs disagree on are listed up to here


def training_codes(results: Results, runs: Path) -> list[str]:
    """Hashes of the code that the runs were trained by, each with the cells it trained; cut to twelve digits."""
    cells: dict[str, dict[str, int]] = {}
    for cell, _, run in results.runs():
        path = runs / run / "provenance.json"
        if run and path.exists() and cell.runs[0].trains:
            code = str(read_json(path).get("training_sha256", "not recorded"))[:12]
            part = cells.setdefault(code, {})
            part[cell.name] = part.get(cell.name, 0) + 1
    return [f"{code}: {', '.join(f'{cell} ({count})' for cell, count in part.items())}" for code, part in cells.items()]


def provenance_table(results: Results, runs: Path) -> Table:
    """One row per key of the runs' provenance.json; where runs disagree, every value with the number of its runs."""
    found = {}
    for _, _, run in results.runs():
        if run and (runs / run / "provenance.json").exists():
            found[run] = dict(_flat(read_json(runs / run / "provenance.json")))
    rows = []
    for key in dict.fromkeys(key for part in found.values() for key in part):
        values: dict[str, int] = {}
        for part in found.values():
            value = part.get(key, "absent")
            values[value] = values.get(value, 0) + 1
        if len(values) == 1:
            rows.append((1, (key, next(iter(values)))))
            continue
        listed = [f"{value} ({count})" for value, count in list(values.items())[:SHOWN]]
        more = f"; and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
        rows.append((0, (key, Entry("; ".join(listed) + more, "runs differ", "warn"))))
    rows.sort(key=lambda pair: pair[0])
    total = sum(1 for _ in results.runs())
    note = f"Read from {len(found)} of {total} runs. Where runs differ, the number of runs is in brackets."
    columns = (Column("what"), Column("value"))
    return Table("provenance", "Code, machine and data.", columns, tuple(row for _, row in rows), (note,))


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _flat(item, f"{name}.")
        else:
            yield name, item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
