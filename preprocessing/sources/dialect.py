"""How a text's lines are split into fields, and the same text in the form that Arrow's CSV reader splits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from workflows.common.errors import UserError

RECOGNISED = "recognised delimiters are tab ; | , :: and runs of blanks; name another one with --delimiter"
BLANKS = " "  # the delimiter that stands for any run of blanks and tabs
_SEPARATOR = "\x1f"  # replaces delimiters that are not one byte; ASCII's "unit separator", which no text holds
_QUOTED = rb'"[^"]*(?:""[^"]*)*"?'
_LINE_END = rb"\r\n|\r|\n"


def delimiter_named(text: str) -> str:
    r"""The delimiter that `--delimiter` names: any text; `\t` is a tab, blanks alone and `\s+` are runs of blanks.

    Raises:
        UserError: the text is empty, or holds a quote or a line end.
    """
    if text in (r"\s+", r"\s*", r"\s") or (text and not text.strip(" ")):
        return BLANKS
    text = text.replace(r"\t", "\t")
    if not text or any(character in text for character in '"\r\n'):
        raise UserError(f"--delimiter should be the text between two fields, without quotes or line ends, got {text!r}")
    return text


def delimiter_shown(delimiter: str) -> str:
    """A delimiter's name in messages."""
    return "runs of blanks" if delimiter == BLANKS else repr(delimiter)


@dataclass(frozen=True)
class Dialect:
    """How lines are split into fields.

    Attributes:
        delimiter: between two fields; `BLANKS` is any run of blanks, and ignores those at the ends of a line.
        quoted: fields may be quoted as in RFC 4180; otherwise a quote is a character like any other.
        comment: begins a line that is no row; None: each line is one.
    """

    delimiter: str
    quoted: bool = True
    comment: str | None = None

    @cached_property
    def byte(self) -> str:
        """The delimiter in `plain` text: one character of one byte."""
        is_plain = len(self.delimiter.encode()) == 1 and self.delimiter != BLANKS
        return self.delimiter if is_plain else _SEPARATOR

    def plain(self, data: bytes) -> bytes:
        """The text with delimiters of one byte, and empty lines for comments.

        Args:
            data: whole rows.

        Raises:
            UserError: the text holds the character that replaces a longer delimiter.
        """
        commented = self.comment is not None and self.comment.encode() in data
        if self.quoted and b'"' in data and (commented or self.byte != self.delimiter):
            self._require_free(data)
            return self._trimmed(self._tokens.sub(self._replaced, data))
        if commented:
            data = re.sub(self._comments, b"", data)
        return self.separated(data)

    def separated(self, data: bytes) -> bytes:
        """The text with delimiters of one byte, inside quotes, too. `data` are whole lines; raises as `plain`."""
        if self.byte == self.delimiter:
            return data
        self._require_free(data)
        if self.delimiter != BLANKS:
            return data.replace(self.delimiter.encode(), self.byte.encode())
        data = data.replace(b"\t", b" ")
        while b"  " in data:
            data = data.replace(b"  ", b" ")
        return self._trimmed(data.replace(b" ", self.byte.encode()))

    def rows(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """(line number from 1, begin, end) of each row of `plain` text; empty lines are no rows. Slow."""
        line = first = 1
        begin = 0
        for found in self._row_ends.finditer(data):
            line += len(re.findall(_LINE_END, found[0]))
            if found[0][:1] == b'"':
                continue
            if found.start() > begin:
                yield first, begin, found.start()
            begin, first = found.end(), line
        if begin < len(data):
            yield first, begin, len(data)

    def fields(self, row: bytes) -> list[str]:
        """The fields of one row of `plain` text, without their quotes."""
        text = row.decode("utf-8", "replace")
        if not self.quoted or '"' not in text:
            return text.split(self.byte)
        fields: list[str] = []
        place = 0
        while place <= len(text):
            found = self._field.match(text, place)
            assert found is not None  # the pattern matches an empty field
            fields.append(found[3] if found[1] is None else found[1].replace('""', '"') + found[2])
            place = found.end() + 1
        return fields

    def is_open(self, row: bytes) -> bool:
        """Whether `plain` text ends inside a quoted field."""
        tokens = [found[0] for found in self._row_ends.finditer(row) if found.end() == len(row)]
        return bool(tokens) and tokens[-1].count(b'"') % 2 == 1

    @cached_property
    def field_begin(self) -> bytes:
        """Pattern: the place before a field in `plain` text."""
        return rb"(?:\A|(?<=[\r\n" + re.escape(self.byte.encode()) + rb"]))"

    @cached_property
    def _comments(self) -> bytes:
        return rb"(?:\A|(?<=[\r\n]))" + re.escape((self.comment or "").encode()) + rb"[^\r\n]*"

    @cached_property
    def _tokens(self) -> re.Pattern[bytes]:
        """Quoted fields, comments and delimiters of text that is not `plain` yet."""
        delimiter = rb"[ \t]" if self.delimiter == BLANKS else re.escape(self.delimiter.encode())
        patterns = [rb"(?:\A|(?<=[\r\n])|(?<=" + delimiter + rb"))" + _QUOTED]
        if self.comment is not None:
            patterns.append(self._comments)
        return re.compile(b"|".join([*patterns, delimiter + (b"+" if self.delimiter == BLANKS else b"")]))

    def _replaced(self, token: re.Match[bytes]) -> bytes:
        if token[0][:1] == b'"':
            return token[0]
        at_line = token.start() == 0 or token.string[token.start() - 1] in b"\r\n"
        is_comment = self.comment is not None and at_line and token[0].startswith(self.comment.encode())
        return b"" if is_comment else self.byte.encode()

    def _trimmed(self, data: bytes) -> bytes:
        if self.delimiter != BLANKS:
            return data
        separator = self.byte.encode()
        for end in (b"\n", b"\r"):
            data = data.replace(end + separator, end).replace(separator + end, end)
        return data.removeprefix(separator).removesuffix(separator)

    def _require_free(self, data: bytes) -> None:
        if self.byte != self.delimiter and self.byte.encode() in data:
            raise UserError(
                f"the text holds the control character {self.byte!r}, which stands for the delimiter "
                f"{delimiter_shown(self.delimiter)} while it is read; replace one of them"
            )

    @cached_property
    def _row_ends(self) -> re.Pattern[bytes]:
        return re.compile(self.field_begin + _QUOTED + b"|" + _LINE_END if self.quoted else _LINE_END)

    @cached_property
    def _field(self) -> re.Pattern[str]:
        rest = f"([^{re.escape(self.byte)}]*)"
        return re.compile(f'"([^"]*(?:""[^"]*)*)"?{rest}|{rest}')
