"""What a step costs where tables are too large for a device, or devices stand in several machines: bytes, by formula.

Nothing of the product shards its tables or exchanges rows; the formulas say what it would bring. No torch.
"""

from __future__ import annotations

from itertools import pairwise

from benchmark import training_variants as settings
from benchmark.cost_model_bounds import all_reduce_bytes

NETWORK_GB_PER_S = 50  # of a device, in one direction: a network card of 400 Gb/s for each
CLUSTERS = ((1 << 20, 8), (1 << 23, 64))  # samples of a step over all devices, devices
SIZES = {  # users, items
    "MovieLens-20M": (138_493, 26_744),
    "10 million users": (10_000_000, 1_000_000),
    "100 million users": (100_000_000, 10_000_000),
}

_FLOAT, _ID = 4, 4  # bytes
_ADAM_PASSES = 7  # parameter, gradient and two moments read; parameter and moments written
_ROW = settings.LAYERS[0] // 2 + settings.FACTORS  # floats of a user's or an item's embeddings


def scaling(users: int, items: int, batch_size: int, devices: int) -> dict[str, float]:
    """Bytes per sample of a device that enter it over the network in a step, and what it holds.

    dense: tables on every device, the gradient of all parameters added up, as the product does. rows: tables on every
    device, of each table the rows with a gradient sent to all others, or where that is less, dense. sharded: each row
    on one device; rows go to the devices whose samples have them, and their gradients back.

    Rows are distinct as far as the table allows: negatives are drawn from all items, and users are many.

    Args:
        batch_size: samples over all devices.
    Returns:
        state_gb: of parameters, gradients and Adam's moments, the whole. The bytes per sample of the three ways;
        adam_bytes of the pass over all rows where they are replicated, adam_sharded_bytes where they are not.
    """
    own = batch_size / devices
    layers = sum(a * b + b for a, b in pairwise(settings.LAYERS)) + settings.FACTORS + settings.LAYERS[-1] + 1
    tables = ((users, min(users, own / (1 + settings.NEGATIVES))), (items, min(items, own)))  # rows, and those touched
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
