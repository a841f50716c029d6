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
from workflows.sampling.counter_rng import mix

FINGERPRINT = "fingerprint"
_BLOCK_ROWS = 1 << 15  # temporary arrays stay in a CPU's cache
_ODD = -7046029254386353131  # 2**64 divided by the golden ratio, as int64


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
        users, items: int32 [N], encoded ids, each user's rows adjacent; labels: float32 [N]; split: int8 [N], 0 or 1.
    """
    total = 0
    for start in range(0, len(users), _BLOCK_ROWS):
        own = slice(start, min(len(users), start + _BLOCK_ROWS))
        key = (users[own].astype(np.int64) << 32) | (items[own].astype(np.int64) << 1) | (labels[own] > 0)
        before = np.zeros(len(key), dtype=np.int64)
        inner = slice(max(1, start), own.stop)  # each has a row before it
        outer = slice(inner.start - 1, inner.stop - 1)
        linked = (users[inner] == users[outer]) & (split[inner] == split[outer])
        before[inner.start - start :] = np.where(linked, items[outer] + 1, 0)
        total += int(mix(key ^ -split[own].astype(np.int64) ^ (before * _ODD)).sum())
    return total


def split_hash(rows: Mapping[str, int], total: int) -> str:
    """SHA-256 of the numbers of rows by mapping and of the sum of `rows_hash` over all partitions."""
    counted = "".join(f"{mapping}: {number} rows\n" for mapping, number in rows.items())
    return hashlib.sha256(f"{counted}{total % 2**64:016x}".encode()).hexdigest()
