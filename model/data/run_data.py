"""The prepared folder a run was trained on: roles of its features in the network, original ids, users trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.data.record import ALL, TRAINED_USERS, check_encoding, decode_users
from model.data.vocabulary import Vocabulary
from model.network.checkpoint import CONFIG_NAME, Run
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.feature_spec import FeatureSpec, read_feature_spec
from workflows.common.errors import UserError


@dataclass(frozen=True)
class RunData:
    """A prepared folder, matched to the network of a run.

    Attributes:
        columns: roles of the features, with only the side features that the network has.
        trained: which users the run was trained on, bool [n_users]; all if it is older than that record.
        note: remark for the user on how the folder differs from the one trained on; may be empty.
    """

    folder: Path
    spec: FeatureSpec
    columns: FeatureColumns
    users: Vocabulary
    items: Vocabulary
    trained: np.ndarray
    note: str

    @staticmethod
    def load(run: Run, folder: Path | None = None) -> RunData:
        """
        Args:
            folder: None if it has not moved.

        Raises:
            UserError: it is not, or no longer, the folder the run was trained on.
        """
        folder = folder or Path(run.config["data"])
        if not folder.is_dir():
            raise UserError(
                f"{folder}, which {run.folder} was trained on, does not exist; if it has moved, name it with --data"
            )
        spec = read_feature_spec(folder, run.config["feature_spec_file"])
        columns = _columns(run, folder, spec)
        note = check_encoding(run.config, run.folder, folder)
        users = Vocabulary.load(folder, columns.user, "user", columns.n_users)
        items = Vocabulary.load(folder, columns.item, "item", columns.n_items)
        return RunData(folder, spec, columns, users, items, _trained(run), note)


def _trained(run: Run) -> np.ndarray:
    try:
        return decode_users(run.config.get(TRAINED_USERS, ALL), run.model.config.n_users)
    except ValueError as err:
        raise UserError(f"{run.folder / CONFIG_NAME}: {TRAINED_USERS} is not a set of users ({err})") from None


def _columns(run: Run, folder: Path, spec: FeatureSpec) -> FeatureColumns:
    """The roles of the folder's features in the network; raises UserError if it is another folder."""
    ids = run.config.get("features") or {}
    columns, shape = FeatureColumns.from_spec(spec, ids.get("user"), ids.get("item")), run.model.config
    if (columns.n_users, columns.n_items) != (shape.n_users, shape.n_items):
        raise UserError(
            f"{folder} has {columns.n_users:,} users and {columns.n_items:,} items, but {run.folder} was "
            f"trained on {shape.n_users:,} and {shape.n_items:,}; name the folder it was trained on with --data"
        )
    for feature in (*shape.row_side, *shape.item_side):
        if feature not in columns.side:
            raise UserError(
                f"{run.folder} was trained with the side feature {feature.name!r} (cardinality "
                f"{feature.cardinality}), which {folder} does not have; name the folder it was trained on with --data"
            )
    return replace(columns, row_side=shape.row_side, item_side=shape.item_side, either_side=())
