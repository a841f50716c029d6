"""YAML and JSON that others wrote: bounded in size, depth and number of values, without surprises in their types."""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from workflows.common.errors import UserError, bounded

_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 1 << 20, 500_000, 50
_MAX_NODES = 50_000  # of YAML, which is read at 20,000 a second; a merged name counts, too
MAX_PATH = 4096  # characters of a path, which Linux limits to as many bytes
_MAX_DIGITS = 1_000  # of an integer of JSON
_SHOWN = 240  # characters of a reason
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_UNWRITABLE_IN_PATHS = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # bytes that are not UTF-8 are \udc80 … \udcff


class _Loader(yaml.SafeLoader):
    """YAML with JSON's types only: 1:30 is text, not 90; 2024-01-31 is text, not a date; no name appears twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._nodes, self._depth = self._nodes + 1, self._depth + 1
        self._bound()
        if self._depth > _MAX_DEPTH + 1:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        names = set()
        for name, _ in node.value:
            if (name.tag, str(name.value)) in names:
                raise yaml.MarkedYAMLError(
                    problem=f"{bounded(name.value)!r} appears twice", problem_mark=name.start_mark
                )
            if isinstance(name, yaml.ScalarNode):
                names.add((name.tag, name.value))
        return node

    def flatten_mapping(self, node: Any) -> None:
        merged = [value for name, value in node.value if name.tag == _TAG + "merge"]
        for value in merged:
            self._bound(sum(len(each.value) for each in (value.value if value.id == "sequence" else [value])))
        super().flatten_mapping(node)
        self._bound(len(node.value) if merged else 0)

    def _bound(self, more: int = 0) -> None:
        self._nodes += more
        if self._nodes > _MAX_NODES:
            raise ValueError(f"it has more than {_MAX_NODES:,} values (merges of merges?)")

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError):  # PyYAML passes on any exception
            kind = node.tag.removeprefix(_TAG)
            problem = f"{bounded(str(node.value))!r} is no usable {bounded(kind)}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


_TAG = "tag:yaml.org,2002:"
_KEPT = {_TAG + name for name in ("null", "bool", "int", "float", "merge")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _without_sexagesimal(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda loader, node: loader.construct_scalar(node) if ":" in node.value else construct(loader, node)


_Loader.add_constructor("tag:yaml.org,2002:int", _without_sexagesimal(yaml.SafeLoader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _without_sexagesimal(yaml.SafeLoader.construct_yaml_float))


def load_yaml(path: Path, kind: str, remedy: str = "", paths: bool = False) -> Any:
    """The content of a YAML file: dicts, lists, text, numbers, booleans and None.

    Args:
        kind: what the file should be, for messages ("a feature spec").
        remedy: what to do if it is not.
        paths: whether text may be a path that is not UTF-8.

    Raises:
        UserError: the file is unreadable, too large, not YAML, or holds what plain YAML does not.
    """
    with _refusing(path, kind, remedy):
        text = _read(path, _MAX_BYTES)
        try:
            content = yaml.load(text, _Loader)
        except yaml.MarkedYAMLError as err:
            mark = err.problem_mark
            place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
            raise ValueError(f"not readable YAML ({bounded(str(err.problem), _SHOWN // 2)}{place})") from None
        except (yaml.YAMLError, RecursionError) as err:
            raise ValueError(f"not readable YAML ({' '.join(str(err).split())})") from None
        _check(content, paths)
    return content


def load_json(path: Path, kind: str, remedy: str = "", max_bytes: int = _MAX_BYTES, paths: bool = False) -> Any:
    """The content of a JSON file; see `load_yaml` for the arguments and errors."""
    with _refusing(path, kind, remedy):
        return _json(_read(path, max_bytes), paths)


def parse_json(text: str, path: Path, kind: str, remedy: str = "") -> Any:
    """The content of JSON text that stands in a file; see `load_yaml` for the arguments and errors."""
    with _refusing(path, kind, remedy):
        return _json(text)


@contextmanager
def _refusing(path: Path, kind: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise UserError(f"{path} is not {kind}: {err.strerror or err}{remedy and '; ' + remedy}") from None
    except ValueError as err:
        raise UserError(f"{path} is not {kind}: {bounded(str(err), _SHOWN)}{remedy and '; ' + remedy}") from None


def _read(path: Path, max_bytes: int) -> str:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a file")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise ValueError(f"not UTF-8 text ({err.reason} at byte {err.start})") from None


def _json(text: str, paths: bool = False) -> Any:
    def refuse(token: str) -> Any:
        raise ValueError(f"{token} is not a number of JSON")

    def integer(digits: str) -> int:
        return int(digits) if len(digits) <= _MAX_DIGITS else refuse(bounded(digits))

    def named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise ValueError(f"{bounded(twice)!r} appears twice in one object")
        return names

    if sum(map(text.count, ",[{")) > _MAX_VALUES:  # parsed, they take 70 times the memory
        raise ValueError(f"it holds more than {_MAX_VALUES:,} values")
    try:
        content = json.loads(text, parse_constant=refuse, parse_int=integer, object_pairs_hook=named)
    except (ValueError, RecursionError) as err:
        raise ValueError(f"not readable JSON ({err})") from None
    _check(content, paths)
    return content


def _check(content: Any, paths: bool) -> None:
    """Refuse too many or too deep values, and values that no text file can hold; each use of an alias counts.

    Raises:
        ValueError: with the path of the value.
    """
    values: list[tuple[Any, str, int]] = [(content, "", 0)]
    count = 0
    while values:
        value, path, depth = values.pop()
        where = path[1:] or "the file"
        count += 1
        if count + (len(value) if isinstance(value, dict | list) else 0) > _MAX_VALUES:
            raise ValueError(f"it holds more than {_MAX_VALUES:,} values (aliases of aliases?)")
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        if isinstance(value, dict):
            values += [(name, path, depth + 1) for name in value]
            values += [(inner, f"{path}.{bounded(str(name))}", depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            values += [(inner, f"{path}.{index}", depth + 1) for index, inner in enumerate(value)]
        elif isinstance(value, str):
            if (_UNWRITABLE_IN_PATHS if paths else _UNWRITABLE).search(value):
                raise ValueError(f"{where} holds a NUL or half of a surrogate pair")
        elif not isinstance(value, bool | int | float | None):
            raise ValueError(f"{where} holds a {type(value).__name__}, expected text, numbers, lists or names")
        elif isinstance(value, int) and abs(value) >= 1 << 64:
            raise ValueError(f"{where} holds an integer beyond 64 bits")
