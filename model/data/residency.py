"""Whether rows stay in device memory, or are streamed every time they are needed."""

from __future__ import annotations

from model.distributed.process_group import ProcessGroup
from workflows.device.torch_device import free_bytes

TRAIN_BYTES, PAIR_BYTES, TEST_BYTES = 8, 12, 4  # per row, of the loaders of samples and of users, and of evaluation
_SHARE = 4  # of free memory: the rest is for the network, its gradients and the activations of a batch


def stays_in_memory(loader: str, n_bytes: int, world: ProcessGroup) -> bool:
    """Whether rows of `n_bytes` stay in memory: with `--loader memory`, and on GPUs that each have four times as much
    free. Every rank has to ask, and gets the same answer."""
    free = free_bytes(world.device)
    fits = free is not None and _SHARE * n_bytes <= free
    return loader == "memory" or world.start_sum(int(fits))() == world.size
