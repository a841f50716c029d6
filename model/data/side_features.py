"""Decides whether a side feature belongs to the user or the item and builds the item tables, in a streaming pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from model.data.dataset import Rows
from model.network.neumf import unknown_values
from preprocessing.spec.consistency import OwnerValues, belongs_to_items, lacks_features, several_item_values
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.common.errors import UserError


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
    features = {feature.name: feature for feature in (*columns.item_side, *columns.either_side)}
    by_user = {f.name: OwnerValues(unknown_values(f, columns.n_users).to(device)) for f in columns.either_side}
    by_item = {name: OwnerValues(unknown_values(f, columns.n_items).to(device)) for name, f in features.items()}
    _observe(train, columns.user, by_user, device)
    for rows in (train, test) if test is not None else (train,):
        _observe(rows, columns.item, by_item, device)
    for feature in columns.item_side:
        contradiction = several_item_values(feature.name, by_item[feature.name])
        if contradiction:
            raise UserError(contradiction)
    of_rows = {name for name, values in by_user.items() if not belongs_to_items(values, by_item[name])}
    item_side = tuple(feature for name, feature in features.items() if name not in of_rows)
    row_side = (*columns.row_side, *(features[name] for name in features if name in of_rows))
    lacking = lacks_features([feature.name for feature in row_side], test.names) if test is not None else ""
    if lacking:
        raise UserError(f"source_spec.test {lacking}")
    settled = replace(columns, row_side=row_side, item_side=item_side, either_side=())
    return settled, tuple(by_item[feature.name].table for feature in item_side)


def _observe(rows: Rows, owner: str, features: Mapping[str, OwnerValues], device: torch.device) -> None:
    """Stream the rows through the features they have, keyed by the ids in column `owner`."""
    present = [name for name in features if name in rows.names]
    if present:
        for ids, *blocks in rows.only((owner, *present)).stream(BLOCK_ROWS, device):
            for name, block in zip(present, blocks, strict=True):
                features[name].add(ids, block)
