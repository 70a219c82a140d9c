"""Strict configs: every mistake at once, with its key, file and line, and the name that was probably meant.

A config is a pydantic model derived from `Config` that stands beside the component it configures; `recipe.py` composes them.
Values come from three places, the later winning: the defaults in the code, the YAML recipe, `key=value` on the command line.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from herdbook.errors import UserError

KeyPath = tuple[str | int, ...]
ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of all configs: unknown keys are errors, and a config does not change once it is built."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


@dataclass(frozen=True)
class Problem:
    """One mistake in a config: the key path it is at, where that stands, and what to say about it."""

    key: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}" if self.key else f"{self.where}: {self.message}"


class ConfigError(UserError):
    """All mistakes of a config at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = "1 mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        listing = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"the recipe has {count}:\n{listing}", todo="mend them and run the same command again")


@dataclass
class Draft:
    """A tree of raw values, and where each of them was written."""

    values: dict[str, Any] = field(default_factory=dict)
    marks: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    source: str = "defaults"

    def where(self, path: KeyPath) -> str:
        """Where the value at `path`, or the nearest written part above it, stands: `recipe.yaml:12`."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]]
        return self.source


def read_yaml(path: Path) -> Draft:
    """Read a YAML mapping and remember the line of each key. Raises UserError when it is absent or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("there is no such recipe", where=path, todo="`herdbook init` writes one to start from") from None
    except UnicodeDecodeError as error:
        raise UserError(f"a recipe is YAML text, this is not UTF-8 ({error.reason})", where=path) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Draft:
    """Parse YAML text to a `Draft`; `source` is the name errors use. Raises UserError when it is not a YAML mapping."""
    draft = Draft(source=source)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return draft
        value = _construct(root, (), draft)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{source}:{mark.line + 1}" if mark else source
        raise UserError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=line) from error
    if not isinstance(value, dict):
        raise UserError("a recipe is a mapping of sections (`corpus:`, `train:`, …)", where=f"{source}:1")
    draft.values = value
    return draft


def _construct(node: yaml.Node, path: KeyPath, draft: Draft) -> Any:
    """The value of a YAML node; notes where each key stands, and keys given twice."""
    draft.marks.setdefault(path, f"{draft.source}:{node.start_mark.line + 1}")
    if len(path) > 64:
        raise yaml.MarkedYAMLError(problem="nested too deeply (an alias may not hold itself)", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*path, key)
            where = f"{draft.source}:{key_node.start_mark.line + 1}"
            if key in mapping:
                draft.problems.append(Problem(dotted(here), where, f"given twice, first at {draft.marks[here]}"))
                continue
            draft.marks[here] = where
            mapping[key] = _construct(value_node, here, draft)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, (*path, index), draft) for index, child in enumerate(node.value)]
    constructor = yaml.SafeLoader("")
    try:
        return constructor.construct_object(node)
    finally:
        constructor.dispose()


def apply_overrides(draft: Draft, overrides: Iterable[str]) -> None:
    """Lay `key=value` words over a draft; values are read as YAML (`3e-4`, `true`, `[a, b]`, `null`).

    Raises UserError for a word without `=`.
    """
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word!r} is not an override", where="command line", todo="write key=value, as in train.tokens=2M")
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise UserError(f"the value of {key} is not valid YAML", where="command line") from error
        set_value(draft, parse_path(key), value, "command line")


def set_value(draft: Draft, path: KeyPath, value: Any, where: str) -> None:
    """Set one value in a draft, making the mappings above it; lists are addressed by index."""
    here: Any = draft.values
    for depth, part in enumerate(path[:-1]):
        if isinstance(here, list):
            here = _item(here, part, path, where)
        else:
            if not isinstance(here.get(str(part)), dict | list):
                here[str(part)] = {}
                draft.marks[path[: depth + 1]] = where
            here = here[str(part)]
    if isinstance(here, list):
        _item(here, path[-1], path, where)
        here[int(path[-1])] = value
    else:
        here[str(path[-1])] = value
    for old in [known for known in draft.marks if known[: len(path)] == path]:
        del draft.marks[old]
    draft.marks[path] = where


def _item(items: list[Any], index: str | int, path: KeyPath, where: str) -> Any:
    if not isinstance(index, int) or not 0 <= index < len(items):
        raise UserError(f"{dotted(path)}: the list has {len(items)} items, counted from 0", where=where)
    return items[index]


def build(model: type[ConfigT], draft: Draft) -> ConfigT:
    """The config that a draft describes. Raises ConfigError with every mistake in it."""
    problems = list(draft.problems)
    try:
        config = model.model_validate(draft.values)
    except ValidationError as error:
        problems += [_problem(model, draft, dict(detail)) for detail in error.errors(include_url=False)]
    if problems:
        raise ConfigError(problems)
    return config


def parse_path(key: str) -> KeyPath:
    """`corpus.sources.0.name` → ("corpus", "sources", 0, "name")."""
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def dotted(path: KeyPath) -> str:
    """("corpus", "sources", 0) → `corpus.sources.0`."""
    return ".".join(str(part) for part in path)


def _problem(model: type[Config], draft: Draft, detail: dict[str, Any]) -> Problem:
    path = _written_path(draft, detail["loc"])
    kind, message = detail["type"], str(detail["msg"])
    if kind == "extra_forbidden":
        message = "there is no such key" + _suggestion(model, path)
    elif kind == "missing":
        message = "this key is needed"
    elif kind in ("literal_error", "enum"):
        message = f"{detail['input']!r} is not one of {detail['ctx']['expected']}" + _near(detail)
    else:
        message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if not isinstance(detail["input"], dict | list) and repr(detail["input"]) not in message:
            message = f"{message[:1].lower()}{message[1:]} (it is {detail['input']!r})"
    return Problem(dotted(path), draft.where(path), message)


def _written_path(draft: Draft, location: KeyPath) -> KeyPath:
    """Pydantic's location without the tags it adds for unions, so that it names keys the user wrote."""
    path: list[str | int] = []
    here: Any = draft.values
    for position, part in enumerate(location):
        if isinstance(here, dict) and part in here:
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif position < len(location) - 1:
            continue
        elif isinstance(part, str) and not part.isidentifier():
            continue
        path.append(part)
    return tuple(path)


def _near(detail: dict[str, Any]) -> str:
    options = [option.strip("'") for option in str(detail["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
    close = difflib.get_close_matches(str(detail["input"]), options, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _suggestion(model: type[Config], path: KeyPath) -> str:
    """`; did you mean train.tokens?`: the nearest key in the same section, else the same key in another one."""
    name = str(path[-1])
    parents = _models_at(model, path[:-1])
    siblings = [key for parent in parents for key in parent.model_fields]
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {dotted((*path[:-1], close[0]))}?"
    everywhere = {leaf: key for key in _all_keys(model, ()) for leaf in [key.rsplit(".", 1)[-1]]}
    elsewhere = difflib.get_close_matches(name, everywhere, n=1, cutoff=0.75)
    if elsewhere:
        return f"; did you mean {everywhere[elsewhere[0]]}?"
    return f"; keys here: {', '.join(sorted(siblings))}" if siblings else ""


def config_types(annotation: Any) -> list[type[Config]]:
    """The config classes an annotation can hold: through Optional, unions, Annotated, lists and dicts."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list, tuple, dict, typing.Annotated):
        return [found for argument in typing.get_args(annotation) for found in config_types(argument)]
    return []


def _models_at(model: type[Config], path: KeyPath) -> list[type[Config]]:
    here = [model]
    for part in path:
        if isinstance(part, int):
            continue
        annotations = [owner.model_fields[part].annotation for owner in here if part in owner.model_fields]
        if annotations:
            here = [found for annotation in annotations for found in config_types(annotation)]
    return here


def _all_keys(model: type[Config], prefix: KeyPath, depth: int = 4) -> Iterable[str]:
    for name, info in model.model_fields.items():
        yield dotted((*prefix, name))
        if depth:
            for inner in config_types(info.annotation):
                yield from _all_keys(inner, (*prefix, name), depth - 1)
