"""Interface of a log source: pieces that can be read independently, each into one Arrow table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class LogColumns:
    """Column names of the log by role. `time` is None if times are not read, `rating` if nothing is filtered by it."""

    user: str
    item: str
    time: str | None
    rating: str | None = None

    @property
    def by_role(self) -> dict[str, str]:
        """The column of each role: `user`, `item`, and `time` and `rating` unless they are None."""
        return {role: name for role, name in asdict(self).items() if name is not None}

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return list(dict.fromkeys(self.by_role.values()))

    def without_rating(self) -> LogColumns:
        return replace(self, rating=None)

    def without_time(self) -> LogColumns:
        return replace(self, time=None)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read a log where its files do not say; None: detect it.

    Attributes:
        names: column names of text without a header, in order; None if the first line names them.
        delimiter: between the fields of a line; blanks stand for any run of blanks.
        quoting: "minimal": fields may be quoted, as in RFC 4180; "none": a quote is a character like any other.
        encoding: of text; a name that Python knows.
        comment: text that begins a line to skip.
        time_format: of `strptime`.
        text_ids: the id columns ("user", "item") to read as text, whatever they look like.
        whole_ids: the id columns to read as integers, whatever they look like.
        times: whether to read times, if the columns are to be recognised.
    """

    names: tuple[str, ...] | None = None
    delimiter: str | None = None
    quoting: str | None = None
    encoding: str | None = None
    comment: str | None = None
    time_format: str | None = None
    text_ids: frozenset[str] = frozenset()
    whole_ids: frozenset[str] = frozenset()
    times: bool = True


DETECT = ReadOptions()


class Piece(ABC):
    """The part of a log that one task reads.

    Attributes:
        path: the file it is a part of.
    """

    path: Path

    @abstractmethod
    def read(self) -> pa.Table:
        """The piece's rows, with (at least) the columns of the log.

        Ids are int64 or text, ratings are numbers; times are integers (in the log's own unit, the same in all its
        files), floats, or dates of one unit. Each column has the same type in all pieces of a log.

        Raises:
            UserError: the content is malformed; names file and row.
        """

    def tables(self) -> Iterator[pa.Table]:
        """The same rows as `read`, split into several tables if the piece is large."""
        yield self.read()

    @abstractmethod
    def place(self, row: int) -> str:
        """Location in its file of a row (from 0) of the table that `read` returns, for messages.

        Returns:
            "FILE, line N" for text, "FILE, row N" for Parquet, both counted from 1.
        """

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of the file that this piece covers."""

    @property
    @abstractmethod
    def rows_estimate(self) -> int:
        """Approximate number of rows, without reading the piece."""


@dataclass(frozen=True)
class Log:
    """A raw log, opened.

    Attributes:
        name: display name of the recognised format.
        columns: column names in the tables of the pieces.
        pieces: cover every row exactly once.
        titles: a file with item names, if the source has one.
        files: the input files, before unpacking.
    """

    name: str
    columns: LogColumns
    pieces: list[Piece]
    titles: Path | None = None
    files: list[Path] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(piece.size_bytes for piece in self.pieces)

    @property
    def rows_estimate(self) -> int:
        """Approximate number of rows, extrapolated from the first piece."""
        first = self.pieces[0]
        return int(self.size_bytes / max(1, first.size_bytes) * first.rows_estimate)
