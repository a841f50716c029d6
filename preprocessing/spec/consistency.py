"""Rules for the rows of a prepared folder, applied alike by the check, by transcoding and by training.

Series and ranges are judged on the host. What training applies to tensors (`run_starts`, `whole_rows`, `OwnerValues`)
accepts arrays of any array-API library.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from array_api_compat import array_namespace, device

Read = Callable[[Sequence[str]], Iterable[Mapping[str, np.ndarray]]]


@dataclass(frozen=True)
class ValueRange:
    """Valid values of a feature, both bounds included.

    Attributes:
        expected: description of a valid value.
        remedy: advice for a value outside.
    """

    low: float
    high: float
    expected: str
    remedy: str

    def contains(self, values: Any) -> Any:
        """Elementwise for arrays; False for NaN."""
        return (values >= self.low) & (values <= self.high)


LABELS = ValueRange(0, 1, "a label 0 .. 1", "convert ratings to labels first: 0 (no interaction) to 1 (interaction)")
NUMBERS = ValueRange(
    float(np.finfo(np.float32).min),
    float(np.finfo(np.float32).max),
    "a finite 32-bit number",
    "remove or replace those rows",
)


def id_range(cardinality: int) -> ValueRange:
    remedy = "correct its cardinality in the feature spec, or prepare the data again"
    return ValueRange(0, cardinality - 1, f"an id 0 .. {cardinality - 1}", remedy)


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold ids, numbers or labels; a column of nulls has no type of its own."""
    types = pa.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)


def lacks_features(needed: Iterable[str], present: Collection[str]) -> str:
    """The fault of `source_spec.test` if it lacks a feature of the row; empty if it lacks none."""
    missing = [name for name in needed if name not in present]
    return f"has no feature {', '.join(missing)}, which train has; add it to the test rows" if missing else ""


@dataclass(frozen=True)
class TestSeries:
    """How the test rows are evaluated.

    Attributes:
        length: rows per series, positive first; None: the rows are not series, and are evaluated by their labels.
        error: why the rows cannot be evaluated; empty if they can.
        note: remark for the user if no length is declared; may be empty.
    """

    length: int | None
    error: str = ""
    note: str = ""


def find_series(read: Read, declared: int | None, user: str, label: str | None) -> TestSeries:
    """The test series: as declared, or, if no length is, runs of rows of one user with equal lengths.

    Args:
        read: stream some columns of the test rows in blocks of any length; called up to twice.
        declared: `metadata.test_samples_per_series`.
        label: the label column; None if test has none, so that only the position tells the positive.
    """
    if declared is not None:
        error = _contradiction(read([label or user]), declared, None, label)
        return TestSeries(declared, error and f"{error}; correct the rows, or the length in the feature spec")
    length = _first_run(read([user]), user)
    reason = "the first user has only one test row"
    if length > 1:
        reason = _contradiction(read([user, label] if label else [user]), length, user, label)
    if not reason:
        return TestSeries(length, note=f"test series of {length} rows, found in the data")
    reason = f"metadata.test_samples_per_series is missing, and {reason}"
    if label:
        return TestSeries(None, note=f"AUC instead of HR and NDCG: {reason}")
    advice = "there is no label column; add either to the feature spec"
    return TestSeries(None, f"the test rows cannot be evaluated: {reason}, and {advice}")


def _first_run(blocks: Iterable[Mapping[str, np.ndarray]], user: str) -> int:
    """Length of the first run of rows of one user."""
    length, before = 0, None
    for block in blocks:
        others = np.flatnonzero(run_starts(block[user], before))[0 if length else 1 :]
        if len(others):
            return length + int(others[0])
        length, before = length + len(block[user]), block[user][-1]
    return length


def _contradiction(blocks: Iterable[Mapping[str, np.ndarray]], length: int, user: str | None, label: str | None) -> str:
    """Why the rows are not series of `length`, positive first (if `user` is given: one user each); may be empty."""
    rows, positives, before, wrong = 0, 0, None, None
    for block in blocks:
        size = len(next(iter(block.values())))
        first = np.arange(-rows % length, size, length)
        if user is not None:
            if not np.array_equal(np.flatnonzero(run_starts(block[user], before)), first):
                return f"the test rows are not runs of equal length by user (the first has {length:,})"
            before = block[user][-1]
        if label is not None:
            positive = np.flatnonzero(block[label] > 0)
            positives += len(positive)
            if wrong is None and not np.array_equal(positive, first):
                wrong = rows + int(np.setxor1d(positive, first)[0])
        rows += size
    if rows % length:
        return f"the {rows:,} test rows are not whole series of {length:,}"
    if wrong is None:
        return ""
    return (
        f"series of {length:,} test rows should begin with their only positive, but the one that begins in row "
        f"{wrong // length * length + 1:,} does not ({rows // length:,} series hold {positives:,} positives)"
    )


def run_starts(users: Any, before: Any = None) -> Any:
    """Whether each row begins a run of rows of one user, bool [N]; `before` is the user of the previous row, if any."""
    first = users[:1] == users[:1] if before is None else users[:1] != before
    return array_namespace(users).concat([first, users[1:] != users[:-1]])


def whole_rows(users: Any) -> int:
    """Number of rows before those of the last user, who may continue in the next block; one host sync."""
    return len(users) - int((users == users[-1:]).sum())


class OwnerValues:
    """The values of one feature by owner, a user or an item, who should have a single one.

    Attributes:
        table: value of each owner seen so far.
        contradiction: an owner and two of its values, as text; empty if there is none.
    """

    def __init__(self, table: Any) -> None:
        """
        Args:
            table: values of the owners that are never seen, [number of owners]; filled in place.
        """
        xp = array_namespace(table)
        self.table = table
        self.contradiction = ""
        self._known = xp.zeros(len(table), dtype=xp.bool, device=device(table))

    def add(self, owners: Any, values: Any) -> None:
        """Store the values of new owners, and compare those of known ones.

        Args:
            values: of the type of `table`.
        """
        if self.contradiction:
            return
        new = ~self._known[owners]
        self.table[owners[new]] = values[new]  # if an owner repeats, either value: the other is compared below
        self._known[owners] = True
        (wrong,) = array_namespace(owners).nonzero(self.table[owners] != values)  # host sync: once per block
        if len(wrong):
            row = wrong[:1]
            (owner,), (first,), (second,) = owners[row].tolist(), self.table[owners[row]].tolist(), values[row].tolist()
            self.contradiction = f"{owner} has both {_shown(first)} and {_shown(second)}"


def _shown(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def several_item_values(name: str, values: OwnerValues) -> str:
    """What is wrong with a feature of an item channel; empty if each item has one value."""
    if not values.contradiction:
        return ""
    return (
        f"feature {name!r} is in an item channel, but item {values.contradiction}; correct the rows, or, if it is not "
        "an item feature, list it in a channel of neither users nor items"
    )


def belongs_to_items(by_user: OwnerValues, by_item: OwnerValues) -> bool:
    """Whether a feature of neither a user nor an item channel is the item's; if not, it belongs to the row.

    Args:
        by_user, by_item: its values in train, and in train and test.
    """
    return bool(by_user.contradiction) and not by_item.contradiction
