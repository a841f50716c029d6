"""Text ids as 64-bit keys, and back: each text is represented by a hash while rows are sorted and encoded.

Two texts with the same hash would become one id, so the texts are spilled beside the rows and compared when they are
sorted: a collision is always detected and refused.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from array_api_compat import array_namespace

from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice, text_memory
from workflows.device.kernels import launch
from workflows.sampling.counter_rng import mix

KEY, TEXT = "key", "text"


def bucket_of(keys: Any, buckets: int) -> Any:
    """uint16 bucket of each int64 key (or integer id), by a hash of that key alone; NumPy or CuPy."""
    xp = array_namespace(keys)
    high = (mix(xp.astype(keys, xp.int64)) >> 32) & ((1 << 32) - 1)
    return xp.astype((high * buckets) >> 32, xp.uint16)


def text_buckets(partitions: int) -> int:
    """Number of buckets for the texts of a log; each is a few times smaller than its rows."""
    return max(1, partitions // 8)


def text_keys(texts: pa.Array) -> np.ndarray:
    """The int64 key of each text, the same in every process (SipHash with pandas' fixed key)."""
    from pandas.util import hash_array  # imported here so that a log without text does not wait for pandas

    return hash_array(texts.to_numpy(zero_copy_only=False), categorize=False).view(np.int64)


def text_keys_on_gpu(texts: Any, device: FrameDevice) -> Any:
    """The same keys of a cuDF column without nulls: int64 [N] of CuPy."""
    keys = device.arrays.empty(len(texts), dtype=device.arrays.int64)
    if len(texts):
        launch("text_keys", len(texts), len(texts), *text_memory(texts), keys)
    return keys


def spill_texts(column: pa.ChunkedArray, path: Path, buckets: int) -> np.ndarray:
    """Write the distinct texts of a column, one record batch per bucket of keys.

    Returns:
        int64 key of each row's text.
    """
    encoded = column.combine_chunks().dictionary_encode()
    texts = encoded.dictionary.cast(pa.large_string())
    keys = text_keys(texts)
    write_texts(keys, texts, path, buckets)
    return keys[encoded.indices.to_numpy()]


def write_texts(keys: np.ndarray, texts: pa.Array, path: Path, buckets: int) -> None:
    """Write distinct texts and their keys, one record batch per bucket of keys."""
    bucket = bucket_of(keys, buckets)
    order = np.argsort(bucket, kind="stable")
    table = pa.record_batch({KEY: keys[order], TEXT: texts.take(pa.array(order))})
    cuts = np.searchsorted(bucket[order], np.arange(buckets + 1))
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for start, stop in pairwise(cuts.tolist()):
            writer.write_batch(table.slice(start, stop - start))
    partial.replace(path)


def texts_of_bucket(bucket: int, paths: list[Path]) -> pa.Array:
    """The distinct texts of a bucket across all files.

    Raises:
        UserError: two texts have the same key.
    """
    batches = []
    for path in paths:
        with pa.memory_map(str(path)) as source:
            batches.append(pa.ipc.open_file(source).get_batch(bucket))
    return distinct_texts(pa.Table.from_batches(batches))


def distinct_texts(table: pa.Table) -> pa.Array:
    """The distinct texts of a table of `key` and `text`.

    Raises:
        UserError: two texts have the same key.
    """
    _, first, inverse = np.unique(table.column(KEY).to_numpy(), return_index=True, return_inverse=True)
    texts = table.column(TEXT).combine_chunks()
    distinct = texts.take(pa.array(first))
    same = pc.equal(texts, distinct.take(pa.array(inverse)))
    if not pc.all(same, min_count=0).as_py():
        at = pc.index(same, False).as_py()
        raise UserError(
            f"the ids {texts[at].as_py()!r} and {distinct[int(inverse[at])].as_py()!r} have the same 64-bit hash and "
            "would become one id; change one of them"
        )
    return distinct


def in_order(parts: list[pa.Array]) -> pa.Array:
    """All texts, sorted by code point."""
    texts = pa.concat_arrays(parts)
    return texts.take(pc.sort_indices(texts))  # UTF-8 bytes sort by code point
