"""Which rows of a trained run belong to the users, items and side features' values of a prepared folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model.data.record import recorded_fingerprint
from model.data.vocabulary import Vocabulary
from model.network.warm_start import RowMap, TrainedRun
from preprocessing.fingerprint import encoding_hash, read_fingerprint
from preprocessing.spec.feature_columns import FeatureColumns, SideFeature
from workflows.common.errors import UserError
from workflows.common.progress import console


def match_rows(run: TrainedRun, folder: Path, columns: FeatureColumns) -> RowMap:
    """Match the rows of a run to those of a network for a prepared folder, by original id.

    If the encoding in the run's fingerprint is that of the folder's first ids, as after `--workflow … --extend`, so are
    the run's rows. Otherwise its ids are read from the folder it was trained on.

    Args:
        columns: of the folder, with the side features of the run's network (`check_architecture`).

    Raises:
        UserError: the run's ids are unknown, or the folder has none of its users and items.
    """
    ids = (
        Vocabulary.load(folder, columns.user, "user", columns.n_users),
        Vocabulary.load(folder, columns.item, "item", columns.n_items),
    )
    n_old = run.shape.n_users, run.shape.n_items
    sides = zip((*columns.row_side, *columns.item_side), (*run.shape.row_side, *run.shape.item_side), strict=True)
    categorical = [(new, old) for new, old in sides if new.cardinality is not None]
    fingerprint = recorded_fingerprint(run.config)
    encoding = fingerprint.encoding if fingerprint is not None else None
    is_first = encoding is not None and _starts_with(ids, n_old, encoding)
    trained_on = folder if is_first and not categorical else _folder_of_run(run, folder, encoding)
    if is_first:
        users, items = (_first(n, len(new)) for n, new in zip(n_old, ids, strict=True))
    else:
        names = run.config.get("features") or {}
        old_users = Vocabulary.load(trained_on, names.get("user", columns.user), "user", n_old[0])
        old_items = Vocabulary.load(trained_on, names.get("item", columns.item), "item", n_old[1])
        users, items = ids[0].rows_in(old_users), ids[1].rows_in(old_items)
    if max(users.max(), items.max()) < 0:
        raise UserError(
            f"{folder} has none of the users and items that {run.folder} was trained on; train from scratch, without "
            "--load_checkpoint_path"
        )
    values = {new.name: _values(folder, new).rows_in(_values(trained_on, old)) for new, old in categorical}
    return RowMap(
        torch.from_numpy(users),
        torch.from_numpy(items),
        {name: torch.from_numpy(rows) for name, rows in values.items()},
    )


def _values(folder: Path, feature: SideFeature) -> Vocabulary:
    """The original values of a categorical side feature."""
    assert feature.cardinality is not None
    return Vocabulary.load(folder, feature.name, feature.name, feature.cardinality)


def _starts_with(ids: Sequence[Vocabulary], n_old: Sequence[int], encoding: str) -> bool:
    """Whether the first users and items of a folder are those of an encoding."""
    if any(n > len(new) for n, new in zip(n_old, ids, strict=True)):
        return False
    return encoding_hash({new.what: new.first(n) for n, new in zip(n_old, ids, strict=True)}) == encoding


def _first(n_old: int, n_new: int) -> np.ndarray:
    """Rows that stay where they are, int64 [n_new]."""
    rows = np.full(n_new, -1, dtype=np.int64)
    rows[:n_old] = np.arange(n_old)
    return rows


def _folder_of_run(run: TrainedRun, folder: Path, encoding: str | None) -> Path:
    """The folder that a run was trained on: where it was, or `folder` itself if it was moved there.

    Raises:
        UserError: it is gone, or was prepared anew.
    """
    old = Path(run.config["data"])
    found, here = (fingerprint.encoding if (fingerprint := read_fingerprint(path)) else None for path in (old, folder))
    if old.is_dir() and encoding in (None, found):
        return old
    if encoding is not None and encoding == here:
        return folder
    if encoding is None and not (folder / "categories").exists():
        console.print(f"{old} does not exist; {folder} is taken to number users and items as it did")
        return folder
    problem = "was prepared anew since, with other users and items" if old.is_dir() else "does not exist"
    raise UserError(
        f"the users and items of {run.folder} are unknown: {old}, which it was trained on, {problem}, and --data does "
        "not begin with its users and items. Put that folder back, or train from scratch, without "
        "--load_checkpoint_path"
    )
