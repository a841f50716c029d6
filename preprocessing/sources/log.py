"""What a source is to the pipeline: pieces that can be read independently, each into one Arrow table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the log hold what. `rating` is None where nothing is filtered by it."""

    user: str
    item: str
    time: str
    rating: str | None = None

    @property
    def names(self) -> list[str]:
        return [self.user, self.item, self.time] + ([self.rating] if self.rating else [])

    def without_rating(self) -> Columns:
        return replace(self, rating=None)


class Piece(ABC):
    """A part of a log that one task reads."""

    @abstractmethod
    def read(self) -> pa.Table:
        """The piece's rows, with (at least) the columns of the log.

        Ids are int64 or text, ratings are numbers; times are integers (in whatever unit the log is written, the same
        in all its files), floats, or dates of one unit. Each column has one type in all pieces of a log.

        Raises:
            UserError: the content is not what it should be; names file and row.
        """

    def tables(self) -> Iterator[pa.Table]:
        """The piece's rows as `read` gives them, in parts where the whole would be large."""
        yield self.read()

    @abstractmethod
    def place(self, row: int) -> str:
        """Where a row of the table that `read` returns (from 0) stands in its file, for messages.

        Returns:
            "FILE, line N" for text, "FILE, row N" for Parquet, both counted from 1.
        """

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """How much of the file this piece is."""

    @property
    @abstractmethod
    def rows_estimate(self) -> int:
        """About how many rows the piece has, without reading it."""


@dataclass(frozen=True)
class Log:
    """A raw log, opened.

    Attributes:
        name: what it was recognised as, for people.
        columns: names within the tables that pieces read.
        pieces: cover every row exactly once.
        titles: a file with the items' names, where the source has one.
        files: what is read, before anything is unpacked.
    """

    name: str
    columns: Columns
    pieces: list[Piece]
    titles: Path | None = None
    files: list[Path] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(piece.size_bytes for piece in self.pieces)

    @property
    def rows_estimate(self) -> int:
        """About how many rows there are, by the first piece."""
        first = self.pieces[0]
        return int(self.size_bytes / max(1, first.size_bytes) * first.rows_estimate)
