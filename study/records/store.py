"""A run's folder: atomic writes, and one reader that returns tidy frames over any number of runs.

A folder `results/runs/<id>/` holds `run.json`, `provenance.json`, `status.json`, the tables of `schemas`,
`weights.safetensors`, `state/`, `samples/`, and `DONE`, written last.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
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
    return _read_arrow(folder / f"{name}.parquet", TABLES[name]).to_pandas()


def _read_arrow(path: Path, schema: pa.Schema, encoded: Sequence[str] = ()) -> pa.Table:
    """A table whose columns `encoded` are dictionaries; a file opens in half the time that a data set takes."""
    try:
        with pq.ParquetFile(path, read_dictionary=encoded) as file:
            table = file.read(use_threads=False)
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise RecordError(f"{path} is not a readable parquet file: {error}") from None
    if not table.schema.equals(schema):
        raise RecordError(f"{path} has columns {table.schema.names}, expected {schema.names}")
    return table


@dataclass(frozen=True)
class Records:
    """Tidy frames over several runs; each has a first column `run` (the run's id) before the schema's columns.

    What `read` returns has every column of text as categories, in the order in which they are met.
    """

    images: pd.DataFrame
    scalars: pd.DataFrame
    costs: pd.DataFrame


def read(runs: Path, ids: Iterable[str], curves: Collection[str] | None = None) -> Records:
    """Reads the tables of the runs `ids` under the folder `runs`; a table that a run lacks adds no rows.

    Args:
        runs: folder of the runs.
        ids: of the runs to read.
        curves: names of the scalars that are wanted, where not all are: of a long training they are most of the rows.

    Raises:
        RecordError: a file is broken or of another schema.
    """
    ids = list(ids)
    frames = {name: _read_runs(runs, ids, name, curves if name == "scalars" else None) for name in RUN_TABLES}
    return Records(**frames)


def _read_runs(runs: Path, ids: Sequence[str], name: str, kept: Collection[str] | None) -> pd.DataFrame:
    """One table of all runs, of its rows those whose name is in `kept`."""
    text = [field.name for field in RUN_TABLES[name] if field.type == pa.string()]
    schema = pa.schema([_encoded(field) if field.name in text else field for field in RUN_TABLES[name]])
    own = _encoded(pa.field("run", pa.string(), nullable=False))
    parts = [pa.schema([own, *schema]).empty_table()]
    for run in ids:
        path = runs / run / f"{name}.parquet"
        if path.exists():
            table = _read_arrow(path, schema, text)
            if kept is not None:
                wanted = pc.is_in(table["name"], pa.array(kept, pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
                table = table.filter(wanted)
            codes = pa.array(np.zeros(len(table), np.int32))
            parts.append(table.add_column(0, own, pa.DictionaryArray.from_arrays(codes, [run])))
    whole = pa.concat_tables(parts).unify_dictionaries()
    parts.clear()  # so that the columns are freed as they are converted
    return whole.to_pandas(split_blocks=True, self_destruct=True)


def _encoded(field: pa.Field) -> pa.Field:
    return field.with_type(pa.dictionary(pa.int32(), pa.string()))
