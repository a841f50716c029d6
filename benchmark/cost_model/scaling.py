"""Traffic of a step with tables too large for one device, or devices in several machines, by formula.

The product neither shards tables nor exchanges rows; the formulas show what that would gain. No torch.
"""

from __future__ import annotations

from itertools import pairwise

from benchmark.cost_model.bounds import all_reduce_bytes
from benchmark.training import variants as settings

NETWORK_GB_PER_S = 50  # per device, in one direction: a 400 Gb/s network card each
CLUSTERS = ((1 << 20, 8), (1 << 23, 64))  # samples per step over all devices, devices
SIZES = {  # users, items
    "MovieLens-20M": (138_493, 26_744),
    "10 million users": (10_000_000, 1_000_000),
    "100 million users": (100_000_000, 10_000_000),
}

_FLOAT, _ID = 4, 4  # bytes
_ADAM_PASSES = 7  # parameter, gradient and two moments read; parameter and moments written
_ROW = settings.LAYERS[0] // 2 + settings.FACTORS  # floats in the embeddings of a user or item


def scaling(users: int, items: int, batch_size: int, devices: int) -> dict[str, float]:
    """Network bytes that a device receives in a step, per sample of its own, and the size of the training state.

    dense: replicated tables, all-reduce of all gradients, as in the product. rows: replicated tables; for each table,
    rows with a gradient are sent to all other devices, or dense if that is less. sharded: each row on one device; rows
    go to the devices whose samples need them, and their gradients back.

    Rows are as distinct as the table allows: negatives are drawn from all items, and there are many users.

    Args:
        batch_size: samples over all devices.
    Returns:
        state_gb: total size of parameters, gradients and Adam's moments; bytes per sample of the three schemes;
        adam_bytes: Adam's pass over all rows if they are replicated, adam_sharded_bytes if sharded.
    """
    own = batch_size / devices
    layers = sum(a * b + b for a, b in pairwise(settings.LAYERS)) + settings.FACTORS + settings.LAYERS[-1] + 1
    tables = ((users, min(users, own / (1 + settings.NEGATIVES))), (items, min(items, own)))  # rows, rows touched
    parameters = (users + items) * _ROW + layers
    always = all_reduce_bytes(_FLOAT * layers, devices)
    rows = sum(
        min((devices - 1) * touched * (_FLOAT * _ROW + _ID), all_reduce_bytes(_FLOAT * _ROW * there, devices))
        for there, touched in tables
    )
    sharded = sum(touched for _, touched in tables) * (2 * _FLOAT * _ROW + _ID) * (devices - 1) / devices
    return {
        "state_gb": 4 * _FLOAT * parameters / 1e9,
        "dense_bytes": all_reduce_bytes(_FLOAT * parameters, devices) / own,
        "rows_bytes": (always + rows) / own,
        "sharded_bytes": (always + sharded) / own,
        "adam_bytes": _ADAM_PASSES * _FLOAT * parameters / own,
        "adam_sharded_bytes": _ADAM_PASSES * _FLOAT * (layers + (users + items) * _ROW / devices) / own,
    }
