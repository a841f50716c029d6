"""The fingerprint of a prepared folder: what a run remembers of the data it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.config import STATS_NAME
from workflows.common.files import read_json
from workflows.device.loops import host_loops
from workflows.sampling import counter_rng

FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of a prepared folder's content, in hexadecimal.

    Attributes:
        encoding: of the original ids of users and items, in encoded order: an encoded id means the same in two folders
            that share it.
        split: of the rows of train and test, each user's in order; it does not depend on how they are spread over
            files, nor on the device that wrote them.
    """

    encoding: str
    split: str


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint in a folder's `stats.json`; None if it has none: an older folder, or not one of ours."""
    found = read_json(folder / STATS_NAME).get(FINGERPRINT)
    if not isinstance(found, dict):
        return None
    encoding, split = found.get("encoding"), found.get("split")
    return Fingerprint(encoding, split) if isinstance(encoding, str) and isinstance(split, str) else None


def encoding_hash(originals: Mapping[str, pa.Array]) -> str:
    """SHA-256 of original ids, by column: their kind (integers of any width, text) and their values, in order."""
    found = hashlib.sha256()
    for name, ids in originals.items():
        text = not pa.types.is_integer(ids.type)
        found.update(f"{name}: {len(ids)} {'texts' if text else 'integers'}\n".encode())
        if text:
            ids = ids.cast(pa.large_string())
            found.update(pc.binary_length(ids).to_numpy(zero_copy_only=False).data)
            _, offsets, content = ids.buffers()
            start, *_, stop = np.frombuffer(offsets, np.int64)[[ids.offset, ids.offset + len(ids)]]
            found.update(b"" if content is None else content[start:stop])
        else:
            found.update(ids.cast(pa.int64()).to_numpy().data)
    return found.hexdigest()


def rows_hash(users: np.ndarray, items: np.ndarray, labels: np.ndarray, split: np.ndarray) -> int:
    """Sum, in wrapping 64-bit arithmetic, of a hash of each row together with the user's row before it.

    The sums of parts that hold whole users add up to that of all rows, in any order of the parts. On a GPU the kernel
    `count_rows` computes the hashes.

    Args:
        users, items: int32 [N], encoded ids, each user's rows of a split adjacent.
        labels, split: float32 [N] and int8 [N], 0 or 1.
    """
    loops = host_loops(users)
    if loops is not None:
        return int(loops.rows_hash(users, items, labels, split))
    key = (users.astype(np.int64) << 32) | (items.astype(np.int64) << 1) | (labels > 0)
    key = np.where(split, ~key, key)
    before = np.zeros_like(key)
    before[1:] = np.where((users[1:] == users[:-1]) & (split[1:] == split[:-1]), items[:-1] + 1, 0)
    return int(counter_rng.mix(counter_rng.advanced(key, before)).sum())


def split_hash(rows: Mapping[str, int], total: int) -> str:
    """SHA-256 of the numbers of rows by mapping and of the sum of `rows_hash` over all partitions."""
    counted = "".join(f"{mapping}: {number} rows\n" for mapping, number in rows.items())
    return hashlib.sha256(f"{counted}{total % 2**64:016x}".encode()).hexdigest()
