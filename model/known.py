"""What a prepared folder says of its users: the items they have interacted with, and their side features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from model.columns import Columns
from model.data import open_mapping
from model.series import open_test
from preprocessing.feature_spec import FeatureSpec

_BLOCK_ROWS = 1 << 20
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Known:
    """What the data says of some users.

    Attributes:
        users: encoded ids, ascending, int64 [U].
        starts: the first of `users` has interacted with `items[starts[0] : starts[1]]`, and so on, int64 [U + 1].
        items: train positives in the order of their rows, then held-out ones, int32 [N].
        row_side: of each side feature that goes with a row its value in the user's last train row (of a user with
            none, in the last test row), each [U].
        has_row: whether there is a row of the user, bool [U].
    """

    users: np.ndarray
    starts: np.ndarray
    items: np.ndarray
    row_side: tuple[np.ndarray, ...]
    has_row: np.ndarray

    def take(self, users: np.ndarray) -> Known:
        """The same of some of the users, by their encoded ids, ascending."""
        places = np.searchsorted(self.users, users)
        starts, chosen = cut(self.starts, places)
        row_side = tuple(values[places] for values in self.row_side)
        return Known(users, starts, self.items[chosen], row_side, self.has_row[places])


def cut(starts: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of lists that lie one after the other, take some.

    Args:
        starts: where each begins, and where the last one ends, int64 [L + 1].
        places: which lists, int64 [P].
    Returns:
        Where those begin, laid one after the other, int64 [P + 1], and the place of each of their elements.
    """
    first = starts[places]
    counts = starts[places + 1] - first
    begins = _starts(counts)
    return begins, np.arange(begins[-1]) + np.repeat(first - begins[:-1], counts)


class Interactions:
    """The rows of a prepared folder by user: train is streamed whenever it is asked, positives of test are held."""

    def __init__(self, folder: Path, spec: FeatureSpec, columns: Columns) -> None:
        """
        Args:
            columns: roles of the features, those of side features as the network takes them.

        Raises:
            UserError: a file is missing or not what the spec says.
        """
        self._folder, self._spec, self._columns = folder, spec, columns
        self.train = open_mapping(folder, spec, "train", columns, columns.streamed, _CPU)

    def of_users(self, users: np.ndarray) -> Known:
        """What the data says of some users, in one pass over it.

        Args:
            users: encoded ids, ascending, int64.
        """
        train = self._grouped(self._train_blocks(range(self.train.n_partitions)), users)
        return _joined(train, self.test.take(users))

    def by_part(self) -> Iterator[Known]:
        """What the data says of all users, some at a time: by partition of train, then those without train rows."""
        left = np.ones(self._columns.n_users, dtype=bool)
        for part in range(self.train.n_partitions):
            train = self._grouped(self._train_blocks([part]))
            left[train.users] = False
            yield _joined(train, self.test.take(train.users))
        if left.any():
            yield self.test.take(np.flatnonzero(left))

    @cached_property
    def test(self) -> Known:
        """What the test rows say of all users."""
        return self._grouped(self._test_blocks(), np.arange(self._columns.n_users))

    def _train_blocks(self, parts: Sequence[int]) -> Iterator[_Block]:
        for users, items, labels, *side in self.train.stream(_BLOCK_ROWS, _CPU, parts):
            yield _Block(users.numpy(), items.numpy(), labels.numpy() > 0, [column.numpy() for column in side])

    def _test_blocks(self) -> Iterator[_Block]:
        test = open_test(self._folder, self._spec, _CPU, self._columns, positives_alone=True)
        if test is None:
            return
        names = [name for name in self._columns.streamed if name != self._columns.label or test.length is None]
        length = test.length or 1
        for block in test.rows.only(names).stream(max(1, _BLOCK_ROWS // length) * length, _CPU):
            users, items, *side = (column.numpy() for column in block)
            is_positive = np.arange(len(users)) % length == 0 if test.length else side.pop(0) > 0
            yield _Block(users, items, is_positive, side)

    def _grouped(self, blocks: Iterable[_Block], users: np.ndarray | None = None) -> Known:
        """What blocks of rows say of some users; None: of all that they have a row of."""
        n_users = self._columns.n_users
        wanted = np.ones(n_users, dtype=bool)
        if users is not None:
            wanted[:] = False
            wanted[users] = True
        has_row = np.zeros(n_users, dtype=bool)
        side = [
            np.zeros(n_users, self._columns.schema([feature.name]).types[0].to_pandas_dtype())
            for feature in self._columns.row_side
        ]
        pairs = [(np.zeros(0, np.int32), np.zeros(0, np.int32))]
        for block in blocks:
            has_row[block.users] = True
            for values, column in zip(side, block.row_side, strict=True):
                values[block.users] = column  # of several rows of a user the last one stays
            kept = block.is_positive & wanted[block.users]
            pairs.append((block.users[kept], block.items[kept]))
        owners, items = (np.concatenate(column) for column in zip(*pairs, strict=True))
        if (owners[1:] < owners[:-1]).any():  # partitions go by a hash of the user
            order = np.argsort(owners, kind="stable")
            owners, items = owners[order], items[order]
        users = np.flatnonzero(has_row) if users is None else users
        starts = np.append(np.searchsorted(owners, users), len(owners))
        return Known(users, starts, items, tuple(values[users] for values in side), has_row[users])


@dataclass(frozen=True)
class _Block:
    """Rows: ids int32 [R], which of them are interactions, bool [R], and the values of side features, each [R]."""

    users: np.ndarray
    items: np.ndarray
    is_positive: np.ndarray
    row_side: Sequence[np.ndarray]


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where lists of these lengths begin, one after the other, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(counts)))


def _joined(train: Known, test: Known) -> Known:
    """What both say of the same users: of each the interactions in train, then those in test."""
    counts = np.diff(train.starts), np.diff(test.starts)
    starts = _starts(counts[0] + counts[1])
    items = np.empty(starts[-1], dtype=np.int32)
    for known, first, own in ((train, starts[:-1], counts[0]), (test, starts[:-1] + counts[0], counts[1])):
        items[np.arange(len(known.items)) + np.repeat(first - known.starts[:-1], own)] = known.items
    row_side = tuple(
        np.where(train.has_row, of_train, of_test)
        for of_train, of_test in zip(train.row_side, test.row_side, strict=True)
    )
    return Known(train.users, starts, items, row_side, train.has_row | test.has_row)
