"""A run's folder: atomic writes, and one reader that returns tidy frames over any number of runs.

A folder `results/runs/<id>/` holds `run.json`, `provenance.json`, `status.json`, the tables of `schemas`,
`weights.safetensors`, `state/`, `samples/`, and `DONE`, written last.
"""

import errno
import itertools
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study import StudyError

if TYPE_CHECKING:  # a second to import, and a plan or a state needs no table
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

MERGED = b"runs"  # in the metadata of a file that holds several runs: their ids, one for each row group

POINTS = 100  # of a training curve that is read


class RecordError(StudyError):
    """A stored record is missing or not what it should be; the message names the file."""


def replace(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash at any time, sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = name_partial(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails names none
        raise
    finally:
        partial.unlink(missing_ok=True)


def name_partial(path: Path) -> Path:
    """Where a file is written before it is put in its place: a name that no process of any machine uses too."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.partial")


def remove_partials(folder: Path) -> None:
    """Removes what processes left that were killed while they wrote; only for whoever owns the folder."""
    for path in folder.rglob(".*.partial"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a mapping as indented JSON, atomically."""
    replace(path, to_json(value).encode())


def to_json(value: Mapping[str, Any]) -> str:
    """A mapping as it stands in a record."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises `RecordError` naming the file when it is absent or broken."""
    try:
        return json.loads(_read_text(path))
    except FileNotFoundError:
        raise RecordError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not valid JSON: {error}") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:  # over NFS a file that is replaced meanwhile is stale: the new one is there
        if error.errno != errno.ESTALE:
            raise
        return path.read_text(encoding="utf-8")


def write_table(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes `rows` as `<name>.parquet` under the schema of that name; equal rows give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from study.records.schemas import TABLES

    table = pa.Table.from_pylist(list(rows), schema=TABLES[name])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    replace(folder / f"{name}.parquet", sink.getvalue().to_pybytes())


def read_table(folder: Path, name: str) -> "pd.DataFrame":
    """Reads one table of one run; raises `RecordError` when it is absent, broken or of another schema."""
    from study.records.schemas import TABLES

    with Tables() as files:
        return files.read(folder / f"{name}.parquet", TABLES[name]).to_pandas()


class Tables(ExitStack):
    """Tables of runs being read; of merged ones (see `compaction`) the file stays open."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[str, tuple[pq.ParquetFile, dict[str, int]]] = {}

    def read(self, path: Path, schema: "pa.Schema", encoded: Sequence[str] = ()) -> "pa.Table":
        """The table of the run in whose folder `path` lies; the columns `encoded` become dictionaries."""
        import pyarrow as pa

        try:
            table = self._table(path, schema, encoded)
            table.validate(full=True)
        except FileNotFoundError:
            raise RecordError(f"{path} is missing") from None
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            raise RecordError(f"{path} is not a readable parquet file: {error}") from None
        if not table.schema.equals(schema):
            raise RecordError(f"{path} has columns {table.schema.names}, expected {schema.names}")
        return table

    def _table(self, path: Path, schema: "pa.Schema", encoded: Sequence[str]) -> "pa.Table":
        import pyarrow.parquet as pq

        try:
            merged = os.path.normpath(path.parent / path.readlink())
        except OSError:  # no link: a file of its own
            merged = None
        if merged in self._open:
            file, groups = self._open[merged]
        else:
            file = pq.ParquetFile(merged or path, read_dictionary=list(encoded), page_checksum_verification=True)
            held = json.loads((file.schema_arrow.metadata or {}).get(MERGED, b"null"))
            if held is None:  # a file opens in half the time that a data set takes
                with file:
                    return file.read(use_threads=False)
            self.callback(file.close)
            groups = {run: index for index, run in enumerate(held)}
            self._open[merged or str(path)] = file, groups
        if path.parent.name not in groups:
            raise ValueError(f"it holds other runs, not {path.parent.name}")
        return file.read_row_group(groups[path.parent.name], columns=schema.names, use_threads=False)


@dataclass(frozen=True)
class Records:
    """Tidy frames over several runs; each has a first column `run` (the run's id) before the schema's columns.

    What `read` returns has every column of text as categories, in the order in which they are met.
    """

    images: "pd.DataFrame"
    scalars: "pd.DataFrame"
    costs: "pd.DataFrame"


def read(runs: Path, ids: Iterable[str]) -> Records:
    """Reads the tables of the runs `ids` under the folder `runs`; a table that a run lacks adds no rows.

    A curve of more than `POINTS` scalars, which of a long training are most of all rows, is averaged in as many bins.

    Raises:
        RecordError: a file is broken or of another schema.
    """
    from study.records.schemas import RUN_TABLES

    ids = list(ids)
    return Records(**{name: _read_runs(runs, ids, name) for name in RUN_TABLES})


def _read_runs(runs: Path, ids: Sequence[str], name: str) -> "pd.DataFrame":
    import numpy as np
    import pyarrow as pa

    from study.records.schemas import RUN_TABLES

    text = [field.name for field in RUN_TABLES[name] if field.type == pa.string()]
    schema = pa.schema([_encoded(field) if field.name in text else field for field in RUN_TABLES[name]])
    own = _encoded(pa.field("run", pa.string(), nullable=False))
    parts = [pa.schema([own, *schema]).empty_table()]
    with Tables() as files:
        for run in ids:
            path = runs / run / f"{name}.parquet"
            if path.exists():
                table = files.read(path, schema, text)
                if name == "scalars":
                    table = _thinned(table)
                codes = pa.array(np.zeros(len(table), np.int32))
                parts.append(table.add_column(0, own, pa.DictionaryArray.from_arrays(codes, [run])))
    whole = pa.concat_tables(parts).unify_dictionaries()
    parts.clear()  # so that the columns are freed as they are converted
    return whole.to_pandas(split_blocks=True, self_destruct=True)


def _thinned(table: "pa.Table") -> "pa.Table":
    """The scalars of one run; of a long curve the mean of each bin, at its last step."""
    import numpy as np
    import pyarrow as pa

    if len(table) <= POINTS:
        return table
    table = table.combine_chunks()
    names = table["name"].combine_chunks()
    codes, steps, values = names.indices.to_numpy(), table["step"].to_numpy(), table["value"].to_numpy()
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names.dictionary) + 1))
    parts: list[tuple[np.ndarray, ...]] = []
    for low, high in itertools.pairwise(bounds):
        rows = order[low:high]
        edges = np.linspace(0, len(rows), min(POINTS, len(rows)) + 1).astype(int)
        if len(rows):
            means = np.add.reduceat(values[rows], edges[:-1]) / np.diff(edges)
            parts.append((steps[rows][edges[1:] - 1], codes[rows][edges[1:] - 1], means))
    step, code, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    name = pa.DictionaryArray.from_arrays(pa.array(code, pa.int32()), names.dictionary)
    columns = {"step": pa.array(step), "name": name, "value": pa.array(value)}
    return pa.table([columns[field.name] for field in table.schema], schema=table.schema)


def _encoded(field: "pa.Field") -> "pa.Field":
    import pyarrow as pa

    return field.with_type(pa.dictionary(pa.int32(), pa.string()))
