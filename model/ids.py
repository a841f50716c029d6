"""Original ids of users and items, and the numbers that stand for them in a prepared folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from workflows.errors import UserError
from workflows.state import read_categories

Id = int | str
_SHOWN = 3


class Ids:
    """The original ids of a folder's users or items, in the order of the numbers that stand for them."""

    def __init__(self, what: str, originals: pd.Series) -> None:
        """
        Args:
            what: "user" or "item", for messages.
            originals: integers or text, all different.
        """
        self.what = what
        self._is_text = not pd.api.types.is_integer_dtype(originals.dtype)
        self._index = pd.Index(originals if self._is_text else originals.astype(np.int64))
        if not self._index.is_unique:
            raise UserError(
                f"the list of original {what} ids names {self._index[self._index.duplicated()].tolist()[0]!r} twice"
            )

    @staticmethod
    def of(folder: Path, column: str, what: str, n: int) -> Ids:
        """Read the ids of a prepared folder; in one without categories the ids are their own originals.

        Raises:
            UserError: the folder lists another number of ids than `n`, or its list is not readable.
        """
        if not (folder / "categories").is_dir():
            return Ids(what, pd.Series(np.arange(n)))
        originals = read_categories(folder, column)
        if len(originals) != n:
            raise UserError(
                f"{folder}/categories lists {len(originals):,} ids of {column!r}, and its feature spec {n:,}"
            )
        return Ids(what, originals)

    def __len__(self) -> int:
        return len(self._index)

    def find(self, ids: Sequence[Id]) -> np.ndarray:
        """The numbers of original ids, int64, -1 for unknown ones.

        An integer may be given as text if it is spelt as one would write it ("7", not "07"), and text as it is.
        """
        if self._is_text:
            return self._index.get_indexer(pd.Index([str(one) for one in ids], dtype=object))
        numbers = [_integer(one) for one in ids]
        found = self._index.get_indexer(pd.Index([0 if one is None else one for one in numbers], dtype=np.int64))
        return np.where([one is None for one in numbers], -1, found)

    def spelt(self, ids: Sequence[Id]) -> np.ndarray:
        """The same ids in the type of the originals, int64 or text; all as text where one is no integer."""
        numbers = [None if self._is_text else _integer(one) for one in ids]
        if self._is_text or None in numbers:
            return np.array([str(one) for one in ids], dtype=object)
        return np.array(numbers, dtype=np.int64)

    def known(self, ids: Sequence[Id], or_else: str = "") -> np.ndarray:
        """The numbers of original ids, int64.

        Args:
            or_else: what one may do about unknown ones beside correcting them.

        Raises:
            UserError: an id is not known.
        """
        numbers = self.find(ids)
        unknown = [repr(one) for one, number in zip(ids, numbers.tolist(), strict=True) if number < 0]
        if unknown:
            named = ", ".join(unknown[:_SHOWN]) + (f" and {len(unknown) - _SHOWN:,} more" if unknown[_SHOWN:] else "")
            whose = f"{self.what} {named} is" if len(unknown) == 1 else f"{self.what}s {named} are"
            few = ", ".join(map(str, self._index[:_SHOWN]))
            raise UserError(
                f"{whose} not among the {len(self):,} {self.what}s this run was trained on (such as {few}); check "
                f"the id, or add interactions of the {self.what} to the log, then prepare and train again{or_else}"
            )
        return numbers

    def originals(self, numbers: np.ndarray) -> np.ndarray:
        """The original ids of some numbers, int64 or text, in the numbers' shape."""
        return self._index.to_numpy()[numbers]


def _integer(one: Id) -> int | None:
    """An id as 64 bits hold it; None where it is none, or is text that spells one in another way."""
    try:
        number = int(one)
    except (ValueError, TypeError):
        return None
    return number if str(one) == str(number) and -(1 << 63) <= number < 1 << 63 else None
