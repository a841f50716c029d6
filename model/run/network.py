"""The network that a run starts with: initial weights, pretrained branches, or those of another run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.data.known_rows import match_rows
from model.distributed.process_group import ProcessGroup
from model.network.checkpoint import load_weights
from model.network.neumf import NeuMF, NeuMFConfig
from model.network.pretrained import start_from
from model.network.warm_start import carried_over, carry_over, check_architecture, find_run
from model.run.config import RunConfig
from model.training.all_items_step import has_item_bias, start_from_popularity
from model.training.resume_state import LAST_NAME
from preprocessing.spec.feature_columns import FeatureColumns
from workflows.common.errors import UserError
from workflows.common.progress import console
from workflows.device.torch_device import torch_generator
from workflows.sampling import counter_rng

_DROPOUT_STREAM = 5


def initial_network(
    config: RunConfig,
    shape: NeuMFConfig,
    columns: FeatureColumns,
    item_tables: tuple[Tensor, ...],
    world: ProcessGroup,
    item_counts: Tensor | None = None,
) -> NeuMF:
    """The network before training, identical on every rank.

    Args:
        item_counts: int64 [n_items], train positives of each item, for a loss over all items.

    Raises:
        UserError: a run or checkpoint to start from does not fit.
    """
    seed = config.train.seed
    # Dropout draws from torch's global generator, seeded differently on each rank.
    torch.manual_seed(counter_rng.stream_seed(seed, _DROPOUT_STREAM, world.rank) if world.rank else seed)
    model = NeuMF(shape, torch_generator(seed, torch.device("cpu")))
    if config.pretrained and config.mode == "train":
        start_from(model, config.pretrained, config.alpha)
    model = model.to(world.device)
    if item_counts is not None:
        start_from_popularity(model, item_counts, config.train.loss)
    if config.load_checkpoint_path is not None and not (config.resume and (config.output / LAST_NAME).exists()):
        _load_checkpoint(config, config.load_checkpoint_path, columns, model, item_counts is not None)
        if item_counts is not None and not has_item_bias(model):
            raise UserError(
                f"{config.load_checkpoint_path}: its last factor is not an item bias; --loss {config.train.loss} needs "
                "a checkpoint trained with --loss softmax or bce-all"
            )
    model.set_item_tables(item_tables)  # item features come from the data, not from a checkpoint
    return model


def _load_checkpoint(
    config: RunConfig, path: Path, columns: FeatureColumns, model: NeuMF, with_item_bias: bool
) -> None:
    """Load the weights of a run, whose rows are carried over by original id, or weights alone, by position.

    Args:
        with_item_bias: whether the last factor is to be an item bias, see `start_from_popularity`.

    Raises:
        UserError: they do not fit, or `--mode test` would test untrained rows.
    """
    run = find_run(path)
    if run is None:
        load_weights(path, model)
        return
    check_architecture(model.config, run)
    rows = match_rows(run, config.data, columns)
    new_users, new_items = rows.n_new
    if config.mode == "test" and new_users + new_items:
        raise UserError(
            f"--mode test: {new_users:,} of the {columns.n_users:,} users and {new_items:,} of the {columns.n_items:,} "
            f"items of {config.data} are unknown to {run.folder}, so their rows would be untrained; train first, or "
            "prepare the log with --workflow alone, which leaves unknown ids out"
        )
    carry_over(model, run, rows, config.new_rows, with_item_bias)
    if config.mode == "train":
        console.print(carried_over(run, rows))
