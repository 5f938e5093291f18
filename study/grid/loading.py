"""Grid and budget files: YAML in which every key knows its line, `extends`, and the merging of settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from study import StudyError

KeyPath = tuple[str | int, ...]
LIMIT_BYTES = 1_000_000
LIMIT_DEPTH = 32  # of nested mappings and lists, dots counted; a run needs eight
PLAIN = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
WHOLE = {"datasets"}  # a mapping under one of these keys is replaced, not merged
TREES = {"base", "variants", "references", "models", "objective", "data", "optimisation", "evaluation", "analysis"}


class GridError(StudyError):
    """A grid that cannot be run as written; the message names file, line, key and what would be right."""


class GridLoader(yaml.SafeLoader):
    """YAML 1.2 scalars (`2e-4` is a number, `no` a word), and no aliases, which can expand without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise GridError(f"{mark.name}:{mark.line + 1}: YAML aliases are not read; use `extends` to share settings")
        return super().compose_node(parent, index)


GridLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|false)$", "tf"),
    ("int", r"^[-+]?[0-9][0-9_]*$", "-+0123456789"),
    ("float", r"^[-+]?(?:[0-9][0-9_]*\.?[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+)$", "-+.0123456789"),
    ("null", r"^(?:null|~|)$", ["n", "~", ""]),
):
    GridLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


@dataclass
class Document:
    """A grid or budget file, with its dotted keys opened, and where each of its keys was written.

    Attributes:
        tree: the content, parents merged in.
        places: path of every key -> (file, line); the file nearest to the question wins.
    """

    tree: dict[str, Any]
    places: dict[KeyPath, tuple[Path, int]] = field(default_factory=dict)

    def place(self, *paths: KeyPath) -> str:
        """`file:line` of the first of `paths` that was written; else of the longest part of one that was."""
        for path in paths:
            if path in self.places:
                return _spell(self.places[path])
        longest = max((path[:n] for path in paths for n in range(len(path)) if path[:n] in self.places), key=len)
        return _spell(self.places[longest])


def _spell(place: tuple[Path, int]) -> str:
    return f"{place[0]}:{place[1]}"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lays `over` on `base`, sharing what is not touched.

    Mappings are merged key by key, unless their `kind` differs or the key is `datasets`; all else is replaced.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and key not in WHOLE
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def nested(path: str, value: Any) -> dict[str, Any]:
    """`nested("a.b", 1)` is `{"a": {"b": 1}}`."""
    head, _, rest = path.partition(".")
    return {head: nested(rest, value) if rest else value}


def read_document(path: Path) -> Document:
    """Reads one YAML file and the files it extends.

    Raises:
        GridError: the file is missing, too large, not YAML, not a mapping, names a key twice, or extends itself.
    """
    return _read(path, ())


def _read(path: Path, children: tuple[Path, ...]) -> Document:
    if "\0" in str(path):
        raise GridError(f"{str(path)!r} is no file name")
    try:
        if path.resolve() in children:
            raise GridError(f"{path} extends itself: {' -> '.join(map(str, (*children, path.resolve())))}")
        if path.exists() and not path.is_file():
            raise GridError(f"{path} is no regular file")
        if path.stat().st_size > LIMIT_BYTES:
            raise GridError(f"{path} is larger than {LIMIT_BYTES} bytes: not a grid")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise GridError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise GridError(f"{path} is not UTF-8 text") from None
    try:
        loader = GridLoader(text)
        loader.name = str(path)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise GridError(f"{path}:1: a grid is a mapping of keys to values")
        document = Document({})
        document.places[()] = (path, 1)
        document.tree = _open(loader, node, (), document, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise GridError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise GridError(f"{path}: nested too deeply to be a grid") from None
    parent = document.tree.pop("extends", None)
    if parent is None:
        return document
    if not isinstance(parent, str):
        raise GridError(f"{document.place(('extends',))}: extends: must be one file name, got {parent!r}")
    below = _read(path.parent / parent, (*children, path.resolve()))
    return Document(merge(below.tree, document.tree), below.places | document.places)


def _open(loader: GridLoader, node: yaml.Node, path: KeyPath, document: Document, file: Path) -> Any:
    """The value of a node, with places noted and, inside partial runs, dotted keys opened."""
    if len(path) > LIMIT_DEPTH:
        raise GridError(f"{file}:{node.start_mark.line + 1}: nested too deeply to be a grid")
    if not isinstance(node, yaml.ScalarNode) and node.tag not in PLAIN:
        raise GridError(f"{file}:{node.start_mark.line + 1}: the tag {node.tag} is not read; remove it")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.places[(*path, index)] = (file, item.start_mark.line + 1)
        return [_open(loader, item, (*path, index), document, file) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(loader, node, file)
    tree: dict[str, Any] = {}
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = _scalar(loader, key_node, file) if isinstance(key_node, yaml.ScalarNode) else key_node.value
        if isinstance(key, bool | int | float) or key is None:
            key = key_node.value
        if not isinstance(key, str):
            raise GridError(f"{file}:{line}: a key must be a word, got {key!r}")
        if key in seen:
            raise GridError(f"{file}:{line}: {key} is given twice, first on line {seen[key]}")
        seen[key] = line
        # names of cells (one level below `variants`) keep their dots
        opens = bool(path) and path[0] in TREES and path not in (("variants",), ("references",))
        parts = tuple(key.split(".")) if opens else (key,)
        if key.count(".") > LIMIT_DEPTH:
            raise GridError(f"{file}:{line}: nested too deeply to be a grid")
        for depth in range(1, len(parts) + 1):
            document.places.setdefault((*path, *parts[:depth]), (file, line))
        value = _open(loader, value_node, (*path, *parts), document, file)
        level = tree
        for part in parts[:-1]:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                raise GridError(f"{file}:{line}: {key} is set twice, once as a value and once as a mapping")
        if parts[-1] in level and not (isinstance(level[parts[-1]], dict) and isinstance(value, dict)):
            raise GridError(f"{file}:{line}: {key} is given twice, once with dots")
        level[parts[-1]] = merge(level[parts[-1]], value) if parts[-1] in level else value
    return tree


def _scalar(loader: GridLoader, node: yaml.Node, file: Path) -> Any:
    """A scalar's value; PyYAML's own readers raise whatever they come upon (`!!bool maybe`, a number without end)."""
    try:
        return loader.construct_object(node, deep=True)
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
        kind = node.tag.rpartition(":")[2]
        shown = str(node.value)[:40]
        raise GridError(f"{file}:{node.start_mark.line + 1}: {shown!r} cannot be read as {kind}") from None
