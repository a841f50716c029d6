"""User data of a prepared folder: interaction histories and side features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from model.data.dataset import open_mapping
from model.data.test_set import open_test_set
from model.data.user_items import UserItems
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.feature_spec import FeatureSpec
from preprocessing.spec.reader import BLOCK_ROWS

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class UserHistories:
    """Histories and side features of some users.

    Attributes:
        users: encoded ids, ascending, int64 [U].
        history: NumPy; list i holds the train positives of `users[i]` in row order, then the held-out ones.
        row_side: each row side feature's value in the user's last train row (or last test row if there is none),
            each [U].
        has_row: whether the user has any row, bool [U].
    """

    users: np.ndarray
    history: UserItems
    row_side: tuple[np.ndarray, ...]
    has_row: np.ndarray

    def take(self, users: np.ndarray) -> UserHistories:
        """Select some of the users by their encoded ids, ascending."""
        index = np.searchsorted(self.users, users)
        row_side = tuple(values[index] for values in self.row_side)
        return UserHistories(users, self.history.take(index), row_side, self.has_row[index])


class PreparedInteractions:
    """A prepared folder's rows by user: train is streamed on every request, test positives are kept in memory."""

    def __init__(self, folder: Path, spec: FeatureSpec, columns: FeatureColumns) -> None:
        """
        Args:
            columns: feature roles, with side features as used by the network.

        Raises:
            UserError: a file is missing or does not match the spec.
        """
        self._folder, self._spec, self._columns = folder, spec, columns
        self.train = open_mapping(folder, spec, "train", columns, columns.streamed, _CPU)

    def of_users(self, users: np.ndarray) -> UserHistories:
        """The data of some users, in one pass over the files.

        Args:
            users: encoded ids, ascending, int64.
        """
        train = self._grouped(self._train_blocks(range(self.train.n_partitions)), users)
        return _merge(train, self.test.take(users))

    def by_part(self) -> Iterator[UserHistories]:
        """The data of all users: by train partition, then the users without train rows."""
        without_train = np.ones(self._columns.n_users, dtype=bool)
        for part in range(self.train.n_partitions):
            train = self._grouped(self._train_blocks([part]))
            without_train[train.users] = False
            yield _merge(train, self.test.take(train.users))
        if without_train.any():
            yield self.test.take(np.flatnonzero(without_train))

    @cached_property
    def test(self) -> UserHistories:
        """The test data of all users."""
        return self._grouped(self._test_blocks(), np.arange(self._columns.n_users))

    def _train_blocks(self, parts: Sequence[int]) -> Iterator[_Block]:
        for users, items, labels, *side in self.train.stream(BLOCK_ROWS, _CPU, parts):
            yield _Block(users.numpy(), items.numpy(), labels.numpy() > 0, [column.numpy() for column in side])

    def _test_blocks(self) -> Iterator[_Block]:
        test = open_test_set(self._folder, self._spec, _CPU, self._columns, positives_alone=True)
        if test is None:
            return
        names = [name for name in self._columns.streamed if name != self._columns.label or test.length is None]
        length = test.length or 1
        for block in test.rows.only(names).stream(max(1, BLOCK_ROWS // length) * length, _CPU):
            users, items, *side = (column.numpy() for column in block)
            is_positive = np.arange(len(users)) % length == 0 if test.length else side.pop(0) > 0
            yield _Block(users, items, is_positive, side)

    def _grouped(self, blocks: Iterable[_Block], users: np.ndarray | None = None) -> UserHistories:
        """Group blocks of rows by user, for some users or (None) for all users with a row."""
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
                values[block.users] = column  # a user's last row wins
            kept = block.is_positive & wanted[block.users]
            pairs.append((block.users[kept], block.items[kept]))
        owners, items = (np.concatenate(column) for column in zip(*pairs, strict=True))
        if (owners[1:] < owners[:-1]).any():  # partitions are hashed by user
            order = np.argsort(owners, kind="stable")
            owners, items = owners[order], items[order]
        users = np.flatnonzero(has_row) if users is None else users
        starts = np.append(np.searchsorted(owners, users), len(owners))
        return UserHistories(users, UserItems(starts, items), tuple(values[users] for values in side), has_row[users])


@dataclass(frozen=True)
class _Block:
    """Rows: ids, int32 [R], whether each row is an interaction, bool [R], and side features, each [R]."""

    users: np.ndarray
    items: np.ndarray
    is_positive: np.ndarray
    row_side: Sequence[np.ndarray]


def _merge(train: UserHistories, test: UserHistories) -> UserHistories:
    """Merge the data of the same users: train interactions first, then test."""
    both = train.history, test.history
    counts = [np.diff(history.starts) for history in both]
    starts = np.concatenate(([0], np.cumsum(counts[0] + counts[1])))
    items = np.empty(starts[-1], dtype=np.int32)
    for history, first, own in zip(both, (starts[:-1], starts[:-1] + counts[0]), counts, strict=True):
        items[np.arange(len(history.items)) + np.repeat(first - history.starts[:-1], own)] = history.items
    row_side = tuple(
        np.where(train.has_row, of_train, of_test)
        for of_train, of_test in zip(train.row_side, test.row_side, strict=True)
    )
    return UserHistories(train.users, UserItems(starts, items), row_side, train.has_row | test.has_row)
