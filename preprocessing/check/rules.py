"""Cross-row checks of a folder: test series, leakage of test into train, row order, and item features.

Values must already be valid: ids below their cardinalities, labels within 0 .. 1. Rows are streamed; memory holds
8 bytes per test row, a byte per user, and a value per item and feature (if test lacks it, perhaps also per user).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.spec.consistency import (
    OwnerValues,
    belongs_to_items,
    find_series,
    lacks_features,
    run_starts,
    several_item_values,
)
from preprocessing.spec.feature_spec import FeatureSpec
from preprocessing.spec.features import FeatureRoles
from preprocessing.spec.findings import Finding, error, note
from preprocessing.spec.reader import BLOCK_ROWS, file_rows
from preprocessing.spec.values import Block, Kind, iter_values

_EXAMPLES = 3
_TYPES: dict[Kind, Any] = {"id": np.int64, "number": np.float32, "text": object}  # of side features, as trained on


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
    n_users, n_items = spec.cardinality(roles.user), spec.cardinality(roles.item)
    present = spec.features("test") if spec.source_spec.get("test") else []
    # Only if test lacks a feature does it matter here whether its owner is the item.
    unowned = [name for name in roles.either_side if present and name not in present]
    by_user = {name: OwnerValues(np.zeros(n_users, _TYPES[kinds[name]])) for name in unowned}
    by_item = {name: OwnerValues(np.zeros(n_items, _TYPES[kinds[name]])) for name in (*roles.item_side, *unowned)}

    def blocks(mapping: str, rows: int = BLOCK_ROWS) -> Iterator[Block]:
        read = {name: kind for name, kind in kinds.items() if name in spec.features(mapping)}
        for block in iter_values(folder, spec, mapping, read, rows):
            for owner, features in ((roles.user, by_user), (roles.item, by_item)):
                for name, values in features.items():
                    if name in read:
                        values.add(block.columns[owner], np.asarray(block.columns[name], _TYPES[kinds[name]]))
            yield block

    pairs = _TestPairs(n_items)
    lacking = lacks_features([roles.user, roles.item, *roles.user_side], present) if present else ""
    if present and not lacking:
        findings += _test_findings(folder, spec, roles, kinds, blocks, pairs)
    pairs.sort()
    users = _WholeUsers(n_users, _file_ends(folder, spec, roles))
    for block in blocks("train"):
        if spec.metadata.time_ordered:
            users.add(block.columns[roles.user], block.start)
        positive = block.columns[roles.label] > 0
        pairs.match(block.columns[roles.user][positive], block.columns[roles.item][positive])
    lacking = lacking or lacks_features([n for n in unowned if not belongs_to_items(by_user[n], by_item[n])], present)
    if lacking:
        findings.append(error("source_spec.test", lacking))
    findings += [*users.findings(), *pairs.findings()]
    several = {name: several_item_values(name, by_item[name]) for name in roles.item_side}
    return findings + [error(f"feature_spec.{name}", reason) for name, reason in several.items() if reason]


def _test_findings(
    folder: Path,
    spec: FeatureSpec,
    roles: FeatureRoles,
    kinds: Mapping[str, Kind],
    blocks: Callable[[str, int], Iterator[Block]],
    pairs: _TestPairs,
) -> list[Finding]:
    """Findings about the test series; adds the test rows to `pairs`."""

    def read(names: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        for block in iter_values(folder, spec, "test", {name: kinds[name] for name in names}, BLOCK_ROWS):
            yield block.columns

    declared = spec.metadata.test_samples_per_series
    label = roles.label if roles.label in spec.features("test") else None
    series = find_series(read, declared, roles.user, label)
    where, length = "metadata.test_samples_per_series", series.length or 1
    findings = [error(where, series.error)] if series.error else [note(where, series.note)] if series.note else []
    rows = of_many_users = with_repeats = 0
    for block in blocks("test", max(length, BLOCK_ROWS // length * length)):
        users, items = block.columns[roles.user], block.columns[roles.item]
        by_position = np.arange(block.rows) % length == 0
        pairs.add(users, items, by_position if label is None else block.columns[label] > 0)
        rows, whole = rows + block.rows, block.rows // length * length
        by_series = users[:whole].reshape(-1, length)
        of_many_users += int((by_series != by_series[:, :1]).any(axis=1).sum())
        ordered = np.sort(items[:whole].reshape(-1, length), axis=1)
        with_repeats += int((ordered[:, 1:] == ordered[:, :-1]).any(axis=1).sum())
    if of_many_users:
        found = f"found {of_many_users:,} of {rows // length:,}"
        findings.append(note("test", f"series hold rows of more than one user ({found})"))
    if with_repeats:
        found = f"found {with_repeats:,} of {rows // length:,}"
        findings.append(note("test", f"series hold an item more than once, but metrics count it once ({found})"))
    return findings


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
        starts = run_starts(users, self._last)
        begins = np.flatnonzero(starts)
        runs = users[begins]
        _, first = np.unique(runs, return_index=True)
        is_duplicate = self._seen[runs]
        is_duplicate[np.setdiff1d(np.arange(len(runs)), first)] = True
        if is_duplicate.any() and not self._again:
            self._first = start + int(begins[is_duplicate.argmax()])
        self._again += int(is_duplicate.sum())
        self._seen[runs] = True
        ends = self._file_ends[(self._file_ends >= start) & (self._file_ends < start + len(users))] - start
        self._cut += int((~starts[ends]).sum())
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
