"""Original ids of users and items, and their encoded ids in a prepared folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from workflows.common.errors import UserError
from workflows.operators.saved import read_categories

Id = int | str
_SHOWN = 3


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
        self._index = pd.Index(originals if self._is_text else originals.astype(np.int64))
        if not self._index.is_unique:
            raise UserError(
                f"the list of original {what} ids contains {self._index[self._index.duplicated()].tolist()[0]!r} twice"
            )

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

        An integer may be given as text in its canonical form ("7", not "07"); text must match exactly.
        """
        numbers = self._find(ids)
        return numbers if trained is None else np.where((numbers >= 0) & trained[numbers], numbers, -1)

    def _find(self, ids: Sequence[Id]) -> np.ndarray:
        if self._is_text:
            return self._index.get_indexer(pd.Index([str(one) for one in ids], dtype=object))
        numbers = [_integer(one) for one in ids]
        found = self._index.get_indexer(pd.Index([0 if one is None else one for one in numbers], dtype=np.int64))
        return np.where([one is None for one in numbers], -1, found)

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
        """The given ids in the type of the originals, int64 or text; all as text if one is not an integer."""
        numbers = [None if self._is_text else _integer(one) for one in ids]
        if self._is_text or None in numbers:
            return np.array([str(one) for one in ids], dtype=object)
        return np.array(numbers, dtype=np.int64)

    def known(self, ids: Sequence[Id], or_else: str = "", trained: np.ndarray | None = None) -> np.ndarray:
        """The encoded ids of original ids, int64.

        Args:
            or_else: a further remedy for unknown ids, for the message.
            trained: bool [n], the ids that the run was trained on; others count as unknown. None: all.

        Raises:
            UserError: an id is unknown.
        """
        numbers = self.find(ids, trained)
        unknown = [repr(one) for one, number in zip(ids, numbers.tolist(), strict=True) if number < 0]
        if unknown:
            named = ", ".join(unknown[:_SHOWN]) + (f" and {len(unknown) - _SHOWN:,} more" if unknown[_SHOWN:] else "")
            whose = f"{self.what} {named} is" if len(unknown) == 1 else f"{self.what}s {named} are"
            present = np.arange(len(self)) if trained is None else np.flatnonzero(trained)
            few = ", ".join(map(str, self._index[present[:_SHOWN]]))
            raise UserError(
                f"{whose} not among the {len(present):,} {self.what}s this run was trained on (such as {few}); check "
                f"the id, or add interactions of the {self.what} to the log, then prepare and train again{or_else}"
            )
        return numbers

    def originals(self, numbers: np.ndarray) -> np.ndarray:
        """The original ids of encoded ids, int64 or text, in the same shape."""
        return self._index.to_numpy()[numbers]


def _integer(one: Id) -> int | None:
    """An id as a 64-bit integer; None if it is not one, or is text in a non-canonical form."""
    try:
        number = int(one)
    except (ValueError, TypeError):
        return None
    return number if str(one) == str(number) and -(1 << 63) <= number < 1 << 63 else None
