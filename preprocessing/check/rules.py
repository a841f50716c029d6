"""Cross-row checks of a folder: test series, leakage of test into train, row order, and item features.

Values must already be valid: ids below their cardinalities, labels within 0 .. 1. Rows are streamed; memory holds
8 bytes per test row, a byte per user, and a value per item and feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from preprocessing.spec.feature_spec import FeatureSpec
from preprocessing.spec.features import FeatureRoles
from preprocessing.spec.findings import Finding, error, note
from preprocessing.spec.reader import BLOCK_ROWS, file_rows
from preprocessing.spec.series import Series, first_run
from preprocessing.spec.values import Block, Kind, iter_values

_EXAMPLES = 3


def check_rules(folder: Path, spec: FeatureSpec, roles: FeatureRoles, kinds: Mapping[str, Kind]) -> list[Finding]:
    """Findings about rules that the rows violate.

    Args:
        spec: with the cardinalities of all ids.

    Raises:
        UserError: a file is no longer readable.
    """
    if "text" in (kinds[roles.user], kinds[roles.item]):
        return [note(str(folder), f"{roles.user} or {roles.item} holds text; transcode the folder to check its rows")]
    findings: list[Finding] = []
    pairs = _TestPairs(spec.cardinality(roles.item))
    items = [_ItemValues(name, spec.cardinality(roles.item)) for name in roles.item_side]

    def blocks(mapping: str, rows: int = BLOCK_ROWS) -> Iterator[Block]:
        present = {name: kind for name, kind in kinds.items() if name in spec.features(mapping)}
        for block in iter_values(folder, spec, mapping, present, rows):
            for values in items:
                values.add(block, roles.item, mapping)
            yield block

    has_test = bool(spec.source_spec.get("test"))
    needed = [roles.user, roles.item, *roles.user_side] if has_test else []
    missing = [name for name in needed if name not in spec.features("test")]
    if missing:
        findings.append(error("source_spec.test", f"has no feature {', '.join(missing)}, which train has"))
    elif has_test:
        declared = spec.metadata.test_samples_per_series
        series = Series(declared or first_run(blocks("test"), roles.user), declared is not None)
        for block in blocks("test", series.block_rows):
            labels = block.columns.get(roles.label)
            series.add(block.columns[roles.user], block.columns[roles.item], labels)
            pairs.add(block.columns[roles.user], block.columns[roles.item], series.positives(labels, block.rows))
        findings += series.findings()
    pairs.sort()
    users = _WholeUsers(spec.cardinality(roles.user), _file_ends(folder, spec, roles))
    for block in blocks("train"):
        if spec.metadata.time_ordered:
            users.add(block.columns[roles.user], block.start)
        positive = block.columns[roles.label] > 0
        pairs.match(block.columns[roles.user][positive], block.columns[roles.item][positive])
    findings += [*users.findings(), *pairs.findings()]
    return findings + [finding for values in items for finding in values.findings()]


def _file_ends(folder: Path, spec: FeatureSpec, roles: FeatureRoles) -> np.ndarray:
    """Cumulative row counts at which train files end; empty if the spec does not promise `time_ordered`."""
    if not spec.metadata.time_ordered:
        return np.zeros(0, dtype=np.int64)
    return np.cumsum(list(file_rows(folder, spec, "train", roles.user).values()))


class _TestPairs:
    """The (user, item) pairs of test, and whether each is a positive in train."""

    def __init__(self, n_items: int) -> None:
        self._n_items = n_items
        self._kept: dict[bool, list[np.ndarray]] = {True: [], False: []}
        self._sorted: dict[bool, np.ndarray] = {}
        self._hit: dict[bool, np.ndarray] = {}

    def add(self, users: np.ndarray, items: np.ndarray, positive: np.ndarray) -> None:
        keys = users * self._n_items + items  # below 2^62, as ids are below 2^31
        for is_positive, kept in self._kept.items():
            kept.append(keys[positive == is_positive])

    def sort(self) -> None:
        for is_positive, kept in self._kept.items():
            keys = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *kept]))
            kept.clear()
            self._sorted[is_positive] = keys
            self._hit[is_positive] = np.zeros(len(keys), dtype=bool)

    def match(self, users: np.ndarray, items: np.ndarray) -> None:
        keys = users * self._n_items + items
        keys.sort()  # makes the search below access memory sequentially
        for is_positive, known in self._sorted.items():
            place = np.searchsorted(known, keys)
            place = place[place < len(known)]
            self._hit[is_positive][place[known[place] == keys[: len(place)]]] = True

    def findings(self) -> list[Finding]:
        found = []
        for is_positive, hit in self._hit.items():
            if not hit.any():
                continue
            keys = self._sorted[is_positive][hit][:_EXAMPLES]
            examples = ", ".join(f"user {key // self._n_items} and item {key % self._n_items}" for key in keys)
            reported = f"found {hit.sum():,} of {len(hit):,}: {examples}"
            if is_positive:
                found.append(error("test", f"positives are also positives in train (expected none, {reported})"))
            else:
                found.append(note("test", f"negatives are the same user's positives in train ({reported})"))
        return found


class _WholeUsers:
    """Checks that each user's rows are contiguous and within one file, as `time_ordered` promises."""

    def __init__(self, n_users: int, file_ends: np.ndarray) -> None:
        self._seen = np.zeros(n_users, dtype=bool)
        self._last: int | None = None
        self._file_ends = file_ends
        self._again, self._first, self._cut = 0, 0, 0

    def add(self, users: np.ndarray, start: int) -> None:
        before = np.concatenate([[-1 if self._last is None else self._last], users[:-1]])
        begins = np.flatnonzero(users != before)
        runs = users[begins]
        _, first = np.unique(runs, return_index=True)
        is_duplicate = self._seen[runs]
        is_duplicate[np.setdiff1d(np.arange(len(runs)), first)] = True
        if is_duplicate.any() and not self._again:
            self._first = start + int(begins[is_duplicate.argmax()])
        self._again += int(is_duplicate.sum())
        self._seen[runs] = True
        ends = self._file_ends[(self._file_ends >= start) & (self._file_ends < start + len(users))] - start
        self._cut += int((users[ends] == before[ends]).sum())
        self._last = int(users[-1]) if len(users) else self._last

    def findings(self) -> list[Finding]:
        where, found = "metadata.time_ordered", []
        if self._again:
            reported = (
                f"expected one run per user, found {self._again:,} more, first in row {self._first + 1:,} of train"
            )
            found.append(error(where, f"a user's train rows are not contiguous ({reported})"))
        if self._cut:
            found.append(error(where, f"train files split users (expected none, found {self._cut:,})"))
        return found


class _ItemValues:
    """Checks that an item feature has one value per item."""

    def __init__(self, name: str, n_items: int) -> None:
        self._name = name
        self._known = np.zeros(n_items, dtype=bool)
        self._wrong = np.zeros(n_items, dtype=bool)
        self._table: np.ndarray | None = None
        self._example = ""

    def add(self, block: Block, item: str, mapping: str) -> None:
        column = block.columns.get(self._name)
        if column is None:
            return
        items = block.columns[item]
        values = column if isinstance(column, np.ndarray) else pd.util.hash_array(column.to_numpy())
        if self._table is None:
            self._table = np.zeros(len(self._known), dtype=values.dtype)
        new = ~self._known[items]
        self._table[items[new]] = values[new]  # if an item repeats, either value: the other is compared
        self._known[items] = True
        wrong = np.flatnonzero(self._table[items] != values)
        self._wrong[items[wrong]] = True
        if len(wrong) and not self._example:
            row = int(wrong[0])
            self._example = f"item {items[row]}, with {column[row]} in row {block.start + row + 1:,} of {mapping}"

    def findings(self) -> list[Finding]:
        if not self._wrong.any():
            return []
        what = "is an item feature by its channel, but some items have several values"
        reported = f"expected one for each item, found {self._wrong.sum():,} items with more, such as {self._example}"
        return [error(f"feature_spec.{self._name}", f"{what} ({reported})")]
