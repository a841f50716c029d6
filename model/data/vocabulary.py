"""Original ids of users and items, and their encoded ids in a prepared folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from workflows.common.errors import UserError, bounded
from workflows.operators.saved import read_categories

Id = int | str
_SHOWN = 3
_INTEGER, _MAX_DIGITS = re.compile(r"-?[0-9]+(\.0+)?"), 1000


class Vocabulary:
    """The original ids of a folder's users or items, in order of their encoded ids."""

    def __init__(self, what: str, originals: pd.Series) -> None:
        """
        Args:
            what: "user" or "item", for messages.
            originals: unique integers or text.
        """
        self.what = what
        self._is_text = not pd.api.types.is_integer_dtype(originals.dtype)
        if not self._is_text:
            beyond = originals.dtype == np.uint64 and len(originals) and int(originals.max()) > np.iinfo(np.int64).max
            originals = originals.astype(np.uint64 if beyond else np.int64)
        self._index = pd.Index(originals)
        if not self._index.is_unique:
            twice = self._index[self._index.duplicated()].tolist()[0]
            raise UserError(f"the list of original {what} ids contains {bounded(repr(twice))} twice")

    @staticmethod
    def load(folder: Path, column: str, what: str, n: int) -> Vocabulary:
        """Read the ids of a prepared folder; without categories, encoded ids are the original ones.

        Raises:
            UserError: the list of ids is unreadable, or its length is not `n`.
        """
        has_categories = (folder / "categories" / f"{Path(column).name}.parquet").is_file()
        if not has_categories and not (folder / "workflow" / "workflow.json").is_file():  # not prepared from a log
            return Vocabulary(what, pd.Series(np.arange(n)))
        originals = read_categories(folder, column)
        if len(originals) != n:
            raise UserError(f"{folder}/categories lists {len(originals):,} ids of {column!r}, expected {n:,}")
        return Vocabulary(what, originals)

    def __len__(self) -> int:
        return len(self._index)

    def find(self, ids: Sequence[Id], trained: np.ndarray | None = None) -> np.ndarray:
        """The encoded ids of original ids, int64, -1 for unknown ones; `trained` as in `known`.

        Ids are read as in a log: blanks around them do not count, and text may be an integer ("7", "07", "7.0").
        """
        numbers = self._find(ids)
        return numbers if trained is None else np.where((numbers >= 0) & trained[numbers], numbers, -1)

    def _find(self, ids: Sequence[Id]) -> np.ndarray:
        if self._is_text:
            texts = [str(one) for one in ids]
            found = self._index.get_indexer(pd.Index(texts, dtype=object))
            unknown = np.flatnonzero(found < 0)  # originals have blanks around them only if no log was read for them
            found[unknown] = self._index.get_indexer(pd.Index([texts[i].strip() for i in unknown], dtype=object))
            return found
        numbers = [self._integer(one) for one in ids]
        found = self._index.get_indexer(pd.Index([n or 0 for n in numbers], dtype=self._index.dtype))
        return np.where([n is None for n in numbers], -1, found)

    def rows_in(self, other: Vocabulary) -> np.ndarray:
        """The encoded id in `other` of each id, int64 [N], -1 if it is unknown there; an integer equals its text."""
        mine, theirs = self._index, other._index
        if self._is_text != other._is_text:
            mine, theirs = mine.astype(str), theirs.astype(str)
        return theirs.get_indexer(mine)

    def first(self, n: int) -> pa.Array:
        """The original ids of the first n encoded ids, integers or text."""
        return pa.array(self._index[:n])

    def spelt(self, ids: Sequence[Id]) -> np.ndarray:
        """The given ids in the type and spelling of the originals; all as text if one is not an integer."""
        if not self._is_text:
            numbers = [self._integer(one) for one in ids]
            if None not in numbers:
                return np.array(numbers, dtype=self._index.dtype)
            texts = [str(one).strip() if n is None else str(n) for one, n in zip(ids, numbers, strict=True)]
            return np.array(texts, dtype=object)
        spelt = np.array([str(one).strip() for one in ids], dtype=object)
        found = self.find(ids)
        spelt[found >= 0] = self.originals(found[found >= 0])
        return spelt

    def known(self, ids: Sequence[Id], or_else: str = "", trained: np.ndarray | None = None) -> np.ndarray:
        """The encoded ids of original ids, int64.

        Args:
            or_else: a further remedy for unknown ids, for the message.
            trained: bool [n], the ids that the run was trained on; others count as unknown. None: all.

        Raises:
            UserError: an id is unknown.
        """
        numbers = self.find(ids, trained)
        unknown = [bounded(repr(one)) for one, number in zip(ids, numbers.tolist(), strict=True) if number < 0]
        if unknown:
            named = ", ".join(unknown[:_SHOWN]) + (f" and {len(unknown) - _SHOWN:,} more" if unknown[_SHOWN:] else "")
            whose = f"{self.what} {named} is" if len(unknown) == 1 else f"{self.what}s {named} are"
            present = np.arange(len(self)) if trained is None else np.flatnonzero(trained)
            few = ", ".join(bounded(str(one)) for one in self._index[present[:_SHOWN]])
            raise UserError(
                f"{whose} not among the {len(present):,} {self.what}s this run was trained on (such as {few}); check "
                f"the id, or add interactions of the {self.what} to the log, then prepare and train again{or_else}"
            )
        return numbers

    def originals(self, numbers: np.ndarray) -> np.ndarray:
        """The original ids of encoded ids, int64 or text, in the same shape."""
        return self._index.to_numpy()[numbers]

    def _integer(self, one: Id) -> int | None:
        """An id as an integer of the originals' type; None if it is not one."""
        text = str(one).strip()
        if _INTEGER.fullmatch(text) is None or len(text) > _MAX_DIGITS:
            return None
        number, limits = int(text.partition(".")[0]), np.iinfo(self._index.dtype)
        return number if limits.min <= number <= limits.max else None
