"""Whether a run fits into memory, judged before it allocates anything: sizes come from flags and from files."""

from __future__ import annotations

from dataclasses import replace

from model.data.dataset import Rows
from model.distributed.process_group import ProcessGroup
from model.ensemble.ease import MAX_ITEMS
from model.ensemble.members import members_together
from model.network.neumf import NeuMFConfig, require_network
from model.run.config import RunConfig
from model.training.config import TrainConfig
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.device.memory import require_memory
from workflows.device.torch_device import free_bytes

_TRAINED = 4  # copies of the parameters: themselves, gradients, and two moments of Adam
_SAMPLE_BYTES = 24  # of a batch: user, item and label, drawn and in order
_DRAWN_BYTES = 32  # of a negative while it is drawn


def check_network(config: RunConfig, columns: FeatureColumns, world: ProcessGroup) -> None:
    """Check the network, with the numbers of users and items that the feature spec claims, in all ranks of the machine.

    No rank goes on, and allocates anything, before all have looked.

    Raises:
        UserError: it does not fit.
    """
    shape = replace(config.shape, n_users=columns.n_users, n_items=columns.n_items)
    if shape.arch != "gmf":  # which has no place for them
        shape = replace(shape, row_side=(*columns.row_side, *columns.either_side), item_side=columns.item_side)
    copies = _TRAINED if config.mode == "train" else 1
    if config.mode == "train" and len(config.train.members) == 1:  # several divide the factors
        copies *= members_together(world)
    whose = f"from {config.data / config.feature_spec_file}, --factors and --layers"
    shared = whose if world.local_size == 1 else f"{whose}; in each of {world.local_size} processes"
    on_gpu = free_bytes(world.device)
    if on_gpu is None:
        require_network(shape, shared, copies * world.local_size)
    else:
        require_network(shape, shared, world.local_size)  # it is made on the host
        require_network(shape, whose, copies, on_gpu)
    world.broadcast_int(0)


def check_batches(config: TrainConfig, shape: NeuMFConfig, train: Rows, world: ProcessGroup) -> None:
    """Check the batches, which are at most as large as an epoch.

    Raises:
        UserError: they do not fit.
    """
    left = free_bytes(world.device)
    together = world.local_size if left is None else 1  # ranks whose batches share the memory
    if config.all_items_loss or config.members:
        pairs = min(config.batch_size, shape.n_users * shape.n_items)
        what = f"the scores of a batch of {pairs:,} users times items"
        members = members_together(world) if config.members else 1
        require_memory(4 * pairs * members * together // world.size, what, "lower --batch_size", left)
        if "item-item" in config.members and shape.n_items <= MAX_ITEMS:
            what = f"the item-item member over {shape.n_items:,} items"
            require_memory(3 * 4 * shape.n_items**2 * together, what, "leave item-item out of --members", left)
        return
    per_positive = 0 if config.negatives == "static" else config.negative_samples
    samples = train.n_rows * (1 + per_positive)
    batch = min(config.batch_size, samples) // world.size
    require_memory(_SAMPLE_BYTES * batch * together, f"a batch of {batch:,} samples", "lower --batch_size", left)
    block = min(BLOCK_ROWS, max(1, train.n_rows // 4)) * per_positive
    what = f"drawing {per_positive:,} negatives for each positive"
    require_memory(_DRAWN_BYTES * block * together, what, "lower --negative_samples", left)
