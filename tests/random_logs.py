"""Random delimited logs in every spelling, with the rows that a reader should find in them; for property tests."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from preprocessing.sources.dialect import BLANKS
from preprocessing.sources.fields import MISSING_WORDS, NULLS
from preprocessing.sources.log import ReadOptions

ONE_BYTE = [",", "\t", ";", "|"]
DELIMITERS = [*ONE_BYTE, "::", " | ", "<sep>", "§", BLANKS]
COLUMNS = ("user", "item", "time", "note")
_TEXT = st.text(st.sampled_from('ab é",;|:\t\n#'), max_size=6)


@dataclass(frozen=True)
class RandomLog:
    """A log as text.

    Attributes:
        text: of the file.
        records: each row as it is spelled, without its line end.
        columns: the names of its columns, in order; they are its header unless `options` name them.
        rows: (user, item, time) of each row; None where missing.
        quoted: fields with special characters are quoted.
        options: how to read it.
    """

    text: str
    records: list[str]
    columns: list[str]
    rows: list[tuple[Any, Any, Any]]
    quoted: bool
    options: ReadOptions

    @property
    def is_ambiguous(self) -> bool:
        """Whether a row runs over lines with all fields, and a digit in the time; the last of three may differ."""
        time = self.columns.index("time")
        for record in self.records:
            lines = [self._split(line) for line in record.split("\n") if self._split(line) != [""]]
            lines = [fields for fields in lines if not self.options.comment or fields[0][:1] != self.options.comment]
            lines = lines[:-1] if len(lines) > 2 else lines
            if len(lines) > 1 and all(len(fields) == len(self.columns) for fields in lines):
                times = [fields[time].strip(' "') for fields in lines]
                if all(re.search(r"\d", field) or field in (*NULLS, *MISSING_WORDS) for field in times):
                    return True
        return False

    def _split(self, line: str) -> list[str]:
        delimiter = self.options.delimiter or ","
        return line.split() or [""] if delimiter == BLANKS else line.split(delimiter)

    def read_by_csv(self) -> list[tuple[Any, ...]]:
        """(user, item, time) as Python's csv module spells them; for delimiters of one byte, without comments."""
        style = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        reader = csv.reader(io.StringIO(self.text, newline=""), delimiter=self.options.delimiter or ",", quoting=style)
        rows = [row for row in reader if row][int(self.options.names is None) :]
        return [tuple(row[self.columns.index(name)] for name in COLUMNS[:3]) for row in rows]


@st.composite
def random_logs(
    draw: st.DrawFn,
    quoted: bool | None = None,
    delimiters: Sequence[str] = DELIMITERS,
    comments: Sequence[str | None] = (None, "#"),
) -> RandomLog:
    """Draw a log; its options name the delimiter.

    Args:
        quoted: whether fields are quoted; None: either.
    """
    quoted = draw(st.booleans()) if quoted is None else quoted
    delimiter = draw(st.sampled_from(delimiters))
    style = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])) if quoted else csv.QUOTE_NONE
    comment = draw(st.sampled_from(comments))
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    columns = list(draw(st.permutations(COLUMNS)))
    integers = {name: draw(st.booleans()) for name in COLUMNS[:2]}

    def field(name: str, number: int) -> tuple[str, Any]:
        """(spelling, value)"""
        if name == "time" or integers.get(name):
            missing = draw(st.sampled_from([*NULLS, "NA", "None", " n/a"] + [None] * 20))
            value = number if name == "time" else draw(st.integers(-(2**63), 2**63 - 1))
            spelling = (
                draw(st.sampled_from([f"{value}", f"{value}", f"{value}.0", f" {value}"]))
                if name != "time"
                else str(value)
            )
            return (spelling, value) if missing is None else (missing, None)
        spelling = draw(_TEXT if name == "note" else st.one_of(_TEXT, st.sampled_from(NULLS)))
        spelling = f"x{spelling}" if name == "note" else spelling  # so that no row is blank
        return spelling, None if spelling in NULLS or not spelling.strip() else spelling.strip()

    def spelled(text: str, is_first: bool) -> str:
        special = set('"\n\r') | set(" \t" if delimiter == BLANKS else delimiter[0])
        if style == csv.QUOTE_NONE:
            text = "".join(character for character in text if character not in special)
            text = text.lstrip("#") if is_first else text
            return text or ("NULL" if delimiter == BLANKS else "")
        if style == csv.QUOTE_ALL or special & set(text) or (is_first and text[:1] == "#") or not text:
            return '"' + text.replace('"', '""') + '"'
        return text

    def joined(fields: list[str]) -> str:
        blanks = st.sampled_from([" ", "\t", "   ", " \t "])
        return "".join(
            text + ("" if place == len(fields) - 1 else draw(blanks) if delimiter == BLANKS else delimiter)
            for place, text in enumerate(fields)
        )

    records, rows = [], []
    for number in range(draw(st.integers(1, 8))):
        row = {name: field(name, 10**9 + number) for name in columns}
        texts = [spelled(row[name][0], place == 0) for place, name in enumerate(columns)]
        records.append(joined(texts))
        if style == csv.QUOTE_NONE:  # without the characters that cannot be spelled
            row = {name: (text, _value(text, row[name][1])) for name, text in zip(columns, texts, strict=True)}
        rows.append(tuple(row[name][1] for name in COLUMNS[:3]))
    header = draw(st.booleans())
    lines = [joined(columns)] if header else []
    for record in records:
        lines += [*draw(st.sampled_from([[], [], [""], ["#a"] if comment else []])), record]
    text = newline.join(lines) + draw(st.sampled_from(["", newline, newline * 2]))
    options = ReadOptions(delimiter=delimiter, comment=comment, names=None if header else tuple(columns))
    return RandomLog(text, records, columns, rows, quoted, options)


def _value(text: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return None if text in NULLS or not text.strip() else text.strip()


@st.composite
def logs_with_lone_quotes(draw: st.DrawFn) -> RandomLog:
    """Draw a log without quoting, with quotes planted in its records; `rows` are those without the quotes."""
    log = draw(random_logs(quoted=False))
    text = log.text
    for _ in range(draw(st.integers(1, 4))):
        delimiter = log.options.delimiter or ","
        edges = [found.end() for found in re.finditer(f"^|\n|{re.escape(delimiter)}", text)]
        place = draw(st.one_of(st.sampled_from(edges), st.integers(0, len(text))))
        around = text[max(0, place - 1) : place + 1]
        # Not within a delimiter, nor as a field of its own.
        within = any(text[max(0, place - back) :].startswith(delimiter) for back in range(1, len(delimiter)))
        if place > text.find("\n") and not within and around != "\r\n" and (delimiter != BLANKS or around.strip()):
            text = text[:place] + '"' + text[place:]
    return replace(log, text=text)
