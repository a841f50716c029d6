"""Decides whether a side feature belongs to the user or the item and builds the item tables, in a streaming pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.data.dataset import Rows
from model.network.neumf import unknown_values
from preprocessing.spec.columns import FeatureColumns, SideFeature
from workflows.common.errors import UserError

_BLOCK_ROWS = 1 << 20


def resolve_side_features(
    train: Rows, test: Rows | None, device: torch.device
) -> tuple[FeatureColumns, tuple[Tensor, ...]]:
    """Assign each `either_side` feature to the row or the item, and look up the item features.

    An `either_side` feature with a single value per user in train is a user feature and stays with the row; otherwise,
    if it has a single value per item in train and test, it is an item feature; otherwise it is context and stays with
    the row.

    Memory: one value per item (for `either_side` also per user) and feature; the rows are streamed.

    Args:
        train, test: rows with all their side features, from `open_train` and `open_test_set`.
    Returns:
        The columns with an empty `either_side`, and the per-item values of each `item_side` feature, for
        `NeuMF.set_item_tables`.

    Raises:
        UserError: a feature of an item channel has two values for one item, or test lacks a row feature.
    """
    columns = train.columns
    if not columns.item_side and not columns.either_side:
        return columns, ()
    by_user = [_Values(feature, columns.n_users, device) for feature in columns.either_side]
    by_item = [_Values(feature, columns.n_items, device) for feature in (*columns.item_side, *columns.either_side)]
    _observe(train, columns.user, by_user, device)
    for rows in (train, test) if test is not None else (train,):
        _observe(rows, columns.item, by_item, device)
    tables, candidates = by_item[: len(columns.item_side)], by_item[len(columns.item_side) :]
    for values in tables:
        values.refuse_contradiction()
    row_side = list(columns.row_side)
    for of_users, of_items in zip(by_user, candidates, strict=True):
        if of_users.contradiction and not of_items.contradiction:
            tables.append(of_items)
        else:
            row_side.append(of_users.feature)
    item_side = tuple(values.feature for values in tables)
    settled = replace(columns, row_side=tuple(row_side), item_side=item_side, either_side=())
    missing = [feature.name for feature in settled.row_side if test is not None and feature.name not in test.names]
    if missing:
        raise UserError(f"source_spec.test has no feature {', '.join(missing)}, which train has")
    return settled, tuple(values.table for values in tables)


def _observe(rows: Rows, owner: str, features: Sequence[_Values], device: torch.device) -> None:
    """Stream the rows through the features they have, keyed by the ids in column `owner`."""
    there = [values for values in features if values.feature.name in rows.names]
    if there:
        names = (owner, *(values.feature.name for values in there))
        for ids, *blocks in rows.only(names).stream(_BLOCK_ROWS, device):
            for values, block in zip(there, blocks, strict=True):
                values.observe(ids, block)


class _Values:
    """The values of one feature by user or item observed so far."""

    def __init__(self, feature: SideFeature, n_ids: int, device: torch.device) -> None:
        self.feature = feature
        self.table = unknown_values(feature, n_ids).to(device)
        self._known = torch.zeros(n_ids, dtype=torch.bool, device=device)
        self.contradiction: tuple[int, float, float] | None = None  # an id and two of its values

    def observe(self, ids: Tensor, values: Tensor) -> None:
        """Store the values of new ids, and check those of known ids."""
        if self.contradiction:
            return
        new = ~self._known[ids]
        self.table[ids[new]] = values[new]  # of duplicate ids either value; the other is checked below
        self._known[ids] = True
        wrong = (self.table[ids] != values).nonzero()
        if len(wrong):  # host sync: once per block read
            index = wrong[0]
            owner = int(ids[index])
            self.contradiction = owner, self.table[owner].item(), values[index].item()

    def refuse_contradiction(self) -> None:
        """Raise UserError if an item has two values."""
        if self.contradiction:
            item, first, second = self.contradiction
            raise UserError(
                f"feature {self.feature.name!r} is in an item channel, but item {item} has both {first:.9g} and "
                f"{second:.9g}; correct the rows, or, if it is not an item feature, list it in a channel of neither "
                "users nor items"
            )
