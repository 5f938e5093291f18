"""Messages for a grid that cannot be run as written: where, which key, which value, and what would be right."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from study.grid.loading import KeyPath


def nearest(word: str, valid: Iterable[str]) -> str:
    """A phrase that suggests the valid word closest to `word`, and lists the valid ones."""
    valid = sorted(map(str, valid))
    close = difflib.get_close_matches(str(word), valid, n=1, cutoff=0.5)
    between = " | " if any("," in word for word in valid) else ", "
    listed = between.join(valid[:12]) + (f"{between}…" if len(valid) > 12 else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"valid: {listed}"


def explain(error: ValidationError, root: type[BaseModel], locate: Callable[[KeyPath], tuple[str, str]]) -> str:
    """One line per problem.

    Args:
        error: what pydantic found.
        root: the class that was validated.
        locate: path of a key -> (`file:line`, the key as its writer knows it).
    """
    lines = []
    for problem in error.errors(include_url=False):
        path, owner, members = _follow(root, problem["loc"])
        place, key = locate(path)
        context = problem.get("ctx", {})
        kinds = [kind for member in members for kind in _kinds(member)]
        match problem["type"]:
            case "extra_forbidden":
                what = _unknown_key(str(path[-1]), owner, members)
            case "union_tag_invalid":
                place, key = locate((*path, "kind"))
                what = f"unknown kind {context['tag']!r}; {nearest(context['tag'], kinds)}"
            case "union_tag_not_found":
                what = f"needs a kind; {nearest('', kinds)}"
            case "missing":
                what = "is required"
            case "literal_error":
                what = f"got {problem['input']!r}; must be {context['expected']}"
            case "too_short" if "input" in problem and problem["input"] and len(lines):
                continue  # the list is empty only because what was in it was refused above
            case "value_error":
                what = problem["msg"].removeprefix("Value error, ")
            case _:
                said = problem["msg"].replace("valid tuple", "list")
                what = f"{said[0].lower()}{said[1:]}, got {problem['input']!r}"
        lines.append(f"{place}: {key}: {what}" if key else f"{place}: {what}")
    return "\n".join(dict.fromkeys(lines))


def _unknown_key(key: str, owner: type[BaseModel], members: list[type[BaseModel]]) -> str:
    for member in members:
        if member is not owner and key in member.model_fields:
            theirs, mine = " or ".join(_kinds(member)), " or ".join(_kinds(owner))
            return f"belongs to kind {theirs}, not to kind {mine} (valid there: {', '.join(owner.model_fields)})"
    return f"unknown key; {nearest(key, owner.model_fields)}"


def _kinds(cls: type[BaseModel]) -> tuple[str, ...]:
    return get_args(cls.model_fields["kind"].annotation) if "kind" in cls.model_fields else ()


def _declared(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for part in get_args(annotation) for cls in _declared(part)]


def _follow(root: type[BaseModel], loc: KeyPath) -> tuple[KeyPath, type[BaseModel], list[type[BaseModel]]]:
    """Path without pydantic's union tags, the class that owns its last key, and the last union on the way."""
    path: list[str | int] = []
    owner, members, options = root, [root], [root]
    for part in loc:
        chosen = [cls for cls in options if part in _kinds(cls)] if len(options) > 1 else []
        if chosen:
            owner, members, options = chosen[0], options, chosen
            continue
        path.append(part)
        if len(options) == 1:
            owner = options[0]
            info = owner.model_fields.get(str(part))
            if info is not None:
                options = _declared(info.annotation)
                members = options or members
    return tuple(path), owner, members
