"""A run's folder: atomic writes, and one reader that returns tidy frames over any number of runs.

A folder `results/runs/<id>/` holds `run.json`, `provenance.json`, `status.json`, the tables of `schemas`,
`weights.safetensors`, `state/`, `samples/`, and `DONE`, written last.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from study import StudyError
from study.records.schemas import RUN_TABLES, TABLES


class RecordError(StudyError):
    """A stored record is missing or not what it should be; the message names the file."""


def replace(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash at any time, sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a mapping as indented JSON, atomically."""
    replace(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises `RecordError` naming the file when it is absent or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except ValueError as error:
        raise RecordError(f"{path} is not valid JSON: {error}") from None


def write_table(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes `rows` as `<name>.parquet` under the schema of that name; equal rows give equal bytes."""
    table = pa.Table.from_pylist(list(rows), schema=TABLES[name])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    replace(folder / f"{name}.parquet", sink.getvalue().to_pybytes())


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Reads one table of one run; raises `RecordError` when it is absent, broken or of another schema."""
    path = folder / f"{name}.parquet"
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise RecordError(f"{path} is not a readable parquet file: {error}") from None
    if not table.schema.equals(TABLES[name]):
        raise RecordError(f"{path} has columns {table.schema.names}, expected {TABLES[name].names}")
    return table.to_pandas()


@dataclass(frozen=True)
class Records:
    """Tidy frames over several runs; each has a first column `run` (the run's id) before the schema's columns."""

    images: pd.DataFrame
    scalars: pd.DataFrame
    costs: pd.DataFrame


def read(runs: Path, ids: Iterable[str]) -> Records:
    """Reads the tables of the runs `ids` under the folder `runs`; a table that a run lacks adds no rows."""
    ids = list(ids)
    frames = {}
    for name, schema in RUN_TABLES.items():
        parts = [
            read_table(runs / run, name).assign(run=run) for run in ids if (runs / run / f"{name}.parquet").exists()
        ]
        columns = ["run", *schema.names]
        frames[name] = pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
    return Records(**frames)
