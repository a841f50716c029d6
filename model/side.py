"""Whose side features are, and the table of those that belong to items: one streaming pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.columns import Columns, SideFeature
from model.data import Rows
from model.neumf import unknown_values
from workflows.errors import UserError

_BLOCK_ROWS = 1 << 20


def settle(train: Rows, test: Rows | None, device: torch.device) -> tuple[Columns, tuple[Tensor, ...]]:
    """Tell whose each side feature is, and look up those of items.

    A feature of `either_side` that has one value for each user in train is the user's, and goes with the row; else
    one that has one value for each item, in train and test, is the item's; else it is context, and goes with the row.

    Memory: a value for each item (and for `either_side` each user) and feature; the rows are streamed.

    Args:
        train, test: rows with all their side features, as `open_train` and `open_test` give them.
    Returns:
        The columns with nothing left in `either_side`, and the values of each `item_side` feature by item, as
        `NeuMF.set_item_tables` takes them.

    Raises:
        UserError: a feature of an item channel has two values for one item, or test lacks one of the row's.
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
    """Stream the rows past the features that they have, by the ids in the column `owner`."""
    there = [values for values in features if values.feature.name in rows.names]
    if there:
        names = (owner, *(values.feature.name for values in there))
        for ids, *blocks in rows.only(names).stream(_BLOCK_ROWS, device):
            for values, block in zip(there, blocks, strict=True):
                values.observe(ids, block)


class _Values:
    """The value of one feature for each user or item, as far as the rows have told it."""

    def __init__(self, feature: SideFeature, n_ids: int, device: torch.device) -> None:
        self.feature = feature
        self.table = unknown_values(feature, n_ids).to(device)
        self._known = torch.zeros(n_ids, dtype=torch.bool, device=device)
        self.contradiction: tuple[int, float, float] | None = None  # an id and two of its values

    def observe(self, ids: Tensor, values: Tensor) -> None:
        """Take the values of ids not seen before, compare those of all others."""
        if self.contradiction:
            return
        new = ~self._known[ids]
        self.table[ids[new]] = values[new]  # where an id comes twice, either value: the other one is compared
        self._known[ids] = True
        wrong = (self.table[ids] != values).nonzero()
        if len(wrong):  # host sync: once per block read
            place = wrong[0]
            owner = int(ids[place])
            self.contradiction = owner, self.table[owner].item(), values[place].item()

    def refuse_contradiction(self) -> None:
        """Raises UserError where an item has two values."""
        if self.contradiction:
            item, first, second = self.contradiction
            raise UserError(
                f"feature {self.feature.name!r} belongs to the item by its channel, and item {item} has both "
                f"{first:.9g} and {second:.9g}; correct the rows, or, if the feature is not the item's, list it in a "
                "channel of neither users nor items"
            )
