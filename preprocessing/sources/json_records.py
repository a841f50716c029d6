"""Records of JSON lines by Python's parser: to recognise the format, decide types, and name the line of an error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from preprocessing.sources.fields import MISSING_WORDS, NULLS
from preprocessing.sources.ids import is_text
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SAMPLE_BYTES = 1 << 18
_MAX_LINE_BYTES = 1 << 26
_MAX_EXACT = 2**53  # of floats
_ARRAY = "holds a JSON array, expected one object a line; convert it with jq -c '.[]' FILE > NEW"
_FROM_PYTHON = (
    "python -c 'import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]' < FILE > NEW"
)


@dataclass(frozen=True)
class Sample:
    """The first records of a file; at least one."""

    source: SourceFile
    records: list[dict[str, Any]]

    @property
    def names(self) -> list[str]:
        """All keys, in order of occurrence."""
        return list(dict.fromkeys(chain.from_iterable(self.records)))

    def values(self, name: str) -> list[Any]:
        """The values of a key that are not missing."""
        found = [record[name] for record in self.records if not _is_missing(record.get(name), NULLS)]
        if all(isinstance(value, str) for value in found):
            return found
        return [value for value in found if not _is_missing(value, MISSING_WORDS)]


def _is_missing(value: Any, words: Collection[str]) -> bool:
    return value is None or value != value or (isinstance(value, str) and (value.strip() in words or not value.strip()))


def is_json_lines(source: SourceFile) -> bool:
    """Whether the first line of a file that is not blank is a JSON object.

    Raises:
        UserError: it is JSON in another layout, or a Python literal.
    """
    with source.path.open("rb") as file:
        lines = iter(lambda: file.readline(_MAX_LINE_BYTES), b"")
        first = next((line for line in (one.removeprefix(BYTE_ORDER_MARK).strip() for one in lines) if line), b"")
    if not first.startswith((b"{", b"[")):
        return False
    try:
        is_object = isinstance(_parsed(first), dict)
        problem = "" if is_object else _ARRAY
    except ValueError as err:
        is_object, problem = False, _other_layout(first, err)
    if problem:
        raise UserError(f"{source.display_name} {problem}")
    return is_object


def _other_layout(first: bytes, err: ValueError) -> str:
    """What is wrong with a file whose first line is not JSON, if it is meant to be; else empty."""
    if re.match(rb"\{\s*u?'", first):
        return f"holds Python literals (single quotes), which are not JSON; convert them with {_FROM_PYTHON}"
    if first == b"[" or re.match(rb"\[\s*\{", first):
        return _ARRAY
    if first == b"{" or re.match(rb'\{\s*"[^"]*"\s*:', first):
        return (
            f"holds JSON, but its first line is not an object ({err}); if objects are spread over lines, convert them "
            "with jq -c . FILE > NEW, or with jq -c '.KEY[]' FILE > NEW if they are in a list under a key"
        )
    return ""


def sample_of(source: SourceFile) -> Sample:
    """The records of the first `_SAMPLE_BYTES`, whole lines; more if these are blank.

    Raises:
        UserError: a line is not a JSON object.
    """
    data = b""
    with source.path.open("rb") as file:
        while not data.strip() and (block := file.read(_SAMPLE_BYTES) + file.readline()):
            data += block
    return Sample(source, list(records(data, lambda line: f"{source.display_name}, line {line}")))


def records(data: bytes, place: Callable[[int], str]) -> Iterator[dict[str, Any]]:
    """The object of each line that is not blank.

    Args:
        place: location of a line (from 1), for messages.

    Raises:
        UserError: a line is not a JSON object; names its place.
    """
    for number, line in enumerate(data.removeprefix(BYTE_ORDER_MARK).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = _parsed(line)
        except ValueError as err:
            raise UserError(
                f"{place(number)}: not JSON ({err}): {_shown(line)}; fix or remove that line, and check whether the "
                "file is complete"
            ) from None
        if not isinstance(record, dict):
            raise UserError(f"{place(number)}: expected a JSON object, got {_shown(line)}; fix or remove that line")
        yield record


def _parsed(line: bytes) -> Any:
    """A line as JSON; bytes that are not UTF-8 become lone surrogates.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _shown(line: bytes) -> str:
    return repr(line[:80].decode("utf-8", "replace"))


def spelled(value: Any) -> str | None:
    """A value as text, whole numbers in decimal digits; null stays None.

    Raises:
        ValueError: it is neither a number nor text.
    """
    if value is None or isinstance(value, str):
        (value or "").encode()  # a lone surrogate is a ValueError
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return (
        str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < _MAX_EXACT else str(value)
    )


def raw_type(values: list[Any], target: pa.DataType) -> pa.DataType | None:
    """The type in which Arrow reads values like these; None if there is none.

    Args:
        target: the type that they are to become; decides if there are no values.
    """
    kinds = {type(value) for value in values}
    if not kinds:
        return pa.string() if is_text(target) or pa.types.is_timestamp(target) else target
    if kinds == {int}:
        low, high = min(values), max(values)
        signed = low >= -(2**63) and high < 2**63
        return pa.int64() if signed else pa.uint64() if low >= 0 and high < 2**64 else None
    if kinds == {float} or (kinds == {int, float} and pa.types.is_floating(target)):
        return pa.float64()
    return pa.string() if kinds == {str} else None
