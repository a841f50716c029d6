"""Inspect the beginning of delimited text: delimiter, column names and sample values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from preprocessing.sources.fields import NULLS
from preprocessing.sources.quoting import ends_in_quotes
from workflows.common.errors import UserError

_SNIFF_BYTES = 1 << 16
_DELIMITERS = ("\t", ";", "|", ",")


def sniff(path: Path, display_name: str) -> str:
    """The beginning of a text file.

    Raises:
        UserError: the file is empty or not text.
    """
    with path.open("rb") as file:
        head = file.read(_SNIFF_BYTES)
    if not head.strip():
        raise UserError(f"{display_name} is empty; expected a log of user, item and time")
    if b"\0" in head:
        raise UserError(f"{display_name} is not a UTF-8 text file; expected CSV, TSV, Parquet or a MovieLens zip")
    return head.decode("utf-8-sig", "replace")


def header_of(path: Path, display_name: str) -> tuple[str, tuple[str, ...]]:
    """(delimiter, column names) of a file with a header; picks the delimiter that yields the most columns.

    Raises:
        UserError: the file is empty, not text, or has no line feeds, or a name contains one.
    """
    line = _first_line(sniff(path, display_name), display_name)
    rows = {delimiter: _fields(line, delimiter) for delimiter in _DELIMITERS}
    delimiter = max(reversed(_DELIMITERS), key=lambda candidate: len(rows[candidate]))
    if ends_in_quotes(line, delimiter):
        raise UserError(
            f"{display_name}, line 1: a column name is not closed or contains a newline; rename that column"
        )
    return delimiter, tuple(name.strip() for name in rows[delimiter])


def delimiter_for(path: Path, display_name: str, names: Sequence[str]) -> str:
    """The delimiter that splits the first row of a file without a header into exactly as many fields as names.

    Raises:
        UserError: none does, or the row is a header after all; the file is empty, not text, or has no line feeds.
    """
    head = sniff(path, display_name).lstrip("\r\n")
    line = _first_line(head, display_name)
    rows = {delimiter: _fields(head, delimiter) for delimiter in _DELIMITERS}
    delimiter = next((one for one, fields in rows.items() if len(fields) == len(names)), None)
    if delimiter is None:
        most = max(map(len, rows.values()))
        raise UserError(
            f"{display_name}: expected {len(names)} fields per row, as named by --columns ({', '.join(names)}), "
            f"got {most}: {line[:80]!r}; name every column in order"
        )
    if [field.strip() for field in rows[delimiter]] == list(names):
        raise UserError(f"{display_name} names its columns in its first line; leave out --columns")
    return delimiter


def column_heads(
    path: Path, display_name: str, delimiter: str, names: Sequence[str], header: bool, wanted: Sequence[str]
) -> dict[str, list[str]]:
    """Non-missing fields of the wanted columns in the first rows, stripped of surrounding blanks.

    Raises:
        UserError: the file is empty, not text, or cannot be split into fields.
    """
    head = sniff(path, display_name)
    if len(head) > _SNIFF_BYTES // 2 and "\n" in head:
        head = head[: head.rfind("\n") + 1]
    try:
        rows = list(csv.reader(io.StringIO(head, newline=None), delimiter=delimiter))[int(header) :]
    except csv.Error as err:
        raise UserError(f"{display_name}: not readable as delimited text ({err}); check its quoting") from None
    heads = {}
    for name in wanted:
        place = names.index(name)
        values = (row[place].strip() for row in rows if len(row) > place)
        heads[name] = [value for value in values if value not in NULLS]
    return heads


def _first_line(head: str, display_name: str) -> str:
    line = head.split("\n", 1)[0].rstrip("\r")
    if "\r" in line:
        raise UserError(f"{display_name} ends its lines with a carriage return alone; convert it to line feeds")
    return line


def _fields(text: str, delimiter: str) -> list[str]:
    """The fields of the first row, which may span several lines."""
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
