"""Test series: one positive, followed by the items it is ranked against."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from preprocessing.spec.findings import Finding, error, note
from preprocessing.spec.reader import BLOCK_ROWS
from preprocessing.spec.values import Block


def first_run(blocks: Iterable[Block], user: str) -> int:
    """Length of the first run of rows of one user; at least 1."""
    first, length = None, 0
    for block in blocks:
        users = block.columns[user]
        first = users[0] if first is None else first
        others = np.flatnonzero(users != first)
        if len(others):
            return length + int(others[0])
        length += len(users)
    return max(1, length)


def found_length(users: np.ndarray, labels: np.ndarray) -> int | None:
    """Series length, if every user's run has the same length (2 or more) and only its first row is positive."""
    starts = np.flatnonzero(np.append(True, users[1:] != users[:-1])) if len(users) else np.zeros(0, dtype=np.int64)
    lengths = np.diff(np.append(starts, len(users)))
    if not len(starts) or lengths[0] < 2 or (lengths != lengths[0]).any():
        return None
    return int(lengths[0]) if (labels[starts] > 0).all() and np.count_nonzero(labels > 0) == len(starts) else None


class Series:
    """Checks consecutive series of `length` rows.

    Args:
        length: rows per series.
        declared: whether the spec declares the length; if not, it is a guess, and contradictions are notes.
    """

    def __init__(self, length: int, declared: bool) -> None:
        self.length, self._declared = length, declared
        self.block_rows = max(length, BLOCK_ROWS // length * length)
        self._rows = 0
        self._labels: set[float] = set()
        self._last_user: int | None = None
        self._badly_labelled, self._first_bad = 0, 0
        self._of_many_users, self._same_user_again, self._with_repeats = 0, 0, 0

    def positives(self, labels: np.ndarray | None, rows: int) -> np.ndarray:
        """Mask of the positives in a block, by label, or by position if there are no labels; bool [rows]."""
        return np.arange(rows) % self.length == 0 if labels is None else labels > 0

    def add(self, users: np.ndarray, items: np.ndarray, labels: np.ndarray | None) -> None:
        """Add a block of `block_rows` rows; the last one may be shorter."""
        self._rows += len(users)
        whole = len(users) // self.length * self.length
        shape = (whole // self.length, self.length)
        by_series = users[:whole].reshape(shape)
        self._of_many_users += int((by_series != by_series[:, :1]).any(axis=1).sum())
        previous = np.concatenate([[-1 if self._last_user is None else self._last_user], by_series[:-1, -1]])
        self._same_user_again += int((by_series[:, 0] == previous[: shape[0]]).sum())
        self._last_user = int(users[-1]) if len(users) else self._last_user
        ordered = np.sort(items[:whole].reshape(shape), axis=1)
        self._with_repeats += int((ordered[:, 1:] == ordered[:, :-1]).any(axis=1).sum())
        if labels is None:
            return
        self._labels.update({float(labels.min()), float(labels.max())} if len(labels) else ())
        expected = np.arange(self.length) == 0
        bad = ((labels[:whole].reshape(shape) > 0) != expected).any(axis=1)
        if bad.any() and not self._badly_labelled:
            self._first_bad = (self._rows - len(users)) // self.length + int(bad.argmax())
        self._badly_labelled += int(bad.sum())

    def findings(self) -> list[Finding]:
        where, length = "metadata.test_samples_per_series", self.length
        if not self._declared:
            why = self._contradiction()
            found = f"is missing; the data has series of {length:,} rows"
            reported = f"is missing and {why}, so only loss and AUC can be reported"
            findings = [note(where, reported if why else found)]
            return findings if why else findings + self._repeats()
        findings = self._constant_label()
        if self._rows % length:
            reported = (
                f"does not divide the number of test rows (expected a multiple of {length:,}, found {self._rows:,})"
            )
            findings.append(error(where, reported))
        if self._badly_labelled:
            what = "series do not begin with their only positive"
            found = f"expected none, found {self._badly_labelled:,} of {self._count:,}"
            findings.append(error("test", f"{what} ({found}, first in row {self._first_bad * length + 1:,})"))
        if self._of_many_users:
            found = f"found {self._of_many_users:,} of {self._count:,}"
            findings.append(note("test", f"series hold rows of more than one user ({found})"))
        return findings + self._repeats()

    @property
    def _count(self) -> int:
        return self._rows // self.length

    def _contradiction(self) -> str:
        """Why the rows cannot be series of the guessed length; empty if they can."""
        if self.length < 2:
            return "the first user has only one test row"
        if self._rows % self.length or self._of_many_users or self._same_user_again:
            return f"the test rows are not runs of equal length by user (the first has {self.length:,})"
        return "the runs do not begin with their only positive" if self._badly_labelled else ""

    def _constant_label(self) -> list[Finding]:
        if self.length == 1 or len(self._labels) != 1:
            return []
        return [error("test", f"all labels are {self._labels.copy().pop():g} (expected positives and negatives)")]

    def _repeats(self) -> list[Finding]:
        if not self._with_repeats:
            return []
        found = f"found {self._with_repeats:,} of {self._count:,}"
        return [note("test", f"series hold an item more than once, but metrics count it once ({found})")]
