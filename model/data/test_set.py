"""The test rows of a folder, evaluated as series of one positive each, or row by row."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from model.data.dataset import Rows, open_mapping
from preprocessing.spec.columns import FeatureColumns
from preprocessing.spec.feature_spec import FeatureSpec
from workflows.common.errors import UserError

_BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class TestSet:
    """Test rows.

    Attributes:
        rows: user, item, the folder's label column if it has one and no length is declared, and its side features.
        length: rows per series, positive first; None if the rows do not form series.
        note: remark on this for the user; may be empty.
    """

    rows: Rows
    length: int | None
    note: str = ""


def open_test_set(
    folder: Path,
    spec: FeatureSpec,
    device: torch.device,
    columns: FeatureColumns | None = None,
    positives_alone: bool = False,
) -> TestSet | None:
    """The test rows; None if there is nothing to rank: no test mapping, or series with only the positive.

    If `metadata.test_samples_per_series` is missing, runs of equal length with one user each are taken as series,
    unless their labels contradict that.

    Args:
        columns: roles of the features; None to take them from the spec alone.
        positives_alone: accept series with only the positive, because ranking is against all items.

    Raises:
        UserError: a file is missing or does not match the spec; the declared length does not divide the rows; or
            there are neither series nor labels.
    """
    declared = spec.metadata.test_samples_per_series
    if not spec.source_spec.get("test") or (declared == 1 and not positives_alone):
        return None
    columns = columns or FeatureColumns.from_spec(spec)
    present = {name for chunk in spec.chunks("test") for name in chunk.features}
    # Row features are required; item features can come from train.
    optional = [feature.name for feature in (*columns.item_side, *columns.either_side)]
    names = (columns.user, columns.item, *(feature.name for feature in columns.row_side))
    names += tuple(name for name in ([] if declared else [columns.label]) + optional if name in present)
    rows = open_mapping(folder, spec, "test", columns, names, device)
    if declared is None:
        return _undeclared(folder, rows, device)
    if rows.n_rows % declared:
        raise UserError(
            f"{folder}: test has {rows.n_rows:,} rows, which are no whole series of "
            f"{declared} (metadata.test_samples_per_series)"
        )
    return TestSet(rows, declared)


def _undeclared(folder: Path, rows: Rows, device: torch.device) -> TestSet:
    length = _first_run(rows, device)
    why = _contradiction(rows, length, device)
    if not why:
        return TestSet(rows, length, f"test series of {length} rows, found in the data")
    if rows.columns.label not in rows.names:
        raise UserError(
            f"{folder}: the test rows cannot be evaluated: metadata.test_samples_per_series is missing, {why}, and "
            "there is no label column; add either to the feature spec"
        )
    return TestSet(rows, None, f"AUC instead of HR and NDCG: metadata.test_samples_per_series is missing, and {why}")


def _first_run(rows: Rows, device: torch.device) -> int:
    """Length of the first run of rows with the same user."""
    first, length = None, 0
    with closing(rows.only((rows.columns.user,)).stream(_BLOCK_ROWS, device)) as blocks:
        for (users,) in blocks:
            first = users[0] if first is None else first
            others = (users != first).nonzero()
            if len(others):
                return length + int(others[0])
            length += len(users)
    return length


def _contradiction(rows: Rows, length: int, device: torch.device) -> str:
    """Why the rows are not series of `length` with one user each, positive first; empty if they are."""
    if length < 2:
        return "the first user has only one test row"
    if rows.n_rows % length:
        return f"the {rows.n_rows:,} test rows are not runs of equal length by user (the first has {length})"
    names, start, last = [rows.columns.user], 0, None
    if rows.columns.label in rows.names:
        names.append(rows.columns.label)
    with closing(rows.only(names).stream(_BLOCK_ROWS, device)) as blocks:
        for users, *labels in blocks:
            before = torch.cat((users[:1] - 1 if last is None else last, users[:-1]))
            is_first = torch.arange(start, start + len(users), device=device) % length == 0
            if not torch.equal(users != before, is_first):
                return f"the test rows are not runs of equal length by user (the first has {length})"
            if labels and not torch.equal(labels[0] > 0, is_first):
                return f"not every user's run of {length} test rows has its one positive first"
            start, last = start + len(users), users[-1:]
    return ""
