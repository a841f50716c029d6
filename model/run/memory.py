"""Whether a run fits into memory, judged before it allocates anything: sizes come from flags and from files."""

from __future__ import annotations

from dataclasses import replace

from model.data.dataset import Rows
from model.distributed.process_group import ProcessGroup
from model.ensemble.ease import MAX_ITEMS
from model.network.neumf import NeuMFConfig, require_network
from model.run.config import RunConfig
from model.training.config import TrainConfig
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.device.memory import require_memory
from workflows.device.torch_device import free_bytes

_TRAINED = 4  # copies of the parameters: themselves, gradients, and two moments of Adam
_SAMPLE_BYTES = 12  # of a batch: user, item and label
_DRAWN_BYTES = 32  # of a negative while it is drawn


def check_network(config: RunConfig, columns: FeatureColumns, world: ProcessGroup) -> None:
    """Check the network, with the numbers of users and items that the feature spec claims.

    Raises:
        UserError: it does not fit.
    """
    shape = replace(config.shape, n_users=columns.n_users, n_items=columns.n_items)
    if shape.arch != "gmf":  # which has no place for them
        shape = replace(shape, row_side=(*columns.row_side, *columns.either_side), item_side=columns.item_side)
    copies = _TRAINED if config.mode == "train" else 1
    whose = f"from {config.data / config.feature_spec_file}, --factors and --layers"
    on_gpu = free_bytes(world.device)
    if on_gpu is None:
        require_network(shape, whose, copies)
    else:
        require_network(shape, whose)  # it is made on the host
        require_network(shape, whose, copies, on_gpu)


def check_batches(config: TrainConfig, shape: NeuMFConfig, train: Rows, world: ProcessGroup) -> None:
    """Check the batches, which are at most as large as an epoch.

    Raises:
        UserError: they do not fit.
    """
    left = free_bytes(world.device)
    if config.all_items_loss or config.members:
        pairs = min(config.batch_size, shape.n_users * shape.n_items)
        what = f"the scores of a batch of {pairs:,} users times items"
        require_memory(4 * pairs // world.size, what, "lower --batch_size", left)
        if "item-item" in config.members and shape.n_items <= MAX_ITEMS:
            what = f"the item-item member over {shape.n_items:,} items"
            require_memory(3 * 4 * shape.n_items**2, what, "leave item-item out of --members", left)
        return
    per_positive = 0 if config.negatives == "static" else config.negative_samples
    samples = train.n_rows * (1 + per_positive)
    batch = min(config.batch_size, samples) // world.size
    require_memory(_SAMPLE_BYTES * batch, f"a batch of {batch:,} samples", "lower --batch_size", left)
    block = min(BLOCK_ROWS, max(1, train.n_rows // 4)) * per_positive
    what = f"drawing {per_positive:,} negatives for each positive"
    require_memory(_DRAWN_BYTES * block, what, "lower --negative_samples", left)
