"""What a prepared folder says of some users: the items they have interacted with, and their side features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from model.columns import Columns
from model.series import open_test
from preprocessing.chunks import read_mapping
from preprocessing.feature_spec import FeatureSpec
from workflows.errors import UserError


@dataclass(frozen=True)
class Known:
    """What the data says of one user.

    Attributes:
        seen: int64, the distinct items the user has interacted with, held-out ones included.
        row_side: the values of the side features that go with a row, in the user's last train row (of a user with
            none, the last test row).
    """

    seen: np.ndarray
    row_side: tuple[int | float, ...]


def known_of(
    folder: Path, spec: FeatureSpec, columns: Columns, row_side: Sequence[str], users: Sequence[int]
) -> dict[int, Known]:
    """What the data says of each of some users; one pass over it.

    Args:
        row_side: names of the side features that go with a row.
        users: encoded ids.

    Raises:
        UserError: there are side features, and a user has no row that could tell them.
    """
    user, item, label = columns.user, columns.item, columns.label
    train = _frame(folder, spec, "train", columns, [user, item, label, *row_side])
    train = train[train[user].isin(users)]
    test, held_out = _test_rows(folder, spec, columns, row_side)
    positives = pd.concat([train.loc[train[label] > 0, [user, item]], test.loc[held_out, [user, item]]])
    last = pd.concat([test, train]).drop_duplicates(user, keep="last").set_index(user)
    known = {}
    for number in users:
        if row_side and number not in last.index:
            raise UserError(
                f"{folder} has no row of the user with the encoded id {number}, so {', '.join(row_side)} of the user "
                "are not known; add the user's interactions to the log, then prepare and train again"
            )
        seen = np.unique(positives.loc[positives[user] == number, item]).astype(np.int64)
        known[number] = Known(seen, tuple(last.at[number, name].item() for name in row_side))
    return known


def _test_rows(
    folder: Path, spec: FeatureSpec, columns: Columns, row_side: Sequence[str]
) -> tuple[pd.DataFrame, np.ndarray]:
    """The test rows (user, item, side features), and which of them are positives, bool [rows]."""
    names = [columns.user, columns.item, *row_side]
    if not spec.source_spec.get("test"):
        return columns.schema(names).empty_table().to_pandas(), np.zeros(0, dtype=bool)
    length = spec.metadata.test_samples_per_series
    if length is None:
        opened = open_test(folder, spec, torch.device("cpu"), columns)
        length = opened.length if opened is not None else None
    if length is None:  # the rows are no series, so they have labels
        test = _frame(folder, spec, "test", columns, [*names, columns.label])
        return test[names], test[columns.label].to_numpy() > 0
    return (test := _frame(folder, spec, "test", columns, names)), np.arange(len(test)) % length == 0


def _frame(folder: Path, spec: FeatureSpec, mapping: str, columns: Columns, names: Sequence[str]) -> pd.DataFrame:
    return columns.cast(read_mapping(folder, spec, mapping, names), str(folder)).to_pandas()
