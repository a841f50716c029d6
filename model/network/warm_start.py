"""Start a network from a trained run with other users and items: rows of the tables move by original id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.network.checkpoint import CONFIG_NAME, WEIGHTS_NAME, read_config
from model.network.neumf import NeuMF, NeuMFConfig, side_width
from model.network.weights import check_weights, read_weights
from preprocessing.spec.feature_columns import SideFeature
from workflows.common.errors import UserError
from workflows.common.files import read_json

NEW_ROWS = ("random", "mean")
_BLOCK_VALUES = 1 << 22  # copied at once, 4 bytes each


@dataclass(frozen=True)
class TrainedRun:
    """Weights with the config of their run beside them.

    Attributes:
        shape: of the run's network.
        config: the content of `config.json`.
    """

    folder: Path
    weights: Path
    shape: NeuMFConfig
    config: Mapping[str, Any]


def find_run(path: Path) -> TrainedRun | None:
    """The run that a checkpoint belongs to; None for weights alone.

    Args:
        path: a run folder, or weights in any format of `load_weights`.

    Raises:
        UserError: a folder that is no run.
    """
    if not path.is_dir() and not {"format", "model", "data"} <= read_json(path.parent / CONFIG_NAME).keys():
        return None
    folder, weights = (path, path / WEIGHTS_NAME) if path.is_dir() else (path.parent, path)
    shape, config = read_config(folder)
    return TrainedRun(folder, weights, shape, config)


@dataclass(frozen=True)
class RowMap:
    """Which row of a run's tables belongs to each row of a new network's; all int64 on the host, -1: none.

    Attributes:
        users, items: [n_users] and [n_items] of the new network.
        values: by name of a categorical side feature, [its cardinality].
    """

    users: Tensor
    items: Tensor
    values: Mapping[str, Tensor]

    @property
    def n_new(self) -> tuple[int, int]:
        """Users and items that the run does not have."""
        return int((self.users < 0).sum()), int((self.items < 0).sum())


def carried_over(run: TrainedRun, rows: RowMap) -> str:
    """One line for the user: how many users and items a run shares with the new network."""
    n_users, n_items, (new_users, new_items) = len(rows.users), len(rows.items), rows.n_new
    users, items = n_users - new_users, n_items - new_items
    gone_users, gone_items = run.shape.n_users - users, run.shape.n_items - items
    gone = f"; {gone_users:,} and {gone_items:,} of the run are not in --data" if gone_users + gone_items else ""
    return (
        f"carried over {users:,} of {n_users:,} users and {items:,} of {n_items:,} items from {run.folder}; "
        f"{new_users:,} and {new_items:,} are new{gone}"
    )


@torch.no_grad()
def carry_over(model: NeuMF, run: TrainedRun, rows: RowMap, new_rows: str, with_item_bias: bool = False) -> None:
    """Set a network's weights to those of a run. Item features are not weights: see `NeuMF.set_item_tables`.

    Args:
        model: freshly initialised; fits the run (`check_architecture`).
        new_rows: rows without a row of the run keep their initial values ("random"), or get the mean of all rows of
            the run's table ("mean").
        with_item_bias: the last factor of new items keeps its initial value: it is their popularity.

    Raises:
        UserError: the weights are unreadable, or not those of the run's config.
    """
    weights = read_weights(run.weights)
    with torch.device("meta"):
        trained = NeuMF(run.shape)
    check_weights(trained, weights, run.weights, f"they are not the weights of {run.folder / CONFIG_NAME}")
    tables = dict(_tables(model.config, run.shape, rows))
    for name, parameter in model.named_parameters():
        source = weights.pop(name)  # freed when carried over
        if name not in tables:
            parameter.copy_(source)
            continue
        _carry_rows(parameter, source, tables[name])
        if new_rows == "mean":
            columns = slice(-1) if with_item_bias and name == "mf_item_embed.weight" else slice(None)
            mean = _mean(source).to(parameter)
            parameter[:, columns][(tables[name] < 0).to(parameter.device)] = mean[columns]


def _tables(shape: NeuMFConfig, trained: NeuMFConfig, rows: RowMap) -> Iterator[tuple[str, Tensor]]:
    """The parameters that have a row per user, item or value, with the run's row of each of their rows."""
    for branch in ("mf", "mlp"):
        yield f"{branch}_user_embed.weight", rows.users
        yield f"{branch}_item_embed.weight", rows.items
    pairs = zip((*shape.row_side, *shape.item_side), (*trained.row_side, *trained.item_side), strict=True)
    of_items = [False] * len(shape.row_side) + [True] * len(shape.item_side)
    number = 0
    for (feature, old), has_unknown in zip(pairs, of_items, strict=True):
        if feature.cardinality is not None and old.cardinality is not None:
            values = rows.values[feature.name]
            if has_unknown:  # the last row is for items without a value
                values = torch.cat((values, torch.tensor([old.cardinality])))
            yield f"side_embed.{number}.weight", values
            number += 1


def _carry_rows(target: Tensor, source: Tensor, rows: Tensor) -> None:
    """Copy `source[rows]` to `target`, a block at a time, except for rows of -1."""
    for block, start in _blocks(rows, source):
        known = (block >= 0).nonzero().squeeze(1)
        carried = source.index_select(0, block[known]).to(target.device)
        target.index_copy_(0, (known + start).to(target.device), carried)


def _mean(table: Tensor) -> Tensor:
    """The mean row, float64 [width]."""
    return torch.stack([block.double().sum(dim=0) for block, _ in _blocks(table, table)]).sum(dim=0) / len(table)


def _blocks(tensor: Tensor, table: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Blocks of a tensor with an entry per row of a table, and their starts, so that temporary copies stay small."""
    n_rows = max(1, _BLOCK_VALUES // max(1, table.shape[1]))
    for start in range(0, len(tensor), n_rows):
        yield tensor[start : start + n_rows], start


def check_architecture(shape: NeuMFConfig, run: TrainedRun) -> None:
    """Raises UserError if the networks differ in more than the number of users, items and values; lists all."""
    old, wrong = run.shape, []
    for flag in ("arch", "factors", "layers"):
        one, other = getattr(old, flag), getattr(shape, flag)
        if one != other and 0 not in (one, other) and (0,) not in (one, other):  # 0: a branch that --arch leaves out
            wrong.append(f"--{flag} is {_shown(one)} in the run, got {_shown(other)}")
    for side, kind in (("row_side", "user and context"), ("item_side", "item")):
        one, other = getattr(old, side), getattr(shape, side)
        if list(map(_input, one)) != list(map(_input, other)):
            wrong.append(f"its side features of the {kind} are {_features(one)}, those of --data {_features(other)}")
    if wrong:
        raise UserError(
            f"{run.folder} does not fit the network: {'; '.join(wrong)}. Give the flags of the run (--config "
            f"{run.folder / 'config.yaml'}), or train from scratch, without --load_checkpoint_path"
        )


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _input(feature: SideFeature) -> tuple[str, bool, int]:
    """A side feature's part in the network: name, whether it is a number, and width."""
    return feature.name, feature.cardinality is None, side_width(feature)


def _features(features: tuple[SideFeature, ...]) -> str:
    shown = [
        f"{feature.name} ({'number' if feature.cardinality is None else f'{feature.cardinality:,} values'})"
        for feature in features
    ]
    return ", ".join(shown) or "none"
