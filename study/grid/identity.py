"""A run's identity: a hash of everything that can change its result, and of nothing else."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from study.grid.fields import Declared, Neutral, NoEffect
from study.grid.models import External
from study.grid.schema import SCHEMA_VERSION, Bundled, Degraded, Folder, Hub, Pairs, Run, Source

SOURCES = (Bundled, Folder, Pairs, Hub, Degraded)


@cache
def _fields(cls: type[Declared]) -> tuple[tuple[str, Neutral | None], ...]:
    """The fields of a class that can change a result, each with the value at which it does not count."""
    kept = []
    for name, field in cls.model_fields.items():
        marks = field.metadata
        if not any(isinstance(mark, NoEffect) for mark in marks):
            kept.append((name, next((mark for mark in marks if isinstance(mark, Neutral)), None)))
    return tuple(kept)


def _canonical(value: Any, content: Callable[[Source | External], str | None]) -> Any:
    if isinstance(value, SOURCES):
        return content(value)
    if isinstance(value, External):
        body = {"kind": value.kind, "weights": content(value)}
        return body if value.network is None else {**body, "network": _canonical(value.network, content)}
    if isinstance(value, Declared):
        return _body(value, lambda item: _canonical(item, content))
    if isinstance(value, tuple | list):
        return [_canonical(item, content) for item in value]
    if isinstance(value, dict):  # as pairs: the order counts, since the first dataset is the one validated on
        return [[key, _canonical(item, content)] for key, item in value.items()]
    return value


def _body(value: Declared, canonical: Callable[[Any], Any]) -> dict[str, Any]:
    drop = value.ineffective()
    body = {}
    for name, neutral in _fields(type(value)):
        item = getattr(value, name)
        if name not in drop and not (neutral and item == neutral.value):
            body[name] = canonical(item)
    return body


def specification(run: Run, fingerprints: Mapping[Source | External, str] | None = None) -> str:
    """Canonical JSON of all that can change the run's result.

    Args:
        run: the resolved run.
        fingerprints: content hash of all that the run reads; without it the images stay out, and two runs are equal
            when they differ in nothing but their data; external weights count by their path, for another file is
            another network.
    """
    return _dumped(_canonical(run, _path_of_weights if fingerprints is None else fingerprints.__getitem__))


def _dumped(body: Any) -> str:
    return json.dumps({"schema": SCHEMA_VERSION, "run": body}, sort_keys=True, separators=(",", ":"))


def _path_of_weights(item: Source | External) -> str | None:
    return item.weights if isinstance(item, External) else None


def sources(run: Run) -> Iterator[Source]:
    """The image sets that the run's result depends on; those of its start are among them."""
    if "data" not in run.ineffective():
        yield run.data.train
    yield from run.evaluation.datasets.values()
    if isinstance(run.start, Run):
        yield from sources(run.start)


def inputs(run: Run) -> Iterator[Source | External]:
    """All that the run's result depends on and that lies outside its declaration: image sets and external weights."""
    yield from sources(run)
    if isinstance(run.model, External):
        yield run.model


def run_id(run: Run, fingerprints: Mapping[Source | External, str]) -> str:
    """The run's folder name: a readable slug and ten hexadecimal digits, such as `catanet-soft-x2-s0-0123456789`.

    Args:
        run: the resolved run.
        fingerprints: content hash of each of `inputs(run)`; `KeyError` where one is absent.
    """
    return _name(run, specification(run, fingerprints))


class Identities:
    """Ids of many runs: what runs share, as those of a cell share all but their seed, is looked at once.

    Args:
        fingerprint: content hash of an input; asked for again and again.
    """

    def __init__(self, fingerprint: Callable[[Source | External], str]) -> None:
        self._fingerprint = fingerprint
        self._known: dict[int, tuple[Any, Any]] = {}  # by place in memory; the value is held, so that it keeps its own

    def __getitem__(self, run: Run) -> str:
        """As `run_id`."""
        return _name(run, _dumped(_body(run, self._once)))

    def _once(self, value: Any) -> Any:
        if not isinstance(value, Declared):
            return value
        if id(value) not in self._known:
            self._known[id(value)] = value, _canonical(value, self._fingerprint)
        return self._known[id(value)][1]


def _name(run: Run, specified: str) -> str:
    digest = hashlib.sha256(specified.encode()).hexdigest()[:10]
    assignment = getattr(run.model, "assignment", None)
    parts = [run.model.kind, assignment.kind if assignment else "", f"x{run.scale}"]
    parts.append("" if "seed" in run.ineffective() else f"s{run.seed}")
    return "-".join([part for part in parts if part] + [digest])
